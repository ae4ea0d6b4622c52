//! Upkeep: storing the map and its root (a checkpoint), beginning an epoch, making the file longer. It runs
//! beside stabilisations, on the caller's own thread, and never on the path of one unless there is no room.
//! Read [`Store::maintain`] first.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slotted;
use std::io::IoSlice;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use stead_model::ContainerId;

use crate::aligned::AlignedBuf;
use crate::cold::Cold;
use crate::commit::Writer;
use crate::disk::{Failures, Purpose};
use crate::error::{CommitError, ReadError};
use crate::format::{
    BLOCK, Entry, Extent, Located, LogPosition, NodeId, Place, ROOT_EXTENTS, ROOTS, Root,
    TABLE_CONTAINER_BYTES, TABLE_SEGMENT_BYTES,
};
use crate::layer::Layer;
use crate::planted::{self, Bug};
use crate::space::NoSegment;
use crate::store::{State, Store};
use crate::tree::{Tree, Visitor};

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
    /// Nodes to be written anew with the next root, because their places are to become free.
    pub(crate) rewrites: Vec<NodeId>,
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

/// Which chain the roots of a checkpoint name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Chain {
    /// The one that is being written.
    GoesOn,
    /// A new epoch, in place or in another segment; both roots are written.
    NewEpoch { elsewhere: bool },
}

/// A map that has been stored, not yet in force.
struct Stored {
    trees: Vec<(ContainerId, Option<Tree>)>,
    tree_counts: Vec<u32>,
    position: LogPosition,
    generations: Vec<u64>,
}

impl Store {
    /// Whether [`Store::maintain`] has something to do. Costs nothing to ask.
    #[must_use]
    pub fn wants_maintenance(&self) -> bool {
        if self.needs_epoch.load(Ordering::SeqCst) {
            return true;
        }
        let state = self.state();
        state.replay_blocks > REPLAY_BUDGET
            || state.space.free_segments() < self.free_wanted(&state)
    }

    /// One bounded step of upkeep: begins the epoch after opening or a failure, stores the map when recovery would
    /// take long, keeps free room ahead of need by cleaning or by making the file longer. Meant for a
    /// thread of the caller's, beside stabilisations; without it they do the same when they must.
    ///
    /// # Errors
    /// What went wrong with the disk. Nothing is lost; calling again later is right.
    pub fn maintain(&self) -> Result<Maintained, CommitError> {
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
        }
        done.more = self.wants_maintenance();
        Ok(done)
    }

    /// Stores the map and a root, so that the next opening has nothing to replay. Right before a clean end.
    ///
    /// # Errors
    /// As for [`Store::maintain`].
    pub fn checkpoint(&self) -> Result<(), CommitError> {
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

    /// How many segments the file may have: twice its live data and some.
    pub(crate) fn segments_allowed(&self, state: &State) -> u64 {
        (state.space.live_blocks() * 2).div_ceil(self.layout().segment_blocks) + SLACK_SEGMENTS
    }

    /// Begins an epoch: stores the map, names a new chain in both roots. What failed or was cut short before
    /// can then never be mistaken for part of the chain.
    pub(crate) fn begin_epoch(&self, writer: &mut Writer) -> Result<(), CommitError> {
        let mut keeper = self.keeper();
        let failures = self.disk.failures();
        self.checkpoint_with(&mut keeper, Chain::NewEpoch { elsewhere: writer.suspect })?;
        writer.epoch = Some(failures);
        writer.suspect = false;
        self.needs_epoch.store(false, Ordering::SeqCst);
        Ok(())
    }

    pub(crate) fn checkpoint_now(&self, keeper: &mut Keeper) -> Result<(), CommitError> {
        self.checkpoint_with(keeper, Chain::GoesOn)
    }

    fn checkpoint_with(&self, keeper: &mut Keeper, chain: Chain) -> Result<(), CommitError> {
        let failures = self.disk.failures();
        let (frozen, position, replay_blocks) = {
            let mut state = self.state_mut();
            let frozen = Arc::new(std::mem::take(&mut state.active));
            state.frozen = Some(Arc::clone(&frozen));
            (frozen, state.position, state.replay_blocks)
        };
        match self.store_map(keeper, &frozen, position, chain) {
            Ok(stored) => {
                self.put_in_force(stored, &frozen, replay_blocks);
                keeper.rewrites.clear();
                Ok(())
            }
            Err(error) => {
                let mut state = self.state_mut();
                let mut layer =
                    state.frozen.take().map_or_else(Layer::default, Arc::unwrap_or_clone);
                drop(frozen);
                let newer = std::mem::take(&mut state.active);
                for place in layer.cover(newer) {
                    state.space.uncount_layer(place);
                }
                state.active = layer;
                keeper.cold.abandon(&mut state.space);
                if self.disk.failures() != failures {
                    self.needs_epoch.store(true, Ordering::SeqCst);
                }
                Err(error)
            }
        }
    }

    fn store_map(
        &self,
        keeper: &mut Keeper,
        frozen: &Layer,
        mut position: LogPosition,
        chain: Chain,
    ) -> Result<Stored, CommitError> {
        let since = self.disk.failures();
        if let Chain::NewEpoch { elsewhere } = chain {
            position.epoch += 1;
            if elsewhere {
                position.place = self.fresh_segment()?;
                position.next_segment = Place::NONE;
            }
        }
        keeper.cold.epoch = position.epoch;

        let mut tree_counts = self.state().space.tree_counts();
        let mut released = Vec::new();
        let mut trees = self.changed_trees(keeper, frozen, &mut released)?;
        // The layer's places become the map's; those that it replaces are let go of.
        let taken: Vec<Place> = frozen.places().collect();
        let mut written: Vec<Place> = Vec::new();
        for tree in trees.iter_mut().filter_map(|(_, tree)| tree.as_mut()) {
            tree.store(&mut |id, block| {
                let at = keeper.cold.append(self, Entry::Node(id), block)?;
                written.push(at.place);
                Ok::<Located, CommitError>(at)
            })?;
        }
        keeper.cold.finish_chunk(self)?;
        released.extend(keeper.cold.table.iter().flat_map(blocks_of));
        let counted = taken.iter().chain(&written).map(|&place| (place, 1));
        let changes = counted.chain(released.iter().map(|&place| (place, -1i64)));
        for (place, change) in changes {
            count(self, &mut tree_counts, place, change);
        }

        let generation = keeper.generation + 1;
        let (table, containers, segments) =
            self.store_table(keeper, &trees, &mut tree_counts, generation)?;
        if !planted::is(Bug::NoFlushBeforeRoot) {
            self.disk.sync(Purpose::Upkeep, since)?;
        }
        let root = |generation, cold| Root {
            generation,
            position,
            cold,
            containers,
            segments,
            table: table.clone(),
        };
        let mut generations = Vec::new();
        let roots = match chain {
            Chain::NewEpoch { .. } if !planted::is(Bug::OneRoot) => 2,
            Chain::NewEpoch { .. } | Chain::GoesOn => 1,
        };
        for _ in 0..roots {
            keeper.generation += 1;
            let root = root(keeper.generation, keeper.cold.next());
            self.write_root(keeper, &root, since)?;
            generations.push(keeper.generation);
        }
        keeper.cold.table = table;
        Ok(Stored { trees, tree_counts, position, generations })
    }

    /// The trees with the layer's changes made in copies of them; `None` for those that are gone.
    fn changed_trees(
        &self,
        keeper: &Keeper,
        frozen: &Layer,
        released: &mut Vec<Place>,
    ) -> Result<Vec<(ContainerId, Option<Tree>)>, CommitError> {
        let mut trees: BTreeMap<ContainerId, Tree> = BTreeMap::new();
        let stored = |container| {
            let tree = self.state().trees.get(&container).cloned();
            tree.map(|tree| Tree::clone(&tree))
        };
        for (container, changes) in frozen.containers() {
            let mut tree = stored(container).unwrap_or_else(|| Tree::empty(container));
            if changes.dropped {
                tree.visit(&self.disk, &mut Releasing { released });
                tree = Tree::empty(container);
            }
            let updates: Vec<(u64, Located)> =
                changes.pages.iter().map(|(&page, &at)| (page, at)).collect();
            tree.update(&updates, &self.disk, released)?;
            trees.insert(container, tree);
        }
        for &node in &keeper.rewrites {
            let container = node.container;
            if let Slotted::Vacant(entry) = trees.entry(container)
                && let Some(tree) = stored(container)
            {
                entry.insert(tree);
            }
            if let Some(tree) = trees.get_mut(&container) {
                tree.rewrite(node, &self.disk, released)?;
            }
        }
        Ok(trees
            .into_iter()
            .map(|(container, tree)| (container, (!tree.is_empty()).then_some(tree)))
            .collect())
    }

    /// Writes the table of containers and segments; returns where, and how many there are of both.
    fn store_table(
        &self,
        keeper: &mut Keeper,
        changed: &[(ContainerId, Option<Tree>)],
        tree_counts: &mut Vec<u32>,
        generation: u64,
    ) -> Result<(Vec<Extent>, u32, u32), CommitError> {
        let mut trees = self.state().trees.clone();
        for (container, tree) in changed {
            match tree {
                Some(tree) => drop(trees.insert(*container, Arc::new(tree.clone()))),
                None => drop(trees.remove(container)),
            }
        }
        let mut bytes = Vec::with_capacity(trees.len() * TABLE_CONTAINER_BYTES);
        for (container, tree) in &trees {
            bytes.extend_from_slice(&container.0.to_le_bytes());
            bytes.extend_from_slice(&u32::from(tree.levels()).to_le_bytes());
            bytes.extend_from_slice(&tree.root().place.0.to_le_bytes());
            bytes.extend_from_slice(&tree.root().checksum.to_le_bytes());
            bytes.extend_from_slice(&tree.pages().to_le_bytes());
            bytes.extend_from_slice(&0u64.to_le_bytes());
        }
        // Taking room for the table may make the file longer, and so the table too.
        let mut extents: Vec<Extent> = Vec::new();
        let (mut room, mut counted) = (0, 0);
        loop {
            for extent in &extents[counted..] {
                for place in blocks_of(extent) {
                    count(self, tree_counts, place, 1);
                }
            }
            counted = extents.len();
            let state = self.state();
            let segments = state.space.segments();
            let needed = (bytes.len() + segments * TABLE_SEGMENT_BYTES).div_ceil(BLOCK) as u64;
            if needed <= room {
                tree_counts.resize(segments, 0);
                bytes.extend(state.space.encode(tree_counts, generation));
                drop(state);
                bytes.resize(room as usize * BLOCK, 0);
                keeper.cold.write_table(self, &mut extents, &bytes)?;
                return Ok((extents, trees.len() as u32, segments as u32));
            }
            drop(state);
            if extents.len() == ROOT_EXTENTS {
                return Err(CommitError::Limit("the store has too many containers and segments"));
            }
            let extent = keeper.cold.reserve_extent(self, needed - room)?;
            room += u64::from(extent.blocks);
            extents.push(extent);
        }
    }

    fn write_root(
        &self,
        keeper: &mut Keeper,
        root: &Root,
        since: Failures,
    ) -> Result<(), CommitError> {
        let mut block = AlignedBuf::zeroed(BLOCK);
        block.as_mut_slice().copy_from_slice(&root.encode(self.header.store_id, keeper.slot));
        let offset = Place(ROOTS[keeper.slot]).offset();
        let written = self.disk.write(Purpose::Upkeep, offset, &[IoSlice::new(block.as_slice())]);
        written.inspect_err(|_| self.disk.note_failure())?;
        // Until this has succeeded the slot may hold anything: the other one is not touched before.
        self.disk.sync(Purpose::Upkeep, since)?;
        keeper.slot = 1 - keeper.slot;
        Ok(())
    }

    fn put_in_force(&self, stored: Stored, frozen: &Layer, replay_blocks: u64) {
        let mut state = self.state_mut();
        for (container, tree) in stored.trees {
            match tree {
                Some(tree) => drop(state.trees.insert(container, Arc::new(tree))),
                None => drop(state.trees.remove(&container)),
            }
        }
        for place in frozen.places() {
            state.space.uncount_layer(place);
        }
        state.frozen = None;
        state.version += 1;
        if stored.position.epoch != state.position.epoch {
            state.position = stored.position;
        }
        state.replay_blocks -= replay_blocks;
        for generation in stored.generations {
            state.generation = generation;
            state.space.publish(generation, stored.tree_counts.clone(), &stored.position);
        }
    }

    fn fresh_segment(&self) -> Result<Place, CommitError> {
        loop {
            let fresh = self.state_mut().space.fresh_chain();
            match fresh {
                Ok(place) => return Ok(place),
                Err(NoSegment) => self.grow(1, false)?,
            }
        }
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
            let zeros = AlignedBuf::zeroed(PREWRITE_BYTES);
            let since = self.disk.failures();
            let mut at = from;
            while at < to {
                let bytes = (to - at).min(PREWRITE_BYTES as u64);
                let part = IoSlice::new(&zeros.as_slice()[..bytes as usize]);
                self.disk.write(Purpose::Prewrite, at, &[part])?;
                at += bytes;
            }
            self.disk.sync(Purpose::Prewrite, since)?;
        }
        self.state_mut().space.add_segments(segments);
        Ok(())
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
            (self.segments_allowed(&state), space.segments() as u64, space.pending_segments())
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

/// Lets go of all that a dropped container's map refers to.
struct Releasing<'a> {
    released: &'a mut Vec<Place>,
}

impl Visitor for Releasing<'_> {
    fn page(&mut self, _: u64, at: Located) {
        self.released.push(at.place);
    }

    fn node(&mut self, _: NodeId, at: Place) {
        self.released.push(at);
    }

    fn unreadable(&mut self, _: NodeId, _: ReadError) {
        // What lay below cannot be found any more and stays counted as live: verification shows it.
    }
}

fn blocks_of(extent: &Extent) -> impl Iterator<Item = Place> + use<> {
    let first = extent.place;
    (0..u64::from(extent.blocks)).map(move |i| first.plus(i))
}

fn count(store: &Store, tree_counts: &mut Vec<u32>, place: Place, change: i64) {
    let segment = store.layout().segment(place).expect("blocks lie in segments") as usize;
    if segment >= tree_counts.len() {
        tree_counts.resize(segment + 1, 0);
    }
    let counted = i64::from(tree_counts[segment]) + change;
    tree_counts[segment] = u32::try_from(counted).expect("a block is let go of once");
}
