//! Bugs on purpose, to show that the proofs catch them. Without the feature `planted` nothing of this
//! is in the program. Read [`Bug`] first.

/// A bug that can be planted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// A map's control byte is not noted before it changes.
    ControlByteNotNoted,
    /// Memory is freed at once instead of at the section's end.
    FreesNotDeferred,
    /// Allocations of an undone section are not freed.
    AllocationsNotUndone,
    /// `Vec::pop` does not note the element that it exposes.
    PoppedNotNoted,
    /// Locks are released when their guard is dropped, not at the section's end.
    LocksNotTwoPhase,
    /// Verify takes it that the control bytes of a table agree with what the map says.
    TableBelieved,
}

#[cfg(feature = "planted")]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local! { static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) } }

    /// Plants a bug in this thread, or none.
    pub fn set(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    pub(crate) fn on(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "planted")]
pub(crate) use switch::on;
#[cfg(feature = "planted")]
pub use switch::set;

#[cfg(not(feature = "planted"))]
#[inline(always)]
pub(crate) const fn on(_: Bug) -> bool {
    false
}
