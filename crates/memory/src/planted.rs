//! Faults built in on purpose, to show that the tests would find them. Only the tests' own feature
//! compiles this in. Read [`Bug`] first.

use std::sync::atomic::{AtomicU8, Ordering};

/// A fault that can be switched on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Bug {
    /// None: everything works.
    None,
    /// Sections are entered although the gate is closed.
    GateLeftOut,
    /// Closing a gate does without the barrier in the threads that run.
    BarrierLeftOut,
}

static BUG: AtomicU8 = AtomicU8::new(Bug::None as u8);

/// Switches a fault on, for the whole process.
pub fn set(bug: Bug) {
    BUG.store(bug as u8, Ordering::SeqCst);
}

/// Whether this fault is on.
#[must_use]
pub fn is(bug: Bug) -> bool {
    BUG.load(Ordering::SeqCst) == bug as u8
}
