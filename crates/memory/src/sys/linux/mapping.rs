//! Address ranges that this process owns: reserved without access, frames mapped into them, made
//! inaccessible again. Userfaultfd is absent. Read [`Area`] first.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use stead_model::Address;

/// A run of addresses that nothing else in this process uses, given back when dropped.
pub struct Area {
    base: *mut core::ffi::c_void,
    byte_len: usize,
}

// SAFETY: an area is an address and a length; nothing is read or written through the pointer, and
// the kernel serialises changes of the mappings of a process.
unsafe impl Send for Area {}
// SAFETY: as above; no method changes the fields.
unsafe impl Sync for Area {}

impl fmt::Debug for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Area({:#x}..{:#x})", self.base().0, self.base().0 + self.byte_len)
    }
}

impl Area {
    pub(super) fn reserve(base: Address, byte_len: usize) -> Result<Area, Errno> {
        let at = ptr::with_exposed_provenance_mut(base.0);
        // SAFETY: with FIXED_NOREPLACE the kernel maps only if nothing is mapped there, so no memory
        // that anyone holds a reference to is changed; the new mapping has no access.
        let got = unsafe {
            mmap_anonymous(
                at,
                byte_len,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE,
            )?
        };
        let area = Area { base: got, byte_len };
        if got != at {
            // A kernel before 4.17 takes the address for a hint.
            return Err(Errno::EXIST);
        }
        area.do_not_fork(base, byte_len)?;
        Ok(area)
    }

    /// Zeroed memory of this process alone, at addresses that the kernel chooses.
    pub(super) fn volatile(byte_len: usize) -> Result<Area, Errno> {
        Area::zeroed(ptr::null_mut(), byte_len, MapFlags::empty())
    }

    /// As [`Area::volatile`], at these addresses if they are free.
    pub(super) fn volatile_at(base: Address, byte_len: usize) -> Result<Area, Errno> {
        let at = ptr::with_exposed_provenance_mut(base.0);
        let area = Area::zeroed(at, byte_len, MapFlags::FIXED_NOREPLACE)?;
        // A kernel before 4.17 takes the address for a hint.
        if area.base() == base { Ok(area) } else { Err(Errno::EXIST) }
    }

    fn zeroed(at: *mut core::ffi::c_void, byte_len: usize, how: MapFlags) -> Result<Area, Errno> {
        debug_assert!(!how.contains(MapFlags::FIXED), "nothing may be replaced");
        // SAFETY: without FIXED the kernel maps only where nothing is mapped, so no memory that anyone holds a
        // reference to is changed.
        let base = unsafe {
            mmap_anonymous(
                at,
                byte_len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE | how,
            )?
        };
        let area = Area { base, byte_len };
        area.do_not_fork(area.base(), byte_len)?;
        area.small_pages(area.base(), byte_len)?;
        Ok(area)
    }

    pub(super) fn base(&self) -> Address {
        Address(self.base.expose_provenance())
    }

    /// Maps frames into part of this area.
    pub(super) fn map(
        &self,
        at: Address,
        byte_len: usize,
        frames: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<(), Errno> {
        self.assert_within(at, byte_len);
        // SAFETY: FIXED replaces what is mapped, and the range lies within this area, which belongs
        // to us: a part without access, or frames whose users the caller has sent away.
        unsafe {
            mmap(
                ptr::with_exposed_provenance_mut(at.0),
                byte_len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE,
                frames,
                offset,
            )?;
        }
        // Between the mapping and the advice a fork would give the child holes that read as zeros;
        // nobody knows an address in here yet, so nobody can be misled.
        self.do_not_fork(at, byte_len)?;
        self.small_pages(at, byte_len)
    }

    /// Takes access away again.
    pub(super) fn unmap(&self, at: Address, byte_len: usize) {
        self.assert_within(at, byte_len);
        // SAFETY: as in `map`: only this area is replaced, by a mapping without access.
        let unmapped = unsafe {
            mmap_anonymous(
                ptr::with_exposed_provenance_mut(at.0),
                byte_len,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED,
            )
        };
        // Replacing needs at most one mapping more than there was; should even that be refused, the
        // frames stay mapped and the area is still ours, which leaks memory but harms nobody.
        if unmapped.is_ok() {
            let _ = self.do_not_fork(at, byte_len);
        }
    }

    fn do_not_fork(&self, at: Address, byte_len: usize) -> Result<(), Errno> {
        self.assert_within(at, byte_len);
        // SAFETY: the advice concerns children only; the range is ours.
        unsafe { madvise(ptr::with_exposed_provenance_mut(at.0), byte_len, Advice::LinuxDontFork) }
    }

    /// A touch must cost one page, not a huge one, and dirty bits are kept per page.
    fn small_pages(&self, at: Address, byte_len: usize) -> Result<(), Errno> {
        self.assert_within(at, byte_len);
        // SAFETY: the advice changes the size of pages that the kernel chooses, not their contents.
        let advised = unsafe {
            madvise(ptr::with_exposed_provenance_mut(at.0), byte_len, Advice::LinuxNoHugepage)
        };
        match advised {
            // A kernel without huge pages does not know the advice.
            Err(Errno::INVAL) | Ok(()) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn assert_within(&self, at: Address, byte_len: usize) {
        let base = self.base().0;
        assert!(
            at.0 >= base && at.0.checked_add(byte_len).is_some_and(|e| e <= base + self.byte_len),
            "range outside its area"
        );
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the area is ours alone, and whoever held addresses in it has promised to be gone
        // before the last handle of its reservation is dropped.
        let unmapped = unsafe { munmap(self.base, self.byte_len) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

/// The lines of `/proc/self/maps` that overlap `start..end`.
pub(super) fn occupants(start: usize, end: usize) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let overlaps = |line: &&str| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        let from = usize::from_str_radix(from, 16).ok()?;
        let to = usize::from_str_radix(to, 16).ok()?;
        (from < end && start < to).then_some(())
    };
    maps.lines().filter(|line| overlaps(line).is_some()).map(str::to_owned).collect()
}
