//! What a site can tell about itself: plain numbers, copied. Read [`SiteStat`] first.

use std::path::PathBuf;
use std::sync::Arc;

use stead_memory::{CounterValues, Unsupported};
use stead_model::{Address, ContainerId};
use stead_store::Stat;

use crate::error::StabiliseError;

/// A store and its containers.
#[derive(Debug)]
#[non_exhaustive]
pub struct SiteStat {
    /// Its directory.
    pub dir: PathBuf,
    /// Space, sequence and time of the last stabilisation, bytes and flushes.
    pub store: Stat,
    /// How its log is read and written, in a few words.
    pub medium: String,
    /// Its containers in the order of their numbers, the system container first.
    pub containers: Vec<ContainerStat>,
    /// What happened since it was opened.
    pub counters: Counters,
    /// Why the last stabilisation by the background failed, until one succeeds.
    pub failure: Option<Arc<StabiliseError>>,
    /// How written pages are found (B5).
    pub written_pages: WrittenPages,
}

/// How written pages are found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum WrittenPages {
    /// By scanning what is in memory: so far that is cheaper.
    Scan,
    /// By the kernel's log of page faults.
    FaultLog,
    /// By scanning, because there is no such log here.
    NoFaultLog(Unsupported),
}

impl std::fmt::Display for WrittenPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WrittenPages::Scan => f.write_str("a scan, and by the fault log once that is cheaper"),
            WrittenPages::FaultLog => f.write_str("the fault log"),
            WrittenPages::NoFaultLog(why) => write!(f, "a scan: {why}"),
        }
    }
}

/// A container.
#[derive(Debug)]
#[non_exhaustive]
pub struct ContainerStat {
    /// Its number.
    pub id: ContainerId,
    /// Its name; the system container's is `(system)`.
    pub name: String,
    /// Its first address.
    pub base: Address,
    /// Bytes of addresses that it holds.
    pub address_bytes: u64,
    /// When it was made, in seconds since 1970.
    pub created_unix_s: u64,
    /// Bytes of its pages that are stable.
    pub stored_bytes: u64,
    /// Bytes that it may hold; `None` if nobody has said.
    pub quota_bytes: Option<u64>,
    /// Bytes of its pages that are in memory; `None` if it is not open here.
    pub resident_bytes: Option<u64>,
}

/// What happened since the store was opened here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Faults, pages installed, scans.
    pub memory: CounterValues,
    /// Clusters of which some page was touched: the second level of A7.
    pub clusters_touched: u64,
    /// Stabilisations that became stable.
    pub rounds: u64,
    /// Rounds given up because sections stayed open.
    pub rounds_held: u64,
    /// Rounds whose record could not be written.
    pub rounds_failed: u64,
    /// Page images written by them.
    pub pages_stabilised: u64,
    /// Bytes written by them.
    pub bytes_written: u64,
    /// Flushes made by them.
    pub flushes: u64,
    /// How long the search for dirty pages took in the last round, the longest if there were several, in
    /// microseconds.
    pub scan_us_last: u64,
    /// How long the gates were closed in the last round, at most at a time, in microseconds.
    pub pause_us_last: u64,
    /// Longest time that gates were closed, in microseconds.
    pub pause_us_max: u64,
}
