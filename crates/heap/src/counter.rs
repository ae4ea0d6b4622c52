//! Numbers that change atomically, without a lock. Read [`Counter`] first.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::section::{Brand, Tx};
use crate::types::{Describer, Persist, Shape, TypeDescription, name_id};

/// A number that sections side by side add to without waiting.
///
/// **Not undone, not whole or nothing**: other threads see a change at once, an undone section leaves
/// it there (unless the counter is in a value that was lent for change, whose bytes are all put back),
/// and a stable state may hold the changes of a counter whose section never ended well. Where it
/// matters, use a plain field behind a lock.
#[repr(transparent)]
pub struct Counter<'s>(AtomicU64, Brand<'s>);

impl<'s> Counter<'s> {
    /// A counter that stands at `value`.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Counter(AtomicU64::new(value), PhantomData)
    }

    /// Adds `n`, wrapping around, and returns what it stood at before.
    #[inline]
    pub fn add(&self, _tx: &Tx<'s>, n: u64) -> u64 {
        self.0.fetch_add(n, Ordering::AcqRel)
    }

    /// Makes it stand at `n`.
    #[inline]
    pub fn set(&self, _tx: &Tx<'s>, n: u64) {
        self.0.store(n, Ordering::Release);
    }

    /// What it stands at.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Counter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Counter({})", self.get())
    }
}

// SAFETY: eight bytes, no address.
unsafe impl<'s> Persist<'s> for Counter<'s> {
    const ID: u64 = name_id("Counter");
    const POINTERS: bool = false;
    const TAGGED: bool = false;
    fn name() -> String {
        "Counter".into()
    }
    fn describe(d: &mut Describer) -> TypeDescription {
        d.shaped::<Self>(Shape::Counter)
    }
}
