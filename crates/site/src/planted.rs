//! Bugs on purpose, to show that the proofs catch them. Without the feature `planted` nothing of this
//! is in the program. Read [`Bug`] first.

/// A bug that can be planted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// The directory of containers is walked as it was read.
    DirectoryBelieved,
    /// The system container is stored once.
    NoSpare,
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

    pub(crate) fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(not(feature = "planted"))]
mod switch {
    use super::Bug;

    pub(crate) const fn is(_: Bug) -> bool {
        false
    }
}

#[cfg(feature = "planted")]
pub use switch::set;

pub(crate) use switch::is;
