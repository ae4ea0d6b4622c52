//! The bytes that a container is made of, apart from objects: the header page of each window and the
//! table of page descriptors behind it. `docs/heap-format.md` describes them for readers without this
//! code. Nothing here allocates or locks. Read [`Header`], then [`Descriptor`].

use std::mem::offset_of;
use std::ptr::with_exposed_provenance;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use stead_model::{PAGE_SIZE, PAGES_PER_WINDOW, WINDOW_COUNT, WINDOW_SIZE};

/// First eight bytes of every window: `STEADHP1`.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"STEADHP1");

/// The format that this code writes, and the only one that it reads.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// Bytes of one page descriptor.
pub(crate) const DESCRIPTOR_SIZE: usize = 64;

/// Pages of a window that its descriptor table takes: those after page 0.
pub(crate) const DESCRIPTOR_PAGES: u32 =
    (PAGES_PER_WINDOW as usize * DESCRIPTOR_SIZE / PAGE_SIZE) as u32;

/// First page of a window's segment.
pub(crate) const FIRST_PAGE: u32 = 1 + DESCRIPTOR_PAGES;

/// One past the last page of a window.
pub(crate) const WINDOW_PAGES: u32 = PAGES_PER_WINDOW as u32;

/// Largest slot of a page that holds several allocations; larger ones take whole pages.
pub(crate) const SMALL_MAX: usize = 2048;

/// Alignment that every allocation has at least.
pub(crate) const GRAIN: usize = 16;

/// Cluster table entry of a window that belongs to no cluster yet; others hold the cluster plus one.
pub(crate) const UNASSIGNED: u16 = 0;

/// Page 0 of a window. Fields that change while other threads may look are atomic; they change only
/// under the arena's lock.
#[repr(C)]
pub(crate) struct Header {
    pub(crate) magic: u64,
    pub(crate) format_version: u32,
    pub(crate) container: u32,
    /// This window's place in its container.
    pub(crate) window: u32,
    pub(crate) cluster: u16,
    pub(crate) reserved: u16,
    pub(crate) cluster_first_window: u32,
    pub(crate) window_count: u32,
    /// Address of the container's first byte, as the pointers in it have it.
    pub(crate) canonical_base: u64,
    /// Pages of this window's segment, which starts at [`FIRST_PAGE`].
    pub(crate) segment_pages: AtomicU64,
    /// The next six are used in window 0 alone.
    pub(crate) root: AtomicU64,
    pub(crate) root_type: AtomicU32,
    pub(crate) type_count: AtomicU32,
    pub(crate) types_address: AtomicU64,
    pub(crate) types_bytes: AtomicU64,
    pub(crate) cluster_count: AtomicU32,
    pub(crate) reserved2: [u32; 11],
    /// Control bytes of an empty hash table: what an empty map of this cluster points at.
    pub(crate) empty_group: [u8; 64],
    pub(crate) clusters: [AtomicU16; WINDOW_COUNT as usize],
}

pub(crate) const EMPTY_GROUP: usize = offset_of!(Header, empty_group);

const _: () = {
    assert!(size_of::<Header>() <= PAGE_SIZE);
    assert!(EMPTY_GROUP == 128);
    assert!(offset_of!(Header, clusters) == 192);
    assert!(offset_of!(Header, canonical_base) == 32);
    assert!(offset_of!(Header, cluster_count) == 80);
};

/// What a page holds.
pub(crate) mod kind {
    /// Nothing: its bytes need not be kept.
    pub(crate) const FREE: u8 = 0;
    /// Objects that pointers and boxes name.
    pub(crate) const OBJECTS: u8 = 1;
    /// Elements of vectors and bytes of texts.
    pub(crate) const ARRAY: u8 = 2;
    /// Hash tables.
    pub(crate) const TABLE: u8 = 3;
    /// The container's type descriptions.
    pub(crate) const TYPES: u8 = 4;
}

/// What the container says about one page, so that the page can be verified or relocated alone.
#[repr(C)]
pub(crate) struct Descriptor {
    pub(crate) type_number: AtomicU32,
    pub(crate) kind: AtomicU8,
    /// Of each hash table on this page.
    pub(crate) capacity_log2: AtomicU8,
    pub(crate) reserved: [u8; 2],
    /// Bytes of a slot; 0 when the page is part of a run that holds one allocation.
    pub(crate) slot_size: AtomicU32,
    pub(crate) slot_count: AtomicU32,
    /// First page of the run, within the window.
    pub(crate) run_start: AtomicU32,
    pub(crate) run_pages: AtomicU32,
    /// Bytes of the run that its allocation asked for.
    pub(crate) run_bytes: AtomicU64,
    /// A bit for each slot that is allocated.
    pub(crate) live: [AtomicU64; 4],
}

const _: () = assert!(size_of::<Descriptor>() == DESCRIPTOR_SIZE);

/// First address of the window that `address` lies in.
#[inline(always)]
pub(crate) const fn window_base(address: usize) -> usize {
    address & !(WINDOW_SIZE - 1)
}

/// Page within its window.
#[inline(always)]
pub(crate) const fn page_in_window(address: usize) -> u32 {
    ((address & (WINDOW_SIZE - 1)) / PAGE_SIZE) as u32
}

/// Address of the descriptor of a page.
#[inline(always)]
pub(crate) const fn descriptor_address(window_base: usize, page: u32) -> usize {
    window_base + PAGE_SIZE + page as usize * DESCRIPTOR_SIZE
}

/// The header of a window.
///
/// # Safety
/// `window_base` is the address of a mapped window whose header page was written or is writable
/// zeros, and stays mapped for `'a`.
#[inline(always)]
pub(crate) unsafe fn header<'a>(window_base: usize) -> &'a Header {
    // SAFETY: mapped for 'a; any bytes are a valid Header; the non-atomic fields are written only
    // while a window is formatted, before any reference to it is given out.
    unsafe { &*with_exposed_provenance::<Header>(window_base) }
}

/// The descriptor of a page.
///
/// # Safety
/// `window_base` is the address of a mapped window that stays mapped for `'a`, and `page` is below
/// [`WINDOW_PAGES`].
#[inline(always)]
pub(crate) unsafe fn descriptor<'a>(window_base: usize, page: u32) -> &'a Descriptor {
    // SAFETY: inside the mapped window, 64-byte aligned; all fields are atomic, any bytes are valid.
    unsafe { &*with_exposed_provenance::<Descriptor>(descriptor_address(window_base, page)) }
}

/// Slot sizes of arrays on shared pages: four to a doubling.
const ARRAY_CLASSES: [u16; 24] = [
    16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024,
    1280, 1536, 1792, 2048,
];

/// The smallest class that holds `bytes`, or `bytes` in whole pages.
pub(crate) const fn array_bytes(bytes: usize) -> usize {
    if bytes > SMALL_MAX {
        return bytes.next_multiple_of(PAGE_SIZE);
    }
    let mut i = 0;
    while (ARRAY_CLASSES[i] as usize) < bytes {
        i += 1;
    }
    ARRAY_CLASSES[i] as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_they_say() {
        for bytes in 1..=SMALL_MAX {
            let class = array_bytes(bytes);
            assert!(class >= bytes && class.is_multiple_of(GRAIN) && class <= bytes.max(16) * 2);
        }
        assert_eq!(array_bytes(2049), 4096);
        assert_eq!(array_bytes(4097), 8192);
    }
}
