//! Addresses and page numbers, and the arithmetic between them.
//!
//! No reading or writing happens through these: they are numbers with a meaning. Read [`Address`]
//! and [`PageId`] first.

use core::fmt;

/// Bytes in a page. Stored in every store's header, so that a store made elsewhere is recognised.
pub const PAGE_SIZE: usize = 4096;

/// Bytes in a window: the unit in which containers and clusters take addresses. The header of a
/// cluster's window is found from any address in it by masking.
pub const WINDOW_SIZE: usize = 1 << 36;

/// Pages in a window.
pub const PAGES_PER_WINDOW: u64 = (WINDOW_SIZE / PAGE_SIZE) as u64;

/// First address that a container may have. Position-independent programs and their libraries stay
/// clear of `ADDRESS_START..ADDRESS_END` on x86-64 Linux.
pub const ADDRESS_START: usize = 0x2000_0000_0000;

/// One past the last address that a container may have.
pub const ADDRESS_END: usize = 0x5400_0000_0000;

/// Windows in the whole address range.
pub const WINDOW_COUNT: u32 = ((ADDRESS_END - ADDRESS_START) / WINDOW_SIZE) as u32;

/// The address of a byte, in the one address space that all containers of a store share.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub usize);

impl Address {
    /// The first address of the window that this address lies in.
    #[must_use]
    pub const fn window_base(self) -> Address {
        Address(self.0 & !(WINDOW_SIZE - 1))
    }

    /// The first address of the page that this address lies in.
    #[must_use]
    pub const fn page_base(self) -> Address {
        Address(self.0 & !(PAGE_SIZE - 1))
    }

    /// The page of a container based at `base` that this address lies in.
    ///
    /// # Panics
    /// If the address lies below `base`.
    #[must_use]
    pub const fn page_from(self, base: Address) -> PageNo {
        assert!(self.0 >= base.0, "address below its container");
        PageNo(((self.0 - base.0) / PAGE_SIZE) as u64)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Names a container for the life of its store; never used again for another one. Container 0 is
/// the system container.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ContainerId(pub u32);

impl ContainerId {
    /// The container that describes its site: names, placement, and later rights and loci.
    pub const SYSTEM: ContainerId = ContainerId(0);

    /// Largest number that the store's formats have room for.
    pub const MAX: ContainerId = ContainerId((1 << 22) - 1);

    /// Stands for a second copy of the system container. No container of a program gets its number.
    pub const SPARE: ContainerId = ContainerId::MAX;
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A page within a container: 0 is the first page of its first window.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageNo(pub u64);

impl PageNo {
    /// One past the largest page number that the store's formats have room for.
    pub const LIMIT: u64 = 1 << 40;

    /// The address of this page's first byte in a container based at `base`.
    #[must_use]
    pub const fn address(self, base: Address) -> Address {
        Address(base.0 + self.0 as usize * PAGE_SIZE)
    }

    /// Which window of its container this page lies in.
    #[must_use]
    pub const fn window(self) -> u32 {
        (self.0 / PAGES_PER_WINDOW) as u32
    }
}

/// A page of a store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageId {
    /// The container.
    pub container: ContainerId,
    /// The page within it.
    pub page: PageNo,
}

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {} of container {}", self.page.0, self.container)
    }
}

/// A run of pages within a container, `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageRange {
    /// First page of the run.
    pub start: u64,
    /// One past its last page.
    pub end: u64,
}

impl PageRange {
    /// The run `start..end`.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Self {
        PageRange { start, end }
    }

    /// Pages in the run.
    #[must_use]
    pub const fn page_count(self) -> u64 {
        self.end - self.start
    }

    /// The pages of the run in order.
    pub fn pages(self) -> impl Iterator<Item = PageNo> {
        (self.start..self.end).map(PageNo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_whole_windows() {
        assert_eq!(ADDRESS_START % WINDOW_SIZE, 0);
        assert_eq!(WINDOW_COUNT as usize * WINDOW_SIZE, ADDRESS_END - ADDRESS_START);
        assert!(u64::from(WINDOW_COUNT) * PAGES_PER_WINDOW <= PageNo::LIMIT);
    }

    #[test]
    fn masks_find_page_and_window() {
        let base = Address(ADDRESS_START + 3 * WINDOW_SIZE);
        let a = Address(base.0 + WINDOW_SIZE + 5 * PAGE_SIZE + 17);
        assert_eq!(a.window_base(), Address(base.0 + WINDOW_SIZE));
        assert_eq!(a.page_base(), Address(base.0 + WINDOW_SIZE + 5 * PAGE_SIZE));
        let page = a.page_from(base);
        assert_eq!(page, PageNo(PAGES_PER_WINDOW + 5));
        assert_eq!(page.window(), 1);
        assert_eq!(page.address(base), a.page_base());
    }
}
