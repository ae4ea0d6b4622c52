//! What stabilisations have changed since the map was last stored, held in memory over the map: a page's
//! place is looked for here first. Nothing here reads a file. Read [`Layer`] first.

use std::collections::BTreeMap;

use stead_model::{ContainerId, PageId, PageNo};

use crate::format::{Located, Place};

/// Changes of the map.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    containers: BTreeMap<ContainerId, Changes>,
}

/// Changes of one container's map.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// Whether all that lies below this layer is gone.
    pub(crate) dropped: bool,
    /// Pages stored since, or [`Located::NEVER`] where a page became zero.
    pub(crate) pages: BTreeMap<u64, Located>,
}

impl Layer {
    /// What the layer knows of a page: `None` if what lies below it counts.
    pub(crate) fn find(&self, id: PageId) -> Option<Located> {
        let changes = self.containers.get(&id.container)?;
        match changes.pages.get(&id.page.0) {
            Some(&located) => Some(located),
            None => changes.dropped.then_some(Located::NEVER),
        }
    }

    /// Enters a page; returns the place that this layer gave it before.
    pub(crate) fn set(&mut self, id: PageId, located: Located) -> Option<Place> {
        let changes = self.containers.entry(id.container).or_default();
        let old = if changes.dropped && located.is_never() {
            changes.pages.remove(&id.page.0)
        } else {
            changes.pages.insert(id.page.0, located)
        };
        old.map(|old| old.place).filter(|place| !place.is_none())
    }

    /// Drops a container; returns the places that this layer gave its pages.
    pub(crate) fn drop_container(&mut self, container: ContainerId) -> Vec<Place> {
        let changes = self.containers.entry(container).or_default();
        changes.dropped = true;
        let gone = std::mem::take(&mut changes.pages);
        gone.into_values().map(|old| old.place).filter(|place| !place.is_none()).collect()
    }

    /// Lays `newer` over this layer; returns the places that are thereby forgotten.
    pub(crate) fn cover(&mut self, newer: Layer) -> Vec<Place> {
        let mut gone = Vec::new();
        for (container, changes) in newer.containers {
            if changes.dropped {
                gone.extend(self.drop_container(container));
            }
            for (page, located) in changes.pages {
                let id = PageId { container, page: PageNo(page) };
                gone.extend(self.set(id, located));
            }
        }
        gone
    }

    pub(crate) fn containers(&self) -> impl Iterator<Item = (ContainerId, &Changes)> {
        self.containers.iter().map(|(&container, changes)| (container, changes))
    }

    pub(crate) fn changes(&self, container: ContainerId) -> Option<&Changes> {
        self.containers.get(&container)
    }

    /// All places that the layer points to.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        self.containers
            .values()
            .flat_map(|changes| changes.pages.values())
            .map(|located| located.place)
            .filter(|place| !place.is_none())
    }
}
