//! Looking for damage in a whole store at a pace that leaves the disk to others (catalogue B12), and naming what is found as
//! its user knows it: container, page, address, type. Read [`ScrubOptions`] first.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use stead_heap::{PageGuide, PageSource, PageUse};
use stead_model::{Address, PAGE_SIZE, PageId, PageNo, PageRange};
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
    /// Name of the container; `#` and its number where the directory does not name it (any more).
    pub container: String,
    /// Its number.
    pub number: u32,
    /// First page.
    pub page: PageNo,
    /// How many there may be.
    pub page_count: u64,
    /// Where the first one lies; `None` where nobody knows.
    pub address: Option<Address>,
    /// What is on it, if it is one page.
    pub holds: Option<PageUse>,
    /// Whether they are lost in the state that the last stabilisation left.
    pub is_live: bool,
    /// The snapshots in which they are lost. If they are not lost in the live state, dropping these is all that there is
    /// to do.
    pub snapshots: Vec<String>,
}

impl fmt::Display for FoundDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(lost) = &self.lost else {
            return write!(f, "log, offset {:#x}: {}; nothing is lost", self.offset, self.what);
        };
        if !lost.is_live && !lost.snapshots.is_empty() {
            write!(f, "{}, ", SnapshotNames(&lost.snapshots))?;
        }
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
        write!(f, ": log, offset {:#x}: {}", self.offset, self.what)?;
        match (lost.is_live, &lost.snapshots[..]) {
            (true, []) => Ok(()),
            (true, names) => write!(f, "; so it is in {}", SnapshotNames(names)),
            // Nobody has it any more.
            (false, []) => f.write_str("; nothing refers to it now"),
            (false, names) => {
                let them = if names.len() == 1 { "it" } else { "them" };
                write!(
                    f,
                    "; the live state does not have it: drop {} to be rid of {them}, or restore the store from a \
                     backup",
                    SnapshotNames(names)
                )
            }
        }
    }
}

/// `snapshot "a"`, or `snapshots "a", "b"`.
pub(crate) struct SnapshotNames<'a>(pub(crate) &'a [String]);

impl fmt::Display for SnapshotNames<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.len() == 1 { "snapshot" } else { "snapshots" })?;
        for (i, name) in self.0.iter().enumerate() {
            write!(f, "{}{name:?}", if i == 0 { " " } else { ", " })?;
        }
        Ok(())
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

    /// Says of damage what the user knows of it: container, address, type, and which states have it.
    #[must_use]
    pub fn named(&self, damages: Vec<Damage>) -> Vec<FoundDamage> {
        if damages.is_empty() {
            return Vec::new();
        }
        let store = &self.shared().store;
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
            let holders = store.holders(&damage);
            // As whose it is told: the live one's before a snapshot's.
            let in_snapshot = holders.snapshots.first().filter(|_| holders.live.is_empty());
            let container = match (&holders.live[..], in_snapshot) {
                (live, _) if live.contains(&container) => container,
                ([live, ..], _) => *live,
                ([], Some(found)) => found.container,
                ([], None) => container,
            };
            let view = in_snapshot.and_then(|found| store.view_snapshot(&found.snapshot).ok());
            let page = PageNo(pages.start);
            let mut source: Box<PageSource<'_>> = match view {
                Some(view) => Box::new(move |page, into: &mut [u8; PAGE_SIZE]| {
                    view.read_page(PageId { container, page }, into).is_ok()
                }),
                None => Box::new(damage::source(self.shared(), container)),
            };
            let place = places.get(&container);
            let base = place.map(|&(_, base)| base).or_else(|| base_of(&mut source));
            let of = (container, in_snapshot.map(|found| found.snapshot.clone()));
            let guide = guides.entry(of).or_insert_with(|| PageGuide::read(&mut source));
            let lost = LostPages {
                container: place.map_or_else(|| container.to_string(), |(name, _)| name.clone()),
                number: container.0,
                page,
                page_count: pages.page_count(),
                address: base.map(|base| page.address(base)),
                holds: damage.page.is_some().then(|| guide.use_of(page, &mut source)),
                is_live: !holders.live.is_empty(),
                snapshots: holders.snapshot_names(),
            };
            FoundDamage { lost: Some(lost), offset: damage.offset, what: damage.what }
        };
        damages.into_iter().map(&mut found).collect()
    }
}

/// Where a container that no directory names lies, by its own account.
fn base_of(source: &mut PageSource<'_>) -> Option<Address> {
    let mut page = [0; PAGE_SIZE];
    if !source(PageNo(0), &mut page) {
        return None;
    }
    stead_heap::directory(&page).ok().map(|directory| directory.base)
}
