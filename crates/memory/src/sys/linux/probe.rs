//! Looking at what kernel, user and container allow, one thing at a time, leaving nothing behind. What
//! an answer means is absent. Read [`userfaultfd`] first.

use std::fs;
use std::os::fd::AsFd;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

use super::perf::{self, Resolved};
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

/// Whether faults of this thread, those in system calls included, could be logged.
pub(crate) fn fault_events(allowed: Allowed) -> Result<(), Errno> {
    if !allowed.fault_events {
        return Err(Errno::ACCESS);
    }
    // Of the processors one is always there.
    let mut opened = (0..perf::processor_count()).map(|cpu| perf::open(Resolved::Minor, 0, cpu));
    let event =
        opened.find(|event| !matches!(event, Err(Errno::NODEV))).unwrap_or(Err(Errno::NODEV))?;
    perf::Ring::map(event.as_fd(), 1).map(drop)
}

/// The threads of this process, as the kernel numbers them.
pub(crate) fn threads() -> std::io::Result<Vec<u32>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        threads.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(threads)
}
