//! What the owner of a store has laid down, kept with its roots: how much its file may take of the disk, by itself and
//! for what is live in it, and how much its containers may hold. A full quota is told like a full disk: what is stable stays so, and what makes room works.
//! Read [`Store::set_quota`] and [`Store::set`] first.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;

use stead_model::{ContainerId, PAGE_SIZE, PageId};

use crate::checkpoint::Change;
use crate::commit::Writer;
use crate::error::{CommitError, ReadError};
use crate::format::{Entry, Located, TABLE_QUOTA_BYTES, get_u32, get_u64};
use crate::store::Store;
use crate::view::View;

/// Segments that a store works with at the least: those being written, those that roots still need, the reserve.
pub(crate) const SEGMENTS_LEAST: usize = 8;

/// How large the file may be, in hundredths of what is live, if nobody says otherwise.
pub(crate) const SPACE_PERCENT: u32 = 200;

/// What may be said. With less cleaning would gain nothing; with more there would be none.
pub(crate) const SPACE_PERCENTS: RangeInclusive<u32> = 150..=10_000;

/// What has been laid down.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Settings {
    /// Bytes that the file may have.
    pub(crate) quota: Option<u64>,
    /// Hundredths of what is live that the file may have.
    pub(crate) space_percent: Option<u32>,
    /// Bytes of stored pages that a container may have.
    pub(crate) containers: BTreeMap<ContainerId, u64>,
}

/// One thing that can be laid down: see [`Store::set`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setting {
    /// As by [`Store::set_quota`].
    Quota(Option<u64>),
    /// As by [`Store::set_space_percent`].
    SpacePercent(Option<u32>),
    /// As by [`Store::set_container_quota`].
    ContainerQuota(ContainerId, Option<u64>),
}

impl Settings {
    pub(crate) fn set(&mut self, setting: Setting) {
        match setting {
            Setting::Quota(quota) => self.quota = quota,
            Setting::SpacePercent(percent) => self.space_percent = percent,
            Setting::ContainerQuota(container, Some(bytes)) => {
                self.containers.insert(container, bytes);
            }
            Setting::ContainerQuota(container, None) => self.forget(container),
        }
    }

    /// What has to be laid down where nothing is, so that it is this.
    pub(crate) fn each(&self) -> Vec<Setting> {
        let containers = self.containers.iter();
        let containers = containers.map(|(&id, &bytes)| Setting::ContainerQuota(id, Some(bytes)));
        [Setting::Quota(self.quota), Setting::SpacePercent(self.space_percent)]
            .into_iter()
            .chain(containers)
            .collect()
    }

    /// The container is gone, and its quota with it.
    pub(crate) fn forget(&mut self, container: ContainerId) {
        self.containers.remove(&container);
    }

    /// The part of the table that tells of containers with a quota.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.containers.len() * TABLE_QUOTA_BYTES);
        for (container, quota) in &self.containers {
            bytes.extend_from_slice(&container.0.to_le_bytes());
            bytes.extend_from_slice(&quota.to_le_bytes());
        }
        bytes
    }

    /// What is said of the store, 0 where nobody has said, and of containers as by [`Settings::encode`]. `None` if that
    /// cannot be.
    pub(crate) fn decode(quota: u64, space_percent: u32, bytes: &[u8]) -> Option<Self> {
        let mut containers = BTreeMap::new();
        for entry in bytes.chunks(TABLE_QUOTA_BYTES) {
            let container = ContainerId(get_u32(entry, 0));
            if container > ContainerId::MAX {
                return None;
            }
            containers.insert(container, get_u64(entry, 4));
        }
        let percent = Some(space_percent).filter(|percent| SPACE_PERCENTS.contains(percent));
        let quota = (quota != 0).then_some(quota);
        Some(Settings { quota, space_percent: percent, containers })
    }
}

impl Store {
    /// How many bytes the store's file may have; `None` if as many as the disk gives.
    #[must_use]
    pub fn quota(&self) -> Option<u64> {
        self.state().settings.quota
    }

    /// Lays down how many bytes the store's file may have, for good: durable on return. At its quota a store is like one
    /// on a full disk: what is stable stays, small changes go on in the room that is there, cleaning makes do with
    /// less, giving up containers and snapshots makes room. If the file is longer already it does not grow, and
    /// becomes shorter as upkeep can.
    ///
    /// # Errors
    /// If that is less than a store can work with (eight segments: 33,619,968 bytes with segments of the usual size), or
    /// the disk refuses.
    pub fn set_quota(&self, quota: Option<u64>) -> Result<(), CommitError> {
        self.set(&[Setting::Quota(quota)])
    }

    pub(crate) fn check_quota(&self, bytes: u64) -> Result<(), CommitError> {
        let least = self.layout().file_bytes(SEGMENTS_LEAST);
        if bytes < least { Err(CommitError::QuotaTooSmall { bytes, least }) } else { Ok(()) }
    }

    /// How large the store's file may become, in hundredths of what is live: 200 if nobody has said.
    #[must_use]
    pub fn space_percent(&self) -> u32 {
        self.space_percent.load(Ordering::Relaxed)
    }

    /// Lays down how large the store's file may become, in hundredths of what is live, for good: durable on return; `None`:
    /// 200. The nearer to 100, the more is written by cleaning. Small stores may have some segments more. Where a quota is
    /// less, that counts.
    ///
    /// # Errors
    /// If it is less than 150 or more than 10,000, or the disk refuses.
    pub fn set_space_percent(&self, percent: Option<u32>) -> Result<(), CommitError> {
        self.set(&[Setting::SpacePercent(percent)])
    }

    /// How many bytes of stored pages a container may have; `None` if nobody has said.
    #[must_use]
    pub fn container_quota(&self, container: ContainerId) -> Option<u64> {
        self.state().settings.containers.get(&container).copied()
    }

    /// The containers that have a quota, and how many bytes of stored pages each may have.
    #[must_use]
    pub fn container_quotas(&self) -> Vec<(ContainerId, u64)> {
        self.state().settings.containers.iter().map(|(&id, &bytes)| (id, bytes)).collect()
    }

    /// Lays down how many bytes of stored pages a container may have, for as long as it lives: durable on return. A
    /// stabilisation that would give it more than that, and more than it has, fails as a whole. The container need not hold
    /// anything yet; if it holds more already, it keeps that. With the container its quota goes; going back to a
    /// snapshot leaves the quotas of what is in the snapshot as they are.
    ///
    /// # Errors
    /// If the disk refuses.
    ///
    /// # Panics
    /// If the container's number is beyond what the format has room for.
    pub fn set_container_quota(
        &self,
        container: ContainerId,
        quota: Option<u64>,
    ) -> Result<(), CommitError> {
        self.set(&[Setting::ContainerQuota(container, quota)])
    }

    /// Lays down several things with one root: all of them, or none. Durable on return.
    ///
    /// # Errors
    /// If one of them cannot be, or the disk refuses.
    ///
    /// # Panics
    /// If a container's number is beyond what the format has room for.
    pub fn set(&self, settings: &[Setting]) -> Result<(), CommitError> {
        for &setting in settings {
            match setting {
                Setting::Quota(Some(bytes)) => self.check_quota(bytes)?,
                Setting::SpacePercent(Some(percent)) if !SPACE_PERCENTS.contains(&percent) => {
                    return Err(CommitError::SpacePercent { percent });
                }
                Setting::ContainerQuota(container, _) => {
                    assert!(container <= ContainerId::MAX, "{container} cannot be stored");
                }
                Setting::Quota(None) | Setting::SpacePercent(_) => {}
            }
        }
        self.settle()?;
        self.checkpoint_change(&mut self.keeper(), &Change::Set(settings.to_vec()))
    }

    /// Has what is asked while the state is locked go by new settings.
    pub(crate) fn heed(&self, settings: &Settings) {
        let percent = settings.space_percent.unwrap_or(SPACE_PERCENT);
        self.space_percent.store(percent, Ordering::Relaxed);
        let quota = settings.quota.unwrap_or(u64::MAX);
        if self.quota_bytes.swap(quota, Ordering::Relaxed) != quota {
            // There may be room now.
            self.disk_full.store(false, Ordering::Relaxed);
        }
    }

    /// How many segments the file may have.
    pub(crate) fn segments_of_quota(&self) -> usize {
        match self.quota_bytes.load(Ordering::Relaxed) {
            u64::MAX => usize::MAX,
            bytes => self.layout().segments_in(bytes),
        }
    }

    /// Counts the stored pages of containers that have a quota, as they will be with these entries, if they may be.
    ///
    /// # Errors
    /// If one would have more than its quota allows, and more than before.
    pub(crate) fn check_quotas(
        &self,
        writer: &mut Writer,
        entries: impl Iterator<Item = Entry>,
    ) -> Result<Held, CommitError> {
        self.forget_idle();
        let (quotas, version) = {
            let state = self.state();
            if state.settings.containers.is_empty() {
                return Ok(Held::default());
            }
            (state.settings.containers.clone(), state.version)
        };
        let known = match &writer.held {
            held if held.version == version => held.pages.clone(),
            _ => HashMap::new(),
        };
        let mut counts: HashMap<ContainerId, Count> = HashMap::new();
        for entry in entries {
            let (Entry::Image(PageId { container, .. })
            | Entry::Zero(PageId { container, .. })
            | Entry::Drop(container)) = entry
            else {
                continue;
            };
            if quotas.contains_key(&container) {
                let count = counts.entry(container).or_insert_with(|| {
                    let pages = known.get(&container).copied();
                    Count::of(pages.unwrap_or_else(|| self.held(&self.view(), container)))
                });
                match entry {
                    Entry::Image(id) => count.put(self, id, true),
                    Entry::Zero(id) => count.put(self, id, false),
                    _ => count.drop_all(),
                }
            }
        }
        let mut now = Held { version, pages: known };
        for (container, count) in counts {
            let (quota, page) = (quotas[&container], PAGE_SIZE as u64);
            // With a container that is given up its quota goes.
            if count.now > count.before && count.now * page > quota && !count.dropped {
                writer.refused = true;
                return Err(CommitError::ContainerFull {
                    container,
                    quota_bytes: quota,
                    held_bytes: count.before * page,
                    asked_bytes: count.now * page,
                });
            }
            if count.is_doubtful || count.dropped {
                now.pages.remove(&container);
            } else {
                now.pages.insert(container, count.now);
            }
        }
        Ok(now)
    }

    /// How many pages of a container are stored. Costs by what has been stored since the last root.
    pub(crate) fn held(&self, view: &View<'_>, container: ContainerId) -> u64 {
        let (tree, layers, _) = view.map_of(container);
        let mut count = Count::of(tree.as_ref().map_or(0, |tree| tree.pages()));
        // Looked for below each layer: in the map, and in the layers before it.
        for (i, changes) in layers.iter().enumerate() {
            if changes.dropped {
                count.drop_all();
            }
            for (&page, at) in &changes.pages {
                let before =
                    layers[..i].iter().rev().find_map(|layer| match layer.pages.get(&page) {
                        Some(at) => Some(!at.is_never()),
                        None => layer.dropped.then_some(false),
                    });
                let was = match before {
                    Some(was) => was,
                    None if count.dropped => false,
                    None => {
                        tree.as_ref().is_some_and(|tree| is_stored(tree.entry(page, &self.disk)))
                    }
                };
                count.step(was, !at.is_never());
            }
        }
        count.now
    }
}

/// How many pages of containers are stored, of those that have a quota and have been counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    /// Of the map: behind the next root it is counted anew.
    version: u64,
    pages: HashMap<ContainerId, u64>,
}

/// Counts the stored pages of a container.
#[derive(Debug)]
struct Count {
    before: u64,
    now: u64,
    /// What has become of pages that were counted.
    counted: HashMap<u64, bool>,
    dropped: bool,
    /// Whether a part of the map could not be read.
    is_doubtful: bool,
}

impl Count {
    fn of(before: u64) -> Self {
        let counted = HashMap::new();
        Count { before, now: before, counted, dropped: false, is_doubtful: false }
    }

    /// Its pages are gone.
    fn drop_all(&mut self) {
        (self.now, self.dropped) = (0, true);
        self.counted.clear();
    }

    /// A page comes to be stored, or zero.
    fn put(&mut self, store: &Store, id: PageId, stored: bool) {
        let was = match self.counted.get(&id.page.0) {
            Some(&was) => was,
            None if self.dropped => false,
            None => self.was_stored(store, id),
        };
        self.counted.insert(id.page.0, stored);
        self.step(was, stored);
    }

    fn step(&mut self, was: bool, is: bool) {
        match (was, is) {
            (false, true) => self.now += 1,
            (true, false) => self.now = self.now.saturating_sub(1),
            _ => {}
        }
    }

    fn was_stored(&mut self, store: &Store, id: PageId) -> bool {
        let tree = {
            let state = store.state();
            if let Some(at) = state.find_in_layers(id) {
                return !at.is_never();
            }
            state.trees.get(&id.container).cloned()
        };
        let found = tree.map_or(Ok(Located::NEVER), |tree| tree.entry(id.page.0, &store.disk));
        self.is_doubtful |= found.is_err();
        is_stored(found)
    }
}

/// Whether a page counts as stored. What a damaged part of the map tells counts as it did.
fn is_stored(found: Result<Located, ReadError>) -> bool {
    !found.is_ok_and(|at| at.is_never() || at.is_lost())
}
