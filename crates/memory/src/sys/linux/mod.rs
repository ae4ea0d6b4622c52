//! Linux: one userfaultfd for a process and store, sparse memfds, `PAGEMAP_SCAN`, the kernel's events of
//! page faults. The only folder of this crate with unsafe code. It decides nothing; what a failure means is the caller's business.
//! Read [`Linux`] first.

mod fault_log;
pub mod last_words;
mod mapping;
mod pagemap;
pub(crate) mod perf;
pub(crate) mod place;
pub(crate) mod probe;
pub(crate) mod uffd;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{FallocateFlags, MemfdFlags, SeekFrom, fallocate, ftruncate, memfd_create, seek};
use rustix::io::{Errno, pread, pwrite, read, write};
use stead_model::{ADDRESS_END, ADDRESS_START, Address};

use super::{LogRead, Mode, Progress, RawFault, Scanned, Sys, WrittenRun};
use crate::support::{Allowed, Unsupported};

/// Below this, programs that are not position-independent lie, and their heaps grow.
const LOWEST: usize = 1 << 40;

pub use mapping::Area;

/// Memory of this process, as the kernel keeps it.
#[derive(Debug)]
pub struct Linux {
    uffd: uffd::Uffd,
    pagemap: File,
    bell: OwnedFd,
    allowed: Allowed,
    fault_log: Mutex<Option<fault_log::FaultLog>>,
    log_allowed: OnceLock<Result<(), Unsupported>>,
}

impl Linux {
    /// Opens what is needed, as far as `allowed` lets it.
    ///
    /// # Errors
    /// Names the first needed thing that kernel, user or container refuse.
    pub fn open(allowed: Allowed) -> Result<Linux, Unsupported> {
        let uffd = uffd::Uffd::open(allowed)?;
        let pagemap = pagemap::open(allowed)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Unsupported::call("eventfd", errno))?;
        Ok(Linux {
            uffd,
            pagemap,
            bell,
            allowed,
            fault_log: Mutex::new(None),
            log_allowed: OnceLock::new(),
        })
    }

    fn fault_log(&self) -> MutexGuard<'_, Option<fault_log::FaultLog>> {
        self.fault_log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a fault log could be started.
    ///
    /// # Errors
    /// Says why not.
    pub fn log_allowed(&self) -> Result<(), Unsupported> {
        // Asked once: the kernel takes milliseconds for the first event of a machine.
        let look = || probe::fault_events(self.allowed).map_err(Unsupported::fault_events);
        self.log_allowed.get_or_init(look).clone()
    }

    /// Whether faults taken inside system calls are refused (the call gets `EFAULT`).
    #[must_use]
    pub fn user_mode_only(&self) -> bool {
        self.uffd.user_mode_only
    }
}

impl Sys for Linux {
    type Area = Area;
    type Frames = OwnedFd;

    fn reserve(&self, base: Address, byte_len: usize) -> Result<Area, Errno> {
        Area::reserve(base, byte_len)
    }

    fn reserve_volatile(&self, byte_len: usize) -> Result<(Area, Address), Errno> {
        // The containers' range must stay free for containers. The kernel gives addresses from the
        // top down, and comes to it when there are no others above.
        match Area::volatile(byte_len) {
            Ok(area) if area.base().0 >= ADDRESS_END => {
                let base = area.base();
                return Ok((area, base));
            }
            Ok(_) | Err(Errno::NOMEM) => {}
            Err(errno) => return Err(errno),
        }
        let mut at = ADDRESS_START;
        while let Some(below) = at.checked_sub(byte_len).filter(|&below| below >= LOWEST) {
            at = below;
            match Area::volatile_at(Address(at), byte_len) {
                Ok(area) => return Ok((area, Address(at))),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::NOMEM)
    }

    fn occupant(&self, base: Address, byte_len: usize) -> String {
        mapping::occupants(base.0, base.0 + byte_len).into_iter().next().unwrap_or_default()
    }

    fn new_frames(&self, byte_len: u64) -> Result<OwnedFd, Errno> {
        let frames = memfd_create("stead-cluster", MemfdFlags::CLOEXEC)?;
        ftruncate(&frames, byte_len)?;
        Ok(frames)
    }

    fn extend_frames(&self, frames: &OwnedFd, byte_len: u64) -> Result<(), Errno> {
        ftruncate(frames, byte_len)
    }

    fn map(
        &self,
        area: &Area,
        at: Address,
        byte_len: usize,
        frames: &OwnedFd,
        offset: u64,
        mode: Mode,
    ) -> Result<(), Errno> {
        area.map(at, byte_len, frames.as_fd(), offset)?;
        let registered = self.uffd.register(at.0, byte_len, mode);
        if registered.is_err() {
            area.unmap(at, byte_len);
        }
        registered
    }

    fn unmap(&self, area: &Area, at: Address, byte_len: usize) {
        area.unmap(at, byte_len);
        // Removing a registered mapping does not wake those who wait in it.
        let woken = self.uffd.wake(at.0, byte_len);
        debug_assert_eq!(woken, Ok(()));
    }

    fn wait(
        &self,
        scratch: &mut [u8],
        found: &mut Vec<RawFault>,
        timeout: Option<Duration>,
    ) -> Result<bool, Errno> {
        let timeout = timeout.map(|t| Timespec {
            tv_sec: t.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut fds =
            [PollFd::new(&self.uffd.fd, PollFlags::IN), PollFd::new(&self.bell, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let rung = !fds[1].revents().is_empty();
        if rung {
            // Reading resets the counter; an empty one means that someone else has reset it.
            match read(&self.bell, &mut [0u8; 8]) {
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(errno) => return Err(errno),
            }
        }
        if !fds[0].revents().is_empty() {
            self.uffd.read(scratch, found)?;
        }
        Ok(rung)
    }

    fn ring(&self) {
        // Refused only when the counter is full, and then the bell is ringing anyway.
        let _ = write(&self.bell, &1u64.to_ne_bytes());
    }

    fn map_pages(&self, at: Address, byte_len: usize, protect: bool) -> Progress {
        self.uffd.map_pages(at.0, byte_len, protect)
    }

    fn protect(&self, at: Address, byte_len: usize) -> Result<(), Errno> {
        self.uffd.protect(at.0, byte_len, true)
    }

    fn unprotect(&self, at: Address, byte_len: usize) -> Result<(), Errno> {
        self.uffd.protect(at.0, byte_len, false)
    }

    fn wake(&self, at: Address, byte_len: usize) -> Result<(), Errno> {
        self.uffd.wake(at.0, byte_len)
    }

    fn poison(&self, at: Address) -> Result<(), Errno> {
        self.uffd.poison(at.0)
    }

    fn scan(
        &self,
        at: Address,
        byte_len: usize,
        protect: bool,
        runs: &mut [WrittenRun],
    ) -> Result<Scanned, Errno> {
        pagemap::scan(&self.pagemap, at.0, byte_len, protect, runs)
    }

    fn start_log(&self) -> Result<(), Unsupported> {
        let mut log = self.fault_log();
        if log.is_none() {
            *log = Some(fault_log::FaultLog::start(self.allowed)?);
        }
        Ok(())
    }

    fn stop_log(&self) {
        *self.fault_log() = None;
    }

    fn read_log(&self, each: &mut dyn FnMut(usize)) -> LogRead {
        let mut log = self.fault_log();
        let Some(log) = &mut *log else { return LogRead::NotKept };
        if log.read(each) { LogRead::Whole } else { LogRead::Holed }
    }

    fn read(&self, frames: &OwnedFd, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        pread(frames, buf, offset)
    }

    fn write(&self, frames: &OwnedFd, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        pwrite(frames, bytes, offset)
    }

    fn allocate(&self, frames: &OwnedFd, offset: u64, byte_len: u64) -> Result<(), Errno> {
        fallocate(frames, FallocateFlags::empty(), offset, byte_len)
    }

    fn next_present(
        &self,
        frames: &OwnedFd,
        offset: u64,
        end: u64,
    ) -> Result<Option<(u64, u64)>, Errno> {
        // The file's position means nothing to anyone: frames are read and written at offsets.
        let start = match seek(frames, SeekFrom::Data(offset)) {
            Ok(start) if start < end => start,
            Ok(_) | Err(Errno::NXIO) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let hole = seek(frames, SeekFrom::Hole(start))?;
        Ok(Some((start, hole.min(end))))
    }

    fn punch(&self, frames: &OwnedFd, offset: u64, byte_len: u64) -> Result<(), Errno> {
        fallocate(frames, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, byte_len)
    }
}
