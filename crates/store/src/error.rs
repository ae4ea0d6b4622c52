//! What can go wrong, one type per verb, each saying what, where, and what to do. Read [`Damage`] first:
//! the one that everything which reads can meet.

use std::fmt;
use std::io;
use std::path::PathBuf;

use stead_model::{ContainerId, PageId, PageRange};
use thiserror::Error;

/// Something in the file is not as it was written (catalogue B12). Never a wrong byte: the damaged part
/// is withheld.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The page that cannot be had, if it is one.
    pub page: Option<PageId>,
    /// The pages that cannot be found any more, if it is a part of a container's map.
    pub map_of: Option<(ContainerId, PageRange)>,
    /// Where, in bytes from the start of the store's file `log`.
    pub offset: u64,
    /// What it was, and in which way it is wrong.
    pub what: String,
}

impl Damage {
    pub(crate) fn new(offset: u64, what: impl Into<String>) -> Self {
        Damage { page: None, map_of: None, offset, what: what.into() }
    }

    /// What an error of reading says of a page, or of something else.
    pub(crate) fn of(page: Option<PageId>, error: ReadError) -> Self {
        match error {
            ReadError::Damaged(damage) => damage,
            ReadError::Io { offset, source } => {
                Damage { page, ..Damage::new(offset, format!("cannot be read: {source}")) }
            }
        }
    }

    /// Where and in which way it is wrong, for those who name the page themselves.
    #[must_use]
    pub fn how(&self) -> String {
        format!("log, offset {:#x}: {}", self.offset, self.what)
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.page {
            Some(page) => {
                write!(f, "{page} is damaged: log, offset {:#x}: {}", self.offset, self.what)
            }
            None => write!(f, "damaged: log, offset {:#x}: {}", self.offset, self.what),
        }
    }
}

impl std::error::Error for Damage {}

/// Why no store could be made.
#[derive(Debug, Error)]
pub enum CreateError {
    /// A store is there already.
    #[error("{} holds a store already: open it, or choose another directory", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// Something else is there already.
    #[error("{} is not empty and holds no store: choose another directory, or empty it", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// There is something that is not a directory.
    #[error("{} is not a directory", dir.display())]
    NotADirectory {
        /// The path.
        dir: PathBuf,
    },
    /// The directory may not be written.
    #[error("{} cannot be written: {source}; change its permissions or choose another directory", path.display())]
    NotWritable {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another opener is at work on it.
    #[error(transparent)]
    Held(Held),
    /// The disk is full.
    #[error("no room for a new store at {}: {source}", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The options ask for what cannot be.
    #[error("{0}")]
    BadOptions(&'static str),
    /// The system refused for another reason.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done to it.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// The store is open already.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub struct Held {
    /// The directory.
    pub dir: PathBuf,
    /// The process that holds it, as far as the system tells.
    pub pid: Option<u32>,
    /// Whether that is this very process.
    pub this_process: bool,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = self.dir.display();
        match self.pid {
            _ if self.this_process => write!(
                f,
                "{dir} is open in this process already: share that store instead of opening it again"
            ),
            Some(pid) => write!(
                f,
                "{dir} is in use by process {pid}: wait until that closes it; what only reads can open it meanwhile"
            ),
            None => write!(f, "{dir} is in use by another process: wait until it ends"),
        }
    }
}

/// Why a store could not be opened. Nothing has been changed.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is no such directory.
    #[error("{} does not exist: create a store there first", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// There is something that is not a directory.
    #[error("{} is not a directory", dir.display())]
    NotADirectory {
        /// The path.
        dir: PathBuf,
    },
    /// What is there is no store.
    #[error("{} is not a store: {why}", path.display())]
    NotAStore {
        /// The directory or file.
        path: PathBuf,
        /// How one sees that.
        why: String,
    },
    /// The store was written by a later version.
    #[error("{} has store format {found}, this version knows formats up to {known}: use a newer version", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// The store uses features that this version does not know.
    #[error("{} uses features {unknown:#x} that this version does not know: use a newer version", path.display())]
    UnknownFeatures {
        /// The file.
        path: PathBuf,
        /// Their bits.
        unknown: u64,
    },
    /// The directory or its files may not be written.
    #[error("{} cannot be written: {source}; run as its owner or change its permissions", path.display())]
    NotWritable {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another opener holds it.
    #[error(transparent)]
    Held(Held),
    /// What is needed for opening is damaged.
    #[error("{}: {damage}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is damaged.
        damage: Damage,
    },
    /// The system refused for another reason.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done to it.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a page could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// It, or the part of the map that says where it lies, is damaged.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The disk refused.
    #[error("reading log at offset {offset:#x}: {source}")]
    Io {
        /// Where, in bytes from the start of `log`.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a stabilisation (or the store's own upkeep) did not happen. The store is in the state it had
/// before, in memory; on disk the attempt may or may not be found after a crash, until the next success.
#[derive(Debug, Error)]
pub enum CommitError {
    /// The disk is full: nothing is lost, and it works again when there is room.
    #[error("no room to stabilise: {source}; free some disk space, and stabilise again")]
    NoSpace {
        /// What the system said.
        source: io::Error,
    },
    /// The disk refused. The next attempt writes elsewhere.
    #[error("{action}: {source}; nothing was stabilised, the stable state is the one before")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A part of the map that is needed is damaged.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The store was opened for reading only.
    #[error(
        "this store is open for reading only: whatever changes it is for the process that owns it"
    )]
    ReadOnly,
    /// There are more containers or segments than the format has room for.
    #[error("{0}")]
    Limit(&'static str),
    /// The store's file may not become longer: nothing is lost, and it works again when there is room.
    #[error(
        "no room to stabilise: the store has used up its quota of {quota_bytes} bytes; remove containers or drop snapshots, \
         or raise the quota (`stead quota`), and stabilise again"
    )]
    StoreFull {
        /// What its file may have.
        quota_bytes: u64,
    },
    /// A container would hold more than it may.
    #[error(
        "nothing was stabilised: container {container} holds {held_bytes} bytes of its quota of {quota_bytes} and would hold \
         {asked_bytes}; free something in it, or raise its quota (`stead quota`), and stabilise again"
    )]
    ContainerFull {
        /// The container.
        container: ContainerId,
        /// What it may hold.
        quota_bytes: u64,
        /// What it holds now.
        held_bytes: u64,
        /// What it would have held.
        asked_bytes: u64,
    },
    /// The file cannot be held to that.
    #[error(
        "the file cannot be held to {percent} hundredths of what is live in it: say 150 at the least (with little room to \
         spare cleaning gains nothing), and 10000 at the most"
    )]
    SpacePercent {
        /// What was asked for.
        percent: u32,
    },
    /// No store can do with so little.
    #[error("a quota of {bytes} bytes is too small for a store, which needs {least} at the least")]
    QuotaTooSmall {
        /// What was asked for.
        bytes: u64,
        /// What there must be.
        least: u64,
    },
}

/// In which way the system refused, in one word that stays the same: `not_permitted`, `no_space` or `system`.
#[must_use]
pub fn word_of(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "not_permitted",
        io::ErrorKind::FileTooLarge => "no_space",
        _ if is_no_space(error) => "no_space",
        _ => "system",
    }
}

/// Whether the disk, or what this user may have of it, is full.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl CommitError {
    /// In which way it was refused, in one word that stays the same: `no_space`, `quota`, `not_permitted`, `damaged` or
    /// `system`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            CommitError::NoSpace { .. } => "no_space",
            CommitError::Io { source, .. } => word_of(source),
            CommitError::Damaged(_) => "damaged",
            CommitError::StoreFull { .. }
            | CommitError::ContainerFull { .. }
            | CommitError::SpacePercent { .. }
            | CommitError::QuotaTooSmall { .. } => "quota",
            CommitError::ReadOnly | CommitError::Limit(_) => "system",
        }
    }

    /// Whether there is no room: on the disk, or of what the store may have of it.
    #[must_use]
    pub fn is_no_room(&self) -> bool {
        matches!(self, CommitError::NoSpace { .. } | CommitError::StoreFull { .. })
    }

    pub(crate) fn io(action: &'static str, source: io::Error) -> Self {
        if is_no_space(&source) {
            CommitError::NoSpace { source }
        } else {
            CommitError::Io { action, source }
        }
    }
}

impl CommitError {
    /// The same for another who is concerned.
    pub(crate) fn again(&self) -> Self {
        match self {
            CommitError::NoSpace { source } => CommitError::NoSpace { source: again(source) },
            CommitError::Io { action, source } => CommitError::Io { action, source: again(source) },
            CommitError::Damaged(damage) => CommitError::Damaged(damage.clone()),
            CommitError::Limit(what) => CommitError::Limit(what),
            CommitError::ReadOnly => CommitError::ReadOnly,
            &CommitError::StoreFull { quota_bytes } => CommitError::StoreFull { quota_bytes },
            &CommitError::ContainerFull { container, quota_bytes, held_bytes, asked_bytes } => {
                CommitError::ContainerFull { container, quota_bytes, held_bytes, asked_bytes }
            }
            &CommitError::SpacePercent { percent } => CommitError::SpacePercent { percent },
            &CommitError::QuotaTooSmall { bytes, least } => {
                CommitError::QuotaTooSmall { bytes, least }
            }
        }
    }
}

/// The same error for another who is concerned.
pub(crate) fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

impl From<ReadError> for CommitError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged(damage) => CommitError::Damaged(damage),
            ReadError::Io { source, .. } => CommitError::io("reading the map", source),
        }
    }
}
