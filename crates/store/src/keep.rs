//! Upkeep: deciding when the map is stored (`checkpoint`), when segments are cleaned (`clean`), and when the file is
//! made longer. It runs beside stabilisations, on the caller's own thread, and never on the path of one
//! unless there is no room. Read [`Store::maintain`] first.

use std::io::IoSlice;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::aligned::AlignedBuf;
use crate::clean::Gathered;
use crate::cold::Cold;
use crate::disk::Purpose;
use crate::error::CommitError;
use crate::format::Root;
use crate::shrink::Shrunk;
use crate::store::{State, Store};
use crate::tidy::{IDLE, Untidy};
use crate::tree::Moves;

/// What recovery may have to read, in blocks, before a new root is due: some milliseconds' worth in small stores,
/// and in larger ones as much as the root's map may cost to write, up to what takes some tens of milliseconds.
const REPLAY_BUDGET: std::ops::RangeInclusive<u64> = 512..=4096;

/// Bytes of zeros written at a time when the file is made longer ahead of need.
const PREWRITE_BYTES: usize = 1 << 20;

/// Segments by which one step of upkeep makes the file longer at the most.
const GROW_MOST: usize = 8;

/// Segments kept free at the least.
const FREE_LEAST: usize = 4;

/// Segments kept free while the file may become longer: a stabilisation finds no room in the last [`FREE_LEAST`], and
/// goes on meanwhile.
const FREE_AHEAD: usize = 7;

/// The same once the file is as long as it may be: cleaning takes a while.
const FREE_LEAST_AT_BOUND: usize = 8;

/// Segments that a stabilisation finds free beyond those that it fills: its last one, the one that the chain reserves,
/// those of the cold streams.
const RESERVE: usize = 5;

/// Segments beyond its own that a stabilisation on a full disk leaves free, if it can, when it cleans for itself.
const FREE_SPARE: usize = 4;

/// How often a stabilisation cleans without a segment to show for it, before it says that there is no room.
const PASSES_IN_VAIN: u32 = 2;

/// Segments kept free at the most, however large the stabilisations.
const FREE_MOST: usize = 64;

/// Segments that a small store may have beyond its live data.
const SLACK_SEGMENTS: u64 = 12;

/// Segments below the stated factor at which growing ahead of need ends: what stabilisations in a hurry take shall not
/// lead beyond it.
const HASTE_SEGMENTS: u64 = 8;

/// Segments' worth of images since the last root for which it is asked whether they are new, so that the file may
/// become longer, or replace others.
const UNSETTLED_SEGMENTS: u64 = 4;

/// What only the one upkeep under way uses.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// The last one that was given to a root, durable or not.
    pub(crate) generation: u64,
    /// The slot of the older root: the next one goes there.
    pub(crate) slot: usize,
    /// The root that opening went by, if it could not use the other one. That one may be whole after all, and
    /// refer to what counts as free now: it is overwritten with this before anything else is written.
    pub(crate) stand_in: Option<Root>,
    pub(crate) cold: Cold,
    /// Where pages that cleaning moves are written.
    pub(crate) moved: Cold,
    pub(crate) gathered: Gathered,
    /// A segment that is being cleaned.
    pub(crate) reading: Option<AlignedBuf>,
    pub(crate) untidy: Untidy,
    /// Roots written for the sake of a shorter file, since something was moved for it.
    pub(crate) roots_in_vain: u32,
    /// What the next root is to have elsewhere, because its place is to become free.
    pub(crate) moves: Moves,
    /// Whether maps may have entries that are lost, or more be counted than can be reached.
    pub(crate) lost: bool,
    /// Whether the next checkpoint is to count anew for that reason.
    pub(crate) recount: bool,
}

/// The next step of upkeep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Due {
    Nothing,
    Checkpoint,
    Grow(usize),
    Clean,
    WriteAhead,
    /// Makes the file shorter, to so many segments.
    Shrink(usize),
    Tidy,
}

/// What a step of upkeep did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Maintained {
    /// Whether there is more to do: call again.
    pub more: bool,
    /// Whether a root was written.
    pub checkpointed: bool,
    /// Segments by which the file was made longer.
    pub segments_added: usize,
    /// Blocks that were moved to empty segments.
    pub blocks_moved: u64,
}

impl Store {
    /// Whether [`Store::maintain`] has something to do. Costs nothing to ask.
    #[must_use]
    pub fn wants_maintenance(&self) -> bool {
        if self.is_read_only() {
            return false;
        }
        self.needs_epoch.load(Ordering::SeqCst) || self.due(&self.state()) != Due::Nothing
    }

    /// One bounded step of upkeep: begins the epoch after opening or a failure, stores the map when recovery would
    /// take long, keeps free room ahead of need by cleaning a segment or by making the file longer. Meant for a
    /// thread of the caller's, beside stabilisations; without it they do the same when they must.
    ///
    /// # Errors
    /// What went wrong with the disk. Nothing is lost; calling again later is right.
    pub fn maintain(&self) -> Result<Maintained, CommitError> {
        self.check_writable()?;
        let mut done = Maintained::default();
        if self.needs_epoch.load(Ordering::SeqCst) {
            let mut writer = self.writer();
            if writer.epoch != Some(self.disk.failures()) {
                self.begin_epoch(&mut writer)?;
                done.checkpointed = true;
            }
            done.more = self.wants_maintenance();
            return Ok(done);
        }
        let mut keeper = self.keeper();
        let due = self.due(&self.state());
        match due {
            Due::Nothing => {}
            Due::Checkpoint => {
                self.checkpoint_now(&mut keeper)?;
                done.checkpointed = true;
            }
            Due::Grow(segments) => match self.grow(segments, true) {
                // Where there is no room for more, there may be some in what is there.
                Err(full) if full.is_no_room() => {
                    let free = self.state().space.free_segments();
                    done.blocks_moved = self.clean(&mut keeper, segments)?;
                    done.checkpointed = true;
                    if self.state().space.free_segments() <= free {
                        return Err(full);
                    }
                }
                grown => {
                    grown?;
                    done.segments_added = segments;
                }
            },
            Due::Clean => done.blocks_moved = self.clean_step(&mut keeper)?.unwrap_or_default(),
            Due::WriteAhead => self.write_ahead(&mut keeper)?,
            Due::Shrink(target) => match self.shrink_step(&mut keeper, target)? {
                Shrunk::Step(blocks) => done.blocks_moved = blocks,
                Shrunk::ChainInTheWay => {
                    drop(keeper);
                    self.move_chain()?;
                }
                Shrunk::Cut | Shrunk::Blocked => {}
            },
            Due::Tidy => done.blocks_moved = self.tidy_step(&mut keeper)?,
        }
        done.more = self.wants_maintenance();
        Ok(done)
    }

    fn due(&self, state: &State) -> Due {
        let space = &state.space;
        let nodes = space.tree_blocks() / 256;
        if state.replay_blocks > nodes.clamp(*REPLAY_BUDGET.start(), *REPLAY_BUDGET.end()) {
            return Due::Checkpoint;
        }
        let segment_blocks = self.layout().segment_blocks;
        let segments = space.segments() as u64;
        let quota = self.segments_of_quota() as u64;
        let bound = self.segments_allowed(space.tree_blocks()) + space.kept_segments() as u64;
        let bound = bound.min(quota);
        let (free, wanted) = (space.free_segments(), self.free_wanted(state));
        // Those that wait for nothing but roots.
        let coming = space.coming_segments();
        if free < wanted && free + coming >= wanted {
            // Roots are written now and then anyway, and are in a hurry only if room is short.
            let recent = self.recent_need.load(Ordering::Relaxed) as usize;
            if free < (wanted - wanted / 4).max(recent + RESERVE) {
                return Due::Checkpoint;
            }
        } else if free < wanted {
            let unsettled = space.live_blocks() - space.tree_blocks();
            let missing = wanted - free - coming;
            if segments < bound {
                return Due::Grow(missing.min((bound - segments) as usize).min(GROW_MOST));
            }
            if unsettled >= UNSETTLED_SEGMENTS * segment_blocks {
                return Due::Checkpoint;
            }
            let fruitless = self.fruitless.load(Ordering::Relaxed);
            let tried = fruitless > 0 && space.clock() < fruitless - 1 + segment_blocks;
            if !tried && (space.has_gathered() || space.has_victim(self.live_most(state))) {
                return Due::Clean;
            }
            if coming > 0 {
                return Due::Checkpoint;
            }
            if free < FREE_LEAST && unsettled > 0 {
                return Due::Checkpoint;
            }
            if free < FREE_LEAST && segments < quota {
                // Nothing can be gained: what cannot be cleaned does not bound the file.
                return Due::Grow(1);
            }
        }
        if space.has_unwritten() {
            Due::WriteAhead
        } else if let Some(target) = self.shrink_target(state) {
            Due::Shrink(target)
        } else if self.may_tidy() && self.idle_time() >= IDLE {
            // First, what waits for nothing but roots.
            if free < wanted && coming > 0 { Due::Checkpoint } else { Due::Tidy }
        } else {
            Due::Nothing
        }
    }

    /// Stores the map and a root, so that the next opening has nothing to replay. Right before a clean end.
    ///
    /// # Errors
    /// As for [`Store::maintain`].
    pub fn checkpoint(&self) -> Result<(), CommitError> {
        self.check_writable()?;
        if self.needs_epoch.load(Ordering::SeqCst) {
            return self.maintain().map(drop);
        }
        self.checkpoint_now(&mut self.keeper())
    }

    /// How many segments should be free: enough for stabilisations like the recent ones, as far as the
    /// bound on the file's size allows.
    pub(crate) fn free_wanted(&self, state: &State) -> usize {
        let recent = self.recent_need.load(Ordering::Relaxed) as usize;
        let (kept, free) = (state.space.kept_segments(), state.space.free_segments());
        let segments = state.space.segments() - kept;
        let bound = self.segments_allowed(state.space.tree_blocks()) as usize;
        let least = if segments < bound {
            FREE_LEAST
        } else {
            (bound / 24).clamp(FREE_LEAST_AT_BOUND, FREE_MOST)
        };
        let room = bound.saturating_sub(segments - free);
        (recent * 2 + FREE_AHEAD).min(FREE_MOST).min(room).max(least)
    }

    /// How many segments the file may have with so many live blocks: those and some, or the stated factor;
    /// what readers keep from being used again is not counted. Never more than its quota.
    pub(crate) fn segments_allowed(&self, live_blocks: u64) -> u64 {
        let segment_blocks = self.layout().segment_blocks;
        let percent = u64::from(self.space_percent.load(Ordering::Relaxed));
        let by_factor = live_blocks * percent / 100 / segment_blocks;
        by_factor
            .saturating_sub(HASTE_SEGMENTS)
            .max(live_blocks.div_ceil(segment_blocks) + SLACK_SEGMENTS)
            .min(self.segments_of_quota() as u64)
    }

    /// Makes the file longer by `segments`; ahead of need (`prewrite`) its new blocks are written once, so
    /// that later writes change no metadata.
    pub(crate) fn grow(&self, segments: usize, prewrite: bool) -> Result<(), CommitError> {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.state().space.segments();
        if old + segments > self.segments_of_quota() {
            self.disk_full.store(true, Ordering::Relaxed);
            let quota_bytes = self.quota_bytes.load(Ordering::Relaxed);
            return Err(CommitError::StoreFull { quota_bytes });
        }
        let (from, to) = (self.layout().file_bytes(old), self.layout().file_bytes(old + segments));
        let longer = self.disk.len().and_then(|len| self.disk.set_len(to.max(len)));
        let longer = longer.map_err(|source| CommitError::io("extending log", source));
        let full = matches!(longer, Err(CommitError::NoSpace { .. }));
        self.disk_full.store(full, Ordering::Relaxed);
        longer?;
        if prewrite {
            let since = self.disk.failures();
            self.write_zeros_aside(from, to)?;
            self.disk.sync(Purpose::Prewrite, since)?;
        }
        self.state_mut().space.add_segments(segments, prewrite);
        Ok(())
    }

    /// As [`Store::write_zeros`], but stabilisations go first.
    fn write_zeros_aside(&self, from: u64, to: u64) -> Result<(), CommitError> {
        let zeros = AlignedBuf::zeroed(PREWRITE_BYTES);
        let mut at = from;
        while at < to {
            let bytes = (to - at).min(PREWRITE_BYTES as u64);
            self.disk.write_aside(Purpose::Prewrite, at, &zeros.as_slice()[..bytes as usize])?;
            at += bytes;
        }
        Ok(())
    }

    pub(crate) fn write_zeros(&self, from: u64, to: u64) -> Result<(), CommitError> {
        let zeros = AlignedBuf::zeroed(PREWRITE_BYTES.min((to - from) as usize));
        let mut at = from;
        while at < to {
            let bytes = (to - at).min(PREWRITE_BYTES as u64);
            let part = IoSlice::new(&zeros.as_slice()[..bytes as usize]);
            self.disk.write(Purpose::Prewrite, at, &[part])?;
            at += bytes;
        }
        Ok(())
    }

    /// Writes a free segment for the first time that the file got in a hurry: the small stabilisations that
    /// come to use it shall not pay for it. The keeper is held, so that no root is written meanwhile.
    fn write_ahead(&self, _keeper: &mut Keeper) -> Result<(), CommitError> {
        let Some(start) = self.state_mut().space.take_unwritten() else { return Ok(()) };
        let end = start.plus(self.layout().segment_blocks);
        let since = self.disk.failures();
        let written = self
            .write_zeros_aside(start.offset(), end.offset())
            .and_then(|()| self.disk.sync(Purpose::Prewrite, since));
        self.state_mut().space.written(start, written.is_ok());
        written
    }

    /// Sees to it that there are segments for a stabilisation of so many blocks. There are, as long as
    /// [`Store::maintain`] is called in time.
    pub(crate) fn make_room(&self, blocks: u64) -> Result<(), CommitError> {
        let Room { needed, wanted } = match self.grow_for(blocks)? {
            None => return Ok(()),
            Some(room) => room,
        };
        let mut keeper = self.keeper();
        let (mut in_vain, mut most) = (0, 0);
        loop {
            let before = self.state().space.chain_supply();
            most = before.max(most);
            if before >= wanted {
                return Ok(());
            }
            let cleaned = self.clean(&mut keeper, wanted - before);
            let now = self.state().space.chain_supply();
            if now >= wanted {
                return Ok(());
            }
            // What little is moved may make room for more to be moved.
            // Only more than there ever was counts: one pass may take what the next one gives back, for ever.
            in_vain = if now > most { 0 } else { in_vain + 1 };
            if !cleaned.is_ok_and(|moved| moved > 0 || now > before) || in_vain == PASSES_IN_VAIN {
                return if now >= needed { Ok(()) } else { self.grow(needed - now, false) };
            }
        }
    }

    /// How many segments a stabilisation of so many blocks finds no room without, and how many it had better find.
    fn room_wanted(&self, blocks: u64) -> Room {
        // Chunk headers take room too, and the chain reserves a segment ahead.
        let needed = (blocks * 9 / 8).div_ceil(self.layout().segment_blocks) as usize + 1;
        // On a full disk cleaning must begin while there is still room for it.
        let full = self.disk_full.load(Ordering::Relaxed);
        Room { needed, wanted: if full { needed + FREE_SPARE } else { needed } }
    }

    /// Whether [`Store::make_room`] has nothing to do.
    pub(crate) fn has_room(&self, blocks: u64) -> bool {
        self.state().space.chain_supply() >= self.room_wanted(blocks).wanted
    }

    /// Makes the file longer for a stabilisation of so many blocks, if it may become so. What is still missing then.
    pub(crate) fn grow_for(&self, blocks: u64) -> Result<Option<Room>, CommitError> {
        let room = self.room_wanted(blocks);
        let wanted = room.wanted;
        let (supply, allowed, segments) = {
            let state = self.state();
            let space = &state.space;
            // Whether these blocks, and those since the last root, are new or replace others is not known yet.
            let unsettled = space.live_blocks() - space.tree_blocks();
            let allowed = self.segments_allowed(space.tree_blocks())
                + (unsettled + blocks).div_ceil(self.layout().segment_blocks);
            (space.chain_supply(), allowed as usize, space.segments() - space.kept_segments())
        };
        if supply >= wanted {
            return Ok(None);
        }
        if segments + wanted - supply <= allowed || self.disk_full.load(Ordering::Relaxed) {
            match self.grow(wanted - supply, false) {
                // Where there is no room for more, there may be some in what is there.
                Err(full) if full.is_no_room() => {}
                grown => return grown.map(|()| None),
            }
        }
        Ok(Some(room))
    }
}

/// How many segments a stabilisation finds no room without, and how many it had better find.
pub(crate) struct Room {
    needed: usize,
    wanted: usize,
}
