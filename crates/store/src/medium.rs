//! The whole contact with the disk: five calls on one flat run of bytes. Nothing here knows what the
//! bytes mean. Read [`Medium`] first; `file` has the real one, [`crate::sim`] the cruel one.

use std::fmt;
use std::io::{self, IoSlice};

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

    /// Makes durable everything whose write returned before this call, and the length.
    ///
    /// # Errors
    /// What the disk says; what has been written since the last success may then be lost.
    fn sync(&self) -> io::Result<()>;

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

    /// Makes the file `len` bytes long, with its room taken on the disk where the file system can; new
    /// bytes read as zero.
    ///
    /// # Errors
    /// Of kind [`io::ErrorKind::StorageFull`] (or quota) if there is no room; the length is then as before.
    fn set_len(&self, len: u64) -> io::Result<()>;
}
