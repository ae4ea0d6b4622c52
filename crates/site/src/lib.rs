//! One site: it serves page faults from the store, takes stabilisations, and keeps the directory of
//! containers (A6, A7, B1, B5, B8, D1).
//!
//! What is decided lies in [`step`] and is pure; `driver` performs it with threads, clocks and files.
//! No type of any program is known here. Read [`Site`] first, then [`container::Opened`].

pub mod container;
mod directory;
mod driver;
pub mod error;
mod join;
pub mod options;
pub mod planted;
mod quota;
mod scrub;
pub mod site;
mod snapshot;
pub mod stat;
pub mod step;
mod word;

pub use container::Opened;
pub use error::{
    BackupError, CheckError, ContainerError, OpenError, OpenErrorKind, QuotaError, RemoveError,
    SectionError, SnapshotError, StabiliseError,
};
pub use join::Typed;
pub use options::{ContainerOptions, OpenOptions};
pub use quota::Quotas;
pub use scrub::{FoundDamage, LostPages, ScrubOptions, Scrubbed};
pub use site::Site;
pub use snapshot::backup;
pub use stat::{ContainerStat, Counters, SiteStat, WrittenPages};
pub use stead_heap::{Damaged, PageKind, PageUse, Report as CheckReport};
pub use stead_memory::{Allowed, Finding, Support};
pub use stead_store::{
    BackedUp, BackupProgress, OpenError as StoreOpenError, Restore, RestoreError, Restored,
    SalvageError, Salvaged, ScrubProgress, SnapshotInfo, StateId, Written, salvage, word_of,
};
pub use step::rounds::Stable;
pub use word::{restore_word, salvage_word};
