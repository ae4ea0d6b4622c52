//! What has been seen while a world was explored. It is kept beside the states, because a state that
//! remembers what it has seen is another state. Read [`Happened`] first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Something that ought to happen sometimes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sight {
    WaitsInLine,
    CopyTooLate,
    UpgradeWithoutBody,
    Lost,
    LeftInOrder,
    RoundOfTwo,
    AllStable,
    Aborted,
    CapturedBeforeGiving,
    WentBack,
    LockMoved,
}

/// What has been seen so far, on any path.
#[derive(Clone, Default, Debug)]
pub(crate) struct Happened(Arc<AtomicU32>);

impl Happened {
    pub(crate) fn note(&self, sight: Sight) {
        if !self.has(sight) {
            self.0.fetch_or(1 << sight as u32, Ordering::Relaxed);
        }
    }

    pub(crate) fn has(&self, sight: Sight) -> bool {
        self.0.load(Ordering::Relaxed) >> sight as u32 & 1 == 1
    }
}
