//! The operations that the rest of the crate asks of the system, as one trait with two
//! implementations: Linux itself, and a simulated twin that runs the same logic in property tests.
//! Policy is absent: every call does one thing and says what happened. Read [`Sys`] first.

#[cfg(target_os = "linux")]
pub mod linux;
pub mod sim;

use std::time::Duration;

use rustix::io::Errno;
use stead_model::Address;

use crate::support::Unsupported;

#[cfg(target_os = "linux")]
pub use linux::Linux;

/// How the pages of a cluster come to its program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Touching an absent page stops the thread until the page is installed.
    Faulted,
    /// Absent pages read as zeros and are found as dirty once touched; whoever maps such a cluster
    /// installs the stored pages before it lets anyone in. For the system container, on which the
    /// thread that serves faults must never fault itself.
    Resident,
}

/// A page fault as the system reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawFault {
    /// First byte of the page.
    pub address: usize,
    /// Whether the thread wanted to write.
    pub write: bool,
    /// The page lies in the frames, but not in the mapping.
    pub minor: bool,
    /// The page is mapped and write-protected.
    pub protected: bool,
}

/// A run of addresses, `start..end`, that a scan found written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WrittenRun {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// What one attempt to map pages did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Bytes mapped, from the start of the range.
    pub byte_count: usize,
    /// Why it went no further; `None` if the whole range is mapped. With `byte_count` 0 this is the
    /// answer for the first page; otherwise it may be no more than "ask again behind it".
    pub stopped: Option<Errno>,
}

/// What one scan did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scanned {
    /// Entries of the vector that were filled.
    pub run_count: usize,
    /// The system says that it has looked at everything below this address. May lie before the end
    /// of the last run.
    pub walk_end: usize,
}

/// What a reading of the fault log is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogRead {
    /// There is no log.
    NotKept,
    /// Every page that a thread has made writable by a fault since the last reading was handed out.
    Whole,
    /// Some may be missing: only a scan finds them.
    Holed,
}

/// Memory, its faults and its dirty bits. Ranges are page aligned.
pub trait Sys: Send + Sync + Sized + 'static {
    /// A run of reserved addresses; dropping it gives them back.
    type Area: Send + Sync;
    /// The page frames of a cluster: a sparse file without a name.
    type Frames: Send + Sync;

    /// Reserves addresses, without access; a forked child does not inherit them.
    ///
    /// # Errors
    /// `EXIST` if something else occupies part of the range.
    fn reserve(&self, base: Address, byte_len: usize) -> Result<Self::Area, Errno>;

    /// Readable and writable memory of zeros at an address outside the containers' range, for state
    /// that dies with the process.
    fn reserve_volatile(&self, byte_len: usize) -> Result<(Self::Area, Address), Errno>;

    /// Words for whoever occupies part of the range.
    fn occupant(&self, base: Address, byte_len: usize) -> String;

    /// New frames, all absent.
    fn new_frames(&self, byte_len: u64) -> Result<Self::Frames, Errno>;

    /// Room for more frames.
    fn extend_frames(&self, frames: &Self::Frames, byte_len: u64) -> Result<(), Errno>;

    /// Maps frames into part of an area and starts to watch it for faults and writes.
    fn map(
        &self,
        area: &Self::Area,
        at: Address,
        byte_len: usize,
        frames: &Self::Frames,
        offset: u64,
        mode: Mode,
    ) -> Result<(), Errno>;

    /// Makes a mapped part of an area inaccessible again. Threads that wait there for a page go on
    /// and meet the missing access.
    fn unmap(&self, area: &Self::Area, at: Address, byte_len: usize);

    /// Waits for faults and appends them to `found`, no more than it has room for without
    /// allocating. `scratch` is room to read into. True if [`Sys::ring`] was called.
    fn wait(
        &self,
        scratch: &mut [u8],
        found: &mut Vec<RawFault>,
        timeout: Option<Duration>,
    ) -> Result<bool, Errno>;

    /// Makes the wait under way, or the next one, return.
    fn ring(&self);

    /// Maps pages that lie in the frames, write-protected or not, and wakes the threads that wait
    /// for them. Stops at the first page that is mapped already (`EXIST`) or absent (`FAULT`).
    fn map_pages(&self, at: Address, byte_len: usize, protect: bool) -> Progress;

    /// Write-protects mapped pages. Absent ones should not be among them: it costs, and marks them.
    fn protect(&self, at: Address, byte_len: usize) -> Result<(), Errno>;

    /// Takes the protection of mapped pages away, and the marks that protecting left on absent ones.
    fn unprotect(&self, at: Address, byte_len: usize) -> Result<(), Errno>;

    /// Lets the threads that wait for these pages try again.
    fn wake(&self, at: Address, byte_len: usize) -> Result<(), Errno>;

    /// Makes a touch of an absent page fatal. `EXIST` if it is mapped, marked as protected, or fatal to
    /// touch already.
    fn poison(&self, at: Address) -> Result<(), Errno>;

    /// Finds pages that are not protected, and with `protect` protects what it reports in the same
    /// step. Absent pages may be reported too; protecting them costs, and marks them, so the range
    /// should be mostly present. May stop early when `runs` is full.
    ///
    /// To report present pages alone would lose writes: a page that the kernel has swapped out, or is
    /// moving at this moment, is not present in the mapping, but may have been written before.
    fn scan(
        &self,
        at: Address,
        byte_len: usize,
        protect: bool,
        runs: &mut [WrittenRun],
    ) -> Result<Scanned, Errno>;

    /// Starts a log of the pages that threads make writable by writing to them while they are protected.
    ///
    /// # Errors
    /// Says why there is none: scanning does without.
    fn start_log(&self) -> Result<(), Unsupported>;

    /// Ends the log, if there is one.
    fn stop_log(&self);

    /// Hands out an address on each page that entered the log since the last reading, at least once; others
    /// may be among them. A page enters after it became writable, and before the thread whose fault made it
    /// so goes on.
    fn read_log(&self, each: &mut dyn FnMut(usize)) -> LogRead;

    /// Reads frames; absent ones read as zeros and stay absent.
    fn read(&self, frames: &Self::Frames, offset: u64, buf: &mut [u8]) -> Result<usize, Errno>;

    /// Writes frames, making them present.
    fn write(&self, frames: &Self::Frames, offset: u64, bytes: &[u8]) -> Result<usize, Errno>;

    /// Makes absent frames present, as zeros. Present ones keep their contents.
    fn allocate(&self, frames: &Self::Frames, offset: u64, byte_len: u64) -> Result<(), Errno>;

    /// The first run of present frames within `offset..end`, as offsets. Frames that were allocated and
    /// never touched may be left out: they are zeros.
    fn next_present(
        &self,
        frames: &Self::Frames,
        offset: u64,
        end: u64,
    ) -> Result<Option<(u64, u64)>, Errno>;

    /// Makes frames absent and takes them out of every mapping.
    fn punch(&self, frames: &Self::Frames, offset: u64, byte_len: u64) -> Result<(), Errno>;
}
