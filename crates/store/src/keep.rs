//! Upkeep: deciding when the map is stored (`checkpoint`), when segments are cleaned (`clean`), and when the file is
//! made longer. It runs beside stabilisations, on the caller's own thread, and never on the path of one
//! unless there is no room. Read [`Store::maintain`] first.

use std::io::IoSlice;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::aligned::AlignedBuf;
use crate::cold::Cold;
use crate::disk::Purpose;
use crate::error::CommitError;
use crate::store::{State, Store};
use crate::tree::Moves;

/// What recovery may have to read, in blocks, before a new root is due: some milliseconds' worth.
const REPLAY_BUDGET: u64 = 512;

/// Bytes of zeros written at a time when the file is made longer ahead of need.
const PREWRITE_BYTES: usize = 1 << 20;

/// Segments by which one step of upkeep makes the file longer at the most.
const GROW_MOST: usize = 8;

/// Segments kept free at the least.
const FREE_LEAST: usize = 4;

/// The same once the file is as long as it may be: cleaning needs some room to gain more.
const FREE_LEAST_AT_BOUND: usize = 8;

/// Segments that a stabilisation leaves free, if it can, when it has to clean for itself.
const FREE_SPARE: usize = 4;

/// Segments kept free at the most, however large the stabilisations.
const FREE_MOST: usize = 64;

/// Segments that the file may have beyond twice its live data.
const SLACK_SEGMENTS: u64 = 12;

/// What only the one upkeep under way uses.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// The last one that was given to a root, durable or not.
    pub(crate) generation: u64,
    /// The slot of the older root: the next one goes there.
    pub(crate) slot: usize,
    pub(crate) cold: Cold,
    /// What the next root is to have elsewhere, because its place is to become free.
    pub(crate) moves: Moves,
    /// Segments that could not be emptied, because something in them cannot be read.
    pub(crate) stuck: Vec<u32>,
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
        if self.needs_epoch.load(Ordering::SeqCst) {
            return true;
        }
        let state = self.state();
        state.replay_blocks > REPLAY_BUDGET
            || state.space.free_segments() < self.free_wanted(&state)
            || state.space.has_unwritten()
    }

    /// One bounded step of upkeep: begins the epoch after opening or a failure, stores the map when recovery would
    /// take long, keeps free room ahead of need by cleaning or by making the file longer. Meant for a
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
        let (replay_due, missing) = {
            let state = self.state();
            let wanted = self.free_wanted(&state);
            let missing = wanted.saturating_sub(state.space.free_segments());
            (state.replay_blocks > REPLAY_BUDGET, missing)
        };
        if replay_due {
            self.checkpoint_now(&mut keeper)?;
            done.checkpointed = true;
        } else if missing > 0 {
            done = self.keep_room(&mut keeper, missing)?;
        } else {
            self.write_ahead(&mut keeper)?;
        }
        done.more = self.wants_maintenance();
        Ok(done)
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
    fn free_wanted(&self, state: &State) -> usize {
        let recent = self.recent_need.load(Ordering::Relaxed) as usize;
        let (segments, free) = (state.space.segments(), state.space.free_segments());
        let allowed = self.segments_allowed(state) as usize;
        let least = if segments < allowed { FREE_LEAST } else { FREE_LEAST_AT_BOUND };
        let room = allowed.saturating_sub(segments - free);
        (recent * 2 + FREE_LEAST).min(FREE_MOST).min(room).max(least)
    }

    /// How many segments the file may have: twice its live data and some, and what readers keep from being used
    /// again.
    pub(crate) fn segments_allowed(&self, state: &State) -> u64 {
        let live = (state.space.live_blocks() * 2).div_ceil(self.layout().segment_blocks);
        live + SLACK_SEGMENTS + state.space.kept_segments() as u64
    }

    /// Makes the file longer by `segments`; ahead of need (`prewrite`) its new blocks are written once, so
    /// that later writes change no metadata.
    pub(crate) fn grow(&self, segments: usize, prewrite: bool) -> Result<(), CommitError> {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.state().space.segments();
        let (from, to) = (self.layout().file_bytes(old), self.layout().file_bytes(old + segments));
        let longer = self.disk.len().and_then(|len| self.disk.set_len(to.max(len)));
        longer.map_err(|source| CommitError::io("extending log", source))?;
        if prewrite {
            let since = self.disk.failures();
            self.write_zeros(from, to)?;
            self.disk.sync(Purpose::Prewrite, since)?;
        }
        self.state_mut().space.add_segments(segments, prewrite);
        Ok(())
    }

    pub(crate) fn write_zeros(&self, from: u64, to: u64) -> Result<(), CommitError> {
        let zeros = AlignedBuf::zeroed(PREWRITE_BYTES);
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
            .write_zeros(start.offset(), end.offset())
            .and_then(|()| self.disk.sync(Purpose::Prewrite, since));
        self.state_mut().space.written(start, written.is_ok());
        written
    }

    /// Sees to it that there are segments for a stabilisation of so many blocks. There are, as long as
    /// [`Store::maintain`] is called in time.
    pub(crate) fn make_room(&self, blocks: u64) -> Result<(), CommitError> {
        // Chunk headers take room too, and the chain reserves a segment ahead.
        let needed = (blocks * 9 / 8).div_ceil(self.layout().segment_blocks) as usize + 1;
        let (supply, allowed, segments) = {
            let state = self.state();
            let space = &state.space;
            (space.chain_supply(), self.segments_allowed(&state) as usize, space.segments())
        };
        if supply >= needed && (segments < allowed || supply >= needed + FREE_SPARE) {
            return Ok(());
        }
        if supply < needed && segments + needed - supply <= allowed {
            match self.grow(needed - supply, false) {
                // Where there is no room for more, there may be some in what is there.
                Err(CommitError::NoSpace { .. }) => {}
                grown => return grown,
            }
        }
        let missing = needed + FREE_SPARE - supply;
        let mut keeper = self.keeper();
        loop {
            let before = self.state().space.chain_supply();
            let cleaned = self.clean(&mut keeper, missing);
            let now = self.state().space.chain_supply();
            if now >= needed + FREE_SPARE {
                return Ok(());
            }
            if now <= before || cleaned.is_err() {
                if now >= needed {
                    return Ok(());
                }
                return self
                    .grow(needed + FREE_SPARE - now, false)
                    .or_else(|_| self.grow(needed - now, false));
            }
        }
    }

    /// Sees to it that there are `missing` more free segments, or as many as one step can.
    fn keep_room(&self, keeper: &mut Keeper, missing: usize) -> Result<Maintained, CommitError> {
        let mut done = Maintained::default();
        let (allowed, segments, pending) = {
            let state = self.state();
            let space = &state.space;
            let pending = space.pending_segments() - space.kept_segments();
            (self.segments_allowed(&state), space.segments() as u64, pending)
        };
        if pending > 0 {
            // They wait for nothing but a root.
            self.checkpoint_now(keeper)?;
            done.checkpointed = true;
            return Ok(done);
        }
        let growth = missing.min(allowed.saturating_sub(segments) as usize).min(GROW_MOST);
        if growth > 0 {
            match self.grow(growth, true) {
                Err(CommitError::NoSpace { .. }) => {}
                grown => {
                    done.segments_added = growth;
                    return grown.map(|()| done);
                }
            }
        }
        let free = self.state().space.free_segments();
        done.blocks_moved = self.clean(keeper, missing)?;
        done.checkpointed = true;
        let free_now = self.state().space.free_segments();
        if free_now <= free && free_now < FREE_LEAST_AT_BOUND {
            // Nothing can be gained: what cannot be cleaned does not bound the file.
            self.grow(1, true)?;
            done.segments_added = 1;
        }
        Ok(done)
    }
}
