//! The userfaultfd: opened in the widest mode that is allowed, ranges registered, events read, pages
//! mapped, protected and poisoned. It keeps no state about pages. Read [`Uffd`] first.
//!
//! The kernel's structures are spelled out here because the headers of stable distributions lack the
//! newer ones.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, read};
use stead_model::PAGE_SIZE;

use crate::support::{Allowed, Unsupported};
use crate::sys::{Mode, Progress, RawFault};

/// Feature bits of `UFFDIO_API`.
pub(crate) mod feature {
    pub(crate) const PAGEFAULT_FLAG_WP: u64 = 1 << 0;
    pub(crate) const MISSING_SHMEM: u64 = 1 << 5;
    pub(crate) const MINOR_SHMEM: u64 = 1 << 10;
    pub(crate) const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    pub(crate) const WP_UNPOPULATED: u64 = 1 << 13;
    pub(crate) const POISON: u64 = 1 << 14;
    pub(crate) const WP_ASYNC: u64 = 1 << 15;

    /// What a space asks for.
    pub(crate) const WANTED: u64 = PAGEFAULT_FLAG_WP
        | MISSING_SHMEM
        | MINOR_SHMEM
        | WP_HUGETLBFS_SHMEM
        | WP_UNPOPULATED
        | POISON
        | WP_ASYNC;
}

const UFFD_API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_WAKE: u64 = 0x8010_aa02;
const UFFDIO_WRITEPROTECT: u64 = 0xc018_aa06;
const UFFDIO_CONTINUE: u64 = 0xc020_aa07;
const UFFDIO_POISON: u64 = 0xc020_aa08;
/// On `/dev/userfaultfd`: a new descriptor, flags as the argument.
const USERFAULTFD_IOC_NEW: u64 = 0xaa00;

const USER_MODE_ONLY: i32 = 1;

const REGISTER_MODE_MISSING: u64 = 1;
const REGISTER_MODE_WP: u64 = 2;
const REGISTER_MODE_MINOR: u64 = 4;

const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_BYTES: usize = 32;
const PAGEFAULT_WRITE: u64 = 1;
const PAGEFAULT_WP: u64 = 2;
const PAGEFAULT_MINOR: u64 = 4;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`, `uffdio_continue` and `uffdio_poison`, which differ in what the kernel
/// answers: calls that are possible, bytes mapped, bytes poisoned.
#[repr(C)]
struct RangeModeAnswer {
    start: u64,
    len: u64,
    mode: u64,
    answer: i64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct RangeMode {
    start: u64,
    len: u64,
    mode: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

/// How a descriptor was got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Call,
    Device,
    UserModeOnly,
}

/// A userfaultfd of this process, with its features agreed upon.
#[derive(Debug)]
pub(crate) struct Uffd {
    pub(super) fd: OwnedFd,
    pub(super) user_mode_only: bool,
}

impl Uffd {
    pub(super) fn open(allowed: Allowed) -> Result<Uffd, Unsupported> {
        let (fd, way) = raw_open(allowed).map_err(Unsupported::userfaultfd)?;
        let wanted = feature::WANTED;
        if allowed.features & wanted == wanted && agree(&fd, wanted).is_ok() {
            return Ok(Uffd { fd, user_mode_only: way == Way::UserModeOnly });
        }
        // The kernel refuses unknown bits without saying which: ask on a new descriptor.
        let offered = match raw_open(allowed).and_then(|(fd, _)| agree(&fd, 0)) {
            Ok(offered) => offered & allowed.features,
            Err(errno) => return Err(Unsupported::userfaultfd(errno)),
        };
        Err(Unsupported::features(wanted & !offered))
    }

    pub(super) fn register(&self, at: usize, byte_len: usize, mode: Mode) -> Result<(), Errno> {
        let mode = match mode {
            Mode::Faulted => REGISTER_MODE_MISSING | REGISTER_MODE_WP | REGISTER_MODE_MINOR,
            Mode::Resident => REGISTER_MODE_WP,
        };
        let mut arg = RangeModeAnswer { start: at as u64, len: byte_len as u64, mode, answer: 0 };
        // SAFETY: the argument is a uffdio_register, alive for the call. Registering changes no
        // contents; it decides who answers faults in a range that is mapped.
        unsafe { ioctl(&self.fd, UFFDIO_REGISTER, &mut arg) }
    }

    /// Reads the events that are waiting, as many as both buffers have room for.
    pub(super) fn read(&self, scratch: &mut [u8], found: &mut Vec<RawFault>) -> Result<(), Errno> {
        let room = (scratch.len() / EVENT_BYTES).min(found.capacity() - found.len());
        let byte_count = match read(&self.fd, &mut scratch[..room * EVENT_BYTES]) {
            Ok(byte_count) => byte_count,
            // Another thread's install served them between the poll and now.
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        for event in scratch[..byte_count].chunks_exact(EVENT_BYTES) {
            if event[0] != EVENT_PAGEFAULT {
                continue;
            }
            let word =
                |at: usize| u64::from_ne_bytes(event[at..at + 8].try_into().expect("eight bytes"));
            let flags = word(8);
            found.push(RawFault {
                address: word(16) as usize & !(PAGE_SIZE - 1),
                write: flags & PAGEFAULT_WRITE != 0,
                minor: flags & PAGEFAULT_MINOR != 0,
                protected: flags & PAGEFAULT_WP != 0,
            });
        }
        Ok(())
    }

    pub(super) fn map_pages(&self, at: usize, byte_len: usize, protect: bool) -> Progress {
        const CONTINUE_MODE_WP: u64 = 2;
        let mode = if protect { CONTINUE_MODE_WP } else { 0 };
        let mut arg = RangeModeAnswer { start: at as u64, len: byte_len as u64, mode, answer: 0 };
        // SAFETY: the argument is a uffdio_continue, alive for the call. The kernel fills holes of
        // ranges registered with this descriptor only, all of which are our areas, with the frames
        // that are mapped there; pages that are mapped stay as they are.
        let result = unsafe { ioctl(&self.fd, UFFDIO_CONTINUE, &mut arg) };
        // A negative answer is the error for the first page. With progress the call itself says
        // EAGAIN, whatever stopped it.
        let byte_count = usize::try_from(arg.answer).unwrap_or(0).min(byte_len);
        Progress { byte_count, stopped: result.err() }
    }

    pub(super) fn protect(&self, at: usize, byte_len: usize, on: bool) -> Result<(), Errno> {
        const WRITEPROTECT_MODE_WP: u64 = 1;
        let mode = if on { WRITEPROTECT_MODE_WP } else { 0 };
        let mut arg = RangeMode { start: at as u64, len: byte_len as u64, mode };
        // SAFETY: the argument is a uffdio_writeprotect, alive for the call. Only ranges registered
        // with this descriptor change, and a write to them is resolved by the kernel (WP_ASYNC).
        unsafe { ioctl(&self.fd, UFFDIO_WRITEPROTECT, &mut arg) }
    }

    pub(super) fn wake(&self, at: usize, byte_len: usize) -> Result<(), Errno> {
        let mut arg = Range { start: at as u64, len: byte_len as u64 };
        // SAFETY: the argument is a uffdio_range, alive for the call. Waking changes no memory: a
        // thread whose page is still missing faults again.
        unsafe { ioctl(&self.fd, UFFDIO_WAKE, &mut arg) }
    }

    pub(super) fn poison(&self, at: usize) -> Result<(), Errno> {
        let mut arg =
            RangeModeAnswer { start: at as u64, len: PAGE_SIZE as u64, mode: 0, answer: 0 };
        // SAFETY: the argument is a uffdio_poison, alive for the call. A hole of a range registered
        // with this descriptor becomes fatal to touch; mapped pages are refused with EEXIST.
        unsafe { ioctl(&self.fd, UFFDIO_POISON, &mut arg) }
    }
}

/// Opens a descriptor: the plain call, then the device, then the mode for ordinary users.
pub(crate) fn raw_open(allowed: Allowed) -> Result<(OwnedFd, Way), Errno> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let mut refusal = Errno::PERM;
    if allowed.full {
        match call(flags) {
            Ok(fd) => return Ok((fd, Way::Call)),
            Err(errno) => refusal = errno,
        }
    }
    if allowed.device
        && let Ok(device) = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")
    {
        // SAFETY: this request takes flags by value and touches no memory of ours.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW as _, flags) };
        if fd >= 0 {
            // SAFETY: the kernel has just made this descriptor for us.
            return Ok((unsafe { OwnedFd::from_raw_fd(fd) }, Way::Device));
        }
    }
    if allowed.user_mode
        && let Ok(fd) = call(flags | USER_MODE_ONLY)
    {
        return Ok((fd, Way::UserModeOnly));
    }
    Err(refusal)
}

/// Agrees upon features, 0 for none, and returns those that the kernel offers.
pub(crate) fn agree(fd: &OwnedFd, features: u64) -> Result<u64, Errno> {
    let mut arg = Api { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: the argument is a uffdio_api, alive for the call.
    unsafe { ioctl(fd, UFFDIO_API, &mut arg)? };
    Ok(arg.features)
}

fn call(flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: userfaultfd takes flags alone and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(last_errno)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// `T` must be the structure that `request` expects, and what the request does to the memory of this
/// process must be sound.
unsafe fn ioctl<T>(fd: &OwnedFd, request: u64, arg: &mut T) -> Result<(), Errno> {
    // SAFETY: the descriptor is open, the argument is borrowed for the call; the rest is the
    // caller's promise.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(arg)) };
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}

pub(super) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
