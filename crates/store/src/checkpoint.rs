//! Storing the map, and the root that names it: a checkpoint, and the same with two roots when an epoch
//! begins. Stabilisations go on meanwhile, over a layer of their own; what fails here changes nothing. Read
//! `Store::checkpoint_now` first.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slotted;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use stead_model::ContainerId;

use crate::aligned::AlignedBuf;
use crate::commit::Writer;
use crate::disk::{Failures, Purpose};
use crate::error::{CommitError, ReadError};
use crate::format::{
    BLOCK, Entry, Extent, Located, LogPosition, NodeId, Place, ROOT_EXTENTS, ROOTS, Root,
    TABLE_CONTAINER_BYTES, TABLE_SEGMENT_BYTES,
};
use crate::keep::Keeper;
use crate::layer::Layer;
use crate::planted::{self, Bug};
use crate::space::NoSegment;
use crate::store::Store;
use crate::tree::{Tree, Visitor};

/// Which chain the roots of a checkpoint name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Chain {
    /// The one that is being written.
    GoesOn,
    /// A new epoch, in place or at the start of another segment; both roots are written.
    NewEpoch { elsewhere: Option<Place> },
}

/// A map that has been stored, not yet in force.
struct Stored {
    trees: Vec<(ContainerId, Option<Tree>)>,
    tree_counts: Vec<u32>,
    position: LogPosition,
    generations: Vec<u64>,
}

impl Store {
    /// Begins an epoch: stores the map, names a new chain in both roots. What failed or was cut short before
    /// can then never be mistaken for part of the chain.
    pub(crate) fn begin_epoch(&self, writer: &mut Writer) -> Result<(), CommitError> {
        let mut keeper = self.keeper();
        let failures = self.disk.failures();
        let elsewhere = if writer.suspect { Some(self.fresh_segment()?) } else { None };
        let begun = self.checkpoint_with(&mut keeper, Chain::NewEpoch { elsewhere });
        if let (Err(_), Some(unused)) = (&begun, elsewhere) {
            // Nothing has been written there, so that a disk that keeps failing does not make the file grow.
            self.state_mut().space.give_back(unused);
        }
        begun?;
        writer.epoch = Some(failures);
        writer.suspect = false;
        self.needs_epoch.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Stores the map and one root, in the slot of the older one.
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
                keeper.cold.abandon();
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
            if let Some(place) = elsewhere {
                position.place = place;
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
        // Behind the writing of the root: who pins an older one from now on finds it gone.
        let oldest_pin = self.hold.oldest_pin();
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
            let counts = stored.tree_counts.clone();
            state.space.publish(generation, counts, &stored.position, oldest_pin);
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
