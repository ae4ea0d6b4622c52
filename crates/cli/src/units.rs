//! Numbers as people read them. Nothing else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes in binary units with one digit behind the point.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// How long ago a moment was, in nanoseconds since 1970.
pub(crate) fn ago(unix_ns: u64) -> String {
    let then = UNIX_EPOCH + Duration::from_nanos(unix_ns);
    match SystemTime::now().duration_since(then) {
        Ok(d) if d < Duration::from_secs(120) => format!("{:.1} s ago", d.as_secs_f64()),
        Ok(d) if d < Duration::from_secs(7200) => format!("{} min ago", d.as_secs() / 60),
        Ok(d) if d < Duration::from_secs(172_800) => format!("{} h ago", d.as_secs() / 3600),
        Ok(d) => format!("{} days ago", d.as_secs() / 86400),
        Err(_) => "in the future, by this machine's clock".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(1 << 40), "1.0 TiB");
        assert_eq!(bytes(5 << 50), "5120.0 TiB");
    }
}
