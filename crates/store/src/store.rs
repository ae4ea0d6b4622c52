//! The store as its user holds it, and what its parts share. The verbs have files of their own: `commit`,
//! `view` with `read`, `keep` with `checkpoint` and `clean`, `recover`, `verify`. Read [`Store`] first, then `State`.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use stead_model::PageId;

use crate::batch::Batch;
use crate::commit::Writer;
use crate::disk::{Counters, Disk};
use crate::error::CommitError;
use crate::format::{BLOCK, Entry, HEADER_BLOCKS, Located, LogPosition, Superblock};
use crate::group::Queue;
use crate::keep::Keeper;
use crate::layer::Layer;
use crate::recover::Hold;
use crate::settings::Settings;
use crate::space::{Layout, Space};
use crate::versions::{Snapshots, Trees, Versions};
use crate::written::Written;

/// A store: pages that stay, moving from one whole state to the next (catalogue B1).
///
/// Any number of threads may use it at once. Stabilisations take their turn; reading waits for none of them, and
/// upkeep ([`Store::maintain`]) runs beside both. Dropping it writes nothing and lets go of the directory.
#[derive(Debug)]
pub struct Store {
    pub(crate) header: StoreHeader,
    pub(crate) disk: Disk,
    pub(crate) state: RwLock<State>,
    /// Locked before `keeper`, and both before `state`.
    pub(crate) writer: Mutex<Writer>,
    /// Locked before `writer`, for moments.
    pub(crate) queue: Queue,
    pub(crate) keeper: Mutex<Keeper>,
    /// Held while the file is made longer; locked after `keeper`, before `state`.
    pub(crate) growing: Mutex<()>,
    /// Whether the next stabilisation would have to begin an epoch first.
    pub(crate) needs_epoch: AtomicBool,
    /// Whether stabilisations of the chain may have shared a flush. Once true it stays so.
    pub(crate) groups: AtomicBool,
    /// Segments that the largest recent stabilisation took.
    pub(crate) recent_need: AtomicU64,
    /// By [`crate::space::Space`]'s clock, when cleaning last found nothing to gain; 0 if it never did.
    pub(crate) fruitless: AtomicU64,
    /// The generation before which the file is not tried to be made shorter again.
    pub(crate) shrink_rest: AtomicU64,
    /// How many bytes of stabilisations there must have been before scattered pages are looked for again.
    pub(crate) tidied_at: AtomicU64,
    pub(crate) opened: Instant,
    /// When something was last stabilised, in microseconds since `opened`.
    pub(crate) last_commit: AtomicU64,
    /// Whether the disk had no room when the file was last to be made longer.
    pub(crate) disk_full: AtomicBool,
    /// How large the file may be, in hundredths of what is live, as [`State::settings`] have it.
    pub(crate) space_percent: AtomicU32,
    /// How large it may be, in bytes, likewise.
    pub(crate) quota_bytes: AtomicU64,
    /// Who may write it, and what readers need.
    pub(crate) hold: Hold,
}

/// What never changes about a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreHeader {
    /// Tells this store from all others.
    pub store_id: u128,
    /// The window from which its containers take addresses, as chosen when it was created.
    pub base_window: u32,
    /// When it was created, in seconds since 1970.
    pub created: u64,
    /// The version of the format it is kept in.
    pub format_version: u32,
    /// Blocks of 4096 bytes in a segment of its log.
    pub segment_blocks: u32,
}

impl From<Superblock> for StoreHeader {
    fn from(superblock: Superblock) -> Self {
        StoreHeader {
            store_id: superblock.store_id,
            base_window: superblock.base_window,
            created: superblock.created,
            format_version: superblock.format_version,
            segment_blocks: superblock.segment_blocks,
        }
    }
}

/// How a store stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stat {
    /// The number of the last stabilisation; 0 if there was none.
    pub last_sequence: u64,
    /// When that was, in nanoseconds since 1970; 0 if there was none.
    pub last_time: u64,
    /// Bytes in the file `log`.
    pub file_bytes: u64,
    /// Segments in it.
    pub segments: usize,
    /// Segments that may be written.
    pub free_segments: usize,
    /// Segments that will be free after the next roots.
    pub pending_segments: usize,
    /// Bytes that the map refers to, those of snapshots included: images and the map itself. Images replaced since
    /// the last root count still.
    pub live_bytes: u64,
    /// Bytes of these that nothing but snapshots refers to.
    pub pinned_bytes: u64,
    /// Snapshots.
    pub snapshots: usize,
    /// What the file may have, in bytes; `None` if as much as the disk gives.
    pub quota_bytes: Option<u64>,
    /// How large the file may become, in hundredths of what is live.
    pub space_percent: u32,
    /// What a recovery would have to read, in blocks; upkeep keeps it bounded.
    pub replay_blocks: u64,
    /// The newest root's generation.
    pub generation: u64,
    /// The current epoch.
    pub epoch: u64,
    /// Bytes of memory that what has been read of the maps takes.
    pub map_memory_bytes: u64,
    /// What has been written over all openings.
    pub written: Written,
    /// What has been written and read since opening.
    pub counters: Counters,
}

/// Where everything lies: under one lock, held for moments, never while the disk is at work.
#[derive(Debug)]
pub(crate) struct State {
    /// What has been stored since the last root, or since the root that is being written.
    pub(crate) active: Layer,
    /// What goes into the root that is being written.
    pub(crate) frozen: Option<Arc<Layer>>,
    /// The map as the last root has it.
    pub(crate) trees: Trees,
    pub(crate) snapshots: Snapshots,
    /// The snapshot that is being dropped: nobody may begin to look at it.
    pub(crate) leaving: Option<u64>,
    pub(crate) space: Space,
    pub(crate) position: LogPosition,
    /// What replaying the chain since the last root costs, in blocks to read.
    pub(crate) replay_blocks: u64,
    /// Counts the changes of `trees`.
    pub(crate) version: u64,
    pub(crate) generation: u64,
    pub(crate) settings: Settings,
    /// What had been written when the store was opened, and the record chain since then.
    pub(crate) written: Written,
}

impl State {
    /// What the layers know of a page.
    pub(crate) fn find_in_layers(&self, id: PageId) -> Option<Located> {
        self.active.find(id).or_else(|| self.frozen.as_ref().and_then(|frozen| frozen.find(id)))
    }

    /// A record's entry has become durable.
    pub(crate) fn enter(&mut self, entry: Entry, at: Located) {
        enter(&mut self.active, &mut self.space, &mut self.settings, entry, at);
    }
}

/// Enters into a layer, and counts, what a record's entry says.
pub(crate) fn enter(
    layer: &mut Layer,
    space: &mut Space,
    settings: &mut Settings,
    entry: Entry,
    at: Located,
) {
    let gone = match entry {
        Entry::Image(id) => {
            space.count_layer(at.place);
            layer.set(id, at)
        }
        Entry::Zero(id) => layer.set(id, Located::NEVER),
        Entry::Drop(container) => {
            settings.forget(container);
            for place in layer.drop_container(container) {
                space.uncount_layer(place);
            }
            None
        }
        Entry::Node(_) | Entry::Table(_) => None,
    };
    if let Some(place) = gone {
        space.uncount_layer(place);
    }
}

impl Store {
    pub(crate) fn layout(&self) -> Layout {
        Layout { segment_blocks: u64::from(self.header.segment_blocks) }
    }

    /// All versions of the map as the last root has them.
    pub(crate) fn versions(&self) -> Versions {
        let state = self.state();
        Versions::new(state.trees.clone(), state.snapshots.clone())
    }

    // A panic while one of these is held is a bug of ours that has been reported by that panic; what the
    // locks guard is changed in steps that each leave it whole.

    pub(crate) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer_or(|| {})
    }

    /// As [`Store::writer`], and does something else before it waits.
    pub(crate) fn writer_or(&self, before_waiting: impl FnOnce()) -> MutexGuard<'_, Writer> {
        if let Ok(writer) = self.writer.try_lock() {
            return writer;
        }
        before_waiting();
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What never changes about the store.
    #[must_use]
    pub fn header(&self) -> &StoreHeader {
        &self.header
    }

    /// Whether it was opened by [`Store::open_read_only`]: whatever would change it is refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self.hold, Hold::Reader(_))
    }

    pub(crate) fn check_writable(&self) -> Result<(), CommitError> {
        if self.is_read_only() { Err(CommitError::ReadOnly) } else { Ok(()) }
    }

    /// How its file is read and written, in a few words: whether around the page cache, by which system calls.
    #[must_use]
    pub fn medium(&self) -> String {
        self.disk.describe()
    }

    /// An empty batch for [`Store::commit`] of this store.
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch::new(self.disk.sealer(), self.layout().record_images() as usize)
    }

    /// How the store stands.
    #[must_use]
    pub fn stat(&self) -> Stat {
        let state = self.state();
        let segments = state.space.segments();
        Stat {
            last_sequence: state.position.sequence,
            last_time: state.position.time,
            file_bytes: self.layout().file_bytes(segments),
            segments,
            free_segments: state.space.free_segments(),
            pending_segments: state.space.pending_segments(),
            live_bytes: (state.space.live_blocks() + HEADER_BLOCKS) * BLOCK as u64,
            pinned_bytes: state.snapshots.pinned * BLOCK as u64,
            snapshots: state.snapshots.list.len(),
            quota_bytes: state.settings.quota,
            space_percent: self.space_percent(),
            replay_blocks: state.replay_blocks,
            generation: state.generation,
            epoch: state.position.epoch,
            map_memory_bytes: self.map_bytes(),
            written: state.written.and_upkeep(&self.disk.counters()),
            counters: self.disk.counters(),
        }
    }

    pub(crate) fn note_need(&self, segments: u64) {
        // Falls by a quarter with each smaller stabilisation, so that one large one is not provided for
        // for ever.
        let old = self.recent_need.load(Ordering::Relaxed);
        self.recent_need.store(segments.max(old - old.div_ceil(4)), Ordering::Relaxed);
    }
}
