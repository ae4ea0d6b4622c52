//! The raw disk: one sequential direct write and one flush, into a file that is preallocated and
//! prewritten. What a stabilisation is held against.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

const PAGE: usize = 4096;

/// A file to write to, and an aligned buffer to write from.
pub(crate) struct RawDisk {
    file: File,
    bytes: Vec<u8>,
    start: usize,
    len: u64,
    at: u64,
}

impl RawDisk {
    pub(crate) fn new(path: &Path, len: u64, write_max: usize) -> std::io::Result<RawDisk> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
            .open(path)?;
        let bytes = vec![0x5a; write_max + PAGE];
        let start = bytes.as_ptr().align_offset(PAGE);
        let mut disk = RawDisk { file, bytes, start, len, at: 0 };
        while disk.at < len {
            let n = write_max.min((len - disk.at) as usize);
            disk.file.write_all_at(&disk.bytes[disk.start..][..n], disk.at)?;
            disk.at += n as u64;
        }
        disk.file.sync_all()?;
        disk.at = 0;
        Ok(disk)
    }

    /// Writes so many bytes where the last write ended, and flushes. Microseconds.
    pub(crate) fn write_and_flush(&mut self, n: usize) -> std::io::Result<f64> {
        if self.at + n as u64 > self.len {
            self.at = 0;
        }
        let began = Instant::now();
        self.file.write_all_at(&self.bytes[self.start..][..n], self.at)?;
        self.file.sync_data()?;
        self.at += n as u64;
        Ok(began.elapsed().as_secs_f64() * 1e6)
    }
}
