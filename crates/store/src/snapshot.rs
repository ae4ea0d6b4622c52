//! Snapshots (catalogue B11, B15): naming the state that the store is in, going back to it, branching from it, and
//! letting go of it. Each is one checkpoint that both roots know before it is acknowledged, and copies nothing.
//! Read [`Store::take_snapshot`] first.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use stead_model::{ContainerId, NameError, check_new_name};
use thiserror::Error;

use crate::checkpoint::Change;
use crate::error::CommitError;
use crate::next::Next;
use crate::store::Store;
use crate::versions::{ORIGINS_MOST, Snapshot, SnapshotInfo};
use crate::view::View;

/// Why nothing came of what was asked about snapshots. The store is as before, in memory; after a failure of the disk
/// and a crash the change may or may not be found, like a stabilisation under way.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// No snapshot can be called so.
    #[error("{name:?} is no name for a snapshot: {why}")]
    BadName {
        /// The name.
        name: String,
        /// Why not.
        why: NameError,
    },
    /// There is one of that name.
    #[error("there is a snapshot {name:?} already: choose another name, or drop that one first")]
    Exists {
        /// The name.
        name: String,
    },
    /// There is none of that name.
    #[error("there is no snapshot {name:?}: see which there are")]
    Unknown {
        /// The name.
        name: String,
    },
    /// It is being read.
    #[error("the snapshot {name:?} is being read: try again when that has ended")]
    InUse {
        /// The name.
        name: String,
    },
    /// The snapshot has nothing of the container.
    #[error(
        "the snapshot {snapshot:?} holds nothing of container {container}: branch from another"
    )]
    NoContainer {
        /// The snapshot.
        snapshot: String,
        /// The container.
        container: ContainerId,
    },
    /// The container that a branch was to become is in use.
    #[error("container {container} holds something already: choose an unused one for the branch")]
    ContainerInUse {
        /// The container.
        container: ContainerId,
    },
    /// A block would have too many containers as whose it may be sealed.
    #[error(
        "container {container} is a branch of a branch, {ORIGINS_MOST} times over: copy its pages instead of branching"
    )]
    TooDeep {
        /// The container to be branched from.
        container: ContainerId,
    },
    /// The disk refused, or the format has no room for more.
    #[error(transparent)]
    Failed(#[from] CommitError),
}

impl Store {
    /// Names the state that the store is in (catalogue B11): all containers as the last stabilisation left them.
    /// It copies nothing and holds up no stabilisation; it costs what a checkpoint costs, however much is stored.
    ///
    /// # Errors
    /// If the name is bad or in use, or the disk refuses.
    pub fn take_snapshot(&self, name: &str) -> Result<SnapshotInfo, SnapshotError> {
        check_new_name(name).map_err(|why| SnapshotError::BadName { name: name.into(), why })?;
        self.settle()?;
        let mut keeper = self.keeper();
        if self.state().snapshots.named(name).is_some() {
            return Err(SnapshotError::Exists { name: name.into() });
        }
        self.checkpoint_change(&mut keeper, &Change::Take { name: name.into() })?;
        let info = self.known_snapshot(name)?.info;
        Ok(SnapshotInfo::clone(&info))
    }

    /// The snapshots, in the order in which they were taken.
    #[must_use]
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let state = self.state();
        let infos = state.snapshots.list.iter().map(|snapshot| &*snapshot.info);
        infos.cloned().collect()
    }

    /// A snapshot's state, for reading. The snapshot cannot be dropped while the view, or a clone of it, exists.
    ///
    /// # Errors
    /// If there is none of that name, or it is just being dropped.
    pub fn view_snapshot(&self, name: &str) -> Result<View<'_>, SnapshotError> {
        let state = self.state();
        match state.snapshots.named(name) {
            Some(snapshot) if state.leaving != Some(snapshot.info.number) => {
                Ok(View::of_snapshot(self, &snapshot.info))
            }
            _ => Err(SnapshotError::Unknown { name: name.into() }),
        }
    }

    /// Lets go of a snapshot: the room that only it took becomes free. It costs by how the snapshot differs from the
    /// states that are most like it.
    ///
    /// # Errors
    /// If there is none of that name, it is being read, or the disk refuses.
    pub fn drop_snapshot(&self, name: &str) -> Result<(), SnapshotError> {
        self.settle()?;
        let mut keeper = self.keeper();
        let number = {
            let mut state = self.state_mut();
            let Some(snapshot) = state.snapshots.named(name) else {
                return Err(SnapshotError::Unknown { name: name.into() });
            };
            if Arc::strong_count(&snapshot.info) > 1 {
                return Err(SnapshotError::InUse { name: name.into() });
            }
            let number = snapshot.info.number;
            state.leaving = Some(number);
            number
        };
        let dropped = self.checkpoint_change(&mut keeper, &Change::Drop { number });
        self.state_mut().leaving = None;
        Ok(dropped?)
    }

    /// Makes the whole store what it was when the snapshot was taken (catalogue B15): what has been stabilised since
    /// is gone, unless a snapshot has it. The snapshot stays, and so do newer ones; stabilisations go on counting.
    ///
    /// The store knows nothing of pages in memory: nobody may have any from before.
    ///
    /// # Errors
    /// If there is no snapshot of that name, or the disk refuses.
    pub fn go_back(&self, name: &str) -> Result<SnapshotInfo, SnapshotError> {
        self.settle()?;
        {
            // The parts of the maps that differ are brought into memory before stabilisations have to wait.
            let _keeper = self.keeper();
            let number = self.known_snapshot(name)?.info.number;
            Next::of(self).go_back(number)?;
        }
        let mut writer = self.writer();
        let mut keeper = self.keeper();
        let info = self.known_snapshot(name)?.info;
        let change = Change::GoBack { number: info.number };
        self.begin_epoch_with(&mut writer, &mut keeper, &change)?;
        Ok(SnapshotInfo::clone(&info))
    }

    /// Makes `new`, a container of which nothing is stored, the same as `origin` is in a snapshot. Nothing is
    /// copied: the two share their blocks until either changes.
    ///
    /// Until this has returned nobody may stabilise pages of `new`.
    ///
    /// # Errors
    /// If there is no such snapshot, nothing of `origin` in it, or something of `new` already; if the disk refuses.
    ///
    /// # Panics
    /// If the number of `new` is beyond what the format has room for.
    pub fn branch(
        &self,
        snapshot: &str,
        origin: ContainerId,
        new: ContainerId,
    ) -> Result<(), SnapshotError> {
        assert!(new <= ContainerId::MAX, "{new} cannot be stored");
        self.settle()?;
        let mut keeper = self.keeper();
        let Snapshot { info, trees, .. } = self.known_snapshot(snapshot)?;
        let Some(tree) = trees.get(&origin) else {
            let snapshot = snapshot.into();
            return Err(SnapshotError::NoContainer { snapshot, container: origin });
        };
        if tree.origins().ids().len() >= ORIGINS_MOST {
            return Err(SnapshotError::TooDeep { container: origin });
        }
        if self.containers().contains(&new) {
            return Err(SnapshotError::ContainerInUse { container: new });
        }
        let change = Change::Branch { number: info.number, origin, new };
        Ok(self.checkpoint_change(&mut keeper, &change)?)
    }

    /// Begins the epoch that is due after opening or a failure.
    pub(crate) fn settle(&self) -> Result<(), CommitError> {
        self.check_writable()?;
        if self.needs_epoch.load(Ordering::SeqCst) {
            self.maintain()?;
        }
        Ok(())
    }

    fn known_snapshot(&self, name: &str) -> Result<Snapshot, SnapshotError> {
        let found = self.state().snapshots.named(name).cloned();
        found.ok_or_else(|| SnapshotError::Unknown { name: name.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::CreateOptions;

    #[test]
    fn names_of_earlier_versions_are_still_names() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path(), &CreateOptions::default()).unwrap();
        let name = "a\u{202e}b ";
        assert!(matches!(store.take_snapshot(name), Err(SnapshotError::BadName { .. })));
        let take = Change::Take { name: name.into() };
        store.settle().unwrap();
        store.checkpoint_change(&mut store.keeper(), &take).unwrap();
        drop(store);
        let (store, _) = Store::open(dir.path()).unwrap();
        assert_eq!(store.snapshots()[0].name, name);
        assert!(store.view_snapshot(name).is_ok());
        store.go_back(name).unwrap();
        store.drop_snapshot(name).unwrap();
        assert_eq!(store.snapshots(), []);
    }
}
