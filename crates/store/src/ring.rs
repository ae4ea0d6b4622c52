//! Reads, writes and a flush handed to the kernel together, by io_uring: several at the disk at once, for one
//! system call. The only unsafe code of the store: the kernel works on borrowed memory, so [`Ring::run`] returns
//! when it has let go of all of it and not before. Read [`Ring`] first.
//!
//! A ring promises little: what it leaves open (`Outcome::Undone`) is for plain system calls to do. It is never
//! waited for: whoever finds it in use does without.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::process;
use std::sync::{Mutex, TryLockError};
use std::thread;
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use rustix::io::Errno;

/// Requests that the kernel has at a time.
const DEPTH: u32 = 32;

/// Slices in one request; Linux allows 1024.
const SLICES_PER_REQUEST: usize = 1024;

/// How long to wait before looking again, when the kernel cannot be asked to wake us.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What the kernel is to do with a file.
#[derive(Debug)]
pub(crate) enum Request<'a> {
    Read {
        offset: u64,
        into: &'a mut [u8],
    },
    /// At most [`Request::SLICES`] parts.
    Write {
        offset: u64,
        parts: &'a [IoSlice<'a>],
    },
    /// Makes the data durable, when all requests before it have ended.
    Flush,
}

impl Request<'_> {
    /// Most parts of a write.
    pub(crate) const SLICES: usize = SLICES_PER_REQUEST;
}

/// How a request ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// So many bytes; they may be fewer than were asked for.
    Done(usize),
    /// It was done in vain.
    Failed(io::Error),
    /// It was not done, or it is not known whether all that it was to come after was done before.
    Undone,
}

/// One io_uring, used by one thread at a time.
pub(crate) struct Ring {
    inner: Mutex<Inner>,
    /// A forked child has its parent's ring and must not touch it.
    process: u32,
}

struct Inner {
    uring: IoUring,
    /// Set when the kernel has refused to go on.
    broken: bool,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("process", &self.process).finish_non_exhaustive()
    }
}

impl Ring {
    /// A new ring.
    ///
    /// # Errors
    /// Why the kernel gives none: too old (ENOSYS), forbidden (EPERM, EACCES), out of locked memory (ENOMEM).
    pub(crate) fn new() -> io::Result<Self> {
        // With `coop_taskrun` (Linux 5.19) completions interrupt nobody who is computing.
        let uring = IoUring::builder()
            .dontfork()
            .setup_coop_taskrun()
            .build(DEPTH)
            .or_else(|_| IoUring::builder().dontfork().build(DEPTH))?;
        Ok(Ring { inner: Mutex::new(Inner { uring, broken: false }), process: process::id() })
    }

    /// Whether it can still be used, by this process.
    pub(crate) fn is_usable(&self) -> bool {
        // A child of a fork may find the lock held for ever, and never asks for it.
        self.process == process::id()
            && match self.inner.try_lock() {
                Ok(inner) => !inner.broken,
                Err(TryLockError::Poisoned(inner)) => !inner.into_inner().broken,
                Err(TryLockError::WouldBlock) => true,
            }
    }

    /// Has the kernel do all the requests and waits for them; how each ended. `None` if the ring is in use or cannot be
    /// used: nothing has been done then. If `linked`, a request begins only when the one before has done all
    /// that it was asked to, and is [`Outcome::Undone`] if that has not.
    pub(crate) fn run(
        &self,
        file: &File,
        requests: &mut [Request<'_>],
        linked: bool,
    ) -> Option<Vec<Outcome>> {
        if self.process != process::id() {
            return None;
        }
        let mut inner = match self.inner.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(inner)) => inner.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if inner.broken {
            return None;
        }
        let fd = Fd(file.as_raw_fd());
        let last = requests.len().saturating_sub(1);
        let entries = requests.iter_mut().enumerate().map(|(i, request)| {
            let (entry, waits) = match request {
                Request::Read { offset, into } => {
                    let len = u32::try_from(into.len()).expect("a read is below 4 GiB");
                    let read = opcode::Read::new(fd, into.as_mut_ptr(), len).offset(*offset);
                    (read.build(), squeue::Flags::empty())
                }
                Request::Write { offset, parts } => {
                    assert!(parts.len() <= SLICES_PER_REQUEST, "a write has too many parts");
                    // An `IoSlice` is an `iovec` on Unix.
                    let write = opcode::Writev::new(fd, parts.as_ptr().cast(), parts.len() as u32);
                    (write.offset(*offset).build(), squeue::Flags::empty())
                }
                Request::Flush => {
                    let flush = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build();
                    (flush, if linked { squeue::Flags::empty() } else { squeue::Flags::IO_DRAIN })
                }
            };
            let link = if linked && i < last { squeue::Flags::IO_LINK } else { waits };
            entry.flags(link).user_data(i as u64)
        });
        let entries: Vec<squeue::Entry> = entries.collect();
        let mut outcomes: Vec<Outcome> = requests.iter().map(|_| Outcome::Undone).collect();
        inner.run(&entries, linked, &mut outcomes);
        Some(outcomes)
    }
}

impl Inner {
    fn run(&mut self, entries: &[squeue::Entry], linked: bool, outcomes: &mut [Outcome]) {
        let (mut pushed, mut ended) = (0, 0);
        let mut parted = false;
        while ended < entries.len() {
            {
                let mut queue = self.uring.submission();
                while pushed < entries.len() && pushed - ended < DEPTH as usize {
                    // SAFETY: What the entry points to is borrowed by `Ring::run`, which ends only behind this
                    // function; and this returns when each entry that the kernel has taken has ended.
                    // Those that it has not taken are never given to it, because the ring is broken then. The
                    // file is open as long, being borrowed too. Nothing in between unwinds.
                    if unsafe { queue.push(&entries[pushed]) }.is_err() {
                        break;
                    }
                    pushed += 1;
                }
            }
            let entered = self.uring.submit_and_wait(pushed - ended);
            let before = ended;
            ended += self.reap(outcomes);
            let untaken = self.uring.submission().len();
            // The links of a chain hold among what is taken at once only.
            parted |= linked && (untaken > 0 || pushed < entries.len()) && ended < entries.len();
            match entered.map_err(|error| Errno::from_io_error(&error)) {
                Ok(_) | Err(Some(Errno::INTR)) => {}
                // Short of memory, or too much has ended that nobody has looked at: later.
                Err(Some(Errno::AGAIN | Errno::BUSY)) => {
                    if ended == before {
                        thread::sleep(LOOK_AGAIN);
                    }
                }
                Err(_) => {
                    self.broken = true;
                    // What the kernel has taken it will end, and say so in memory that is shared with it.
                    while ended < pushed - untaken {
                        thread::sleep(LOOK_AGAIN);
                        ended += self.reap(outcomes);
                    }
                    break;
                }
            }
        }
        if parted {
            // All but failures must be taken for undone: what was to come first may have come later.
            for outcome in outcomes.iter_mut().skip(1) {
                if matches!(outcome, Outcome::Done(_)) {
                    *outcome = Outcome::Undone;
                }
            }
        }
    }

    /// Takes note of what has ended; how many.
    fn reap(&mut self, outcomes: &mut [Outcome]) -> usize {
        let mut count = 0;
        for completion in self.uring.completion() {
            count += 1;
            let result = completion.result();
            outcomes[completion.user_data() as usize] = match usize::try_from(result) {
                Ok(bytes) => Outcome::Done(bytes),
                Err(_) => failure(result),
            };
        }
        count
    }
}

/// Refusals that say nothing about the disk leave the request to plain system calls.
fn failure(result: i32) -> Outcome {
    match Errno::from_raw_os_error(-result) {
        Errno::INTR | Errno::AGAIN | Errno::CANCELED | Errno::INVAL | Errno::OPNOTSUPP => {
            Outcome::Undone
        }
        errno => Outcome::Failed(errno.into()),
    }
}
