//! Page-fault events of the kernel: one event for one thread, on one processor, and the ring buffer into
//! which such events write. Which threads and processors there are is absent. Read [`Ring`] first.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use stead_model::PAGE_SIZE;

use super::uffd::last_errno;

/// Faults that the kernel has resolved: counted in the same step as those of `getrusage`, after the page
/// became accessible and before the thread goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resolved {
    /// Without waiting.
    Minor,
    /// After waiting: for a page from elsewhere, or for a lock.
    Major,
}

/// `struct perf_event_attr` in its first published size.
#[repr(C)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_watermark: u32,
    breakpoint_kind: u32,
    config1: u64,
}

/// An event for each fault that thread `tid` (0: the calling one), and each thread that it starts from now on,
/// resolves while it runs on this processor.
pub(crate) fn open(kind: Resolved, tid: u32, cpu: u32) -> Result<OwnedFd, Errno> {
    const TYPE_SOFTWARE: u32 = 1;
    const SW_PAGE_FAULTS_MIN: u64 = 5;
    const SW_PAGE_FAULTS_MAJ: u64 = 6;
    const SAMPLE_ADDR: u64 = 1 << 3;
    const INHERIT: u64 = 1 << 1;
    const WATERMARK: u64 = 1 << 14;
    /// Threads inherit the event, forked processes do not.
    const INHERIT_THREAD: u64 = 1 << 35;
    const FLAG_FD_CLOEXEC: u64 = 8;
    let attr = Attr {
        kind: TYPE_SOFTWARE,
        size: size_of::<Attr>() as u32,
        config: match kind {
            Resolved::Minor => SW_PAGE_FAULTS_MIN,
            Resolved::Major => SW_PAGE_FAULTS_MAJ,
        },
        sample_period: 1,
        sample_type: SAMPLE_ADDR,
        read_format: 0,
        flags: INHERIT | INHERIT_THREAD | WATERMARK,
        // Nobody waits for the ring: it is read when a round wants it.
        wakeup_watermark: 1 << 30,
        breakpoint_kind: 0,
        config1: 0,
    };
    // SAFETY: the attributes are of the size that they state and borrowed for the call; the event only
    // writes into a buffer that `Ring` maps.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_ref(&attr),
            libc::c_long::from(tid),
            libc::c_long::from(cpu),
            -1 as libc::c_long,
            FLAG_FD_CLOEXEC,
        )
    };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(last_errno)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets an event write into the ring of another one of the same processor.
pub(crate) fn redirect(event: &OwnedFd, into: BorrowedFd<'_>) -> Result<(), Errno> {
    const IOC_SET_OUTPUT: u64 = 0x2405;
    // SAFETY: the request takes a descriptor by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(event.as_raw_fd(), IOC_SET_OUTPUT as _, into.as_raw_fd()) };
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}

/// Faults that the threads of this process have resolved so far, in system calls as well as outside,
/// whether or not an event told of them.
pub(crate) fn resolved_count() -> u64 {
    // SAFETY: all-zero bytes are a valid `rusage`, which is plain numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is borrowed for the call.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    assert_eq!(result, 0, "getrusage of oneself has no reason to fail");
    (usage.ru_minflt + usage.ru_majflt) as u64
}

/// Processors that this machine may ever have.
pub(crate) fn processor_count() -> u32 {
    // SAFETY: a question by value.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) };
    u32::try_from(count).unwrap_or(1).max(1)
}

/// What the kernel wrote into a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    /// A fault at this address was resolved.
    Fault(usize),
    /// So many records found no room.
    Lost(u64),
    /// Something that was not asked for.
    Unknown,
}

/// A ring buffer that the kernel fills and this process empties. A record that finds it full is lost, and
/// counted.
#[derive(Debug)]
pub(crate) struct Ring {
    /// A page of positions, then the records.
    start: NonNull<u64>,
    data_len: u64,
    /// A forked child does not inherit the mapping, and must not remove what it has there instead.
    process: u32,
}

// SAFETY: the mapping belongs to this value; all access to it takes `&mut self`, but for the kernel's,
// which is ordered by the two positions.
unsafe impl Send for Ring {}

/// `data_head` and `data_tail` in `struct perf_event_mmap_page`, in words.
const HEAD_WORD: usize = 1024 / 8;
const TAIL_WORD: usize = 1032 / 8;
const PAGE_WORDS: usize = PAGE_SIZE / 8;

impl Ring {
    /// A ring of so many pages, a power of two, for the records of this event.
    pub(crate) fn map(event: BorrowedFd<'_>, page_count: usize) -> Result<Ring, Errno> {
        assert!(page_count.is_power_of_two());
        // SAFETY: the kernel chooses addresses that are free, and maps memory that it made for this event.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                (page_count + 1) * PAGE_SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                event,
                0,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        let data_len = (page_count * PAGE_SIZE) as u64;
        Ok(Ring { start, data_len, process: std::process::id() })
    }

    /// Takes out what the kernel has written up to now.
    pub(crate) fn read(&mut self, mut each: impl FnMut(Record)) {
        const LOST: u32 = 2;
        const SAMPLE: u32 = 9;
        let head = self.position(HEAD_WORD).load(Ordering::Acquire);
        let mut at = self.position(TAIL_WORD).load(Ordering::Relaxed);
        while at < head {
            // `u32 type, u16 misc, u16 size`, then what the type brings.
            let header = self.word(at);
            let size = header >> 48;
            if size < 8 || !size.is_multiple_of(8) || at + size > head {
                each(Record::Unknown);
                at = head;
                break;
            }
            each(match header as u32 {
                SAMPLE if size == 16 => Record::Fault(self.word(at + 8) as usize),
                LOST if size >= 24 => Record::Lost(self.word(at + 16)),
                _ => Record::Unknown,
            });
            at += size;
        }
        self.position(TAIL_WORD).store(at, Ordering::Release);
    }

    fn position(&self, word: usize) -> &AtomicU64 {
        debug_assert!(word < PAGE_WORDS);
        // SAFETY: the first page of the mapping is readable and writable as long as `self` lives; both
        // positions are aligned words, which kernel and process access atomically.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(word)) }
    }

    /// The word at a position, which runs round and round.
    fn word(&self, at: u64) -> u64 {
        let word = PAGE_WORDS + (at % self.data_len) as usize / 8;
        // SAFETY: the index lies within the mapped pages. The word lies between the two positions, where the
        // kernel writes nothing until the tail has passed it.
        unsafe { self.start.as_ptr().add(word).read() }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        // SAFETY: the mapping is this value's alone, and no reference into it is left.
        let unmapped =
            unsafe { munmap(self.start.as_ptr().cast(), self.data_len as usize + PAGE_SIZE) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}
