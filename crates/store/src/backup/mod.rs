//! Backup and restore (catalogue B11): one state of a store as a stream of bytes, whole or as what changed since
//! another state, and a store made of such streams again. `docs/backup-format.md` has the bytes. No compression and
//! no encryption: programs for that are put behind the pipe. Read [`View::backup`](crate::View::backup) and
//! [`Restore`] first.

mod restore;
mod save;
mod stream;

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::error::{CommitError, CreateError, ReadError};

pub use restore::{Restore, Restored};
pub use save::{BackedUp, BackupProgress};
pub(crate) use stream::{frames, seal};

/// Which state of which store. Two states are the same only if all of it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StateId {
    /// The store.
    pub store_id: u128,
    /// The snapshot's number; 0 for a state that is not a snapshot's.
    pub snapshot: u64,
    /// The last stabilisation in it.
    pub sequence: u64,
    /// When the snapshot, or else the stabilisation, was taken, in nanoseconds since 1970.
    pub time: u64,
    /// The snapshot's name; empty for a state that is not a snapshot's.
    pub name: String,
}

impl fmt::Display for StateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.snapshot == 0 {
            write!(f, "the state after stabilisation {}", self.sequence)?;
        } else {
            write!(f, "snapshot {:?} (number {})", self.name, self.snapshot)?;
        }
        write!(f, " of store {:032x}", self.store_id)
    }
}

/// Why a backup was not written to its end. What has been written of it is no backup.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The state moves on while it is copied.
    #[error(
        "a store that is being changed cannot be copied while it moves: copy a snapshot of it, or open it for reading"
    )]
    Moving,
    /// Something in the store cannot be read.
    #[error("{0}; nothing that is damaged is backed up: restore the store from an earlier backup")]
    Read(#[from] ReadError),
    /// The stream could not be written.
    #[error("the backup could not be written: {0}")]
    Write(io::Error),
}

/// Why no store was restored. Nothing is left of the attempt.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// Something is where the store is to be.
    #[error("{} is there already: a store is restored to a directory that is missing or empty", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// A file system is mounted where the store is to be.
    #[error(
        "{0} is a mount point, which cannot be replaced by a store: restore to a directory in it, like {0}/store",
        dir.display()
    )]
    MountPoint {
        /// The directory.
        dir: PathBuf,
    },
    /// Another restoration is under way.
    #[error(
        "a store is being restored there already, in {}: wait until that ends, or restore to another directory",
        beside.display()
    )]
    UnderWay {
        /// Where that makes its store.
        beside: PathBuf,
    },
    /// The input does not begin as a backup does.
    #[error("this is no backup: it does not begin as one")]
    NotABackup,
    /// The input was written by a later version.
    #[error(
        "this backup has format {found}, this program reads {known}: restore it with a newer version"
    )]
    Newer {
        /// The version it has.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// The input ends before the backup does.
    #[error(
        "the backup ends too early, behind {offset} bytes: it was not written, or not copied, to its end"
    )]
    Cut {
        /// Bytes that there were.
        offset: u64,
    },
    /// The input is not as it was written.
    #[error("the backup is damaged at byte {offset}: {what}")]
    Damaged {
        /// Where, in bytes from the beginning of the input.
        offset: u64,
        /// In which way.
        what: &'static str,
    },
    /// What changed since a state is to be restored over another state.
    #[error(
        "this backup holds what changed since {needs}, but {}: restore first what leads to that state",
        have.as_ref().map_or("nothing has been restored yet".to_owned(), |have| format!("what has been restored is {have}"))
    )]
    WrongBase {
        /// What is needed.
        needs: Box<StateId>,
        /// What is there.
        have: Option<Box<StateId>>,
    },
    /// A whole state comes after another one.
    #[error("this backup is a whole state, {found}: it can only be the first that is restored")]
    NotFirst {
        /// The state.
        found: Box<StateId>,
    },
    /// There was nothing in the input.
    #[error("there is no backup in the input")]
    Nothing,
    /// The new store could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The new store could not be written.
    #[error(transparent)]
    Write(#[from] CommitError),
    /// What was written could not be read again.
    #[error("what was restored cannot be read again: {0}")]
    Unsound(String),
    /// The system refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done to it.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The input could not be read.
    #[error("the backup could not be read: {0}")]
    Input(io::Error),
}
