//! Changing where blocks lie in all versions of a map alike: a node that several share is written anew once, and
//! stays shared. It moves no page itself. Read [`Moves`] first.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use stead_model::ContainerId;

use super::{Child, Entries, GivenUp, Node, Nodes, Origins, Tree};
use crate::error::ReadError;
use crate::format::{Located, NodeId, Place};

/// Blocks that are to lie elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    /// Where the pages that lay at these places have been copied.
    pages: HashMap<Place, Located>,
    /// Nodes to be written anew.
    nodes: HashSet<Place>,
    /// Those of the nodes that are damaged, and are written with everything below them lost.
    given_up: HashSet<Place>,
    /// Where in the maps of a family they are: first page, and level of node.
    paths: BTreeMap<ContainerId, BTreeSet<(u64, u8)>>,
}

impl Moves {
    /// A page of maps of this family has been copied.
    pub(crate) fn page(&mut self, family: ContainerId, page: u64, from: Place, to: Located) {
        self.pages.insert(from, to);
        self.paths.entry(family).or_default().insert((page, 0));
    }

    /// A node in maps of this family is to be written anew.
    pub(crate) fn node(&mut self, family: ContainerId, id: NodeId, from: Place) {
        self.nodes.insert(from);
        let first = u64::from(id.index) << (8 * (u32::from(id.level) + 1));
        self.paths.entry(family).or_default().insert((first, id.level));
    }

    /// Whether the page at this place has been copied elsewhere.
    pub(crate) fn has_page(&self, from: Place) -> bool {
        self.pages.contains_key(&from)
    }

    /// A damaged node in maps of this family is given up.
    pub(crate) fn give_up(&mut self, family: ContainerId, node: GivenUp) {
        self.given_up.insert(node.place);
        self.node(family, node.id, node.place);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Where in this map, if anywhere, something is to be moved.
    pub(crate) fn paths(&self, tree: &Tree) -> Vec<(u64, u8)> {
        self.paths.get(&tree.family()).into_iter().flatten().copied().collect()
    }
}

/// What has come of moves so far, over all versions.
#[derive(Debug, Default)]
pub(crate) struct Relocation {
    /// What has become of the node at a place, by its level too: the same for all that refer to it. On a disk that lies
    /// a block may be leaf and inner node at once.
    nodes: HashMap<(Place, u8), Child>,
    /// Blocks that no version refers to any more when all have been gone through.
    pub(crate) released: HashSet<Place>,
    /// Blocks that they refer to instead.
    pub(crate) taken: HashSet<Place>,
}

/// Where nodes go.
type Sink<'a, E> = dyn FnMut(NodeId, &[u8]) -> Result<Located, E> + 'a;

impl Tree {
    /// The map with its blocks moved; `None` if nothing of it is. `sink` stores nodes; it is asked to seal them for
    /// the whole family.
    pub(crate) fn relocate<E: From<ReadError>>(
        &self,
        moves: &Moves,
        relocation: &mut Relocation,
        nodes: &dyn Nodes,
        sink: &mut Sink<'_, E>,
    ) -> Result<Option<Tree>, E> {
        let paths = moves.paths(self);
        let (origins, family) = (&self.origins, self.family());
        let mut mover = Mover { moves, relocation, nodes, origins, family, sink };
        let root = mover.moved(&self.root, self.root_id(), &paths)?;
        let changed = root.stored.place != self.root.stored.place;
        Ok(changed.then(|| {
            let mut tree = Tree { root, ..self.clone() };
            if !moves.given_up.is_empty() {
                tree.count_pages(nodes);
            }
            tree
        }))
    }
}

struct Mover<'a, E> {
    moves: &'a Moves,
    relocation: &'a mut Relocation,
    nodes: &'a dyn Nodes,
    origins: &'a Origins,
    family: ContainerId,
    sink: &'a mut Sink<'a, E>,
}

impl<E: From<ReadError>> Mover<'_, E> {
    fn moved(&mut self, child: &Child, id: NodeId, paths: &[(u64, u8)]) -> Result<Child, E> {
        if paths.is_empty() || child.stored.is_never() || child.stored.is_lost() {
            return Ok(child.clone());
        }
        let place = child.stored.place;
        if let Some(moved) = self.relocation.nodes.get(&(place, id.level)) {
            return Ok(moved.clone());
        }
        let lost;
        let node = match child.node(id, self.origins, self.nodes) {
            Err(ReadError::Damaged(_)) if self.moves.given_up.contains(&place) => {
                let all = Entries::all(id.level, Located::lost_with(place));
                lost = Arc::new(Node::new(all, self.nodes.memory()));
                &lost
            }
            // What lies below is lost with it; none of it has been copied.
            Err(ReadError::Damaged(_)) => return Ok(child.clone()),
            node => node?.expect("a stored node is loaded"),
        };
        let new = match &node.entries {
            Entries::Leaf(pages) => self.moved_leaf(pages, paths),
            Entries::Inner(children) => {
                let slot_of =
                    |page: u64| (page >> (8 * u32::from(id.level))) as usize % super::FANOUT;
                let below: Vec<(u64, u8)> =
                    paths.iter().copied().filter(|&(_, level)| level < id.level).collect();
                let mut new: Option<Box<[Child; super::FANOUT]>> = None;
                for group in below.chunk_by(|a, b| slot_of(a.0) == slot_of(b.0)) {
                    let slot = slot_of(group[0].0);
                    let moved = self.moved(&children[slot], id.below(slot), group)?;
                    if moved.stored.place != children[slot].stored.place {
                        new.get_or_insert_with(|| children.clone())[slot] = moved;
                    }
                }
                new.map(Entries::Inner)
            }
        };
        let moved = if new.is_none() && !self.moves.nodes.contains(&place) {
            child.clone()
        } else {
            let new = new.map_or_else(
                || Arc::clone(node),
                |entries| Arc::new(Node::new(entries, self.nodes.memory())),
            );
            let family_id = NodeId { container: self.family, ..id };
            let stored = (self.sink)(family_id, &new.entries.encode())?;
            self.relocation.released.insert(place);
            self.relocation.taken.insert(stored.place);
            Child { stored, loaded: new.into() }
        };
        self.relocation.nodes.insert((place, id.level), moved.clone());
        Ok(moved)
    }

    fn moved_leaf(
        &mut self,
        pages: &[Located; super::FANOUT],
        paths: &[(u64, u8)],
    ) -> Option<Entries> {
        let mut new: Option<Box<[Located; super::FANOUT]>> = None;
        for &(page, _) in paths {
            let slot = page as usize % super::FANOUT;
            if let Some(&to) = self.moves.pages.get(&pages[slot].place) {
                self.relocation.released.insert(pages[slot].place);
                self.relocation.taken.insert(to.place);
                new.get_or_insert_with(|| Box::new(*pages))[slot] = to;
            }
        }
        new.map(Entries::Leaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{BLOCK, put};
    use crate::tree::memory::{Forgetting, MapMemory};

    /// A disk on which each block, leaf or inner node, refers to itself.
    struct Circular(MapMemory);

    impl Nodes for Circular {
        fn load(&self, _: NodeId, _: &Origins, at: Located) -> Result<Vec<u8>, ReadError> {
            let mut block = vec![0; BLOCK];
            put(&mut block, 0, &at.place.0.to_le_bytes());
            put(&mut block, 8, &at.checksum.to_le_bytes());
            Ok(block)
        }

        fn memory(&self) -> &MapMemory {
            &self.0
        }
    }

    #[test]
    fn a_block_may_be_leaf_and_inner_node_at_once() {
        let nodes = Circular(MapMemory::new(1 << 20));
        let (container, at) = (ContainerId(1), Located { place: Place(20), checksum: 1 });
        let leaf = NodeId { container, level: 0, index: 0 };
        let mut moves = Moves::default();
        moves.node(container, leaf, at.place);
        let (mut relocation, mut forgetting) =
            (Relocation::default(), Forgetting::of(nodes.memory()));
        let mut end = 100;
        let mut sink = |_: NodeId, _: &[u8]| {
            end += 1;
            Ok::<_, ReadError>(Located { place: Place(end), checksum: 1 })
        };
        for levels in [1, 2, 3] {
            let tree = Tree::stored(container, Origins::default(), levels, at, 1).unwrap();
            assert_eq!(tree.find_node(leaf, &nodes).unwrap(), Some(at.place));
            let kept = tree.without_idle(&mut forgetting);
            assert_eq!(kept.find_node(leaf, &nodes).unwrap(), Some(at.place));
            let moved = tree.relocate(&moves, &mut relocation, &nodes, &mut sink);
            let moved = moved.unwrap().expect("the leaf is to be moved");
            let found = moved.find_node(leaf, &nodes).unwrap();
            assert!(found.is_some_and(|place| place > at.place), "{levels} levels: {found:?}");
        }
    }
}
