//! Stable pages (catalogue B): a log that is its own shadow, the map of where each page lies, two roots,
//! and recovery. A stabilisation is one sequential write and one flush; after a crash the store is exactly at
//! the last acknowledged one, or at the one under way.
//!
//! It knows neither what pages mean nor where they are in memory, and starts no thread: upkeep runs on the
//! caller's. Read [`Store`] first, then [`Batch`]; [`Medium`] is the whole contact with the disk, and
//! `docs/store-format.md` has the bytes.
//!
//! ```
//! use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
//! use stead_store::{CreateOptions, Store, Stored};
//!
//! # let parent = tempfile::tempdir()?;
//! # let dir = parent.path().join("store");
//! let store = Store::create(&dir, &CreateOptions::default())?;
//! let id = PageId { container: ContainerId(1), page: PageNo(7) };
//! let mut batch = store.batch();
//! batch.push(id, |page| page.fill(42));
//! assert_eq!(store.commit(&mut batch)?.sequence, 1);
//! drop(store);
//!
//! let (store, _report) = Store::open(&dir)?;
//! let mut page = [0; PAGE_SIZE];
//! assert_eq!(store.read_page(id, &mut page)?, Stored::Image);
//! assert_eq!(page, [42; PAGE_SIZE]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod aio;
mod aligned;
mod backup;
mod batch;
mod checkpoint;
mod clean;
mod cold;
mod commit;
mod directory;
mod disk;
mod error;
mod file;
mod forget;
mod format;
mod group;
mod header;
mod holders;
mod keep;
mod layer;
mod medium;
mod next;
mod pin;
pub mod planted;
mod read;
mod reader;
mod recover;
#[allow(unsafe_code)]
mod ring;
mod salvage;
mod scrub;
mod settings;
mod shrink;
pub mod sim;
mod snapshot;
mod space;
mod store;
mod stream;
mod tidy;
mod tree;
mod verify;
mod versions;
mod view;
mod written;

pub use aligned::AlignedBuf;
pub use backup::{BackedUp, BackupError, BackupProgress, Restore, RestoreError, Restored, StateId};
pub use batch::Batch;
pub use commit::Committed;
pub use directory::CreateOptions;
pub use disk::Counters;
pub use error::{CommitError, CreateError, Damage, Held, OpenError, ReadError, word_of};
pub use file::{Calls, FileMedium};
pub use holders::{Holders, InSnapshot};
pub use keep::Maintained;
pub use medium::{Medium, ReadRequest, SharedPart, WriteRequest, WriteSyncError, WriteUnderWay};
pub use read::{Run, Stored};
pub use recover::OpenReport;
pub use salvage::{SalvageError, Salvaged, salvage};
pub use scrub::{ScrubProgress, Scrubbed};
pub use settings::Setting;
pub use snapshot::SnapshotError;
pub use store::{Stat, Store, StoreHeader};
pub use stream::{Ahead, Stream};
pub use verify::{Accounting, Verified, VerifyProgress};
pub use versions::{SNAPSHOT_NAME_BYTES, SnapshotInfo};
pub use view::View;
pub use written::Written;
