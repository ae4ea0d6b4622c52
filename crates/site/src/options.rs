//! What a program may choose when it opens a store or a container. Nothing is read from the
//! environment. Read [`OpenOptions`] first.

use std::time::Duration;

use stead_memory::Allowed;
use stead_model::WINDOW_SIZE;

use crate::step::rounds::Pace;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    pub(crate) create: bool,
    pub(crate) quota: Option<u64>,
    pub(crate) space_percent: Option<u32>,
    pub(crate) pace: Pace,
    pub(crate) fill_bytes_max: u64,
    pub(crate) map_bytes_max: Option<u64>,
    pub(crate) allowed: Allowed,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            create: true,
            quota: None,
            space_percent: None,
            pace: Pace::default(),
            fill_bytes_max: 1 << 30,
            map_bytes_max: None,
            allowed: Allowed::ALL,
        }
    }
}

impl OpenOptions {
    /// Creates the store if there is none, stabilises about once a second.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether to create the store where its directory is missing or empty (default: yes).
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// How many bytes of the disk the store may take, if it is made (default: as many as there are). Without effect on a
    /// store that exists: see `Store::set_quota`.
    #[must_use]
    pub fn quota(mut self, bytes: Option<u64>) -> Self {
        self.quota = bytes;
        self
    }

    /// How large the store's file may become, in hundredths of what is live in it, if it is made (default: 200; 150 to
    /// 10,000). Without effect on a store that exists: see `Store::set_space_percent`.
    #[must_use]
    pub fn space_percent(mut self, percent: Option<u32>) -> Self {
        self.space_percent = percent;
        self
    }

    /// Longest time between two background stabilisations (default: one second). `None`: none by
    /// time; what is not stabilised by amount or by request is lost at a crash.
    #[must_use]
    pub fn interval(mut self, interval: Option<Duration>) -> Self {
        self.pace.interval = interval;
        self
    }

    /// A background stabilisation begins when this much memory is new since the last one, in bytes
    /// (default: 256 MiB).
    #[must_use]
    pub fn new_bytes_max(mut self, bytes: u64) -> Self {
        self.pace.new_pages_max = (bytes / stead_model::PAGE_SIZE as u64).max(1);
        self
    }

    /// Where the system lets this user serve only faults of the program itself, not those that system
    /// calls meet, a container is filled ahead in the background, up to this many bytes (default: 1 GiB).
    #[must_use]
    pub fn fill_bytes_max(mut self, bytes: u64) -> Self {
        self.fill_bytes_max = bytes;
        self
    }

    /// How many bytes of memory the maps of where pages lie may take (default: 64 MiB, enough for 16 GiB of pages that lie
    /// close together). With less than the pages in use need, bringing in a page reads a part of its map first.
    #[must_use]
    pub fn map_bytes_max(mut self, bytes: u64) -> Self {
        self.map_bytes_max = Some(bytes);
        self
    }

    /// Refuses what the kernel would allow, to see what a smaller kernel does. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn allowed(mut self, allowed: Allowed) -> Self {
        self.allowed = allowed;
        self
    }
}

/// How a container is made. Without effect on a container that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ContainerOptions {
    pub(crate) windows: u32,
    pub(crate) quota: Option<u64>,
}

impl Default for ContainerOptions {
    fn default() -> Self {
        ContainerOptions { windows: 2, quota: None }
    }
}

impl ContainerOptions {
    /// Addresses for 128 GiB: two windows of 64 GiB, the second for a second cluster or for growth.
    /// Addresses cost nothing until used, but are finite: 832 windows for all containers of a store, so 416
    /// containers of this size. Every window takes its size a second time in each process that has the container
    /// open (for locks); the 2^47 bytes that Linux gives a process are enough for all of them.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes addresses for this many bytes, rounded up to windows of 64 GiB. A cluster takes whole windows,
    /// and a container cannot grow beyond what it took when it was made.
    #[must_use]
    pub fn address_bytes(mut self, bytes: u64) -> Self {
        let windows = bytes.div_ceil(WINDOW_SIZE as u64).max(1);
        self.windows = u32::try_from(windows).unwrap_or(u32::MAX);
        self
    }

    /// How many bytes the container may hold (default: as many as its addresses and the store allow). It can be
    /// changed later: see `Container::set_quota`.
    #[must_use]
    pub fn quota(mut self, bytes: Option<u64>) -> Self {
        self.quota = bytes;
        self
    }
}
