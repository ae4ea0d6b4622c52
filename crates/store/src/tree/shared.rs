//! What versions of a map have in common: they share nodes by place, so two subtrees at one place are one. Nothing
//! here is counted or freed. Read [`Others`] first.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Block, Child, Entries, FANOUT, GivenUp, Node, Nodes, Origins, Released, Tree};
use crate::error::{Damage, ReadError};
use crate::format::{BLOCK, Located, NodeId, Place};

/// The other versions of a map that may hold blocks of it.
#[derive(Debug, Default)]
pub(crate) struct Others {
    pub(crate) live: Vec<Arc<Tree>>,
    pub(crate) snapshots: Vec<Arc<Tree>>,
}

/// Who holds a block besides the version that is asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holder {
    Nobody,
    /// Snapshots and nobody else.
    Snapshots,
    Live,
}

impl Others {
    pub(crate) fn is_empty(&self) -> bool {
        self.live.is_empty() && self.snapshots.is_empty()
    }

    /// Who holds each of the blocks that a changed map has released. Nodes that would tell, and are damaged, are noted in
    /// `damaged`: of them it is supposed that they hold what they are asked about.
    pub(crate) fn holders(
        &self,
        released: &[Released],
        nodes: &dyn Nodes,
        damaged: &mut Vec<GivenUp>,
    ) -> Result<Vec<Holder>, ReadError> {
        // Whoever holds a node holds all that it refers to, so nodes are asked about first, from above.
        let mut order: Vec<usize> = (0..released.len()).collect();
        let level = |i: usize| match released[i].block {
            Block::Node(id) => u32::from(id.level) + 1,
            Block::Page(_) => 0,
        };
        order.sort_by_key(|&i| std::cmp::Reverse(level(i)));
        let mut holders = vec![Holder::Nobody; released.len()];
        let mut held: [Held; 2] = [Held::default(), Held::default()];
        for i in order {
            let Released { block, place } = released[i];
            let groups = [(Holder::Live, &self.live), (Holder::Snapshots, &self.snapshots)];
            for ((holder, trees), held) in groups.into_iter().zip(&mut held) {
                if held.covers(block) || any_holds(trees, block, place, nodes, damaged)? {
                    held.add(block);
                    holders[i] = holder;
                    break;
                }
            }
        }
        Ok(holders)
    }

    /// The blocks of `tree` that none of these holds, and whether damage was passed over, so that there may be more.
    pub(crate) fn lacking(
        &self,
        tree: &Tree,
        nodes: &dyn Nodes,
    ) -> Result<(Vec<Place>, bool), ReadError> {
        let mut lacking = Vec::new();
        let others = self.live.iter().chain(&self.snapshots).map(|other| &**other);
        let passed_over = only(tree, others, nodes, &mut |_, at| lacking.push(at.place))?;
        Ok((lacking, passed_over.is_some()))
    }
}

/// How many blocks of `tree` none of `others` holds.
pub(crate) fn count_lacking(
    tree: &Tree,
    others: &[Arc<Tree>],
    nodes: &dyn Nodes,
) -> Result<u64, ReadError> {
    if others.is_empty() {
        return tree.blocks(nodes);
    }
    let mut count = 0;
    only(tree, others.iter().map(|other| &**other), nodes, &mut |_, _| count += 1)?;
    Ok(count)
}

fn any_holds(
    trees: &[Arc<Tree>],
    block: Block,
    place: Place,
    nodes: &dyn Nodes,
    damaged: &mut Vec<GivenUp>,
) -> Result<bool, ReadError> {
    for tree in trees {
        match tree.holds(block, place, nodes) {
            Ok(false) => {}
            Ok(true) => return Ok(true),
            Err(ReadError::Damaged(damage)) => {
                damaged.extend(GivenUp::of(&damage));
                return Ok(true);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Nodes that someone holds, with all below them.
#[derive(Default)]
struct Held {
    nodes: HashSet<(u8, u32)>,
}

impl Held {
    fn add(&mut self, block: Block) {
        if let Block::Node(id) = block {
            self.nodes.insert((id.level, id.index));
        }
    }

    fn covers(&self, block: Block) -> bool {
        let (mut level, mut index) = match block {
            Block::Page(page) => (0, page >> 8),
            Block::Node(id) => (id.level + 1, u64::from(id.index) >> 8),
        };
        while !self.nodes.is_empty() && level < super::MAX_LEVELS {
            if self.nodes.contains(&(level, index as u32)) {
                return true;
            }
            level += 1;
            index >>= 8;
        }
        false
    }
}

impl GivenUp {
    /// The node that an error is about.
    fn of(damage: &Damage) -> Option<GivenUp> {
        let (container, pages) = damage.map_of?;
        let level = (pages.page_count().ilog2() / 8).checked_sub(1)? as u8;
        let index = (pages.start >> (8 * (u32::from(level) + 1))) as u32;
        let place = Place(damage.offset / BLOCK as u64);
        Some(GivenUp { id: NodeId { container, level, index }, place })
    }
}

/// The answer, unless it lies in a part of the map that is damaged: then nobody knows, and `None` stands for
/// "perhaps". A disk that refuses may do so for now only: that is an error.
fn unless_damaged<T>(found: Result<T, ReadError>) -> Result<Option<T>, ReadError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(ReadError::Damaged(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Tree {
    /// Whether the block at `place` is this map's too.
    pub(crate) fn holds(
        &self,
        block: Block,
        place: Place,
        nodes: &dyn Nodes,
    ) -> Result<bool, ReadError> {
        match block {
            Block::Page(page) => Ok(self.entry(page, nodes)?.place == place),
            Block::Node(id) => {
                let id = NodeId { container: self.container, ..id };
                Ok(self.find_node(id, nodes)? == Some(place))
            }
        }
    }

    /// Blocks of pages and of nodes. Leaves need not be loaded for it.
    fn blocks(&self, nodes: &dyn Nodes) -> Result<u64, ReadError> {
        fn below(
            child: &Child,
            id: NodeId,
            origins: &Origins,
            nodes: &dyn Nodes,
        ) -> Result<u64, ReadError> {
            if child.is_empty() || child.stored.is_lost() {
                return Ok(0);
            }
            let mut count = 1;
            if id.level > 0
                && let Some(Some(node)) = unless_damaged(child.node(id, origins, nodes))?
                && let Entries::Inner(children) = &node.entries
            {
                for (slot, child) in children.iter().enumerate() {
                    count += below(child, id.below(slot), origins, nodes)?;
                }
            }
            Ok(count)
        }
        Ok(self.pages + below(&self.root, self.root_id(), &self.origins, nodes)?)
    }
}

/// What lies at one node's id in one version.
#[derive(Clone, Copy)]
struct Part<'a> {
    tree: &'a Tree,
    /// `None`: the id lies above the version's root.
    child: Option<&'a Child>,
}

impl<'a> Part<'a> {
    fn place(self) -> Option<Place> {
        self.child.map(|child| child.stored.place)
    }

    fn node(self, id: NodeId, nodes: &dyn Nodes) -> Result<Option<&'a Arc<Node>>, ReadError> {
        let id = NodeId { container: self.tree.container, ..id };
        match self.child {
            Some(child) => child.node(id, &self.tree.origins, nodes),
            None => Ok(None),
        }
    }

    /// What lies below it at a slot.
    fn below(
        self,
        id: NodeId,
        slot: usize,
        nodes: &dyn Nodes,
    ) -> Result<Option<Part<'a>>, ReadError> {
        let child = match self.child {
            None if slot != 0 => return Ok(None),
            None if id.level == self.tree.levels => Some(&self.tree.root),
            None => None,
            Some(_) => match self.node(id, nodes)?.map(|node| &node.entries) {
                Some(Entries::Inner(children)) => Some(&children[slot]),
                _ => return Ok(None),
            },
        };
        // Of what is lost nothing is held.
        let nothing = child.is_some_and(|child| child.is_empty() || child.stored.is_lost());
        Ok((!nothing).then_some(Part { child, ..self }))
    }
}

/// Shows the blocks of `tree` that none of `others` holds. It costs by what differs. Of what is damaged in another
/// version it is supposed that it holds all; what is damaged in `tree` itself is not shown. The first damage that was
/// passed over in this way is the answer.
pub(crate) fn only<'a>(
    tree: &'a Tree,
    others: impl Iterator<Item = &'a Tree>,
    nodes: &dyn Nodes,
    show: &mut dyn FnMut(Block, Located),
) -> Result<Option<ReadError>, ReadError> {
    let others: Vec<&Tree> = others.filter(|other| !other.is_empty()).collect();
    let levels = others.iter().map(|other| other.levels).fold(tree.levels, u8::max);
    if tree.is_empty() {
        return Ok(None);
    }
    let id = NodeId { container: tree.container, level: levels - 1, index: 0 };
    let part = |tree: &'a Tree| Part { tree, child: (tree.levels == levels).then_some(&tree.root) };
    let mut others: Vec<Part<'_>> = others.into_iter().map(part).collect();
    distinct(&mut others);
    let mut walk = Walk { nodes, show, passed_over: None };
    walk.below(part(tree), id, &others)?;
    Ok(walk.passed_over)
}

/// Leaves one of those that are the same.
fn distinct(parts: &mut Vec<Part<'_>>) {
    let mut places = Vec::with_capacity(parts.len());
    parts.retain(|part| {
        let new = part.child.is_none() || !places.contains(&part.place());
        places.push(part.place());
        new
    });
}

struct Walk<'w> {
    nodes: &'w dyn Nodes,
    show: &'w mut dyn FnMut(Block, Located),
    passed_over: Option<ReadError>,
}

impl Walk<'_> {
    fn unless_damaged<T>(&mut self, found: Result<T, ReadError>) -> Result<Option<T>, ReadError> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(error @ ReadError::Damaged(_)) => {
                self.passed_over.get_or_insert(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn below(&mut self, mine: Part<'_>, id: NodeId, others: &[Part<'_>]) -> Result<(), ReadError> {
        if let Some(child) = mine.child {
            if others.iter().any(|other| other.place() == Some(child.stored.place)) {
                return Ok(());
            }
            (self.show)(Block::Node(id), child.stored);
            let node = mine.node(id, self.nodes);
            let Some(Some(node)) = self.unless_damaged(node)? else { return Ok(()) };
            if let Entries::Leaf(pages) = &node.entries {
                return self.leaf(pages, id, others);
            }
        }
        for slot in 0..FANOUT {
            let Some(mine_below) = mine.below(id, slot, self.nodes)? else { continue };
            let mut others_below = Vec::with_capacity(others.len());
            let mut known = true;
            for other in others {
                let below = other.below(id, slot, self.nodes);
                match self.unless_damaged(below)? {
                    Some(part) => others_below.extend(part),
                    None => known = false,
                }
            }
            if known {
                distinct(&mut others_below);
                self.below(mine_below, id.below(slot), &others_below)?;
            }
        }
        Ok(())
    }

    fn leaf(
        &mut self,
        pages: &[Located; FANOUT],
        id: NodeId,
        others: &[Part<'_>],
    ) -> Result<(), ReadError> {
        let mut leaves = Vec::with_capacity(others.len());
        for other in others {
            let leaf = other.node(id, self.nodes);
            let Some(leaf) = self.unless_damaged(leaf)? else { return Ok(()) };
            leaves.extend(leaf);
        }
        for (slot, &at) in pages.iter().enumerate() {
            if at.is_never() || at.is_lost() {
                continue;
            }
            let held = leaves.iter().any(|leaf| match &leaf.entries {
                Entries::Leaf(pages) => pages[slot].place == at.place,
                Entries::Inner(_) => false,
            });
            if !held {
                (self.show)(Block::Page(u64::from(id.index) << 8 | slot as u64), at);
            }
        }
        Ok(())
    }
}
