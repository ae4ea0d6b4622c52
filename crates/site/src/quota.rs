//! Quotas as a site offers them: what the store may take of the disk, in bytes and for what is live in it, and what a
//! container may hold, laid down for good.
//! The store refuses what is beyond; a heap learns of its container's quota before that, when it asks for pages. Read
//! [`Site::set_container_quota`] first.

use stead_model::{ContainerId, ContainerName};
use stead_store::{CommitError, Store};

use crate::error::{ContainerError, QuotaError};
use crate::site::Site;

impl Site {
    /// Lays down how many bytes of the disk the store may take. Durable on return.
    ///
    /// # Errors
    /// If that is too little for a store, if it is open for reading only, or the disk refuses.
    pub fn set_quota(&self, quota: Option<u64>) -> Result<(), QuotaError> {
        if self.is_forked() {
            return Err(QuotaError::Forked);
        }
        Ok(self.shared().store.set_quota(quota)?)
    }

    /// Lays down how large the store's file may become, in hundredths of what is live in it. Durable on return.
    ///
    /// # Errors
    /// If it is less than 150 or more than 10,000, if the store is open for reading only, or the disk refuses.
    pub fn set_space_percent(&self, percent: Option<u32>) -> Result<(), QuotaError> {
        if self.is_forked() {
            return Err(QuotaError::Forked);
        }
        Ok(self.shared().store.set_space_percent(percent)?)
    }

    /// Lays down how many bytes a container may hold, whether or not it is open. Durable on return.
    ///
    /// # Errors
    /// If there is none of this name, if the store is open for reading only, or the disk refuses.
    pub fn set_container_quota(&self, name: &str, quota: Option<u64>) -> Result<(), QuotaError> {
        if self.is_forked() {
            return Err(QuotaError::Forked);
        }
        let name = ContainerName::existing(name).map_err(ContainerError::from)?.as_str();
        // Held so that it is not removed meanwhile.
        let _windows = self.windows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let found = self
            .system()?
            .read(|directory, _| directory.get(name))
            .map_err(|_| ContainerError::InSection)?;
        let missing = || ContainerError::Missing { name: name.to_owned() };
        let id = found.ok_or_else(missing)?.id();
        self.shared().store.set_container_quota(id, quota)?;
        if let Some(opened) = self.shared().opened().get(&id) {
            opened.place.set_quota(quota);
        }
        Ok(())
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
