//! Looking for damage in a whole store at a pace that leaves the disk to others (catalogue B12), and naming what is found as
//! its user knows it: container, page, address, type. Read [`ScrubOptions`] first.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use stead_heap::{PageGuide, PageUse};
use stead_model::{Address, ContainerId, PageNo, PageRange};
use stead_store::{Damage, ScrubProgress};

use crate::driver::damage;
use crate::site::Site;

/// How a store is scrubbed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubOptions {
    bytes_per_second: Option<NonZeroU64>,
}

impl ScrubOptions {
    /// As fast as the disk goes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads at most this many bytes in a second, on average from the beginning on; 0 is no limit.
    #[must_use]
    pub fn bytes_per_second(mut self, bytes: u64) -> Self {
        self.bytes_per_second = NonZeroU64::new(bytes);
        self
    }
}

/// What a scrub found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Scrubbed {
    /// Bytes read.
    pub read_bytes: u64,
    /// Page images among them, each of 4096 bytes.
    pub images: u64,
    /// Whether it came to its end; else it was stopped.
    pub complete: bool,
    /// All damage, in the order of the file.
    pub damages: Vec<FoundDamage>,
}

/// Something in the store's file that is not as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct FoundDamage {
    /// The pages that are lost, if it is any: one whose image is damaged, or all that a damaged part of a map
    /// leads to. Superblocks, roots, tables and the log's own headers are kept twice or written anew.
    pub lost: Option<LostPages>,
    /// Where, in bytes from the start of the store's file `log`.
    pub offset: u64,
    /// What it was, and in which way it is wrong.
    pub what: String,
}

/// Pages that are lost.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct LostPages {
    /// Name of the container; its number where the directory does not name it (any more).
    pub container: String,
    /// First page.
    pub page: PageNo,
    /// How many there may be.
    pub page_count: u64,
    /// Where the first one lies; `None` where the directory does not know.
    pub address: Option<Address>,
    /// What is on it, if it is one page.
    pub holds: Option<PageUse>,
}

impl fmt::Display for FoundDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(lost) = &self.lost {
            write!(f, "container {:?}: page {}", lost.container, lost.page.0)?;
            if lost.page_count > 1 {
                write!(f, " and up to {} behind it", lost.page_count - 1)?;
            }
            if let Some(address) = lost.address {
                write!(f, " at {address}")?;
            }
            if let Some(holds) = &lost.holds {
                write!(f, ", which holds {holds}")?;
            }
            f.write_str(": ")?;
        }
        write!(f, "log, offset {:#x}: {}", self.offset, self.what)
    }
}

impl Site {
    /// Reads everything that the store refers to from the disk itself, and checks it, while the store is in use.
    /// `progress` is told after each 256 KiB at the most, and may stop it.
    pub fn scrub(
        &self,
        options: &ScrubOptions,
        progress: &mut dyn FnMut(ScrubProgress) -> ControlFlow<()>,
    ) -> Scrubbed {
        /// So that who wants to stop it does not wait.
        const NAP: Duration = Duration::from_millis(50);
        let began = Instant::now();
        let found = self.shared().store.scrub(&mut |now| {
            progress(now)?;
            let Some(rate) = options.bytes_per_second else { return ControlFlow::Continue(()) };
            let due = Duration::from_secs_f64(now.done_bytes as f64 / rate.get() as f64);
            while let Some(early) = due.checked_sub(began.elapsed()).filter(|d| !d.is_zero()) {
                thread::sleep(early.min(NAP));
                progress(now)?;
            }
            ControlFlow::Continue(())
        });
        Scrubbed {
            read_bytes: found.read_bytes,
            images: found.images,
            complete: found.complete,
            damages: self.named(found.damages),
        }
    }

    fn named(&self, damages: Vec<Damage>) -> Vec<FoundDamage> {
        if damages.is_empty() {
            return Vec::new();
        }
        let places = self.places();
        let mut guides = HashMap::new();
        let mut found = |damage: Damage| {
            let (container, pages) = match (damage.page, damage.map_of) {
                (Some(id), _) => (id.container, PageRange::new(id.page.0, id.page.0 + 1)),
                (None, Some(lost)) => lost,
                (None, None) => {
                    return FoundDamage { lost: None, offset: damage.offset, what: damage.what };
                }
            };
            let place = places.get(&container);
            let page = PageNo(pages.start);
            let lost = LostPages {
                container: place.map_or_else(|| container.to_string(), |(name, _)| name.clone()),
                page,
                page_count: pages.page_count(),
                address: place.map(|&(_, base)| page.address(base)),
                holds: damage.page.is_some().then(|| self.holds(&mut guides, container, page)),
            };
            FoundDamage { lost: Some(lost), offset: damage.offset, what: damage.what }
        };
        damages.into_iter().map(&mut found).collect()
    }

    fn holds(
        &self,
        guides: &mut HashMap<ContainerId, PageGuide>,
        container: ContainerId,
        page: PageNo,
    ) -> PageUse {
        let mut source = damage::source(self.shared(), container);
        let guide = guides.entry(container).or_insert_with(|| PageGuide::read(&mut source));
        guide.use_of(page, &mut source)
    }
}
