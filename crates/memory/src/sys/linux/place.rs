//! A place in the source text, kept in an atomic: what a section's entry leaves behind for whoever
//! has to wait for it. Nothing else is stored here. Read [`AtomicPlace`] first.

use std::panic::Location;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The place of the caller that was stored last, if any.
#[derive(Debug, Default)]
pub(crate) struct AtomicPlace(AtomicPtr<Location<'static>>);

impl AtomicPlace {
    pub(crate) const fn new() -> Self {
        AtomicPlace(AtomicPtr::new(std::ptr::null_mut()))
    }

    #[inline(always)]
    pub(crate) fn store(&self, place: &'static Location<'static>) {
        self.0.store(std::ptr::from_ref(place).cast_mut(), Ordering::Relaxed);
    }

    pub(crate) fn load(&self) -> Option<&'static Location<'static>> {
        let place = self.0.load(Ordering::Relaxed);
        // SAFETY: the pointer is null, or was made by `store` from a reference that lives as long as
        // the program and points at something that never changes.
        unsafe { place.as_ref() }
    }
}
