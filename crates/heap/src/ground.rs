//! What the heap stands on: memory that someone else mapped, at the container's address. How pages
//! come and go is not known here. Read [`Ground`] first.

pub mod plain;

use stead_model::{PAGES_PER_WINDOW, PageRange};
use thiserror::Error;

use crate::error::Damaged;

/// Why no window could be had.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GroundError {
    /// All windows of the container belong to clusters already.
    #[error("the container's {window_count} windows of 64 GiB are all taken")]
    NoWindow {
        /// Windows that the container has.
        window_count: u32,
    },
    /// The container would have more pages in use than it may hold.
    #[error(
        "container {container:?} may hold {quota_bytes} bytes and has {used_bytes} in use: free something in it, or raise its \
         quota (`Container::set_quota`, `stead quota`)"
    )]
    Quota {
        /// Name of the container.
        container: String,
        /// What it may hold.
        quota_bytes: u64,
        /// What is in use, free room in pages that hold something included.
        used_bytes: u64,
    },
    /// The owner of the mappings could not map more.
    #[error("cannot map a window: {0}")]
    Refused(String),
}

/// The memory of one container, as its site provides it.
///
/// # Safety
/// For the life of the value: `base` is a multiple of 64 GiB and does not change, nor do the other
/// answers; the assigned windows of `base .. base + window_count * 64 GiB` are mapped readable, and
/// writable whenever a mutating section or a call that takes `&Arena` to change it may run; nobody
/// else writes them meanwhile. The same holds for as many bytes from `shadow_base`, which are zero
/// when an arena is opened and which nobody else touches while it is open.
pub unsafe trait Ground: Send + Sync {
    /// Address of the container's first byte.
    fn base(&self) -> usize;

    /// Windows that the container may ever use.
    fn window_count(&self) -> u32;

    /// Address of volatile memory of the same size: the byte at offset `n` from here belongs to the
    /// byte at offset `n` from [`Ground::base`]. It holds the states of locks and of pages.
    fn shadow_base(&self) -> usize;

    /// These bytes are about to be written, and what they held does not matter. A hint; whole pages.
    /// Called under the arena's lock: it must not call into the heap.
    fn ask(&self, address: usize, bytes: usize);

    /// Brings these bytes into memory, so that later loads of them cannot fail.
    ///
    /// # Errors
    /// Names the first page that is damaged.
    fn check(&self, address: usize, bytes: usize) -> Result<(), Damaged>;

    /// The pages that may hold anything but zeros, in order: whoever looks through vast memory need not touch what nobody
    /// has. All pages, if it is not known.
    fn filled(&self) -> Vec<PageRange> {
        vec![PageRange::new(0, u64::from(self.window_count()) * PAGES_PER_WINDOW)]
    }

    /// Whether the container may have so many pages more in use than the `used` ones, which cost a little to count. Called
    /// under the arena's lock: it must not call into the heap.
    ///
    /// # Errors
    /// [`GroundError::Quota`].
    fn allow(&self, used: &dyn Fn() -> u64, more: u64) -> Result<(), GroundError> {
        let _ = (used, more);
        Ok(())
    }

    /// Maps `count` windows from number `first_window` of the container, for cluster `cluster`.
    /// Called under the arena's lock: it must not call into the heap.
    ///
    /// # Errors
    /// If they cannot be mapped; then nothing is changed.
    fn assign(&self, first_window: u32, count: u32, cluster: u16) -> Result<(), GroundError>;
}
