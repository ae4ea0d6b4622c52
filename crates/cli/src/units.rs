//! Numbers as people read them. Nothing else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::quota::{Limit, Percent};

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

/// Bytes in a second, from something like `100MiB/s`, `2 GB/s` or `5000000`.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    let number = text.trim();
    let number = number.strip_suffix("/s").unwrap_or(number);
    size(number).map_err(|wrong| match wrong {
        Wrong::NoSize => format!("{text:?} is no rate: write it like 100MiB/s"),
        Wrong::TooLarge => {
            format!("{text:?} is more than 2^64 - 1 bytes in a second: write it like 100MiB/s")
        }
    })
}

/// A quota, from something like `500MiB`, `20 GB` or `none`.
pub(crate) fn limit(text: &str) -> Result<Limit, String> {
    if text.trim() == "none" {
        return Ok(Limit(None));
    }
    let bytes = size(text).map_err(|wrong| match wrong {
        Wrong::NoSize => format!("{text:?} is no number of bytes: write it like 500MiB, or none"),
        Wrong::TooLarge => {
            format!("{text:?} is more than 2^64 - 1 bytes: write it like 500MiB, or none")
        }
    })?;
    Ok(Limit(Some(bytes)))
}

/// Hundredths of what is live that a file may have, or `none`.
pub(crate) fn percent(text: &str) -> Result<Percent, String> {
    if text.trim() == "none" {
        return Ok(Percent(None));
    }
    let words = |_| format!("{text:?} is no number of hundredths: write it like 300, or none");
    text.trim().trim_end_matches('%').parse().map(|percent| Percent(Some(percent))).map_err(words)
}

/// Why a text is no size.
enum Wrong {
    NoSize,
    TooLarge,
}

/// A number of bytes that is not 0.
fn size(text: &str) -> Result<u64, Wrong> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(Wrong::NoSize),
    };
    // Whole numbers as they are: not all have a place among those with a point.
    if let Ok(number) = number.parse::<u64>() {
        return match number.checked_mul(factor) {
            Some(0) => Err(Wrong::NoSize),
            Some(bytes) => Ok(bytes),
            None => Err(Wrong::TooLarge),
        };
    }
    let bytes = number.parse::<f64>().map_err(|_| Wrong::NoSize)? * factor as f64;
    match bytes {
        // 2^64, which `u64::MAX` becomes.
        bytes if bytes >= u64::MAX as f64 => Err(Wrong::TooLarge),
        bytes if bytes >= 1.0 => Ok(bytes as u64),
        _ => Err(Wrong::NoSize),
    }
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
    fn rates_are_read() {
        assert_eq!(rate("100MiB/s"), Ok(100 << 20));
        assert_eq!(rate("1.5 GiB"), Ok(3 << 29));
        assert_eq!(rate("20MB/s"), Ok(20_000_000));
        assert_eq!(rate("4096"), Ok(4096));
        for wrong in ["", "fast", "10 parsec", "0", "-3MiB", "1.2.3k"] {
            assert!(rate(wrong).unwrap_err().contains("100MiB/s"), "{wrong}");
        }
        let error = rate("99999999999999999999MiB/s").unwrap_err();
        assert!(error.contains("more than 2^64 - 1"), "{error}");
    }

    #[test]
    fn limits_are_read() {
        assert_eq!(limit("none"), Ok(Limit(None)));
        assert_eq!(limit("2TiB"), Ok(Limit(Some(2 << 40))));
        assert_eq!(limit(" 1.5 GiB "), Ok(Limit(Some(3 << 29))));
        for wrong in ["", "0", "all", "-1", "5MiB/s"] {
            assert!(limit(wrong).unwrap_err().contains("or none"), "{wrong}");
        }
        assert_eq!(limit("9007199254740993"), Ok(Limit(Some(9_007_199_254_740_993))));
        assert_eq!(limit("18446744073709551615"), Ok(Limit(Some(u64::MAX))));
        let too_large =
            ["18446744073709551616", "16777216TiB", "16777216.0TiB", "9999999999999999999999TiB"];
        for wrong in too_large {
            let error = limit(wrong).unwrap_err();
            assert!(error.contains("more than 2^64 - 1"), "{wrong}: {error}");
        }
    }

    #[test]
    fn percents_are_read() {
        assert_eq!(percent("none"), Ok(Percent(None)));
        assert_eq!(
            (percent("150"), percent(" 300%")),
            (Ok(Percent(Some(150))), Ok(Percent(Some(300))))
        );
        for wrong in ["", "1.5", "-1", "much"] {
            assert!(percent(wrong).unwrap_err().contains("or none"), "{wrong}");
        }
    }

    #[test]
    fn bytes_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(1 << 40), "1.0 TiB");
        assert_eq!(bytes(5 << 50), "5120.0 TiB");
    }
}
