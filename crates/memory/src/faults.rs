//! Faults as they are handed out: which page of which cluster, and why. Serving them is absent. Read
//! [`FaultBatch`] first.

use stead_model::{ContainerId, PageNo};

use crate::sys::RawFault;

/// Names a mapped cluster among those of its space; never used again for another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClusterKey(pub u32);

/// Why a thread stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// The page was not in memory when the thread stopped.
    Missing,
    /// The page was in memory, but not mapped.
    Minor,
    /// The page was write-protected. Does not come while the kernel resolves these itself.
    Protected,
}

/// A thread waits for a page. Kind and access were true when the thread stopped and may be stale:
/// decide by [`crate::Cluster::plan`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The container whose page it is.
    pub container: ContainerId,
    /// The cluster whose page it is.
    pub cluster: ClusterKey,
    /// The page within its container.
    pub page: PageNo,
    /// Whether the thread wanted to write.
    pub write: bool,
    /// Why it stopped.
    pub kind: FaultKind,
}

/// Room for faults, allocated once and filled again and again by [`crate::Space::poll`].
#[derive(Debug)]
pub struct FaultBatch {
    pub(crate) scratch: Vec<u8>,
    pub(crate) raw: Vec<RawFault>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) woken: bool,
}

impl FaultBatch {
    /// Room for `fault_count` faults at once.
    ///
    /// # Panics
    /// If `fault_count` is 0.
    #[must_use]
    pub fn new(fault_count: usize) -> FaultBatch {
        const SCRATCH_BYTES_PER_FAULT: usize = 32;
        assert!(fault_count > 0, "a batch without room never ends");
        FaultBatch {
            scratch: vec![0; fault_count * SCRATCH_BYTES_PER_FAULT],
            raw: Vec::with_capacity(fault_count),
            faults: Vec::with_capacity(fault_count),
            woken: false,
        }
    }

    /// The faults of the last poll, oldest first. Several may concern one page.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Whether somebody called [`crate::Space::wake_poll`].
    #[must_use]
    pub fn woken(&self) -> bool {
        self.woken
    }
}
