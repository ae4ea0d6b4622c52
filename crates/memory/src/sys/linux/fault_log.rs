//! The fault log: the kernel's own record of each fault that a thread of this process resolved, the first
//! write to a protected page among them. Read [`FaultLog`] first.
//!
//! Each thread has an event for each processor, inherited by the threads it starts; the events of a
//! processor share a ring. Some faults leave no record: those that the kernel resolves on behalf of a call
//! without running into them (direct I/O into memory, futexes), those on a processor that came later, and
//! those that found a ring full. But the kernel *counts* every fault of a thread in the same step in which it
//! records it, so the count of a process tells whether the log is whole: as long as count and records
//! stay the same distance apart, nothing went unrecorded.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use super::perf::{self, Record, Resolved, Ring};
use super::probe;
use crate::support::{Allowed, Unsupported};

/// All rings together take at most this much memory, and each at most an equal share of it.
const RING_PAGES_ALL: usize = 2048;
const RING_PAGES_MAX: usize = 64;
const RING_PAGES_MIN: usize = 4;
/// Descriptors: two for each processor and each thread that is there when the log starts.
const EVENTS_MAX: usize = 512;

/// The log of one process.
#[derive(Debug)]
pub(crate) struct FaultLog {
    rings: Vec<Ring>,
    /// Closing an event ends it.
    _events: Vec<OwnedFd>,
    /// Records, and records that are known to be lost.
    recorded: u64,
    /// Faults that were counted and not recorded, when last looked at.
    unrecorded: i64,
}

impl FaultLog {
    /// Starts a log of all threads of this process.
    pub(super) fn start(allowed: Allowed) -> Result<FaultLog, Unsupported> {
        const TRIES: u32 = 5;
        if !allowed.fault_events {
            return Err(Unsupported::fault_events(Errno::ACCESS));
        }
        let cpu_count = perf::processor_count();
        for _ in 0..TRIES {
            let threads = threads()?;
            if threads.len() * cpu_count as usize * 2 > EVENTS_MAX {
                return Err(Unsupported::fault_log(format!(
                    "{} threads on {cpu_count} processors need more than {EVENTS_MAX} events",
                    threads.len()
                )));
            }
            let mut log = FaultLog::of(&threads, cpu_count).map_err(Unsupported::fault_events)?;
            // A thread that was started meanwhile may have inherited its events or not, so begin again. One that
            // is missed shows in the count of faults.
            if self::threads()?.iter().all(|tid| threads.contains(tid)) {
                log.read(&mut |_| {});
                return Ok(log);
            }
        }
        Err(Unsupported::fault_log("threads come and go too quickly".to_owned()))
    }

    fn of(threads: &[u32], cpu_count: u32) -> Result<FaultLog, Errno> {
        let share = RING_PAGES_ALL / cpu_count as usize;
        let mut page_count = 1 << share.clamp(RING_PAGES_MIN, RING_PAGES_MAX).ilog2();
        let mut log =
            FaultLog { rings: Vec::new(), _events: Vec::new(), recorded: 0, unrecorded: 0 };
        for cpu in 0..cpu_count {
            let mut first: Option<OwnedFd> = None;
            for &tid in threads {
                for kind in [Resolved::Minor, Resolved::Major] {
                    let event = match perf::open(kind, tid, cpu) {
                        Ok(event) => event,
                        // A processor that is off, a thread that has ended.
                        Err(Errno::NODEV | Errno::SRCH) => continue,
                        Err(errno) => return Err(errno),
                    };
                    let Some(first) = &first else {
                        log.rings.push(ring(&event, &mut page_count)?);
                        first = Some(event);
                        continue;
                    };
                    perf::redirect(&event, first.as_fd())?;
                    log._events.push(event);
                }
            }
            log._events.extend(first);
        }
        Ok(log)
    }

    /// Hands out the address of each fault since the last reading, and says whether there was none but
    /// these.
    pub(super) fn read(&mut self, each: &mut dyn FnMut(usize)) -> bool {
        // Threads that are just being served, and have been counted, are about to be recorded.
        const TRIES: u32 = 4;
        let mut whole = true;
        let mut unrecorded = i64::MAX;
        for _ in 0..TRIES {
            for ring in &mut self.rings {
                ring.read(|record| match record {
                    Record::Fault(address) => {
                        self.recorded += 1;
                        each(address);
                    }
                    Record::Lost(count) => {
                        self.recorded += count;
                        whole = false;
                    }
                    Record::Unknown => whole = false,
                });
            }
            // Counted after the rings were read: never too few.
            let now = perf::resolved_count() as i64 - self.recorded as i64;
            unrecorded = unrecorded.min(now);
            if unrecorded == self.unrecorded {
                break;
            }
        }
        #[cfg(feature = "planted")]
        if crate::planted::is(crate::planted::Bug::LossLeftOut) {
            self.unrecorded = unrecorded;
            return true;
        }
        whole &= unrecorded == self.unrecorded;
        self.unrecorded = unrecorded;
        whole
    }
}

/// As large as this user may have it.
fn ring(event: &OwnedFd, page_count: &mut usize) -> Result<Ring, Errno> {
    loop {
        match Ring::map(event.as_fd(), *page_count) {
            // More than kernel.perf_event_mlock_kb and the limit of locked memory allow.
            Err(Errno::PERM) if *page_count > RING_PAGES_MIN => *page_count /= 2,
            other => return other,
        }
    }
}

fn threads() -> Result<Vec<u32>, Unsupported> {
    probe::threads().map_err(|error| {
        Unsupported::fault_log(format!("the threads in /proc/self/task cannot be listed: {error}"))
    })
}
