//! Storing the map, and the root that names it: a checkpoint, and the same with two roots when an epoch
//! begins. Stabilisations go on meanwhile, over a layer of their own; what fails here changes nothing. Read
//! `Store::checkpoint_now` first.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use stead_model::ContainerId;

use crate::aligned::AlignedBuf;
use crate::commit::Writer;
use crate::disk::{Failures, Purpose};
use crate::error::CommitError;
use crate::format::{
    BLOCK, Extent, LogPosition, Place, ROOT_EXTENTS, ROOTS, Root, TABLE_CONTAINER_BYTES,
    TABLE_SEGMENT_BYTES,
};
use crate::keep::Keeper;
use crate::layer::Layer;
use crate::next::Next;
use crate::planted::{self, Bug};
use crate::settings::{Setting, Settings};
use crate::space::{Layout, NoSegment};
use crate::store::{State, Store};
use crate::tree::{Moves, Nodes as _};
use crate::versions::Versions;
use crate::written::Written;

/// Bytes that the table may have for snapshots and branches: it is written anew with each root.
const VERSIONS_BYTES_MOST: usize = 1 << 20;

/// Which chain the roots of a checkpoint name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Chain {
    /// The one that is being written.
    GoesOn,
    /// A new epoch, in place or at the start of another segment; both roots are written.
    NewEpoch { elsewhere: Option<Place> },
}

/// What a checkpoint changes apart from bringing the map up to date.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    Nothing,
    /// A snapshot of the state at which the checkpoint finds the store.
    Take {
        name: String,
    },
    Drop {
        number: u64,
    },
    /// The live state becomes a snapshot's. What has been stored since the last checkpoint is forgotten unseen.
    GoBack {
        number: u64,
    },
    /// Something is laid down for good.
    Set(Vec<Setting>),
    /// A container becomes the same as another one in a snapshot.
    Branch {
        number: u64,
        origin: ContainerId,
        new: ContainerId,
    },
}

/// Versions that have been stored, not yet in force.
struct Stored {
    versions: Versions,
    position: LogPosition,
    /// Of each root that has been written its generation, and how many blocks of each segment it and those behind it
    /// refer to.
    roots: Vec<(u64, Vec<u32>)>,
    settings: Settings,
}

/// What a checkpoint is of: the state as it found it.
struct Frozen<'a> {
    layer: &'a Layer,
    position: LogPosition,
    settings: Settings,
    /// The record chain up to there.
    written: Written,
}

impl Store {
    /// Begins an epoch: stores the map, names a new chain in both roots. What failed or was cut short before
    /// can then never be mistaken for part of the chain.
    pub(crate) fn begin_epoch(&self, writer: &mut Writer) -> Result<(), CommitError> {
        self.begin_epoch_with(writer, &mut self.keeper(), &Change::Nothing)
    }

    pub(crate) fn begin_epoch_with(
        &self,
        writer: &mut Writer,
        keeper: &mut Keeper,
        change: &Change,
    ) -> Result<(), CommitError> {
        let failures = self.disk.failures();
        let elsewhere = if writer.suspect { Some(self.fresh_segment()?) } else { None };
        let begun = self.checkpoint_with(keeper, Chain::NewEpoch { elsewhere }, change);
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
        self.checkpoint_with(keeper, Chain::GoesOn, &Change::Nothing)
    }

    /// Stores the map, a change to the versions that are kept, and both roots, so that losing one does not undo the
    /// change. Stabilisations go on meanwhile.
    pub(crate) fn checkpoint_change(
        &self,
        keeper: &mut Keeper,
        change: &Change,
    ) -> Result<(), CommitError> {
        self.checkpoint_with(keeper, Chain::GoesOn, change)
    }

    fn checkpoint_with(
        &self,
        keeper: &mut Keeper,
        chain: Chain,
        change: &Change,
    ) -> Result<(), CommitError> {
        let failures = self.disk.failures();
        let (frozen, position, settings, written, replay_blocks) = {
            let mut state = self.state_mut();
            let frozen = Arc::new(std::mem::take(&mut state.active));
            state.frozen = Some(Arc::clone(&frozen));
            let settings = state.settings.clone();
            (frozen, state.position, settings, state.written, state.replay_blocks)
        };
        let moves = std::mem::take(&mut keeper.moves);
        let found = Frozen { layer: &frozen, position, settings, written };
        match self.store_map(keeper, found, chain, change, &moves) {
            Ok(stored) => {
                self.put_in_force(stored, &frozen, replay_blocks);
                self.disk.memory().forget_again();
                self.forget_idle();
                Ok(())
            }
            Err(error) => {
                let mut state = self.state_mut();
                state.space.forget_moves();
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
        frozen: Frozen<'_>,
        chain: Chain,
        change: &Change,
        moves: &Moves,
    ) -> Result<Stored, CommitError> {
        let Frozen { layer, mut position, mut settings, written } = frozen;
        let since = self.disk.failures();
        self.replace_unusable_root(keeper, since)?;
        if let Chain::NewEpoch { elsewhere } = chain {
            position.epoch += 1;
            if let Some(place) = elsewhere {
                position.place = place;
                position.next_segment = Place::NONE;
            }
        }
        keeper.cold.epoch = position.epoch;

        let mut next = Next::of(self);
        next.relocate(moves, &mut keeper.cold)?;
        match *change {
            Change::GoBack { number } => {
                next.go_back(number)?;
                settings
                    .containers
                    .retain(|container, _| next.versions.live.contains_key(container));
            }
            _ => next.apply(layer, &mut keeper.cold)?,
        }
        match change {
            Change::Nothing | Change::GoBack { .. } => {}
            Change::Set(all) => all.iter().for_each(|&setting| settings.set(setting)),
            Change::Take { name } => next.take(name, keeper.generation + 1, &position),
            Change::Drop { number } => next.drop_snapshot(*number)?,
            Change::Branch { number, origin, new } => next.branch(*number, *origin, *new)?,
        }
        keeper.cold.finish_chunk(self)?;
        for place in keeper.cold.table.iter().flat_map(blocks_of) {
            next.count(place, -1);
        }
        let recounted = if next.uncertain || keeper.recount { Some(next.recount()) } else { None };
        // Whatever remains uncertain is looked at again when the store is opened the next time.
        let lost = recounted.map_or(keeper.lost, |lost| lost.unwrap_or(true));
        let Next { versions, mut tree_counts, .. } = next;

        let told = if planted::is(Bug::QuotaForgotten) && *change == Change::Nothing {
            Settings::default()
        } else {
            settings.clone()
        };
        let roots = match (chain, change) {
            (Chain::NewEpoch { .. }, _) if planted::is(Bug::OneRoot) => 1,
            (_, Change::GoBack { .. }) if planted::is(Bug::GoBackWithOneRoot) => 1,
            (Chain::GoesOn, Change::Nothing) => 1,
            _ => 2,
        };
        // Each root has a table of its own: one that is damaged is done without by going by the other root.
        let parts = Parts { versions: &versions, settings: &told };
        let mut tables: Vec<Table> = Vec::new();
        for generation in (keeper.generation + 1..).take(roots) {
            if let Some(table) = tables.last() {
                if planted::is(Bug::OneTable) {
                    tables.push(table.clone());
                    continue;
                }
                table.count(self.layout(), &mut tree_counts, -1);
            }
            tables.push(self.store_table(keeper, &parts, change, &mut tree_counts, generation)?);
        }
        if !planted::is(Bug::NoFlushBeforeRoot) {
            self.disk.sync(Purpose::Upkeep, since)?;
        }
        let mut generations = Vec::new();
        for table in &tables {
            keeper.generation += 1;
            let root = Root {
                generation: keeper.generation,
                position,
                cold: keeper.cold.next(),
                containers: versions.live.len() as u32,
                segments: table.segments,
                versions: table.versions,
                pinned: versions.snapshots.pinned,
                groups: self.groups.load(Ordering::SeqCst),
                lost,
                // Its epoch has been begun since the store was opened.
                twins: true,
                quota: told.quota.unwrap_or_default(),
                space_percent: told.space_percent.unwrap_or_default(),
                quotas: told.containers.len() as u32,
                written,
                table: table.extents.clone(),
            };
            self.write_root(keeper, &root, since)?;
            generations.push(keeper.generation);
        }
        let newest = tables.pop().expect("one root is written at the least");
        keeper.cold.table = newest.extents;
        let mut roots = Vec::new();
        for generation in generations.into_iter().rev() {
            roots.push((generation, tree_counts.clone()));
            // When the one before it comes into force, what comes behind is there already.
            if let Some(earlier) = tables.pop().filter(|_| !planted::is(Bug::OneTable)) {
                earlier.count(self.layout(), &mut tree_counts, 1);
            }
        }
        roots.reverse();
        (keeper.lost, keeper.recount) = (lost, false);
        Ok(Stored { versions, position, roots, settings })
    }

    /// Writes the table of containers, segments, snapshots, branches and quotas.
    fn store_table(
        &self,
        keeper: &mut Keeper,
        &Parts { versions, settings }: &Parts<'_>,
        change: &Change,
        tree_counts: &mut Vec<u32>,
        generation: u64,
    ) -> Result<Table, CommitError> {
        let versions_part = versions.encode();
        let quotas_part = settings.encode();
        let adding = matches!(change, Change::Take { .. } | Change::Branch { .. });
        if adding && versions_part.len() > VERSIONS_BYTES_MOST {
            return Err(CommitError::Limit(
                "there are too many snapshots of too many containers: drop some first",
            ));
        }
        let mut bytes = Vec::with_capacity(versions.live.len() * TABLE_CONTAINER_BYTES);
        for (container, tree) in &versions.live {
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
                count_extent(self.layout(), tree_counts, extent, 1);
            }
            counted = extents.len();
            let state = self.state();
            let segments = state.space.segments();
            let behind = versions_part.len() + quotas_part.len();
            let needed = bytes.len() + segments * TABLE_SEGMENT_BYTES + behind;
            let needed = needed.div_ceil(BLOCK) as u64;
            if needed <= room {
                tree_counts.resize(segments, 0);
                bytes.extend(state.space.encode(tree_counts, generation));
                drop(state);
                bytes.extend_from_slice(&versions_part);
                bytes.extend_from_slice(&quotas_part);
                bytes.resize(room as usize * BLOCK, 0);
                keeper.cold.write_table(self, &mut extents, &bytes)?;
                let versions = versions_part.len() as u32;
                return Ok(Table { extents, segments: segments as u32, versions });
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

    /// After opening by the older root: writes it again in the slot of the newer one, which may refer to what counts as
    /// free here. Comes before anything else is written.
    pub(crate) fn replace_unusable_root(
        &self,
        keeper: &mut Keeper,
        since: Failures,
    ) -> Result<(), CommitError> {
        if let Some(root) = &keeper.stand_in
            && !planted::is(Bug::UnusableRootKept)
        {
            let root = Root { generation: keeper.generation + 1, ..root.clone() };
            keeper.generation = root.generation;
            self.write_root(keeper, &root, since)?;
        }
        keeper.stand_in = None;
        Ok(())
    }

    fn write_root(
        &self,
        keeper: &mut Keeper,
        root: &Root,
        since: Failures,
    ) -> Result<(), CommitError> {
        let mut block = AlignedBuf::zeroed(BLOCK);
        let mut written = root.written.and_upkeep(&self.disk.counters());
        // The block that says so.
        written.map_blocks = written.map_blocks.saturating_add(1);
        if planted::is(Bug::WrittenForgotten) {
            written = Written::default();
        }
        let root = Root { written, ..root.clone() };
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
        state.trees = stored.versions.live;
        state.snapshots = stored.versions.snapshots;
        state.settings = stored.settings;
        let State { settings, active, .. } = &mut *state;
        for (container, _) in active.containers().filter(|(_, changes)| changes.dropped) {
            settings.forget(container);
        }
        self.heed(settings);
        for place in frozen.places() {
            state.space.uncount_layer(place);
        }
        state.frozen = None;
        state.version += 1;
        if stored.position.epoch != state.position.epoch {
            state.position = stored.position;
        }
        state.replay_blocks -= replay_blocks;
        for (generation, counts) in stored.roots {
            state.generation = generation;
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

/// What the table tells beside segments.
struct Parts<'a> {
    versions: &'a Versions,
    settings: &'a Settings,
}

/// A table that has been written.
#[derive(Clone)]
struct Table {
    extents: Vec<Extent>,
    segments: u32,
    /// Bytes of its part with snapshots and branches.
    versions: u32,
}

impl Table {
    /// Counts its blocks as taken or let go of.
    fn count(&self, layout: Layout, tree_counts: &mut Vec<u32>, change: i64) {
        for extent in &self.extents {
            count_extent(layout, tree_counts, extent, change);
        }
    }
}

fn count_extent(layout: Layout, tree_counts: &mut Vec<u32>, extent: &Extent, change: i64) {
    for place in blocks_of(extent) {
        count(layout, tree_counts, place, change);
    }
}

fn blocks_of(extent: &Extent) -> impl Iterator<Item = Place> + use<> {
    let first = extent.place;
    (0..u64::from(extent.blocks)).map(move |i| first.plus(i))
}

/// Counts blocks that are taken or let go of in their segment; whether there were as many as are let go of, which
/// there are if the table is what the store has written.
pub(crate) fn count(layout: Layout, tree_counts: &mut Vec<u32>, place: Place, change: i64) -> bool {
    let segment = layout.segment(place).expect("a map is checked when it is read") as usize;
    if segment >= tree_counts.len() {
        tree_counts.resize(segment + 1, 0);
    }
    let counted = u32::try_from(i64::from(tree_counts[segment]) + change);
    tree_counts[segment] = counted.unwrap_or(0);
    counted.is_ok()
}
