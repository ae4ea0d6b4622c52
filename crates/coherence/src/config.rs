//! What a caller chooses: manager and policy of each cluster, and the times. Read [`Config`] first.

use alloc::vec::Vec;

use crate::ids::{ClusterId, DomainId, Micros, SiteId};
#[cfg(feature = "planted")]
use crate::planted::Bug;

/// Where a faulting site asks first. Home entries as recoverable truth lie beneath all three
/// (catalogue C3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Manager {
    /// One site is home to all pages of the cluster; if the view is without it, the first member.
    Central(SiteId),
    /// Each chunk has a home, found by hashing over the view.
    Fixed,
    /// The probable owner is asked; the hashed home where none is known or the hints led too far.
    Dynamic,
}

/// What becomes of copies.
///
/// Write-update (C4) would be a further kind: its differences travel at the end of a section,
/// ordered by the home, so it needs an event for the section's end and touches no other kind.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Policy {
    /// Many readers or one writer: a write invalidates the copies (C2).
    Invalidate,
    /// Never replicated: a plain load brings the page (C6).
    SingleCopy,
    /// Not pages but locks: the right to write is the lock, it has no body and no stable state (C8).
    Lock,
}

/// A cluster as a site must know it. All sites must be told the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ClusterConfig {
    /// Which cluster.
    pub id: ClusterId,
    /// Where faults ask first.
    pub manager: Manager,
    /// What becomes of copies.
    pub policy: Policy,
    /// The container whose rounds take its pages; `None` for what does not persist (A9).
    pub domain: Option<DomainId>,
}

/// Choices that hold for a site's life.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Config {
    /// The clusters, sorted by id.
    pub clusters: Vec<ClusterConfig>,
    /// After this time an unanswered message is sent again.
    pub retry_us: Micros,
    /// For this time a page that came to be written stays (I6). 0 turns it off.
    pub hold_us: Micros,
    /// A round that is not decided within this time is given up.
    pub gate_us: Micros,
    /// So many sites pass a request on by their hints; the next one asks the home.
    pub hops_max: u8,
    /// A mistake to make on purpose.
    #[cfg(feature = "planted")]
    pub planted: Option<Bug>,
}

impl Config {
    /// Times fit for a local network: again after 50 ms, hold for 1 ms, gate for 20 ms, two hops.
    #[must_use]
    pub fn new(mut clusters: Vec<ClusterConfig>) -> Config {
        clusters.sort_unstable_by_key(|c| c.id);
        Config {
            clusters,
            retry_us: 50_000,
            hold_us: 1_000,
            gate_us: 20_000,
            hops_max: 2,
            #[cfg(feature = "planted")]
            planted: None,
        }
    }

    pub(crate) fn cluster(&self, id: ClusterId) -> Option<&ClusterConfig> {
        let at = self.clusters.binary_search_by_key(&id, |c| c.id).ok()?;
        Some(&self.clusters[at])
    }
}
