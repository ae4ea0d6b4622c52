//! Quotas as a site offers them: what the store may take of the disk, in bytes and for what is live in it, and what a
//! container may hold, laid down for good.
//! The store refuses what is beyond; a heap learns of its container's quota before that, when it asks for pages. Read
//! [`Site::set_quotas`] first.

use stead_model::{ContainerId, ContainerName};
use stead_store::{CommitError, Setting, Store};

use crate::error::{ContainerError, QuotaError};
use crate::site::Site;

/// Quotas to lay down at once. What is not said stays as it is; of what is said twice the last counts.
#[derive(Clone, Default, Debug)]
pub struct Quotas {
    store: Vec<Setting>,
    containers: Vec<(String, Option<u64>)>,
}

impl Quotas {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes of the disk the store may take; `None`: as many as there are.
    #[must_use]
    pub fn store(mut self, quota: Option<u64>) -> Self {
        self.store.push(Setting::Quota(quota));
        self
    }

    /// How large the store's file may become, in hundredths of what is live in it; `None`: 200.
    #[must_use]
    pub fn space_percent(mut self, percent: Option<u32>) -> Self {
        self.store.push(Setting::SpacePercent(percent));
        self
    }

    /// How many bytes the container of this name may hold; `None`: as many as its addresses and the store allow.
    #[must_use]
    pub fn container(mut self, name: &str, quota: Option<u64>) -> Self {
        self.containers.push((name.to_owned(), quota));
        self
    }
}

impl Site {
    /// Lays down quotas, all of them or none. Containers need not be open. Durable on return.
    ///
    /// # Errors
    /// If there is no container of one of the names, if one of the quotas cannot be kept to, if the store is open for
    /// reading only, or the disk refuses.
    pub fn set_quotas(&self, quotas: &Quotas) -> Result<(), QuotaError> {
        if self.is_forked() {
            return Err(QuotaError::Forked);
        }
        if quotas.containers.is_empty() {
            return Ok(self.shared().store.set(&quotas.store)?);
        }
        // Held so that none is removed meanwhile.
        let _windows = self.windows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut found = Vec::new();
        for (name, quota) in &quotas.containers {
            found.push((self.number_of(name)?, *quota));
        }
        let containers = found.iter().map(|&(id, quota)| Setting::ContainerQuota(id, quota));
        let all: Vec<Setting> = quotas.store.iter().copied().chain(containers).collect();
        self.shared().store.set(&all)?;
        let opened = self.shared().opened();
        for (id, quota) in found {
            if let Some(opened) = opened.get(&id) {
                opened.place.set_quota(quota);
            }
        }
        Ok(())
    }

    fn number_of(&self, name: &str) -> Result<ContainerId, ContainerError> {
        let name = ContainerName::existing(name)?.as_str();
        let found = self
            .system()?
            .read(|directory, _| directory.get(name))
            .map_err(|_| ContainerError::InSection)?;
        Ok(found.ok_or_else(|| ContainerError::Missing { name: name.to_owned() })?.id())
    }

    /// How many bytes a container may hold; `None` if nobody has said.
    #[must_use]
    pub fn container_quota(&self, container: ContainerId) -> Option<u64> {
        self.shared().store.container_quota(container)
    }
}

/// Gives a container that is being made its quota, or none. A number that was to be given before may have one already:
/// that container never came to be.
pub(crate) fn give_quota(
    store: &Store,
    container: ContainerId,
    quota: Option<u64>,
) -> Result<(), CommitError> {
    if store.container_quota(container) == quota {
        return Ok(());
    }
    store.set_container_quota(container, quota)
}
