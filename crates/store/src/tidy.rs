//! Tidying: pages of a container that have come to lie scattered are written anew in their order while nothing is
//! stabilised, so that a scan of an aged store is like one of a fresh one (catalogue B16). It writes no more than
//! stabilisations have written since the store was opened. Read `Store::tidy_step` first.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};

use crate::aligned::AlignedBuf;
use crate::disk::{BlockRead, Purpose};
use crate::error::{CommitError, Damage, ReadError};
use crate::format::{Entry, Located, NodeId, Place};
use crate::keep::Keeper;
use crate::store::Store;
use crate::tree::Visitor;

/// How long nothing has been stabilised before it is tidied.
pub(crate) const IDLE: Duration = Duration::from_millis(300);

/// Pages that are put in order together: those of a leaf of the map.
const STRETCH_PAGES: u64 = 256;

/// A stretch with as many pages a run, or more, is in order well enough.
const GOOD_RUN: u64 = 64;

/// Stretches that one step writes at the most.
const STRETCHES_AT_ONCE: usize = 4;

/// Pages moved behind which a root is due, so that their old places become free.
const PAGES_A_ROOT: u64 = 8192;

/// Bytes that must have been stabilised since the last look for scattered stretches.
pub(crate) const LOOK_AGAIN_BYTES: u64 = 4 << 20;

/// What there is to tidy.
#[derive(Debug, Default)]
pub(crate) struct Untidy {
    /// Scattered stretches, by container and first page.
    stretches: VecDeque<(ContainerId, u64)>,
    /// Containers that are still to be looked through.
    containers: VecDeque<ContainerId>,
    moved_since_root: u64,
}

impl Store {
    /// Whether enough has been stabilised since the last time to look for what is scattered, and the budget is not
    /// spent.
    pub(crate) fn may_tidy(&self) -> bool {
        let counters = self.disk.counters();
        counters.record_bytes >= self.tidied_at.load(Ordering::Relaxed)
            && counters.tidying_bytes < counters.record_bytes
    }

    /// How long nothing has been stabilised.
    pub(crate) fn idle_time(&self) -> Duration {
        let last = Duration::from_micros(self.last_commit.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(last)
    }

    /// One bounded step: looks through a container's map, or puts a few stretches in order. How many pages were moved.
    pub(crate) fn tidy_step(&self, keeper: &mut Keeper) -> Result<u64, CommitError> {
        if keeper.untidy.moved_since_root >= PAGES_A_ROOT {
            keeper.untidy.moved_since_root = 0;
            self.checkpoint_now(keeper)?;
            return Ok(0);
        }
        if keeper.untidy.stretches.is_empty() {
            if let Some(container) = keeper.untidy.containers.pop_front() {
                keeper.untidy.stretches = self.scattered(container);
                if !keeper.untidy.stretches.is_empty() || !keeper.untidy.containers.is_empty() {
                    return Ok(0);
                }
            } else {
                keeper.untidy.containers = self.state().trees.keys().copied().collect();
                if !keeper.untidy.containers.is_empty() {
                    return Ok(0);
                }
            }
        }
        let since = self.disk.failures();
        self.replace_unusable_root(keeper, since)?;
        self.forget_idle();
        let mut moves = Vec::new();
        keeper.moved.epoch = keeper.cold.epoch;
        keeper.moved.purpose = Purpose::Tidying;
        for _ in 0..STRETCHES_AT_ONCE {
            let Some((container, first)) = keeper.untidy.stretches.pop_front() else { break };
            if let Err(error) = self.copy_stretch(keeper, container, first, &mut moves) {
                keeper.moved.abandon();
                return Err(error);
            }
        }
        let pages = moves.len() as u64;
        if pages > 0 {
            if let Err(error) = keeper.moved.finish_chunk(self) {
                keeper.moved.abandon();
                return Err(error);
            }
            self.disk.sync(Purpose::Tidying, since)?;
            let mut state = self.state_mut();
            for (family, page, from, to) in moves {
                state.space.note_moved(to.place, 0);
                keeper.moves.page(family, page, from, to);
            }
            drop(state);
            keeper.untidy.moved_since_root += pages;
            let state = self.state();
            let scarce = state.space.free_segments() < self.free_wanted(&state);
            drop(state);
            if scarce {
                // What was moved has left room behind, of which a root must know.
                keeper.untidy.moved_since_root = 0;
                self.checkpoint_now(keeper)?;
            }
        }
        if keeper.untidy.stretches.is_empty() && keeper.untidy.containers.is_empty() {
            // All has been looked through. What was moved counts when a root says so.
            if keeper.untidy.moved_since_root > 0 {
                keeper.untidy.moved_since_root = 0;
                self.checkpoint_now(keeper)?;
            }
            let record_bytes = self.disk.counters().record_bytes;
            self.tidied_at.store(record_bytes + LOOK_AGAIN_BYTES, Ordering::Relaxed);
        }
        Ok(pages)
    }

    /// The stretches of a container of which the pages lie in many runs.
    fn scattered(&self, container: ContainerId) -> VecDeque<(ContainerId, u64)> {
        let tree = self.state().trees.get(&container).cloned();
        let mut runs = Runs::default();
        if let Some(tree) = tree {
            tree.visit(&self.disk, &mut runs);
        }
        runs.end_stretch();
        runs.scattered.into_iter().map(|stretch| (container, stretch * STRETCH_PAGES)).collect()
    }

    /// Writes the pages of a stretch one behind the other.
    fn copy_stretch(
        &self,
        keeper: &mut Keeper,
        container: ContainerId,
        first: u64,
        moves: &mut Vec<(ContainerId, u64, Place, Located)>,
    ) -> Result<(), CommitError> {
        let Some(tree) = self.state().trees.get(&container).cloned() else { return Ok(()) };
        let mut found: Vec<(PageId, Located)> = Vec::new();
        for page in first..first + STRETCH_PAGES {
            let id = PageId { container, page: PageNo(page) };
            // What is about to be replaced need not be moved; what is damaged is reported when it is asked for.
            if self.state().find_in_layers(id).is_none()
                && let Ok(at) = tree.find(page, &self.disk)
                && !at.is_never()
            {
                found.push((id, at));
            }
        }
        let mut images = AlignedBuf::zeroed(found.len() * PAGE_SIZE);
        let mut reads: Vec<BlockRead<'_>> = found
            .iter()
            .zip(images.as_mut_slice().chunks_mut(PAGE_SIZE))
            .map(|(&(id, at), into)| {
                let origins = tree.origins().clone();
                BlockRead { entry: Entry::Image(id), origins, at, into, outcome: Ok(()) }
            })
            .collect();
        self.disk.read_blocks(&mut reads);
        for ((id, at), read) in found.into_iter().zip(reads) {
            if read.outcome.is_ok() {
                let family = tree.family();
                let as_family = Entry::Image(PageId { container: family, ..id });
                let to = keeper.moved.append(self, as_family, read.into)?;
                moves.push((family, id.page.0, at.place, to));
            }
        }
        Ok(())
    }
}

/// Finds scattered stretches of a map.
#[derive(Default)]
struct Runs {
    scattered: Vec<u64>,
    stretch: u64,
    pages: u64,
    runs: u64,
    last: Option<(u64, Place)>,
}

impl Runs {
    fn end_stretch(&mut self) {
        // Stretches of few pages cost a scan little.
        if self.runs > 1 && self.runs * GOOD_RUN > self.pages.next_multiple_of(GOOD_RUN) + GOOD_RUN
        {
            self.scattered.push(self.stretch);
        }
        (self.pages, self.runs, self.last) = (0, 0, None);
    }
}

impl Visitor for Runs {
    fn page(&mut self, page: u64, at: Located) {
        if page / STRETCH_PAGES != self.stretch {
            self.end_stretch();
            self.stretch = page / STRETCH_PAGES;
        }
        self.pages += 1;
        let goes_on =
            self.last.is_some_and(|(last, place)| last + 1 == page && place.plus(1) == at.place);
        self.runs += u64::from(!goes_on);
        self.last = Some((page, at.place));
    }

    fn node(&mut self, _: NodeId, _: Place) -> Option<u64> {
        None
    }

    fn unreadable(&mut self, _: NodeId, _: ReadError) {}

    fn lost(&mut self, _: Damage) {}
}
