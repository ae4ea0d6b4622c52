//! Reading a store that another process owns and goes on writing: [`Store::open_read_only`]. Nothing is locked
//! against the owner, and nothing is written or flushed; what the reader needs is pinned (see `pin`). Read
//! [`Store::open_read_only`] first.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, fadvise};
use stead_model::PAGE_SIZE;

use crate::aligned::AlignedBuf;
use crate::directory::{Key, LOG, LogFile, find_log};
use crate::error::OpenError;
use crate::file::open_direct;
use crate::medium::Medium;
use crate::pin;
use crate::recover::{Hold, OpenReport, open_at};
use crate::store::Store;

impl Store {
    /// Opens the store in `dir` for reading, whether or not another process has it open and is at work on it. It
    /// stays as it was at the last stabilisation, or the one then under way; whatever the owner does later is not
    /// seen. As long as it is open, the owner does not use again what it needs, so that the file may grow.
    ///
    /// Needs no right to write, and writes and flushes nothing. What would change the store fails with
    /// [`CommitError::ReadOnly`](crate::CommitError::ReadOnly).
    ///
    /// # Errors
    /// As for [`Store::open`], apart from being held.
    pub fn open_read_only(dir: &Path) -> Result<(Store, OpenReport), OpenError> {
        find_log(dir)?;
        let path = dir.join(LOG);
        let io_error = |source| OpenError::Io { path: path.clone(), action: "opening", source };
        let medium = Arc::new(LogReader::open(dir, &path).map_err(io_error)?);
        let reading = Reading { log: Arc::clone(&medium) };
        open_at(medium, &path, Hold::Reader(reading))
    }
}

/// What a reader has of a log, until dropped.
#[derive(Debug)]
pub(crate) struct Reading {
    log: Arc<LogReader>,
}

impl Reading {
    /// Pins this generation and no other.
    pub(crate) fn pin(&self, generation: u64) -> io::Result<()> {
        pin::release(self.log.buffered.file());
        pin::take(self.log.buffered.file(), generation)
    }

    /// Whether an owner is at work.
    pub(crate) fn has_owner(&self) -> bool {
        self.log.buffered.is_held_here() || pin::is_owned(self.log.buffered.file())
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        pin::release(self.log.buffered.file());
    }
}

/// A log as a [`Medium`] that can only be read.
#[derive(Debug)]
struct LogReader {
    buffered: LogFile,
    /// Absent where the file system refuses O_DIRECT.
    direct: Option<LogFile>,
}

impl LogReader {
    fn open(dir: &Path, log: &Path) -> io::Result<Self> {
        let key = Key::of(dir)?;
        let buffered = LogFile::new(File::open(log)?, key);
        let direct = open_direct(log, false)?.map(|file| LogFile::new(file, key));
        Ok(LogReader { buffered, direct })
    }
}

impl Medium for LogReader {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.buffered.file().read_exact_at(into, offset)
    }

    fn read_from_disk(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let Some(direct) = &self.direct else {
            fadvise(self.buffered.file(), offset, None, Advice::DontNeed)?;
            return self.read(offset, into);
        };
        if AlignedBuf::is_aligned(into) {
            return direct.file().read_exact_at(into, offset);
        }
        let mut bounce = AlignedBuf::zeroed(into.len().next_multiple_of(PAGE_SIZE));
        direct.file().read_exact_at(&mut bounce.as_mut_slice()[..into.len()], offset)?;
        into.copy_from_slice(&bounce.as_slice()[..into.len()]);
        Ok(())
    }

    fn write(&self, _: u64, _: &[IoSlice<'_>]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.buffered.file().metadata()?.len())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}
