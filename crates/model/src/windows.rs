//! Which windows of the address range are taken: the allocator that gives containers disjoint runs
//! (catalogue D1). It knows no mapping and no process; what else occupies an address is found when
//! the run is mapped. Read [`WindowAllocator`] first.

use alloc::vec::Vec;

use crate::address::{ADDRESS_START, Address, WINDOW_COUNT, WINDOW_SIZE};

/// A contiguous run of windows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WindowRun {
    /// First window, counted from [`ADDRESS_START`].
    pub first: u32,
    /// Number of windows, at least 1.
    pub count: u32,
}

impl WindowRun {
    /// The run of `count` windows whose first byte has address `base`; `None` if it is not a run of
    /// whole windows inside the address range.
    #[must_use]
    pub fn at(base: Address, count: u32) -> Option<WindowRun> {
        let offset = base.0.checked_sub(ADDRESS_START)?;
        let first = u32::try_from(offset / WINDOW_SIZE).ok()?;
        let run = WindowRun { first, count };
        (offset.is_multiple_of(WINDOW_SIZE) && count > 0 && run.end()? <= WINDOW_COUNT)
            .then_some(run)
    }

    /// Address of the first byte.
    #[must_use]
    pub fn base(self) -> Address {
        Address(ADDRESS_START + self.first as usize * WINDOW_SIZE)
    }

    /// Bytes in the run.
    #[must_use]
    pub fn byte_len(self) -> usize {
        self.count as usize * WINDOW_SIZE
    }

    fn end(self) -> Option<u32> {
        self.first.checked_add(self.count)
    }

    /// Whether the two have a window in common.
    #[must_use]
    pub fn overlaps(self, other: WindowRun) -> bool {
        self.first < other.first + other.count && other.first < self.first + self.count
    }
}

/// No run of that many free windows is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfAddresses {
    /// Windows that were asked for.
    pub windows_asked: u32,
    /// Windows that are free in all, though not in one run.
    pub windows_free: u32,
}

impl core::fmt::Display for OutOfAddresses {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "out of address space: no {} windows of 64 GiB in a row are free ({} of {} are free in all); remove \
             containers, or give fewer `address_bytes`",
            self.windows_asked, self.windows_free, WINDOW_COUNT
        )
    }
}

impl core::error::Error for OutOfAddresses {}

/// Gives out runs of windows, nearest above the store's base first, and wraps round once at the end of
/// the range. Runs never overlap; a run stays taken until it is released.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WindowAllocator {
    base_window: u32,
    /// Sorted by first window, disjoint.
    taken: Vec<WindowRun>,
}

impl WindowAllocator {
    /// An allocator for a store whose base is window `base_window`, with nothing taken.
    ///
    /// # Panics
    /// If `base_window` is not below [`WINDOW_COUNT`].
    #[must_use]
    pub fn new(base_window: u32) -> Self {
        assert!(base_window < WINDOW_COUNT, "base outside the address range");
        WindowAllocator { base_window, taken: Vec::new() }
    }

    /// Marks a run as taken, as read back from the directory. `false`, and nothing marked, if it
    /// overlaps another or leaves the range.
    pub fn take(&mut self, run: WindowRun) -> bool {
        if run.count == 0 || run.end().is_none_or(|end| end > WINDOW_COUNT) {
            return false;
        }
        if self.taken.iter().any(|t| t.overlaps(run)) {
            return false;
        }
        let at = self.taken.partition_point(|t| t.first < run.first);
        self.taken.insert(at, run);
        true
    }

    /// Gives back a run that was taken. `false` if no such run was.
    pub fn release(&mut self, run: WindowRun) -> bool {
        match self.taken.binary_search(&run) {
            Ok(at) => {
                self.taken.remove(at);
                true
            }
            Err(_) => false,
        }
    }

    /// Takes the first run of `count` free windows for which `usable` holds, going up from the
    /// store's base, then up from the start of the range. `usable` lets the caller pass over runs
    /// that something else in its process occupies; it is asked at most once for each start.
    ///
    /// # Errors
    /// If there is no such run.
    pub fn allocate(
        &mut self,
        count: u32,
        mut usable: impl FnMut(WindowRun) -> bool,
    ) -> Result<WindowRun, OutOfAddresses> {
        let starts = (self.base_window..WINDOW_COUNT).chain(0..self.base_window);
        for first in starts {
            let run = WindowRun { first, count };
            let fits = count > 0 && run.end().is_some_and(|end| end <= WINDOW_COUNT);
            if fits && !self.taken.iter().any(|t| t.overlaps(run)) && usable(run) {
                let marked = self.take(run);
                debug_assert!(marked);
                return Ok(run);
            }
        }
        Err(OutOfAddresses { windows_asked: count, windows_free: self.windows_free() })
    }

    /// Windows that no run holds.
    #[must_use]
    pub fn windows_free(&self) -> u32 {
        WINDOW_COUNT - self.taken.iter().map(|t| t.count).sum::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_disjoint_and_wrap_round() {
        let mut a = WindowAllocator::new(WINDOW_COUNT - 3);
        let first = a.allocate(2, |_| true).unwrap();
        assert_eq!(first, WindowRun { first: WINDOW_COUNT - 3, count: 2 });
        // One window is left above, so two windows come from the start of the range.
        assert_eq!(a.allocate(2, |_| true).unwrap(), WindowRun { first: 0, count: 2 });
        assert_eq!(
            a.allocate(1, |_| true).unwrap(),
            WindowRun { first: WINDOW_COUNT - 1, count: 1 }
        );
        assert!(!a.take(WindowRun { first: 1, count: 1 }));
        assert!(a.release(first));
        assert!(!a.release(first));
        assert_eq!(a.allocate(1, |_| true).unwrap().first, WINDOW_COUNT - 3);
    }

    #[test]
    fn says_when_no_run_is_left() {
        let mut a = WindowAllocator::new(0);
        for i in (0..WINDOW_COUNT).step_by(2) {
            assert!(a.take(WindowRun { first: i, count: 1 }));
        }
        let free = WINDOW_COUNT / 2;
        assert_eq!(
            a.allocate(2, |_| true),
            Err(OutOfAddresses { windows_asked: 2, windows_free: free })
        );
        assert_eq!(a.allocate(0, |_| true).unwrap_err().windows_asked, 0);
        assert!(a.allocate(1, |_| false).is_err());
    }

    #[test]
    fn an_address_names_a_run_only_if_whole() {
        let run = WindowRun { first: 7, count: 2 };
        assert_eq!(WindowRun::at(run.base(), 2), Some(run));
        assert_eq!(WindowRun::at(Address(run.base().0 + 4096), 1), None);
        assert_eq!(WindowRun::at(Address(0x1000), 1), None);
        assert_eq!(WindowRun::at(run.base(), WINDOW_COUNT), None);
        assert_eq!(WindowRun::at(run.base(), u32::MAX), None);
    }
}
