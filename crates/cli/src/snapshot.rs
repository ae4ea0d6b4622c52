//! `stead snapshot`: names states of a store, and uses them (B11, B15). Read [`Snapshot`] first.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;
use stead::{Options, SnapshotInfo, Store};

use crate::output::{Failure, Outcome, Report, shown};
use crate::units::{ago, bytes};

/// What to do. All but `list` need the store for themselves.
#[derive(Subcommand)]
pub(crate) enum Snapshot {
    /// Name the state that the store is in
    Take {
        /// Directory of the store
        dir: PathBuf,
        /// What to call it
        name: String,
    },
    /// The snapshots of a store, in the order in which they were taken
    List {
        /// Directory of the store
        dir: PathBuf,
    },
    /// Take the whole store back to a snapshot; what came after it is gone, but for other snapshots
    GoBack {
        /// Directory of the store
        dir: PathBuf,
        /// Which
        name: String,
    },
    /// Make a container of what a snapshot has of another, at the same addresses; nothing is copied
    ///
    /// The two cannot be open in one process at a time. Brings back a container that was removed since, too.
    Branch {
        /// Directory of the store
        dir: PathBuf,
        /// Which
        snapshot: String,
        /// The container, as it was called then; or # and its number
        container: String,
        /// What to call the new one
        new_name: String,
    },
    /// Let go of a snapshot: what only it holds becomes free
    Drop {
        /// Directory of the store
        dir: PathBuf,
        /// Which
        name: String,
    },
}

/// What was done, and the snapshots that there are now.
#[derive(Serialize)]
pub(crate) struct Done {
    #[serde(serialize_with = "crate::output::path")]
    dir: PathBuf,
    /// In words; null for a list.
    done: Option<String>,
    snapshots: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    number: u64,
    taken_unix_ns: u64,
    last_sequence: u64,
    /// The system container included.
    containers: usize,
    stored_bytes: u64,
}

impl Snapshot {
    pub(crate) fn run(self) -> Outcome<Done> {
        match self {
            Snapshot::List { dir } => {
                let snapshots = crate::open(&dir)?.snapshots();
                Ok(Done::new(dir, None, snapshots))
            }
            Snapshot::Take { dir, name } => {
                let store = own(&dir)?;
                let taken = store.snapshot(&name)?;
                let done = format!("{name:?} is the state after stabilisation {}", taken.sequence);
                Ok(Done::new(dir, Some(done), store.snapshots()))
            }
            Snapshot::GoBack { dir, name } => {
                let mut store = own(&dir)?;
                let info = store.go_back(&name)?;
                let done = format!("the store is as it was {}", ago(info.time));
                Ok(Done::new(dir, Some(done), store.snapshots()))
            }
            Snapshot::Branch { dir, snapshot, container, new_name } => {
                let origin = origin(&dir, &snapshot, &container)?;
                let store = own(&dir)?;
                store.branch(&snapshot, &origin, &new_name)?;
                let done = format!("{new_name:?} is what {container:?} was in {snapshot:?}");
                Ok(Done::new(dir, Some(done), store.snapshots()))
            }
            Snapshot::Drop { dir, name } => {
                let store = own(&dir)?;
                store.drop_snapshot(&name)?;
                let done = format!("{name:?} is gone");
                Ok(Done::new(dir, Some(done), store.snapshots()))
            }
        }
    }
}

/// Opens a store as its owner.
fn own(dir: &Path) -> Result<Store, Failure> {
    let opened = Store::open_with(dir, &Options::new().create(false).interval(None));
    opened.map_err(|error| {
        let is_held = error.is_held();
        let failure = Failure::from(error);
        if is_held { failure.advised(IN_USE) } else { failure }
    })
}

/// What to do about a store that a program has open.
const IN_USE: &str = "a program takes, branches and drops snapshots of the store that it has open itself (`Store::snapshot`)";

/// The container that had this name in the snapshot, by its number.
fn origin(dir: &Path, snapshot: &str, container: &str) -> Result<String, Failure> {
    let store = stead::open_snapshot(dir, snapshot)?;
    // The system container is no container of the user's.
    let mut containers = store.stat().containers.into_iter().skip(1);
    let found = containers.find(|c| c.name == container);
    Ok(found.map_or_else(|| container.to_owned(), |c| format!("#{}", c.id.0)))
}

impl Done {
    fn new(dir: PathBuf, done: Option<String>, snapshots: Vec<SnapshotInfo>) -> Done {
        let lines = snapshots.into_iter().map(|info| Line {
            name: info.name,
            number: info.number,
            taken_unix_ns: info.time,
            last_sequence: info.sequence,
            containers: info.containers,
            stored_bytes: info.pages * stead::PAGE_SIZE as u64,
        });
        Done { dir, done, snapshots: lines.collect() }
    }
}

impl Report for Done {
    fn is_well(&self) -> bool {
        true
    }

    fn print(&self) {
        if let Some(done) = &self.done {
            crate::say!("{done}");
            return;
        }
        let names = self.snapshots.iter().map(|line| shown(&line.name).chars().count());
        let width = names.chain(["NAME".len()]).max().unwrap_or(0);
        crate::say!(
            "{:width$}  {:>16}  {:>13}  {:>10}",
            "NAME",
            "TAKEN",
            "STABILISATION",
            "STORED"
        );
        for line in &self.snapshots {
            crate::say!(
                "{:width$}  {:>16}  {:>13}  {:>10}",
                shown(&line.name),
                ago(line.taken_unix_ns),
                line.last_sequence,
                bytes(line.stored_bytes)
            );
        }
    }
}
