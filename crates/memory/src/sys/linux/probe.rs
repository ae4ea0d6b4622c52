//! Looking at what kernel, user and container allow, one thing at a time, leaving nothing behind. What
//! an answer means is absent. Read [`userfaultfd`] first.

use std::fs;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

use super::uffd::{self, Way};
use super::{mapping, pagemap};
use crate::support::{Allowed, Unsupported};

/// How a userfaultfd can be got, and the features that it offers.
pub(crate) fn userfaultfd(allowed: Allowed) -> Result<(Way, u64), Errno> {
    let (fd, way) = uffd::raw_open(allowed)?;
    Ok((way, uffd::agree(&fd, 0)? & allowed.features))
}

pub(crate) fn pagemap_scan(allowed: Allowed) -> Result<(), Unsupported> {
    pagemap::open(allowed).map(drop)
}

pub(crate) fn memory_file() -> Result<(), Errno> {
    memfd_create("stead-probe", MemfdFlags::CLOEXEC).map(drop)
}

pub(crate) fn occupants(start: usize, end: usize) -> Vec<String> {
    mapping::occupants(start, end)
}

pub(crate) fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// 0 without a filter, 2 with one. Filters belong to threads.
pub(crate) fn seccomp_mode() -> Option<u32> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Seccomp:")?.trim().parse().ok())
}

/// A file of one number.
pub(crate) fn number(path: &str) -> Option<i64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

pub(crate) fn swap_exists() -> bool {
    // The first line names the columns.
    fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1)
}

/// When the kernel makes huge pages for memory files: the word in brackets of its list.
pub(crate) fn huge_memory_files() -> Option<String> {
    let path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let modes = fs::read_to_string(path).ok()?;
    Some(modes.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// Whether the kernel's own page faults in this thread could be sampled.
pub(crate) fn fault_events() -> Result<(), Errno> {
    const TYPE_SOFTWARE: u32 = 1;
    const SW_PAGE_FAULTS: u64 = 2;
    const SAMPLE_ADDR: u64 = 1 << 3;
    const FLAG_FD_CLOEXEC: u64 = 8;
    /// `struct perf_event_attr` in its first published size.
    #[repr(C)]
    struct Attr {
        kind: u32,
        size: u32,
        config: u64,
        sample_period: u64,
        sample_type: u64,
        rest: [u64; 4],
    }
    let attr = Attr {
        kind: TYPE_SOFTWARE,
        size: size_of::<Attr>() as u32,
        config: SW_PAGE_FAULTS,
        sample_period: 1,
        sample_type: SAMPLE_ADDR,
        rest: [0; 4],
    };
    // SAFETY: the attributes are of the size that they state and borrowed for the call; the event is
    // for this thread on any CPU, and no buffer is mapped.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_ref(&attr),
            0,
            -1,
            -1,
            FLAG_FD_CLOEXEC,
        )
    };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(uffd::last_errno)?;
    // SAFETY: the kernel has just made this descriptor for us.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}
