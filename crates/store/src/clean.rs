//! Cleaning: what some version still holds in sparse segments is copied to the cold stream, so that the segments
//! become free. The next root has it there in all versions alike. It runs beside stabilisations; a page stored
//! anew meanwhile wins. Read `Store::clean` first.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slotted;
use std::sync::Arc;

use stead_model::{ContainerId, PageId};

use crate::aligned::AlignedBuf;
use crate::error::{CommitError, ReadError};
use crate::format::{BLOCK, Chunk, Entry, NodeId, Place};
use crate::keep::Keeper;
use crate::store::Store;
use crate::tree::{Moves, Origins, Tree};
use crate::versions::Versions;

/// Segments whose live blocks are held in memory at once.
const VICTIMS_AT_ONCE: usize = 8;

/// What some version holds in the segments to be emptied, each with the family of the maps that do.
#[derive(Default)]
struct Live {
    images: BTreeMap<(PageId, Place), (ContainerId, Box<[u8]>)>,
    nodes: Vec<(ContainerId, NodeId, Place)>,
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

impl Store {
    /// Empties sparse segments until `wanted` more are free, or as many as one go can; returns how many blocks
    /// were moved. Needs two free segments at the least.
    pub(crate) fn clean(&self, keeper: &mut Keeper, wanted: usize) -> Result<u64, CommitError> {
        // Lets the map go of what has been replaced since the last root.
        self.checkpoint_now(keeper)?;
        let victims = self.choose_victims(keeper, wanted);
        let mut moved = 0;
        let mut holders = Holders { versions: self.versions(), trees: BTreeMap::new() };
        for group in victims.chunks(VICTIMS_AT_ONCE) {
            let mut live = Live::default();
            for &victim in group {
                self.find_live(victim, &mut holders, &mut live)?;
            }
            moved += (live.images.len() + live.nodes.len()) as u64;
            if let Err(error) = self.move_images(keeper, live.images) {
                keeper.cold.abandon();
                keeper.moves = Moves::default();
                return Err(error);
            }
            for (family, id, place) in live.nodes {
                keeper.moves.node(family, id, place);
            }
        }
        // The first root no longer refers to the victims; behind the second they are free.
        self.checkpoint_now(keeper)?;
        self.checkpoint_now(keeper)?;
        let state = self.state();
        let left = state.space.sparse_segments();
        keeper.stuck.extend(victims.iter().filter(|&v| left.iter().any(|(l, _)| l == v)));
        Ok(moved)
    }

    fn choose_victims(&self, keeper: &Keeper, wanted: usize) -> Vec<u32> {
        let state = self.state();
        let segment_blocks = self.layout().segment_blocks;
        let with_headers = |live: u32| u64::from(live) * 9 / 8;
        // What is moved, and the parts of the map that say so, must fit into what is free.
        let snapshots = state.snapshots.list.iter().map(|snapshot| &*snapshot.trees);
        let trees = snapshots.chain([&state.trees]).flat_map(BTreeMap::values);
        let leaves: u64 = trees.map(|tree| tree.pages().div_ceil(256)).sum();
        let mut room = (state.space.free_segments() as u64).saturating_sub(1) * segment_blocks;
        let (mut gain, mut cost) = (0, 0);
        let mut victims = Vec::new();
        for (segment, live) in state.space.sparse_segments() {
            let map_cost = leaves.min(cost + u64::from(live));
            if gain >= wanted as u64 * segment_blocks + map_cost {
                break;
            }
            if keeper.stuck.contains(&segment) {
                continue;
            }
            if with_headers(live) + (map_cost - leaves.min(cost)) > room {
                break;
            }
            room -= with_headers(live) + (map_cost - leaves.min(cost));
            cost += u64::from(live);
            gain += segment_blocks - u64::from(live);
            victims.push(segment);
        }
        victims
    }

    fn find_live(
        &self,
        segment: u32,
        holders: &mut Holders,
        live: &mut Live,
    ) -> Result<(), CommitError> {
        let layout = self.layout();
        let start = layout.start(segment);
        let mut bytes = AlignedBuf::zeroed(layout.segment_blocks as usize * BLOCK);
        self.disk.read_from_disk(start.offset(), bytes.as_mut_slice())?;
        let block = |index: u64| {
            let at = index as usize * BLOCK;
            &bytes.as_slice()[at..at + BLOCK]
        };
        let mut index = 0;
        while index < layout.segment_blocks {
            let Some((chunk, _)) = Chunk::decode(block(index), self.header.store_id) else {
                index += 1;
                continue;
            };
            for (entry, at) in chunk.located(start.plus(index)) {
                if at.place.0 >= start.0 + layout.segment_blocks {
                    break;
                }
                match entry {
                    Entry::Image(id) => {
                        let bytes = block(at.place.0 - start.0);
                        // What cannot be read whole stays where it is, to be reported when it is asked for.
                        let find = |tree: &Tree| {
                            let found = tree.find(id.page.0, &self.disk)?;
                            Ok((found.place == at.place).then_some(found))
                        };
                        if let Some((family, now)) = holder(holders.of(id.container), find)?
                            && self.disk.check(entry, &Origins::default(), now, bytes).is_ok()
                        {
                            live.images.insert((id, at.place), (family, bytes.into()));
                        }
                    }
                    Entry::Node(id) => {
                        let find = |tree: &Tree| {
                            let id = NodeId { container: tree.container(), ..id };
                            let found = tree.find_node(id, &self.disk)?;
                            Ok((found == Some(at.place)).then_some(()))
                        };
                        if let Some((family, ())) = holder(holders.of(id.container), find)? {
                            live.nodes.push((family, id, at.place));
                        }
                    }
                    // The table is written anew with each root.
                    Entry::Table(_) | Entry::Zero(_) | Entry::Drop(_) => {}
                }
            }
            index += chunk.blocks();
        }
        Ok(())
    }

    /// Copies images, and has the next root find them where they lie then.
    fn move_images(
        &self,
        keeper: &mut Keeper,
        images: BTreeMap<(PageId, Place), (ContainerId, Box<[u8]>)>,
    ) -> Result<(), CommitError> {
        for ((id, from), (family, bytes)) in images {
            // Whoever holds it can read it as the family's.
            let as_family = PageId { container: family, ..id };
            let to = keeper.cold.append(self, Entry::Image(as_family), &bytes)?;
            keeper.moves.page(family, id.page.0, from, to);
        }
        keeper.cold.finish_chunk(self)
    }
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
