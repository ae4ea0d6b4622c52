//! What can go wrong, one enum for each verb. Refusals of kernel, user or container that concern
//! everything are [`crate::Unsupported`] instead. Read [`ReserveError`] first.

use rustix::io::Errno;
use stead_model::{Address, ContainerId, PageNo};

/// Why addresses could not be reserved.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// Something in this process lies there: another store, or a library in an unusual place.
    #[error(
        "addresses {base}..{end} of container {container} are occupied in this process by `{by}`; \
         open only one of them at a time, or map the other one elsewhere"
    )]
    Occupied {
        /// Whose addresses they are.
        container: ContainerId,
        /// First address asked for.
        base: Address,
        /// One past the last.
        end: Address,
        /// The first line of `/proc/self/maps` that overlaps.
        by: String,
    },
    /// The kernel refused.
    #[error(
        "addresses {base}..{end} of container {container} cannot be reserved: {errno}; \
         look at the limits of this process (ulimit -v, vm.max_map_count)"
    )]
    Refused {
        /// Whose addresses they are.
        container: ContainerId,
        /// First address asked for.
        base: Address,
        /// One past the last.
        end: Address,
        /// What the kernel said.
        errno: Errno,
    },
}

impl ReserveError {
    /// Whether this process may not have so many addresses.
    #[must_use]
    pub fn is_out_of_addresses(&self) -> bool {
        matches!(self, ReserveError::Refused { errno: Errno::NOMEM, .. })
    }
}

/// Why a cluster or shadow could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The kernel refused.
    #[error("container {container}: {step} failed: {errno}; {advice}")]
    Refused {
        /// Whose memory it would have been.
        container: ContainerId,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        errno: Errno,
        /// What the user can do about it.
        advice: &'static str,
    },
}

impl MapError {
    /// Whether this process may not have so many addresses, or mappings.
    #[must_use]
    pub fn is_out_of_addresses(&self) -> bool {
        let MapError::Refused { errno, .. } = self;
        *errno == Errno::NOMEM
    }
}

/// Why page frames could not be filled, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Memory has run out. What was there before is intact.
    #[error(
        "container {container}: no memory for page {}; free some, or raise the memory limit of \
         this process's control group", .page.0
    )]
    NoMemory {
        /// Whose page.
        container: ContainerId,
        /// The first page for which there was none.
        page: PageNo,
    },
    /// The kernel refused.
    #[error("container {container}: {step} of page {} failed: {errno}", .page.0)]
    Refused {
        /// Whose page.
        container: ContainerId,
        /// The page at which it stopped.
        page: PageNo,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

/// Why written pages could not be found. The next scan reports every page in memory as written, so
/// nothing is lost.
#[derive(Debug, thiserror::Error)]
#[error("container {container}: looking for written pages failed: {errno}")]
pub struct ScanError {
    /// Whose pages.
    pub container: ContainerId,
    /// What the kernel said.
    pub errno: Errno,
}
