//! Making the file shorter when what it holds has become little: what lies in the last segments is moved to the
//! front, and then the file is cut. It goes in small steps, and begins only when there is much to gain, so that the
//! file does not breathe. Read `Store::shrink_step` first.
//!
//! The rule: a root that names more segments than the file has cannot be used. So the file is cut only when
//! *both* roots name no more than what stays.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::error::CommitError;
use crate::keep::Keeper;
use crate::planted::{self, Bug};
use crate::space::Victim;
use crate::store::{State, Store};

/// Segments that the file has too many before it is made shorter, at the least.
const SURPLUS_LEAST: usize = 8;

/// Segments kept beyond the bound, so that the next stabilisations do not make the file longer again.
const SPARE: usize = 4;

/// Roots that are written for the sake of cutting without anything to show for it, at the most.
const ROOTS_IN_VAIN: u32 = 4;

/// Roots that are written for other reasons until it is tried again.
const REST: u64 = 16;

/// What a step towards a shorter file did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shrunk {
    /// So many blocks were moved, or roots written; there is more to do.
    Step(u64),
    /// The record chain is in the way: a new epoch is to begin elsewhere.
    ChainInTheWay,
    /// The file is as short as it was to become.
    Cut,
    /// Something that cannot be moved is in the way.
    Blocked,
}

impl Store {
    /// How many segments the file should have, if it has too many now.
    pub(crate) fn shrink_target(&self, state: &State) -> Option<usize> {
        if state.generation < self.shrink_rest.load(Ordering::Relaxed) {
            return None;
        }
        let space = &state.space;
        let unsettled = space.live_blocks() - space.tree_blocks();
        let bound = self.segments_allowed(space.tree_blocks() + unsettled) as usize;
        let quota = self.segments_of_quota();
        if space.segments() > quota {
            // As near to it as what is live allows.
            let live = space.live_blocks().div_ceil(self.layout().segment_blocks) as usize;
            let target = quota.max(live + SPARE);
            return (space.segments() > target).then_some(target);
        }
        let target = bound + space.kept_segments() + SPARE;
        (space.segments() > target + SURPLUS_LEAST.max(target / 8)).then_some(target)
    }

    /// One bounded step towards a file of `target` segments.
    pub(crate) fn shrink_step(
        &self,
        keeper: &mut Keeper,
        target: usize,
    ) -> Result<Shrunk, CommitError> {
        // Nothing may be cut before that.
        self.replace_unusable_root(keeper, self.disk.failures())?;
        let tail = self.state().space.tail(target);
        if tail.segments == 0 {
            return Ok(Shrunk::Cut);
        }
        if tail.map_head {
            keeper.cold.leave(self);
        }
        if tail.moved_head {
            keeper.moved.leave(self);
        }
        let fits = |victim: &Victim| self.room_for(keeper, tail.free_before)(victim.live.into());
        if let Some(victim) = tail.victim.filter(fits) {
            keeper.roots_in_vain = 0;
            self.gather(keeper, victim);
            if !self.has_gathered_enough(keeper) {
                return Ok(Shrunk::Step(0));
            }
        }
        if !keeper.gathered.is_empty() {
            return self.move_gathered(keeper).map(Shrunk::Step);
        }
        let no_room = tail.victim.is_some();
        // What has been stored since the last root may let go of much.
        let coming = self.state().space.coming_segments() > 0 || self.state().replay_blocks > 0;
        let waiting = tail.waiting || no_room && coming;
        if tail.stuck || no_room && !waiting || keeper.roots_in_vain >= ROOTS_IN_VAIN {
            return Ok(self.rest(keeper));
        }
        if waiting {
            keeper.roots_in_vain += 1;
            self.checkpoint_now(keeper)?;
            return Ok(Shrunk::Step(0));
        }
        if tail.chain {
            keeper.roots_in_vain += 1;
            return Ok(Shrunk::ChainInTheWay);
        }
        if self.cut(keeper, target)? {
            keeper.roots_in_vain = 0;
            return Ok(Shrunk::Cut);
        }
        Ok(self.rest(keeper))
    }

    /// Leaves it for a while.
    fn rest(&self, keeper: &mut Keeper) -> Shrunk {
        keeper.roots_in_vain = 0;
        let rest = self.state().generation + REST;
        self.shrink_rest.store(rest, Ordering::Relaxed);
        Shrunk::Blocked
    }

    /// Has the record chain go on in another segment, near the front if there is room.
    pub(crate) fn move_chain(&self) -> Result<(), CommitError> {
        let mut writer = self.writer();
        writer.suspect = true;
        self.begin_epoch(&mut writer)
    }

    /// Cuts off the segments from `target` on, if all of them are free.
    fn cut(&self, keeper: &mut Keeper, target: usize) -> Result<bool, CommitError> {
        let Some(before) = self.state_mut().space.cut(target) else { return Ok(false) };
        let roots = if planted::is(Bug::CutTooEarly) { 1 } else { 2 };
        for _ in 0..roots {
            if let Err(error) = self.checkpoint_now(keeper) {
                // The file has them still. Who has made it longer meanwhile has taken some of them.
                let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
                let mut state = self.state_mut();
                let now = state.space.segments();
                state.space.add_segments(before.saturating_sub(now), true);
                return Err(error);
            }
        }
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state().space.segments() == target {
            let len = self.layout().file_bytes(target);
            self.disk.set_len(len).map_err(|source| CommitError::io("shortening log", source))?;
        }
        Ok(true)
    }
}
