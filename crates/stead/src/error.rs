//! One error for the whole of a program's use of Stead, so that `?` works everywhere; each verb has its
//! own enum inside. Read [`Error`] first.

use stead_heap::{AllocError, Damaged, LockError};
use stead_site::{
    CheckError, ContainerError, OpenError, QuotaError, RemoveError, SectionError, SnapshotError,
    StabiliseError,
};

/// What stead's own calls and closures return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Anything that can go wrong. Each message says what, where, and what to do.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// A store could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A container could not be opened.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A section could not be entered; nothing was done.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// Nothing new became stable; nothing is lost either.
    #[error(transparent)]
    Stabilise(#[from] StabiliseError),
    /// A container was not removed, or not yet for good.
    #[error(transparent)]
    Remove(#[from] RemoveError),
    /// Nothing came of what was asked about snapshots.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A quota was not laid down.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// Memory in a container could not be had.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// A lock could not be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// What was to be used is damaged on the disk (B12).
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The program's own reason to undo a section: see [`Error::other`].
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Wraps a program's own reason, to leave a section by and so undo it.
    pub fn other(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Error::Other(reason.into())
    }

    /// The damaged page, if it is one that kept this from being done (B12).
    #[must_use]
    pub fn damaged(&self) -> Option<&Damaged> {
        match self {
            Error::Damaged(damaged) => Some(damaged),
            Error::Container(ContainerError::Damaged(damaged))
            | Error::Section(SectionError::Damaged(damaged)) => Some(damaged),
            _ => None,
        }
    }
}

impl From<CheckError> for Error {
    fn from(e: CheckError) -> Self {
        match e {
            CheckError::Damaged(e) => Error::Damaged(e),
            CheckError::Section(e) => Error::Section(e),
            e @ CheckError::Outside { .. } => Error::other(e),
        }
    }
}

impl From<stead_heap::Error> for Error {
    fn from(e: stead_heap::Error) -> Self {
        match e {
            stead_heap::Error::Alloc(e) => Error::Alloc(e),
            stead_heap::Error::Lock(e) => Error::Lock(e),
            stead_heap::Error::Damaged(e) => Error::Damaged(e),
        }
    }
}
