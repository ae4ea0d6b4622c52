//! Memory that stays: a program opens a directory, gets a container at a fixed address, and builds data
//! structures in it with plain 8-byte pointers. Killed at any moment, it goes on from its last
//! stabilisation.
//!
//! ```
//! use stead::{Persist, Result};
//!
//! #[derive(Persist)]
//! #[repr(C)]
//! struct ClassVar {
//!     runs: u64,
//! }
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let dir = dir.path().join("classvar");
//! # fn main_once(dir: &std::path::Path) -> Result<u64> {
//! let store = stead::open(dir)?;
//! let container = store.container::<ClassVar>("classvar", |_tx| Ok(ClassVar { runs: 0 }))?;
//! let runs = container.exclusive(|root, _tx| -> Result<_> {
//!     root.runs += 1;
//!     Ok(root.runs)
//! })?;
//! println!("run {runs}");
//! # Ok(runs)
//! # }
//! # if stead::Support::probe().missing().is_none() {
//! #     assert_eq!(main_once(&dir).unwrap(), 1);
//! #     assert_eq!(main_once(&dir).unwrap(), 2);
//! # } else {
//! #     eprintln!("NOT RUN: this system lacks what stead needs");
//! # }
//! ```
//!
//! # Sections
//!
//! Persistent data is touched only inside a **section**, a closure that happens whole or not at all:
//!
//! - [`Container::read`] borrows shared references.
//! - [`Container::write`] changes things through locks and counters, side by side with other threads.
//! - [`Container::exclusive`] has the container to itself and borrows `&mut` the root.
//! - [`Container::write_when`] waits, with no section open, for what it needs.
//!
//! `Err` or a panic undoes a section. Nothing borrowed in one can leave it: the compiler sees to that
//! with the lifetime `'s` that each section brings. A section must not wait for anything but pages and
//! locks of its container: in particular not for a lock of the program's own whose holder may be about to enter
//! a section.
//!
//! # Stability
//!
//! A section that has ended is visible; it is *stable* after the next stabilisation, which the store takes
//! by itself about once a second, when it is dropped, and when [`Store::stabilise`] asks for it. What must
//! not be said before it is kept can wait in [`Store::after_stable`].
//!
//! # Snapshots
//!
//! [`Store::snapshot`] names the state of the whole store; it copies nothing. [`open_snapshot`] reads it in another process,
//! [`Store::branch`] makes a container of what it has of one, [`Store::go_back`] takes the store back to it. [`backup`]
//! writes a state, or what is new in it, to a file or a pipe while the store is in use, and [`Restore`] brings it back.
#![forbid(unsafe_code)]

/// The programs of the README, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;

extern crate self as stead;

mod container;
mod error;
mod reading;
mod store;

pub use container::Container;
pub use error::{Error, Result};
pub use reading::{ReadContainer, ReadStore, open_read_only, open_snapshot};
pub use store::{Options, Stable, Store, open};

pub use stead_derive::{Persist, StableHash};
pub use stead_heap::{
    AllocError, Box, Cluster, Counter, Exclusive, HashMap, LockError, Mutex, MutexGuard, Persist,
    Ptr, Read, ReadGuard, Root, RwLock, Slot, StableHash, Text, Tx, Vec, Write, WriteGuard,
};
pub use stead_model::{Address, PAGE_SIZE};
pub use stead_site::{
    BackedUp, BackupError, BackupProgress, Restore, RestoreError, Restored, SalvageError, Salvaged,
    StateId, StoreOpenError, Written, backup, restore_word, salvage, salvage_word, word_of,
};
pub use stead_site::{
    CheckError, ContainerError, ContainerOptions, ContainerStat, Counters, OpenError,
    OpenErrorKind, OpenOptions, QuotaError, Quotas, RemoveError, SectionError, SiteStat,
    SnapshotError, SnapshotInfo, StabiliseError, WrittenPages,
};
pub use stead_site::{CheckReport, Damaged, Finding, PageKind, PageUse, Support};
pub use stead_site::{FoundDamage, LostPages, ScrubOptions, ScrubProgress, Scrubbed};

#[doc(hidden)]
pub use stead_heap::__private;
#[doc(hidden)]
pub use stead_site::Allowed as __Allowed;
