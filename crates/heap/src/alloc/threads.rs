//! The pages that each thread allocates from without asking anybody. Where pages come from is in
//! `alloc.rs`. Read [`ThreadCache`] first.

use std::ptr::{NonNull, with_exposed_provenance_mut};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::{Arc, Weak};

use stead_model::PAGE_SIZE;

use super::{Request, Shared};
use crate::asan;
use crate::error::AllocError;
use crate::layout::{descriptor, page_in_window, window_base};

const CACHE_SIZE: usize = 64;

/// The pages that one thread allocates from, one for each sort that it met lately.
pub(crate) struct ThreadCache {
    shared: Weak<Shared>,
    serial: u64,
    pages: [CurrentPage; CACHE_SIZE],
}

#[derive(Clone, Copy)]
struct CurrentPage {
    /// Of the type, see [`TypeRef::key`].
    type_key: u64,
    /// `cluster << 32 | capacity_log2 << 24 | kind << 16 | bytes`.
    sort: u64,
    /// 0 for no page.
    address: usize,
    slot_count: u32,
    /// The word of the bitmap where the last free slot was found.
    word: u32,
}

/// A thread's caches for all arenas that it met. They do not move while they are in the list.
#[derive(Default)]
pub(crate) struct ThreadCaches(Vec<NonNull<ThreadCache>>);

impl Drop for ThreadCaches {
    fn drop(&mut self) {
        for cache in self.0.drain(..) {
            // SAFETY: made by Box::into_raw in `for_arena`, and in this list alone.
            unsafe { Box::from_raw(cache.as_ptr()) }.give_back();
        }
    }
}

impl ThreadCache {
    /// This thread's cache for an arena; it lives as long as the thread's journal.
    #[cold]
    #[inline(never)]
    pub(crate) fn for_arena(caches: &mut ThreadCaches, shared: &Arc<Shared>) -> *mut Self {
        // SAFETY: the list owns its caches, and nobody refers to one now.
        let of = |c: NonNull<ThreadCache>| unsafe { c.as_ref() };
        let found = caches.0.iter().find(|c| of(**c).serial == shared.serial);
        if let Some(cache) = found {
            return cache.as_ptr();
        }
        let closed = |c: &mut NonNull<ThreadCache>| of(*c).shared.strong_count() == 0;
        for cache in caches.0.extract_if(.., closed) {
            // SAFETY: made by Box::into_raw below, and no longer in the list.
            drop(unsafe { Box::from_raw(cache.as_ptr()) });
        }
        let none = CurrentPage { type_key: 0, sort: 0, address: 0, slot_count: 0, word: 0 };
        let cache = Box::into_raw(Box::new(ThreadCache {
            shared: Arc::downgrade(shared),
            serial: shared.serial,
            pages: [none; CACHE_SIZE],
        }));
        caches.0.extend(NonNull::new(cache));
        cache
    }

    /// Makes this thread's pages findable by others. Runs when the thread ends, outside any section, so
    /// it writes nothing to the container: a page that is free by now is listed as having room.
    fn give_back(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut pages = shared.pages();
        for current in &mut self.pages {
            if current.address != 0 {
                shared.page_abandoned(&mut pages, current.address);
                current.address = 0;
            }
        }
    }

    /// Allocates a slot of a shared page.
    #[inline]
    pub(crate) fn allocate(
        &mut self,
        shared: &Shared,
        cluster: u16,
        r: &Request,
    ) -> Result<NonNull<u8>, AllocError> {
        let sort = u64::from(cluster) << 32
            | u64::from(r.capacity_log2) << 24
            | u64::from(r.kind) << 16
            | r.bytes as u64;
        let type_key = r.ty.key();
        let index = (type_key ^ sort).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
        let current = &mut self.pages[index as usize];
        if current.address == 0 || current.type_key != type_key || current.sort != sort {
            Self::turn_page(current, shared, cluster, r, sort)?;
        }
        loop {
            if let Some(address) = current.take_slot(r.bytes) {
                asan::unpoison(address, r.bytes);
                let p = with_exposed_provenance_mut::<u8>(address);
                return Ok(NonNull::new(p).expect("pages are not at address 0"));
            }
            Self::turn_page(current, shared, cluster, r, sort)?;
        }
    }

    #[cold]
    #[inline(never)]
    fn turn_page(
        current: &mut CurrentPage,
        shared: &Shared,
        cluster: u16,
        r: &Request,
        sort: u64,
    ) -> Result<(), AllocError> {
        if current.address != 0 {
            let address = std::mem::take(&mut current.address);
            shared.page_given_back(&mut shared.pages(), address);
        }
        let address = shared.page_with_room(cluster, r)?;
        *current = CurrentPage {
            type_key: r.ty.key(),
            sort,
            address,
            slot_count: (PAGE_SIZE / r.bytes) as u32,
            word: 0,
        };
        Ok(())
    }
}

const _: () = assert!(CACHE_SIZE == 1 << (64 - 58));

impl CurrentPage {
    /// Marks a free slot of the page as live. Only this thread sets bits of this page; others clear some.
    #[inline]
    fn take_slot(&mut self, slot_size: usize) -> Option<usize> {
        let base = window_base(self.address);
        // SAFETY: the page was given to this thread by the arena, whose windows are mapped.
        let d = unsafe { descriptor(base, page_in_window(self.address)) };
        let words = self.slot_count.div_ceil(64);
        for _ in 0..=words {
            let word = self.word;
            let slots = self.slot_count - word * 64;
            let all = if slots >= 64 { u64::MAX } else { (1 << slots) - 1 };
            let live = &d.live[word as usize];
            // With the release of `free_all`: its last owner may have been another thread.
            let free = !live.load(Acquire) & all;
            if free != 0 {
                let bit = free.trailing_zeros();
                live.fetch_or(1 << bit, Relaxed);
                return Some(self.address + (word * 64 + bit) as usize * slot_size);
            }
            self.word = if word + 1 < words { word + 1 } else { 0 };
        }
        None
    }
}
