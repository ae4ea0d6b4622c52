//! The medium of a real store: a file, written around the page cache where the file system allows.
//!
//! Two descriptors: writes go through one with O_DIRECT, so that a page is copied once and the flush has
//! nothing to gather; reads go through one without, so that a warm start is served by the page cache
//! (Linux drops cached pages that a direct write covers). Where O_DIRECT is refused, both are buffered.
//! Read [`FileMedium`] first.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise, fallocate};
use rustix::io::{Errno, pwritev};
use stead_model::PAGE_SIZE;

use crate::aligned::AlignedBuf;
use crate::medium::Medium;

/// Slices handed to one system call; Linux allows 1024.
const SLICES_PER_CALL: usize = 1024;

/// A file as a [`Medium`].
#[derive(Debug)]
pub struct FileMedium {
    path: PathBuf,
    buffered: File,
    /// Absent where the file system refuses O_DIRECT.
    direct: Option<File>,
}

impl FileMedium {
    /// Opens a file that is there, for reading and writing.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with(path, OpenOptions::new().read(true).write(true), true)
    }

    /// Makes a new, empty file.
    ///
    /// # Errors
    /// What the file system says; also if the file is there already.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::with(path, OpenOptions::new().read(true).write(true).create_new(true), true)
    }

    /// As [`FileMedium::open`], but never with O_DIRECT: what happens on file systems that refuse it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open_buffered(path: &Path) -> io::Result<Self> {
        Self::with(path, OpenOptions::new().read(true).write(true), false)
    }

    fn with(path: &Path, options: &OpenOptions, try_direct: bool) -> io::Result<Self> {
        let buffered = options.open(path)?;
        let direct = if try_direct { open_direct(path, true)? } else { None };
        if direct.is_none() {
            // After a failed flush the kernel keeps what it could not write as if it had been written; a
            // store opened anew must see the disk, not that.
            buffered.sync_data()?;
            fadvise(&buffered, 0, None, Advice::DontNeed)?;
        }
        Ok(FileMedium { path: path.to_path_buf(), buffered, direct })
    }

    /// Whether writes go around the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A second descriptor with O_DIRECT, or `None` where that is refused: with EINVAL at opening, or (some
/// file systems) at the first read.
pub(crate) fn open_direct(path: &Path, write: bool) -> io::Result<Option<File>> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).expect("a flag of open fits its argument");
    let file = match OpenOptions::new().read(true).write(write).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if refuses_direct(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut probe = AlignedBuf::zeroed(PAGE_SIZE);
    match file.read_at(probe.as_mut_slice(), 0) {
        Ok(_) => Ok(Some(file)),
        Err(error) if refuses_direct(&error) => Ok(None),
        // A disk that cannot read this block says so again to whoever wants its contents.
        Err(_) => Ok(Some(file)),
    }
}

fn refuses_direct(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP))
}

fn read_exactly(file: &File, offset: u64, into: &mut [u8]) -> io::Result<()> {
    // `read_exact_at` goes on after EINTR and short reads.
    file.read_exact_at(into, offset)
}

/// Writes all of `parts`, going on after short writes and EINTR. For O_DIRECT each part must be aligned.
fn write_all(file: &File, mut offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
    for group in parts.chunks(SLICES_PER_CALL) {
        let mut rest: Vec<IoSlice<'_>> = group.to_vec();
        let mut rest = &mut rest[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match pwritev(file, rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

impl Medium for FileMedium {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        read_exactly(&self.buffered, offset, into)
    }

    fn read_from_disk(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let Some(direct) = &self.direct else {
            fadvise(&self.buffered, offset, None, Advice::DontNeed)?;
            return read_exactly(&self.buffered, offset, into);
        };
        if AlignedBuf::is_aligned(into) {
            return read_exactly(direct, offset, into);
        }
        let mut bounce = AlignedBuf::zeroed(into.len().next_multiple_of(PAGE_SIZE));
        read_exactly(direct, offset, &mut bounce.as_mut_slice()[..into.len()])?;
        into.copy_from_slice(&bounce.as_slice()[..into.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let Some(direct) = &self.direct else {
            return write_all(&self.buffered, offset, parts);
        };
        assert!(offset.is_multiple_of(PAGE_SIZE as u64), "the store writes whole blocks");
        if parts.iter().all(|part| AlignedBuf::is_aligned(part)) {
            return write_all(direct, offset, parts);
        }
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        assert!(len.is_multiple_of(PAGE_SIZE), "the store writes whole blocks");
        let mut bounce = AlignedBuf::zeroed(len);
        let mut at = 0;
        for part in parts {
            bounce.as_mut_slice()[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        write_all(direct, offset, &[IoSlice::new(bounce.as_slice())])
    }

    fn sync(&self) -> io::Result<()> {
        self.direct.as_ref().unwrap_or(&self.buffered).sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.buffered.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len <= old {
            return self.buffered.set_len(len);
        }
        loop {
            match fallocate(&self.buffered, FallocateFlags::empty(), old, len - old) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return self.buffered.set_len(len),
                Err(error) => {
                    // A full disk may leave part of the room taken and the file longer.
                    if self.len()? != old {
                        self.buffered.set_len(old)?;
                    }
                    return Err(error.into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(medium: &FileMedium) {
        medium.set_len(64 * 1024).unwrap();
        assert_eq!(medium.len().unwrap(), 64 * 1024);
        let mut aligned = AlignedBuf::zeroed(2 * PAGE_SIZE);
        aligned.as_mut_slice().fill(3);
        let odd = vec![5; PAGE_SIZE + 1];
        medium.write(4096, &[IoSlice::new(aligned.as_slice())]).unwrap();
        let parts = [IoSlice::new(&odd[1..101]), IoSlice::new(&odd[1..3997])];
        medium.write(8192, &parts).unwrap();
        medium.sync().unwrap();
        for unaligned in [0, 1] {
            let mut back = vec![0; 3 * PAGE_SIZE + unaligned];
            medium.read(4096, &mut back[unaligned..]).unwrap();
            let mut from_disk = vec![0; 3 * PAGE_SIZE + unaligned];
            medium.read_from_disk(4096, &mut from_disk[unaligned..]).unwrap();
            assert_eq!(back, from_disk);
            let back = &back[unaligned..];
            assert!(back[..4096].iter().all(|&b| b == 3));
            assert!(back[4096..8192].iter().all(|&b| b == 5));
            assert!(back[8192..].iter().all(|&b| b == 0));
        }
        let mut beyond = [0; 4096];
        let error = medium.read(64 * 1024, &mut beyond).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        medium.set_len(8192).unwrap();
        assert_eq!(medium.len().unwrap(), 8192);
    }

    #[test]
    fn a_file_gives_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let medium = FileMedium::create(&dir.path().join("direct")).unwrap();
        round_trip(&medium);
        drop(FileMedium::create(&dir.path().join("buffered")).unwrap());
        let medium = FileMedium::open_buffered(&dir.path().join("buffered")).unwrap();
        assert!(!medium.is_direct());
        round_trip(&medium);
    }

    #[test]
    fn many_slices_go_out_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let medium = FileMedium::create(&dir.path().join("log")).unwrap();
        let mut buf = AlignedBuf::zeroed(3000 * PAGE_SIZE);
        for (i, page) in buf.as_mut_slice().chunks_mut(PAGE_SIZE).enumerate() {
            page.fill((i % 251) as u8);
        }
        let parts: Vec<_> = buf.as_slice().chunks(PAGE_SIZE).map(IoSlice::new).collect();
        medium.write(0, &parts).unwrap();
        let mut back = vec![0; buf.len()];
        medium.read(0, &mut back).unwrap();
        assert!(back == buf.as_slice());
    }
}
