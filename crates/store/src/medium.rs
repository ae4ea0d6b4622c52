//! The whole contact with the disk: five calls on one flat run of bytes, and two that make several of them at
//! once where the medium can. Nothing here knows what the bytes mean. Read [`Medium`] first; `file` has the
//! real one, [`crate::sim`] the cruel one.

use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use crate::aligned::AlignedBuf;

/// One of several reads that are made together.
#[derive(Debug)]
pub struct ReadRequest<'a> {
    /// Where, in bytes.
    pub offset: u64,
    /// What is to be filled.
    pub into: &'a mut [u8],
    /// What [`Medium::read`] would have said. Set by [`Medium::read_many`].
    pub outcome: io::Result<()>,
}

impl<'a> ReadRequest<'a> {
    /// A read that has not been made.
    #[must_use]
    pub fn new(offset: u64, into: &'a mut [u8]) -> Self {
        ReadRequest { offset, into, outcome: Ok(()) }
    }
}

/// One of several writes that are made together.
#[derive(Clone, Copy, Debug)]
pub struct WriteRequest<'a> {
    /// Where, in bytes.
    pub offset: u64,
    /// What, one after the other.
    pub parts: &'a [IoSlice<'a>],
}

/// Bytes that a write under way shares with whoever has it made; nobody changes them meanwhile.
#[derive(Clone, Debug)]
pub struct SharedPart {
    bytes: Arc<AlignedBuf>,
    range: Range<usize>,
}

impl SharedPart {
    /// These of the bytes.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn new(bytes: Arc<AlignedBuf>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= bytes.len());
        SharedPart { bytes, range }
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes.as_slice()[self.range.clone()]
    }
}

/// A write that was begun with [`Medium::begin_write`]. Dropping it waits for its end too, and nobody learns whether it
/// has been done.
pub trait WriteUnderWay: Send + fmt::Debug {
    /// Waits for its end.
    ///
    /// # Errors
    /// As [`Medium::write`].
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// Which half of [`Medium::write_and_sync`] failed.
#[derive(Debug)]
pub enum WriteSyncError {
    /// A write did; no flush has failed.
    Write(io::Error),
    /// The flush did.
    Sync(io::Error),
}

/// A disk, as seen by the store. Calls come from several threads at once; ranges being written never
/// overlap ranges that another call reads or writes and relies on.
///
/// What is written is durable only after a later [`Medium::sync`] has returned `Ok`. After a call has
/// failed, the state of what it touched, and of everything written since the last successful sync, is
/// unknown: the store then writes elsewhere and never repeats the call.
pub trait Medium: Send + Sync + fmt::Debug {
    /// Fills `into` from `offset` on; it may be served from a cache.
    ///
    /// # Errors
    /// Of kind [`io::ErrorKind::UnexpectedEof`] if the range leaves the file; else what the disk says.
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// As [`Medium::read`], but from the disk itself where there is a difference: for checking it.
    ///
    /// # Errors
    /// As for [`Medium::read`].
    fn read_from_disk(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read(offset, into)
    }

    /// Writes `parts`, one after the other, from `offset` on: all of them or an error.
    ///
    /// # Errors
    /// What the disk says; how much has been written is then unknown.
    fn write(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// Begins to write `parts`, one after the other, from `offset` on, if the medium can do so while its caller does
    /// something else; else gives the parts back, with nothing done. Several may be under way, in any order.
    ///
    /// A [`Medium::sync`] makes durable what has been finished before it was called.
    ///
    /// # Errors
    /// The parts, for [`Medium::write`].
    fn begin_write(
        &self,
        offset: u64,
        parts: Vec<SharedPart>,
    ) -> Result<Box<dyn WriteUnderWay>, Vec<SharedPart>> {
        let _ = offset;
        Err(parts)
    }

    /// Makes durable everything whose write returned before this call, and the length.
    ///
    /// # Errors
    /// What the disk says; what has been written since the last success may then be lost.
    fn sync(&self) -> io::Result<()>;

    /// Makes several reads, in any order and at the same time where that is quicker; each has an outcome of
    /// its own.
    fn read_many(&self, reads: &mut [ReadRequest<'_>]) {
        for read in reads {
            read.outcome = self.read(read.offset, read.into);
        }
    }

    /// Makes all the writes, in any order, and then a flush that makes them durable: as [`Medium::write`] for
    /// each and [`Medium::sync`], in fewer calls where that is possible.
    ///
    /// # Errors
    /// What the disk says. After the error of a write there may or may not have been a flush.
    fn write_and_sync(&self, writes: &[WriteRequest<'_>]) -> Result<(), WriteSyncError> {
        for write in writes {
            self.write(write.offset, write.parts).map_err(WriteSyncError::Write)?;
        }
        self.sync().map_err(WriteSyncError::Sync)
    }

    /// How it does its work, in a few words, for people who ask.
    fn describe(&self) -> String {
        "plain calls".to_string()
    }

    /// Bytes in the file.
    ///
    /// # Errors
    /// What the file system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// What the file system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Makes the file `len` bytes long, shorter or longer, with its room taken on the disk where the file system can; new
    /// bytes read as zero.
    ///
    /// # Errors
    /// Of kind [`io::ErrorKind::StorageFull`] (or quota) if there is no room; the length is then as before.
    fn set_len(&self, len: u64) -> io::Result<()>;
}
