//! What can go wrong in calls that programs make inside a section. Opening a container has errors of
//! its own. Read [`Error`] first.

use std::fmt;

use stead_model::{Address, PageNo};
use thiserror::Error;

use crate::ground::GroundError;
use crate::guide::PageUse;

/// Any error of a call inside a section; `?` turns the particular ones into it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// Memory could not be had.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// A lock could not be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// What was to be used is damaged on the disk.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

/// A page of a container is not on the disk as it was written (B12). It is withheld: a load of it ends the
/// process, and never returns a wrong byte. Other pages and containers are as they were.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "container {container:?}: page {} at {address}, which holds {holds}, is damaged: {why}; its bytes are lost unless \
     there is a backup, `stead scrub` lists all damage", page.0
)]
pub struct Damaged {
    /// Name of the container.
    pub container: String,
    /// The page.
    pub page: PageNo,
    /// Its first byte.
    pub address: Address,
    /// What is on it.
    pub holds: PageUse,
    /// How one sees that it is damaged, and where in the store's file.
    pub why: String,
}

/// Why memory could not be had. The section may go on; what it changed so far is as it was.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AllocError {
    /// More than a window holds.
    #[error(
        "{bytes} bytes are more than one allocation may have: it must lie in one window of 64 GiB"
    )]
    TooLarge {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The cluster's windows are full and there is no other.
    #[error("cluster {cluster} is full: {source}")]
    Full {
        /// The cluster.
        cluster: u16,
        /// Why it does not grow.
        source: GroundError,
    },
    /// The container knows another type by this name.
    #[error(transparent)]
    OtherType(Box<OtherType>),
}

/// Why a lock was not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LockError {
    /// A guard of this lock lives in this thread: waiting for it would last for ever.
    #[error(
        "this thread holds a guard of this lock already, here or in a section around this one: drop it first"
    )]
    AlreadyLent,
    /// Waiting might last for ever, as the holder may wait for this section.
    #[error(
        "waiting for this lock could be a deadlock: return the error, and the section is undone and tried again"
    )]
    Deadlock,
}

/// Two types of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherType {
    /// Name of the type that differs.
    pub name: String,
    /// Declaration in the container.
    pub stored: String,
    /// Declaration in this program.
    pub program: String,
}

impl std::error::Error for OtherType {}

impl fmt::Display for OtherType {
    /// Both declarations side by side, lines that differ marked.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "type `{}` of this program is not the one in the container; if it is another type, give it a name of its own with #[persist(name = \"...\")]",
            self.name
        )?;
        let (stored, program): (Vec<_>, Vec<_>) =
            (self.stored.lines().collect(), self.program.lines().collect());
        let heading = "in the container";
        let width = stored.iter().map(|l| l.chars().count()).max().unwrap_or(0).max(heading.len());
        writeln!(f, "    {heading:width$}   in this program")?;
        for i in 0..stored.len().max(program.len()) {
            let (s, p) = (stored.get(i).unwrap_or(&""), program.get(i).unwrap_or(&""));
            let mark = if s == p { ' ' } else { '!' };
            let line = format!("  {mark} {s:width$} | {p}");
            let line = line.trim_end();
            if i + 1 < stored.len().max(program.len()) {
                writeln!(f, "{line}")?;
            } else {
                write!(f, "{line}")?;
            }
        }
        Ok(())
    }
}
