//! The medium of a real store: a file, written around the page cache where the file system allows.
//!
//! Two descriptors: writes go through one with O_DIRECT, so that a page is copied once and the flush has
//! nothing to gather; reads go through one without, so that a warm start is served by the page cache
//! (Linux drops cached pages that a direct write covers). Where O_DIRECT is refused, both are buffered. What can be
//! asked for together goes through a [`Ring`] where the kernel gives one, else through plain system calls, which
//! also do what a ring leaves undone. Read [`FileMedium`] first.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise, fallocate};
use rustix::io::{Errno, pwritev};
use stead_model::PAGE_SIZE;

use crate::aio::{Aio, Number};
use crate::aligned::AlignedBuf;
use crate::error::again;
use crate::medium::{Medium, ReadRequest, SharedPart, WriteRequest, WriteSyncError, WriteUnderWay};
use crate::ring::{Outcome, Request, Ring};

/// Slices handed to one system call; Linux allows 1024.
const SLICES_PER_CALL: usize = 1024;

/// Bytes from which on a write is cut into several that are at the disk at the same time.
const LARGE_WRITE: usize = 1 << 20;

/// How a file's reads, writes and flushes reach the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Calls {
    /// By plain system calls, as quick as a ring or quicker wherever it was measured, but for writes during which their
    /// caller has something else to do: by `io_submit`, where the kernel allows it (`docs/decisions`).
    #[default]
    Submit,
    /// By plain system calls alone.
    Plain,
    /// What can be asked for together through io_uring; by plain system calls where the kernel refuses it.
    Ring,
}

impl Calls {
    /// What the environment variable `STEAD_IO` says: `ring`, `plain`, or anything else for the default.
    fn from_environment() -> Self {
        match std::env::var_os("STEAD_IO") {
            Some(said) if said == "ring" => Calls::Ring,
            Some(said) if said == "plain" => Calls::Plain,
            _ => Calls::Submit,
        }
    }
}

/// A file as a [`Medium`].
#[derive(Debug)]
pub struct FileMedium {
    path: PathBuf,
    buffered: File,
    /// Absent where the file system refuses O_DIRECT.
    direct: Option<Arc<File>>,
    /// Direct writes that their callers do not wait for at once; `None` if the kernel gave no queue for them, or other calls
    /// are wanted.
    /// Made at the first of them.
    behind: OnceLock<Option<Arc<Aio>>>,
    calls: Calls,
    /// One ring for reading and one for writing, so that neither waits for the other.
    reading: Option<Ring>,
    writing: Option<Ring>,
    /// Why there is none, if the kernel gave none.
    refused: Option<io::Error>,
}

impl FileMedium {
    /// Opens a file that is there, for reading and writing.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, true, Calls::from_environment())
    }

    /// Makes a new, empty file.
    ///
    /// # Errors
    /// What the file system says; also if the file is there already.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        Self::with(path, &options, true, Calls::from_environment())
    }

    /// As [`FileMedium::open`], but never with O_DIRECT: what happens on file systems that refuse it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open_buffered(path: &Path) -> io::Result<Self> {
        Self::open_with(path, false, Calls::from_environment())
    }

    /// As [`FileMedium::open`], with O_DIRECT only if `direct` and the file system allow it, and with system
    /// calls of this kind.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open_with(path: &Path, direct: bool, calls: Calls) -> io::Result<Self> {
        Self::with(path, OpenOptions::new().read(true).write(true), direct, calls)
    }

    fn with(
        path: &Path,
        options: &OpenOptions,
        try_direct: bool,
        calls: Calls,
    ) -> io::Result<Self> {
        let buffered = options.open(path)?;
        let direct = if try_direct { open_direct(path, true)? } else { None };
        if direct.is_none() {
            // After a failed flush the kernel keeps what it could not write as if it had been written; a
            // store opened anew must see the disk, not that.
            buffered.sync_data()?;
            fadvise(&buffered, 0, None, Advice::DontNeed)?;
        }
        let mut refused = None;
        let mut ring = || {
            let ring = (calls == Calls::Ring).then(Ring::new)?;
            ring.inspect_err(|error| refused = Some(again(error))).ok()
        };
        let (reading, writing) = (ring(), ring());
        Ok(FileMedium {
            path: path.to_path_buf(),
            buffered,
            direct: direct.map(Arc::new),
            behind: OnceLock::new(),
            calls,
            reading,
            writing,
            refused,
        })
    }

    /// Whether reads that are made together, and writes with a flush behind them, go through io_uring.
    #[must_use]
    pub fn uses_ring(&self) -> bool {
        [&self.reading, &self.writing].iter().all(|r| r.as_ref().is_some_and(Ring::is_usable))
    }

    /// The descriptor that writes go through.
    fn writable(&self) -> &File {
        self.direct.as_deref().unwrap_or(&self.buffered)
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

/// Cuts parts that lie one after the other into writes of about [`LARGE_WRITE`] bytes.
fn cut<'a>(offset: u64, parts: &'a [IoSlice<'a>], into: &mut Vec<Request<'a>>) {
    let (mut first, mut bytes, mut at) = (0, 0, offset);
    for (i, part) in parts.iter().enumerate() {
        bytes += part.len();
        let count = i + 1 - first;
        if bytes >= LARGE_WRITE || count == Request::SLICES || i + 1 == parts.len() {
            into.push(Request::Write { offset: at, parts: &parts[first..=i] });
            at += bytes as u64;
            (first, bytes) = (i + 1, 0);
        }
    }
}

/// Does by plain calls what a ring has left of a write.
fn finish_write(file: &File, request: &Request<'_>, outcome: &Outcome) -> io::Result<bool> {
    let Request::Write { offset, parts } = request else { return Ok(false) };
    let done = match outcome {
        Outcome::Done(done) => *done,
        Outcome::Undone => 0,
        Outcome::Failed(error) => return Err(again(error)),
    };
    if done == parts.iter().map(|part| part.len()).sum::<usize>() {
        return Ok(false);
    }
    let mut rest = parts.to_vec();
    let mut rest = &mut rest[..];
    IoSlice::advance_slices(&mut rest, done);
    // Behind a short write a slice may begin in the middle of a sector; a direct one is made anew.
    if done.is_multiple_of(PAGE_SIZE) {
        write_all(file, offset + done as u64, rest)?;
    } else {
        write_all(file, *offset, parts)?;
    }
    Ok(true)
}

impl FileMedium {
    /// The queue for writes that nobody waits for at once.
    fn behind(&self) -> Option<&Arc<Aio>> {
        let make = || (self.calls == Calls::Submit).then(Aio::new)?.ok().map(Arc::new);
        self.behind.get_or_init(make).as_ref()
    }

    /// Whether a write can be made from where its bytes lie.
    fn takes(&self, write: &WriteRequest<'_>) -> bool {
        self.direct.is_none()
            || write.offset.is_multiple_of(PAGE_SIZE as u64)
                && write.parts.iter().all(|part| AlignedBuf::is_aligned(part))
    }

    /// The writes' parts as the writable descriptor can take them: copied where they are not aligned.
    fn aligned(&self, write: &WriteRequest<'_>) -> Option<AlignedBuf> {
        if self.takes(write) {
            return None;
        }
        assert!(write.offset.is_multiple_of(PAGE_SIZE as u64), "the store writes whole blocks");
        let len = write.parts.iter().map(|part| part.len()).sum::<usize>();
        assert!(len.is_multiple_of(PAGE_SIZE), "the store writes whole blocks");
        let mut bounce = AlignedBuf::zeroed(len);
        let mut at = 0;
        for part in write.parts {
            bounce.as_mut_slice()[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Some(bounce)
    }

    /// Writes, and flushes, through the ring for writing. `None` if that cannot be used.
    fn ring_write_and_sync(
        &self,
        writes: &[WriteRequest<'_>],
    ) -> Option<Result<(), WriteSyncError>> {
        let ring = self.writing.as_ref()?;
        let file = self.writable();
        let mut requests = Vec::new();
        for write in writes {
            cut(write.offset, write.parts, &mut requests);
        }
        // A flush behind a single write is linked to it; behind several it waits until they have ended.
        let linked = requests.len() == 1;
        requests.push(Request::Flush);
        let mut outcomes = ring.run(file, &mut requests, linked)?;
        let flushed = outcomes.pop().expect("a flush was asked for");
        let mut written = Ok(false);
        for (request, outcome) in requests.iter().zip(&outcomes) {
            match finish_write(file, request, outcome) {
                Ok(later) => written = written.map(|before| before || later),
                Err(error) => {
                    written = Err(error);
                    break;
                }
            }
        }
        // A flush that failed may have lost what was written, whatever became of the writes.
        if let Outcome::Failed(error) = flushed {
            return Some(Err(WriteSyncError::Sync(error)));
        }
        Some(match written {
            Err(error) => Err(WriteSyncError::Write(error)),
            Ok(later) if later || matches!(flushed, Outcome::Undone) => {
                file.sync_data().map_err(WriteSyncError::Sync)
            }
            Ok(_) => Ok(()),
        })
    }
}

/// A direct write under way.
#[derive(Debug)]
struct Behind {
    file: Arc<File>,
    offset: u64,
    number: Number,
}

impl WriteUnderWay for Behind {
    fn finish(self: Box<Self>) -> io::Result<()> {
        let Behind { file, offset, number } = *self;
        let (parts, whole) = number.finish()?;
        if whole {
            return Ok(());
        }
        let parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part.bytes())).collect();
        write_all(&file, offset, &parts)
    }
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

    fn read_many(&self, reads: &mut [ReadRequest<'_>]) {
        let mut undone = vec![(0, true); reads.len()];
        if let Some(ring) = self.reading.as_ref().filter(|_| reads.len() > 1) {
            let mut requests: Vec<Request<'_>> = reads
                .iter_mut()
                .map(|read| Request::Read { offset: read.offset, into: &mut *read.into })
                .collect();
            let outcomes = ring.run(&self.buffered, &mut requests, false);
            drop(requests);
            for (i, outcome) in outcomes.into_iter().flatten().enumerate() {
                match outcome {
                    Outcome::Done(bytes) => undone[i] = (bytes, bytes < reads[i].into.len()),
                    Outcome::Failed(error) => {
                        reads[i].outcome = Err(error);
                        undone[i].1 = false;
                    }
                    Outcome::Undone => {}
                }
            }
        } else if reads.len() > 1 {
            // Told of all of them, the kernel reads ahead where it can.
            for read in &*reads {
                let len = NonZeroU64::new(read.into.len() as u64);
                // It is advice.
                let _ = fadvise(&self.buffered, read.offset, len, Advice::WillNeed);
            }
        }
        for (read, (done, undone)) in reads.iter_mut().zip(undone) {
            if undone {
                let rest = &mut read.into[done..];
                read.outcome = read_exactly(&self.buffered, read.offset + done as u64, rest);
            }
        }
    }

    fn write(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        match self.aligned(&WriteRequest { offset, parts }) {
            None => write_all(self.writable(), offset, parts),
            Some(bounce) => write_all(self.writable(), offset, &[IoSlice::new(bounce.as_slice())]),
        }
    }

    fn begin_write(
        &self,
        offset: u64,
        parts: Vec<SharedPart>,
    ) -> Result<Box<dyn WriteUnderWay>, Vec<SharedPart>> {
        let Some(file) = &self.direct else { return Err(parts) };
        let aligned = |part: &SharedPart| AlignedBuf::is_aligned(part.bytes());
        if !offset.is_multiple_of(PAGE_SIZE as u64) || !parts.iter().all(aligned) {
            return Err(parts);
        }
        let Some(aio) = self.behind() else { return Err(parts) };
        let number = Number::begin(aio, file, offset, parts)?;
        Ok(Box::new(Behind { file: Arc::clone(file), offset, number }))
    }

    fn write_and_sync(&self, writes: &[WriteRequest<'_>]) -> Result<(), WriteSyncError> {
        if writes.iter().all(|write| self.takes(write))
            && let Some(done) = self.ring_write_and_sync(writes)
        {
            return done;
        }
        for write in writes {
            self.write(write.offset, write.parts).map_err(WriteSyncError::Write)?;
        }
        self.sync().map_err(WriteSyncError::Sync)
    }

    fn sync(&self) -> io::Result<()> {
        self.writable().sync_data()
    }

    fn describe(&self) -> String {
        let direct = if self.is_direct() { "O_DIRECT" } else { "through the page cache" };
        let calls = match &self.refused {
            _ if self.uses_ring() => "io_uring".to_string(),
            Some(why) => format!("plain calls (io_uring is refused: {why})"),
            None => "plain calls".to_string(),
        };
        format!("{direct}, {calls}")
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

    /// By a ring if this kernel gives one, and by plain calls.
    fn both_kinds() -> impl Iterator<Item = (tempfile::TempDir, FileMedium)> {
        [(Calls::Submit, true), (Calls::Plain, true), (Calls::Ring, true), (Calls::Ring, false)]
            .into_iter()
            .filter_map(|(calls, direct)| {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("log");
                drop(FileMedium::create(&path).unwrap());
                let medium = FileMedium::open_with(&path, direct, calls).unwrap();
                if calls == Calls::Ring && !medium.uses_ring() {
                    eprintln!("NOT RUN: {}", medium.describe());
                    return None;
                }
                round_trip(&medium);
                Some((dir, medium))
            })
    }

    fn filled(pages: usize, value: u8) -> Arc<AlignedBuf> {
        let mut bytes = AlignedBuf::zeroed(pages * PAGE_SIZE);
        bytes.as_mut_slice().fill(value);
        Arc::new(bytes)
    }

    #[test]
    fn writes_go_on_while_their_caller_does_something_else() {
        let dir = tempfile::tempdir().unwrap();
        drop(FileMedium::create(&dir.path().join("log")).unwrap());
        let medium = FileMedium::open_with(&dir.path().join("log"), true, Calls::Submit).unwrap();
        medium.set_len(8 << 20).unwrap();
        if !medium.is_direct() {
            eprintln!("NOT RUN: the file system refuses O_DIRECT");
            return;
        }
        let header = filled(1, 7);
        let images: Vec<_> = (0..200).map(|value| filled(5, value)).collect();
        let mut refused = 0;
        let mut under_way = Vec::new();
        let offset = |i: usize| (i * 5 * PAGE_SIZE) as u64;
        for (i, image) in images.iter().enumerate() {
            let parts = vec![
                SharedPart::new(Arc::clone(&header), 0..PAGE_SIZE),
                SharedPart::new(Arc::clone(image), PAGE_SIZE..5 * PAGE_SIZE),
            ];
            match medium.begin_write(offset(i), parts) {
                Ok(write) => under_way.push(write),
                Err(parts) => {
                    // There are more than the kernel is given at a time.
                    refused += 1;
                    let parts: Vec<_> = parts.iter().map(|p| IoSlice::new(p.bytes())).collect();
                    medium.write(offset(i), &parts).unwrap();
                }
            }
        }
        assert!(refused > 0 && !under_way.is_empty());
        // Half of them are waited for, the last ones first.
        let dropped = under_way.split_off(under_way.len() / 2);
        drop(dropped);
        under_way.into_iter().rev().for_each(|write| write.finish().unwrap());
        assert!(images.iter().all(|image| Arc::strong_count(image) == 1), "let go of");
        let mut back = vec![0; 5 * PAGE_SIZE];
        for i in 0..images.len() {
            medium.read(offset(i), &mut back).unwrap();
            assert!(back[..PAGE_SIZE].iter().all(|&b| b == 7));
            assert!(back[PAGE_SIZE..].iter().all(|&b| b == i as u8));
        }
        let unaligned = SharedPart::new(header, 1..4);
        assert!(medium.begin_write(0, vec![unaligned]).is_err());
        let medium = FileMedium::open_buffered(&dir.path().join("log")).unwrap();
        assert!(medium.begin_write(0, vec![SharedPart::new(filled(1, 1), 0..4096)]).is_err());
    }

    #[test]
    fn what_cannot_be_written_says_so_at_its_end() {
        let dir = tempfile::tempdir().unwrap();
        drop(FileMedium::create(&dir.path().join("log")).unwrap());
        let medium = FileMedium::open_with(&dir.path().join("log"), true, Calls::Submit).unwrap();
        // Beyond what a file may ever be.
        let beyond = (i64::MAX as u64) & !(PAGE_SIZE as u64 - 1);
        let part = SharedPart::new(filled(1, 1), 0..PAGE_SIZE);
        match medium.begin_write(beyond - PAGE_SIZE as u64, vec![part]) {
            Ok(write) => assert!(write.finish().is_err()),
            Err(parts) => assert!(medium.write(beyond, &[IoSlice::new(parts[0].bytes())]).is_err()),
        }
    }

    #[test]
    fn writes_with_a_flush_behind_them() {
        for (_dir, medium) in both_kinds() {
            medium.set_len(40 << 20).unwrap();
            let mut bytes = AlignedBuf::zeroed(5 << 20);
            for (i, page) in bytes.as_mut_slice().chunks_mut(PAGE_SIZE).enumerate() {
                page.fill((i % 251) as u8 + 1);
            }
            let pages: Vec<_> = bytes.as_slice().chunks(PAGE_SIZE).map(IoSlice::new).collect();
            let whole = [IoSlice::new(bytes.as_slice())];
            let odd = [IoSlice::new(&bytes.as_slice()[7..7 + PAGE_SIZE])];
            // One, several, many (more than a ring has at a time), one that is not aligned, none.
            let one = [WriteRequest { offset: 4096, parts: &pages[..3] }];
            let several = [
                WriteRequest { offset: 1 << 20, parts: &pages },
                WriteRequest { offset: 16 << 20, parts: &whole },
            ];
            let many: Vec<_> = (0..100)
                .map(|i| WriteRequest {
                    offset: (24 << 20) + i * 8192,
                    parts: &pages[i as usize..][..1],
                })
                .collect();
            let askew = [WriteRequest { offset: 32 << 20, parts: &odd }];
            for writes in [&one[..], &several[..], &many[..], &askew[..], &[]] {
                medium.write_and_sync(writes).unwrap();
                for write in writes {
                    let want: Vec<u8> =
                        write.parts.iter().flat_map(|p| p.iter().copied()).collect();
                    let mut back = vec![0; want.len()];
                    medium.read_from_disk(write.offset, &mut back).unwrap();
                    assert!(back == want);
                }
            }
        }
    }

    #[test]
    fn reads_that_are_made_together() {
        for (_dir, medium) in both_kinds() {
            medium.set_len(400 * 4096).unwrap();
            let mut bytes = AlignedBuf::zeroed(400 * PAGE_SIZE);
            for (i, page) in bytes.as_mut_slice().chunks_mut(PAGE_SIZE).enumerate() {
                page.fill((i % 251) as u8 + 1);
            }
            medium.write(0, &[IoSlice::new(bytes.as_slice())]).unwrap();
            let mut into = vec![0; 200 * PAGE_SIZE];
            let mut reads: Vec<_> = into
                .chunks_mut(PAGE_SIZE)
                .enumerate()
                // The last one leaves the file in its middle, the one before begins behind it.
                .map(|(i, into)| {
                    (if i < 198 { (i * 97 % 400) * 4096 } else { (i + 202) * 4096 - 2048 }, into)
                })
                .map(|(at, into)| ReadRequest::new(at as u64, into))
                .collect();
            medium.read_many(&mut reads);
            for (i, read) in reads.iter().enumerate() {
                match &read.outcome {
                    Ok(()) => assert!(
                        read.into[..] == bytes.as_slice()[read.offset as usize..][..PAGE_SIZE]
                    ),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
                }
                assert_eq!(read.outcome.is_ok(), i < 198, "read {i}");
            }
        }
    }

    #[test]
    fn what_a_ring_leaves_undone_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let medium = FileMedium::create(&dir.path().join("log")).unwrap();
        medium.set_len(64 * 4096).unwrap();
        let mut bytes = AlignedBuf::zeroed(16 * PAGE_SIZE);
        bytes.as_mut_slice().fill(9);
        let parts: Vec<_> = bytes.as_slice().chunks(2 * PAGE_SIZE).map(IoSlice::new).collect();
        let cases = [
            // How it ended, what is written by plain calls then.
            (Outcome::Done(16 * PAGE_SIZE), None),
            (Outcome::Done(3 * PAGE_SIZE), Some(3 * PAGE_SIZE)),
            (Outcome::Done(3 * PAGE_SIZE + 512), Some(0)),
            (Outcome::Done(0), Some(0)),
            (Outcome::Undone, Some(0)),
        ];
        for (outcome, from) in cases {
            medium
                .write(0, &[IoSlice::new(AlignedBuf::zeroed(16 * PAGE_SIZE).as_slice())])
                .unwrap();
            let request = Request::Write { offset: 0, parts: &parts };
            let later = finish_write(medium.writable(), &request, &outcome).unwrap();
            assert_eq!(later, from.is_some(), "{outcome:?}");
            let mut back = vec![0; 16 * PAGE_SIZE];
            medium.read(0, &mut back).unwrap();
            let first = back.iter().position(|&byte| byte == 9);
            assert_eq!(first, from, "{outcome:?}");
            assert!(back[from.unwrap_or(back.len())..].iter().all(|&byte| byte == 9));
        }
        let failed = Outcome::Failed(io::Error::from_raw_os_error(5));
        let request = Request::Write { offset: 0, parts: &parts };
        let error = finish_write(medium.writable(), &request, &failed).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5));
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
