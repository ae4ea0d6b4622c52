//! Faults built in on purpose, to show that the tests would find them, and a way to run all tests with written
//! pages found in one way or the other. Only the tests' own feature compiles this in. Read [`Bug`] first.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::space::LogUse;
use crate::support::Allowed;

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
    /// The fault log is believed whole although records are missing.
    LossLeftOut,
    /// What a search behind closed gates has found is never protected.
    FoundUnprotected,
    /// What the fault log named is forgotten after a scan, not before it.
    NamesForgottenLate,
}

static BUG: AtomicU8 = AtomicU8::new(Bug::None as u8);

/// How every space of this process finds written pages, as the variable `STEAD_FAULT_LOG` says: `refused`, by
/// scans alone; `log`, by the fault log from the start; `checked`, by both, which have to agree.
pub(crate) fn log_use(allowed: Allowed) -> (Allowed, Option<LogUse>) {
    match std::env::var("STEAD_FAULT_LOG").as_deref() {
        Ok("refused") => (Allowed { fault_events: false, ..allowed }, None),
        Ok("log") => (allowed, Some(LogUse::Log)),
        Ok("checked") => (allowed, Some(LogUse::Checked)),
        Ok(other) => panic!("STEAD_FAULT_LOG={other} is none of refused, log, checked"),
        Err(_) => (allowed, None),
    }
}

/// Switches a fault on, for the whole process.
pub fn set(bug: Bug) {
    BUG.store(bug as u8, Ordering::SeqCst);
}

/// Whether this fault is on.
#[must_use]
pub fn is(bug: Bug) -> bool {
    BUG.load(Ordering::SeqCst) == bug as u8
}
