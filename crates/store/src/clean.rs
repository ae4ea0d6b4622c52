//! Cleaning: what is still live in sparse segments is copied to the cold stream, so that the segments become
//! free. It runs beside stabilisations; a page stored anew meanwhile wins. Read `Store::clean` first.

use std::collections::BTreeMap;

use stead_model::PageId;

use crate::aligned::AlignedBuf;
use crate::disk::Purpose;
use crate::error::CommitError;
use crate::format::{BLOCK, Chunk, Entry, Located, NodeId};
use crate::keep::Keeper;
use crate::store::Store;

/// Segments whose live blocks are held in memory at once.
const VICTIMS_AT_ONCE: usize = 8;

/// What is live in the segments to be emptied.
#[derive(Default)]
struct Live {
    images: BTreeMap<PageId, (Located, Box<[u8]>)>,
    nodes: Vec<NodeId>,
}

impl Store {
    /// Empties sparse segments until `wanted` more are free, or as many as one go can; returns how many blocks
    /// were moved. Needs two free segments at the least.
    pub(crate) fn clean(&self, keeper: &mut Keeper, wanted: usize) -> Result<u64, CommitError> {
        // Lets the map go of what has been replaced since the last root.
        self.checkpoint_now(keeper)?;
        let victims = self.choose_victims(keeper, wanted);
        let mut moved = 0;
        for group in victims.chunks(VICTIMS_AT_ONCE) {
            let mut live = Live::default();
            for &victim in group {
                self.find_live(victim, &mut live)?;
            }
            moved += (live.images.len() + live.nodes.len()) as u64;
            if let Err(error) = self.move_images(keeper, live.images) {
                keeper.cold.abandon();
                return Err(error);
            }
            keeper.rewrites.extend(live.nodes);
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
        let leaves: u64 = state.trees.values().map(|tree| tree.pages().div_ceil(256)).sum();
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

    fn find_live(&self, segment: u32, live: &mut Live) -> Result<(), CommitError> {
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
                        let now = self.view().locate(id)?;
                        let bytes = block(at.place.0 - start.0);
                        // What cannot be read whole stays where it is, to be reported when it is asked for.
                        if now.place == at.place && self.disk.check(entry, now, bytes).is_ok() {
                            live.images.insert(id, (now, bytes.into()));
                        }
                    }
                    Entry::Node(id) => {
                        let tree = self.state().trees.get(&id.container).cloned();
                        let now = tree.map(|tree| tree.find_node(id, &self.disk)).transpose()?;
                        if now.flatten() == Some(at.place) {
                            live.nodes.push(id);
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

    fn move_images(
        &self,
        keeper: &mut Keeper,
        images: BTreeMap<PageId, (Located, Box<[u8]>)>,
    ) -> Result<(), CommitError> {
        if images.is_empty() {
            return Ok(());
        }
        let since = self.disk.failures();
        let mut moved: Vec<(PageId, Located, Located)> = Vec::new();
        for (id, (old, bytes)) in images {
            let new = keeper.cold.append(self, Entry::Image(id), &bytes)?;
            moved.push((id, old, new));
        }
        keeper.cold.finish_chunk(self)?;
        // The map in memory refers to durable blocks only.
        self.disk.sync(Purpose::Upkeep, since)?;
        let mut state = self.state_mut();
        for (id, old, new) in moved {
            let now = match state.find_in_layers(id) {
                Some(now) => now,
                None => match state.trees.get(&id.container) {
                    // The leaf is in memory: it was looked at a moment ago.
                    Some(tree) => tree.find(id.page.0, &self.disk).map_err(CommitError::from)?,
                    None => Located::NEVER,
                },
            };
            if now == old {
                state.enter(Entry::Image(id), new);
            }
        }
        Ok(())
    }
}
