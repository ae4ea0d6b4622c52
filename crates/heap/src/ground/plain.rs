//! Simulated memory: a container's windows as one anonymous mapping of this process, for tests and for
//! AddressSanitizer. Nothing in it persists, yet an arena may be dropped and opened again on it. Read
//! [`PlainGround`] first.

use std::ffi::c_void;
use std::io;
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use stead_model::WINDOW_SIZE;

use super::{Ground, GroundError};
use crate::error::Damaged;

/// Windows of plain memory, and as much for the shadow.
#[derive(Debug)]
pub struct PlainGround {
    mapping: usize,
    mapping_bytes: usize,
    base: usize,
    window_count: u32,
    /// Bytes that the heap said it is about to write.
    asked_bytes: AtomicU64,
}

impl PlainGround {
    /// Reserves `window_count` windows at an aligned address that the kernel chooses.
    ///
    /// # Errors
    /// If the process has no such address range left.
    pub fn new(window_count: u32) -> io::Result<Arc<PlainGround>> {
        let bytes = window_count as usize * WINDOW_SIZE;
        let mapping_bytes = 2 * bytes + WINDOW_SIZE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh private mapping at an address of the kernel's choice replaces nothing.
        let p = unsafe { mmap_anonymous(null_mut(), mapping_bytes, prot, flags)? };
        let mapping = p.expose_provenance();
        Ok(Arc::new(PlainGround {
            mapping,
            mapping_bytes,
            base: mapping.next_multiple_of(WINDOW_SIZE),
            window_count,
            asked_bytes: AtomicU64::new(0),
        }))
    }

    /// Forgets the volatile half, as the end of a process would.
    ///
    /// # Safety
    /// No arena is open on this ground.
    pub unsafe fn forget_shadow(&self) {
        let bytes = self.window_count as usize * WINDOW_SIZE;
        let p = with_exposed_provenance_mut::<c_void>(self.shadow_base());
        // SAFETY: our own private anonymous mapping, which nothing refers to (condition of this
        // function); its pages read as zeros afterwards.
        unsafe { madvise(p, bytes, Advice::LinuxDontNeed) }.expect("madvise of our own mapping");
    }

    /// Bytes asked for ahead so far.
    #[must_use]
    pub fn asked_bytes(&self) -> u64 {
        self.asked_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for PlainGround {
    fn drop(&mut self) {
        let p = with_exposed_provenance_mut::<c_void>(self.mapping);
        // SAFETY: mapped by `new` with this length; arenas hold an Arc of this value, so none is left.
        let unmapped = unsafe { munmap(p, self.mapping_bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

// SAFETY: the mapping is readable and writable for the life of the value, aligned by `new`, private to
// this value, and all windows are mapped from the start.
unsafe impl Ground for PlainGround {
    fn base(&self) -> usize {
        self.base
    }

    fn window_count(&self) -> u32 {
        self.window_count
    }

    fn shadow_base(&self) -> usize {
        self.base + self.window_count as usize * WINDOW_SIZE
    }

    fn ask(&self, _address: usize, bytes: usize) {
        self.asked_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn check(&self, _address: usize, _bytes: usize) -> Result<(), Damaged> {
        Ok(())
    }

    fn assign(&self, _first: u32, _count: u32, _cluster: u16) -> Result<(), GroundError> {
        Ok(())
    }
}
