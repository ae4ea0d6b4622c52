//! Which pages were written: the `PAGEMAP_SCAN` request of `/proc/self/pagemap`. It reports runs and
//! may protect what it reports; it keeps nothing. Read [`scan`] first.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use rustix::io::Errno;

use super::uffd::last_errno;
use crate::support::{Allowed, Unsupported};
use crate::sys::{Scanned, WrittenRun};

const PAGEMAP_SCAN: u64 = 0xc060_6610;

const FLAG_WP_MATCHING: u64 = 1;
const FLAG_CHECK_WPASYNC: u64 = 2;

const CATEGORY_WRITTEN: u64 = 1 << 1;

/// `struct pm_scan_arg`.
#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// Regions asked for in one request: as many as the kernel collects before it copies them out.
const REGION_COUNT_MAX: usize = 512;

pub(super) fn open(allowed: Allowed) -> Result<File, Unsupported> {
    let pagemap = File::open("/proc/self/pagemap").map_err(|error| Unsupported::pagemap(&error))?;
    // An empty range asks nothing, but an old kernel does not even know the request.
    if !allowed.pagemap_scan || probe(&pagemap) == Err(Errno::NOTTY) {
        return Err(Unsupported::pagemap_scan());
    }
    Ok(pagemap)
}

/// Whether the kernel knows the request.
pub(super) fn probe(pagemap: &File) -> Result<(), Errno> {
    request(pagemap, 0, 0, 0, &mut []).map(|_| ())
}

/// Reports runs of written pages in `at..at + byte_len`, which must be watched with asynchronous
/// write-protection.
pub(super) fn scan(
    pagemap: &File,
    at: usize,
    byte_len: usize,
    protect: bool,
    runs: &mut [WrittenRun],
) -> Result<Scanned, Errno> {
    let mut regions = [const { MaybeUninit::uninit() }; REGION_COUNT_MAX];
    let room = runs.len().min(REGION_COUNT_MAX);
    let flags = if protect { FLAG_WP_MATCHING | FLAG_CHECK_WPASYNC } else { FLAG_CHECK_WPASYNC };
    let (run_count, walk_end) = request(pagemap, flags, at, byte_len, &mut regions[..room])?;
    for (run, region) in runs.iter_mut().zip(&regions[..run_count]) {
        // SAFETY: the kernel has filled so many regions, from the first on.
        let region = unsafe { region.assume_init_ref() };
        *run = WrittenRun { start: region.start as usize, end: region.end as usize };
    }
    Ok(Scanned { run_count, walk_end })
}

fn request(
    pagemap: &File,
    flags: u64,
    at: usize,
    byte_len: usize,
    regions: &mut [MaybeUninit<PageRegion>],
) -> Result<(usize, usize), Errno> {
    let mut arg = ScanArg {
        size: size_of::<ScanArg>() as u64,
        flags,
        start: at as u64,
        end: (at + byte_len) as u64,
        walk_end: 0,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        max_pages: 0,
        category_inverted: 0,
        // This combination alone takes the kernel's short path, three times as fast as any other.
        category_mask: CATEGORY_WRITTEN,
        category_anyof_mask: 0,
        return_mask: CATEGORY_WRITTEN,
    };
    // SAFETY: the argument is a pm_scan_arg of the size that it states, alive for the call; `vec`
    // points at `vec_len` regions borrowed for the call. Protecting changes no contents, and applies
    // to ranges under asynchronous write-protection only (CHECK_WPASYNC), where the kernel itself
    // resolves a write.
    let count = unsafe {
        libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, std::ptr::from_mut(&mut arg))
    };
    let count = usize::try_from(count).map_err(|_| last_errno())?;
    Ok((count, arg.walk_end as usize))
}
