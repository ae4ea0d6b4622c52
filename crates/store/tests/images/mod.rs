//! Images of stores as text: the length, then every 16 bytes that are not all zero, behind their offset.

use std::fmt::Write as _;
use std::io::IoSlice;
use std::path::Path;

use stead_store::Medium;
use stead_store::sim::CrashMedium;

/// Writes what is on a medium to a file.
pub(crate) fn write(medium: &CrashMedium, path: &Path) {
    let len = medium.len().unwrap();
    let mut text = format!("{len:#x}\n");
    for offset in (0..len).step_by(16) {
        let mut row = [0; 16];
        medium.read(offset, &mut row).unwrap();
        if row != [0; 16] {
            let hex: String = row.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "{offset:x} {hex}").unwrap();
        }
    }
    std::fs::write(path, text).unwrap();
}

/// A medium with an image on it.
pub(crate) fn read(text: &str) -> CrashMedium {
    let mut lines = text.lines();
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let mut bytes = vec![0; hex(lines.next().unwrap()) as usize];
    for line in lines {
        let (offset, row) = line.split_once(' ').unwrap();
        for i in 0..16 {
            bytes[hex(offset) as usize + i] = hex(&row[2 * i..2 * i + 2]) as u8;
        }
    }
    let medium = CrashMedium::new(0);
    medium.set_len(bytes.len() as u64).unwrap();
    medium.write(0, &[IoSlice::new(&bytes)]).unwrap();
    medium.sync().unwrap();
    medium
}
