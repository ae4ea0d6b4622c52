//! Cleaning: what some version still holds in sparse segments is copied to a stream of its own, in the order of
//! pages, so that the segments become free. The next root has it there in all versions alike. It goes in small
//! steps beside stabilisations; a page stored anew meanwhile wins. Read `Store::clean_step` first.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slotted;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use stead_model::{ContainerId, PageId};

use crate::aligned::AlignedBuf;
use crate::disk::Purpose;
use crate::error::{CommitError, ReadError};
use crate::format::{BLOCK, Chunk, Entry, NodeId, Place};
use crate::keep::Keeper;
use crate::planted::{self, Bug};
use crate::space::{COLD_RESERVE, Cleaning, Layout, Victim};
use crate::store::{State, Store};
use crate::tree::{Origins, Tree};
use crate::versions::Versions;

/// Segments whose live blocks are gathered before they are moved: the more, the longer the runs of pages that come
/// to lie in order.
const VICTIMS_AT_ONCE: usize = 8;

/// Images in the order of pages. Several versions of a page may be among them.
type Images = BTreeMap<(PageId, Place), Image>;

#[derive(Debug)]
struct Image {
    /// Of the maps that hold it.
    family: ContainerId,
    bytes: Box<[u8]>,
}

/// What some version holds in segments that are to be emptied, each with the family of the maps that do. It is held
/// in memory until there is enough to be moved in order: about two segments' worth at the most.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    images: Images,
    nodes: Vec<(ContainerId, NodeId, Place)>,
    victims: Vec<Victim>,
}

/// The versions, and of those the trees that were asked for.
struct Holders {
    versions: Versions,
    trees: BTreeMap<ContainerId, Vec<Arc<Tree>>>,
}

impl Holders {
    /// The trees that may hold blocks sealed as this container's.
    fn of(&mut self, container: ContainerId) -> &[Arc<Tree>] {
        match self.trees.entry(container) {
            Slotted::Occupied(entry) => entry.into_mut(),
            Slotted::Vacant(entry) => entry.insert(self.versions.sealed_as(container)),
        }
    }
}

impl Gathered {
    pub(crate) fn is_empty(&self) -> bool {
        self.victims.is_empty()
    }

    /// Takes in what has been read of one more segment. What was read of the same segment before it was emptied and
    /// written anew is of no use: two pages that have lain at one place must not both be moved from there.
    fn add(&mut self, layout: Layout, victim: Victim, found: Gathered) {
        let other = |place: Place| layout.segment(place) != Some(victim.segment);
        if !planted::is(Bug::StaleGathered) {
            self.images.retain(|&(_, place), _| other(place));
            self.nodes.retain(|&(_, _, place)| other(place));
            self.victims.retain(|earlier| earlier.segment != victim.segment);
        }
        self.images.extend(found.images);
        self.nodes.extend(found.nodes);
        self.victims.push(victim);
    }
}

impl Store {
    /// One small step of cleaning: reads a sparse segment, or moves what has been read of several. How many blocks
    /// were moved; `None` if there is nothing to gain.
    pub(crate) fn clean_step(&self, keeper: &mut Keeper) -> Result<Option<u64>, CommitError> {
        if !self.has_gathered_enough(keeper)
            && let Some(victim) = self.next_victim(keeper)
        {
            self.gather(keeper, victim);
            return Ok(Some(0));
        }
        if keeper.gathered.is_empty() {
            self.fruitless.store(self.state().space.clock() + 1, Ordering::Relaxed);
            return Ok(None);
        }
        self.move_gathered(keeper).map(Some)
    }

    /// Whether what has been gathered is to be moved before more is.
    pub(crate) fn has_gathered_enough(&self, keeper: &Keeper) -> bool {
        let segment_blocks = self.layout().segment_blocks as usize;
        keeper.gathered.victims.len() >= VICTIMS_AT_ONCE
            || keeper.gathered.images.len() >= segment_blocks
    }

    /// Reads what is live in a segment.
    pub(crate) fn gather(&self, keeper: &mut Keeper, victim: Victim) {
        let mut found = Gathered::default();
        let mut holders = Holders { versions: self.versions(), trees: BTreeMap::new() };
        let segment_bytes = self.layout().segment_blocks as usize * BLOCK;
        let bytes = keeper.reading.get_or_insert_with(|| AlignedBuf::zeroed(segment_bytes));
        let cleaning = match self.find_live(victim.segment, bytes, &mut holders, &mut found) {
            Ok(()) => Cleaning::Gathered,
            // What cannot be read stays where it is, to be reported when it is asked for.
            Err(_) => Cleaning::Stuck,
        };
        self.state_mut().space.set_cleaning(victim.segment, cleaning);
        if cleaning == Cleaning::Gathered {
            // What has been put in order stays so.
            found.images.retain(|&(_, from), _| !keeper.moves.has_page(from));
            keeper.gathered.add(self.layout(), victim, found);
        }
    }

    /// Empties sparse segments until `wanted` more are free, or as many as one go can; returns how many blocks
    /// were moved. Needs two free segments at the least.
    pub(crate) fn clean(&self, keeper: &mut Keeper, wanted: usize) -> Result<u64, CommitError> {
        // Lets the map go of what has been replaced since the last root.
        self.checkpoint_now(keeper)?;
        let segment_blocks = self.layout().segment_blocks;
        let (mut moved, mut emptied) = (0, 0);
        loop {
            let leaves = map_leaves(&self.state());
            let cost = moved + keeper.gathered.images.len() as u64;
            if emptied * segment_blocks >= wanted as u64 * segment_blocks + cost + leaves.min(cost)
            {
                break;
            }
            let before = keeper.gathered.victims.len();
            let Some(blocks) = self.clean_step(keeper)? else { break };
            moved += blocks;
            emptied += keeper.gathered.victims.len().saturating_sub(before) as u64;
        }
        moved += self.move_gathered(keeper)?;
        // The first root no longer refers to the victims; behind the second they are free.
        self.checkpoint_now(keeper)?;
        self.checkpoint_now(keeper)?;
        Ok(moved)
    }

    /// Most live blocks that a segment may have to be worth cleaning: by what the file may have on average.
    pub(crate) fn live_most(&self, state: &State) -> u64 {
        let percent = u64::from(self.space_percent.load(Ordering::Relaxed));
        let blocks = self.layout().segment_blocks;
        let mut average = blocks * 100 / percent;
        if state.space.segments() >= self.segments_of_quota() {
            // It cannot have more, however full its segments are.
            let segments = state.space.segments().max(1) as u64;
            average = average.max(state.space.live_blocks() / segments);
        }
        // Half way between the average and a full segment.
        (blocks + average) / 2
    }

    /// The best segment to be emptied next, of those whose live blocks find room.
    fn next_victim(&self, keeper: &Keeper) -> Option<Victim> {
        let fits = self.room_for(keeper, self.state().space.free_segments());
        let live_most = self.live_most(&self.state());
        let live_most = (1..=live_most).rev().find(|&live| fits(live))?;
        self.state().space.best_victim(live_most)
    }

    /// Whether so many blocks more can be gathered: what is moved, and the parts of the map that say so, must fit into
    /// `free` segments.
    pub(crate) fn room_for(&self, keeper: &Keeper, free: usize) -> impl Fn(u64) -> bool + use<> {
        let state = self.state();
        let segment_blocks = self.layout().segment_blocks;
        let segments = (free as u64).saturating_sub(1) * segment_blocks;
        // The table and two headers of the root that is to follow come first.
        let room = segments + keeper.cold.room(self).saturating_sub(keeper.cold.table_blocks() + 2);
        let (gathered, leaves) = (keeper.gathered.images.len() as u64, map_leaves(&state));
        move |live| {
            let moved = gathered + live;
            moved * 9 / 8 + leaves.min(moved) <= room
        }
    }

    fn find_live(
        &self,
        segment: u32,
        bytes: &mut AlignedBuf,
        holders: &mut Holders,
        found: &mut Gathered,
    ) -> Result<(), ReadError> {
        let layout = self.layout();
        let start = layout.start(segment);
        self.disk.read_aside(start.offset(), bytes.as_mut_slice())?;
        let block = |index: u64| {
            let at = index as usize * BLOCK;
            &bytes.as_slice()[at..at + BLOCK]
        };
        let versioned = !holders.versions.snapshots.list.is_empty();
        let mut index = 0;
        while index < layout.segment_blocks {
            let store_id = self.header.store_id;
            let header = Chunk::decode(block(index), store_id).map(|(chunk, _)| (index, chunk));
            // Where there is a twin, the header before it was not one.
            let twin = || {
                let (chunk, _) = Chunk::decode_twin(block(index), store_id)?;
                Some(((index + 1).checked_sub(chunk.blocks())?, chunk))
            };
            let Some((first, chunk)) = header.or_else(twin) else {
                index += 1;
                continue;
            };
            for (entry, at) in chunk.located(start.plus(first)) {
                if at.place.0 >= start.0 + layout.segment_blocks {
                    break;
                }
                match entry {
                    Entry::Image(id) => {
                        if !versioned && self.state().find_in_layers(id).is_some() {
                            // It has been replaced, of which the next root will know.
                            continue;
                        }
                        let bytes = block(at.place.0 - start.0);
                        // What cannot be read whole stays where it is, to be reported when it is asked for.
                        let find = |tree: &Tree| {
                            let at_now = tree.entry(id.page.0, &self.disk)?;
                            Ok((at_now.place == at.place).then_some(at_now))
                        };
                        if let Some((family, now)) = holder(holders.of(id.container), find)?
                            && self.disk.check(entry, &Origins::default(), now, bytes).is_ok()
                        {
                            let image = Image { family, bytes: bytes.into() };
                            found.images.insert((id, at.place), image);
                        }
                    }
                    Entry::Node(id) => {
                        let find = |tree: &Tree| {
                            let id = NodeId { container: tree.container(), ..id };
                            let at_now = tree.find_node(id, &self.disk)?;
                            Ok((at_now == Some(at.place)).then_some(()))
                        };
                        if let Some((family, ())) = holder(holders.of(id.container), find)? {
                            found.nodes.push((family, id, at.place));
                        }
                    }
                    // The table is written anew with each root.
                    Entry::Table(_) | Entry::Zero(_) | Entry::Drop(_) => {}
                }
            }
            index = first + chunk.blocks();
        }
        Ok(())
    }

    /// Moves what has been gathered; with the next root the segments it lay in have nothing live.
    pub(crate) fn move_gathered(&self, keeper: &mut Keeper) -> Result<u64, CommitError> {
        let mut gathered = std::mem::take(&mut keeper.gathered);
        {
            // Those of which the roots since have left nothing may be in use for something else.
            let state = self.state();
            gathered.victims.retain(|victim| state.space.is_gathered(victim.segment));
        }
        let layout = self.layout();
        let still = |place: Place| {
            let segment = layout.segment(place);
            gathered.victims.iter().any(|victim| Some(victim.segment) == segment)
        };
        gathered.images.retain(|&(_, place), _| still(place));
        gathered.nodes.retain(|&(_, _, place)| still(place));
        let blocks = (gathered.images.len() + gathered.nodes.len()) as u64;
        let born = gathered.victims.iter().map(|victim| victim.born).max().unwrap_or_default();
        let moved = self.move_images(keeper, gathered.images, born);
        let cleaning = if moved.is_ok() { Cleaning::Moved } else { Cleaning::No };
        let mut state = self.state_mut();
        for victim in gathered.victims {
            state.space.set_cleaning(victim.segment, cleaning);
        }
        drop(state);
        if let Err(error) = moved {
            keeper.moved.abandon();
            keeper.cold.abandon();
            return Err(error);
        }
        for (family, id, place) in gathered.nodes {
            keeper.moves.node(family, id, place);
        }
        Ok(blocks)
    }

    /// Copies images, none younger than `born`, and has the next root find them where they lie then.
    fn move_images(
        &self,
        keeper: &mut Keeper,
        images: Images,
        born: u64,
    ) -> Result<(), CommitError> {
        if images.is_empty() {
            return Ok(());
        }
        let since = self.disk.failures();
        self.replace_unusable_root(keeper, since)?;
        let scarce = self.state().space.free_segments() <= COLD_RESERVE;
        let stream = if scarce && keeper.moved.room(self) == 0 {
            // Better mixed with the map than not at all.
            &mut keeper.cold
        } else {
            keeper.moved.epoch = keeper.cold.epoch;
            keeper.moved.purpose = Purpose::Cleaning;
            &mut keeper.moved
        };
        let mut moves = Vec::with_capacity(images.len());
        for ((id, from), Image { family, bytes }) in images {
            // Whoever holds it can read it as the family's.
            let as_family = PageId { container: family, ..id };
            let to = stream.append(self, Entry::Image(as_family), &bytes)?;
            moves.push((family, id.page.0, from, to));
        }
        stream.finish_chunk(self)?;
        // Flushed here, so that no flush that fails before the next root can lose it unnoticed.
        self.disk.sync(Purpose::Cleaning, since)?;
        let mut state = self.state_mut();
        for (family, page, from, to) in moves {
            state.space.note_moved(to.place, born);
            keeper.moves.page(family, page, from, to);
        }
        Ok(())
    }
}

/// Most nodes of the map that one root can have to write anew.
fn map_leaves(state: &State) -> u64 {
    let snapshots = state.snapshots.list.iter().map(|snapshot| &*snapshot.trees);
    let trees = snapshots.chain([&state.trees]).flat_map(BTreeMap::values);
    trees.map(|tree| tree.pages().div_ceil(256)).sum()
}

/// The family of a tree in which something is found. Nothing is if one of them is damaged there: then it stays where
/// it is, in all of them.
fn holder<T>(
    trees: &[Arc<Tree>],
    find: impl Fn(&Tree) -> Result<Option<T>, ReadError>,
) -> Result<Option<(ContainerId, T)>, ReadError> {
    let mut holder = None;
    for tree in trees {
        match find(tree) {
            Ok(found) => holder = holder.or(found.map(|found| (tree.family(), found))),
            Err(ReadError::Damaged(_)) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(holder)
}
