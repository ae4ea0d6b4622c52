//! A container's map from page to place: a radix tree with 256 ways, loaded node by node as it is needed,
//! and changed by copying, so that a version that is being read or written out stays as it is. It decides
//! nothing about where blocks go. Read [`Tree`] first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use stead_model::{ContainerId, PageId, PageNo};

use crate::error::{Damage, ReadError};
use crate::format::{BLOCK, Located, NodeId, Place, put};
use crate::planted::{self, Bug};
use memory::Taken;

mod memory;
mod relocate;
mod shared;

pub(crate) use memory::{Forgetting, MapMemory};
pub(crate) use relocate::{Moves, Relocation};
pub(crate) use shared::{Holder, Others, count_lacking, only};

pub(crate) const FANOUT: usize = 256;

/// 256^5 pages are the 2^40 that a container may have.
const MAX_LEVELS: u8 = 5;

/// Where nodes that are not in memory come from.
pub(crate) trait Nodes {
    /// The node's block, its checksum checked; it may be sealed as one of the origins' too.
    fn load(&self, id: NodeId, origins: &Origins, at: Located) -> Result<Vec<u8>, ReadError>;

    /// What counts those that are in memory.
    fn memory(&self) -> &MapMemory;
}

/// The containers from which a branch was made, the nearest first. What it has taken over is sealed with their ids.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Origins(Option<Arc<[ContainerId]>>);

impl Origins {
    pub(crate) fn ids(&self) -> &[ContainerId] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl From<Vec<ContainerId>> for Origins {
    fn from(ids: Vec<ContainerId>) -> Self {
        Origins((!ids.is_empty()).then(|| ids.into()))
    }
}

/// A block that a map refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Block {
    Page(u64),
    Node(NodeId),
}

/// A block that a changed map no longer refers to. Other versions of the map still may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Released {
    pub(crate) block: Block,
    pub(crate) place: Place,
}

/// A damaged node that is given up: what it told is lost, in all versions that have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct GivenUp {
    pub(crate) id: NodeId,
    pub(crate) place: Place,
}

#[derive(Debug)]
struct Node {
    entries: Entries,
    /// Whether anybody has looked into it lately.
    used: AtomicBool,
    taken: Taken,
}

#[derive(Clone, Debug)]
enum Entries {
    Leaf(Box<[Located; FANOUT]>),
    Inner(Box<[Child; FANOUT]>),
}

/// A reference to a node. Neither stored nor loaded: there are no pages below. Loaded but not stored: it
/// has been changed since it was stored.
#[derive(Clone, Debug, Default)]
struct Child {
    stored: Located,
    loaded: OnceLock<Arc<Node>>,
}

/// The map of one container.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    container: ContainerId,
    origins: Origins,
    levels: u8,
    root: Child,
    pages: u64,
}

impl Tree {
    pub(crate) fn empty(container: ContainerId) -> Self {
        let origins = Origins::default();
        Tree { container, origins, levels: 0, root: Child::default(), pages: 0 }
    }

    /// A tree that has been stored; `None` if there is no such tree.
    pub(crate) fn stored(
        container: ContainerId,
        origins: Origins,
        levels: u8,
        root: Located,
        pages: u64,
    ) -> Option<Self> {
        let can_be = (1..=MAX_LEVELS).contains(&levels)
            && !root.is_never()
            && !root.is_lost()
            && pages <= PageNo::LIMIT;
        can_be.then(|| Tree {
            container,
            origins,
            levels,
            root: Child { stored: root, loaded: OnceLock::new() },
            pages,
        })
    }

    /// The same map with nothing of it in memory. It must be one that is in force, and so stored.
    pub(crate) fn unloaded(&self) -> Tree {
        let root = Child { stored: self.root.stored, loaded: OnceLock::new() };
        Tree { root, origins: self.origins.clone(), ..*self }
    }

    /// The same map as another container's.
    pub(crate) fn branch(&self, container: ContainerId) -> Tree {
        let mut origins = vec![self.container];
        origins.extend_from_slice(self.origins.ids());
        Tree { container, origins: origins.into(), ..self.clone() }
    }

    pub(crate) fn container(&self) -> ContainerId {
        self.container
    }

    pub(crate) fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Whether it is the same map, stored once; so are then all blocks below.
    pub(crate) fn is_same(&self, other: &Tree) -> bool {
        self.container == other.container
            && self.root.stored == other.root.stored
            && !self.root.stored.is_never()
            && self.levels == other.levels
            && self.origins == other.origins
    }

    /// Which maps may share blocks with this one: those of this container, of its origins, and of their branches.
    pub(crate) fn family(&self) -> ContainerId {
        self.origins.ids().last().copied().unwrap_or(self.container)
    }

    pub(crate) fn levels(&self) -> u8 {
        self.levels
    }

    /// Where the root node is stored; [`Located::NEVER`] if the tree is empty or has been changed.
    pub(crate) fn root(&self) -> Located {
        self.root.stored
    }

    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_empty()
    }

    fn covers(&self, page: u64) -> bool {
        self.levels > 0 && page >> (8 * u32::from(self.levels)) == 0
    }

    fn root_id(&self) -> NodeId {
        NodeId { container: self.container, level: self.levels.saturating_sub(1), index: 0 }
    }

    /// Where a page lies; it is an error if nobody knows any more.
    pub(crate) fn find(&self, page: u64, nodes: &dyn Nodes) -> Result<Located, ReadError> {
        let at = self.entry(page, nodes)?;
        if at.is_lost() {
            let id = PageId { container: self.container, page: PageNo(page) };
            return Err(at.lost_page(id).into());
        }
        Ok(at)
    }

    /// What the map holds of a page, which may be that it is lost.
    pub(crate) fn entry(&self, page: u64, nodes: &dyn Nodes) -> Result<Located, ReadError> {
        if !self.covers(page) {
            return Ok(Located::NEVER);
        }
        let mut child = &self.root;
        let mut id = self.root_id();
        loop {
            if child.stored.is_lost() {
                return Ok(child.stored);
            }
            let Some(node) = child.node(id, &self.origins, nodes)? else {
                return Ok(Located::NEVER);
            };
            let slot = (page >> (8 * u32::from(id.level))) as usize % FANOUT;
            match &node.entries {
                Entries::Leaf(pages) => return Ok(pages[slot]),
                Entries::Inner(children) => {
                    child = &children[slot];
                    id = id.below(slot);
                }
            }
        }
    }

    /// Whether the block at `place` is the image of a page, or a node on the way to it; or was one that is lost.
    pub(crate) fn leads_over(&self, page: u64, place: Place, nodes: &dyn Nodes) -> bool {
        let is_there = |at: Located| !at.is_never() && at.told_at() == place;
        if !self.covers(page) {
            return false;
        }
        let mut child = &self.root;
        let mut id = self.root_id();
        loop {
            if is_there(child.stored) {
                return true;
            }
            if child.stored.is_lost() {
                return false;
            }
            let Ok(Some(node)) = child.node(id, &self.origins, nodes) else { return false };
            let slot = (page >> (8 * u32::from(id.level))) as usize % FANOUT;
            match &node.entries {
                Entries::Leaf(pages) => return is_there(pages[slot]),
                Entries::Inner(children) => {
                    child = &children[slot];
                    id = id.below(slot);
                }
            }
        }
    }

    /// Where a node is stored; `None` if there is no such node or it has been changed since.
    pub(crate) fn find_node(
        &self,
        wanted: NodeId,
        nodes: &dyn Nodes,
    ) -> Result<Option<Place>, ReadError> {
        if self.levels == 0 || wanted.level >= self.levels {
            return Ok(None);
        }
        let mut child = &self.root;
        let mut id = self.root_id();
        while id.level > wanted.level {
            if child.stored.is_lost() {
                return Ok(None);
            }
            let Some(node) = child.node(id, &self.origins, nodes)? else { return Ok(None) };
            let Entries::Inner(children) = &node.entries else {
                unreachable!("leaves are at level 0")
            };
            let slot = wanted.slot_at(id.level);
            child = &children[slot];
            id = id.below(slot);
        }
        let is_there = id == wanted && !child.stored.is_never() && !child.stored.is_lost();
        Ok(is_there.then_some(child.stored.place))
    }

    /// Enters `updates`, which are in the order of pages. What is no longer referred to goes to `released`.
    ///
    /// A node that must be changed and is damaged is given up: made anew, with all that it told lost. Returns those, as
    /// nobody knows to which blocks they referred, and other versions may have them too.
    pub(crate) fn update(
        &mut self,
        updates: &[(u64, Located)],
        nodes: &dyn Nodes,
        released: &mut Vec<Released>,
    ) -> Result<Vec<GivenUp>, ReadError> {
        let highest = updates.iter().rev().find(|(_, at)| !at.is_never()).map(|&(page, _)| page);
        while highest.is_some_and(|page| !self.covers(page)) {
            if !self.root.is_empty() {
                let mut children = empty_children();
                children[0] = std::mem::take(&mut self.root);
                self.root = Child::changed(Entries::Inner(children), nodes.memory());
            }
            self.levels += 1;
        }
        let end = updates.partition_point(|&(page, _)| self.covers(page));
        if self.levels == 0 {
            return Ok(Vec::new());
        }
        let mut edit = Edit {
            nodes,
            origins: &self.origins,
            released,
            pages: self.pages,
            given_up: Vec::new(),
        };
        let id = self.root_id();
        edit.update(&mut self.root, id, &updates[..end])?;
        let given_up = edit.given_up;
        self.pages = edit.pages;
        if self.root.is_empty() {
            self.levels = 0;
        }
        if !given_up.is_empty() {
            self.count_pages(nodes);
        }
        Ok(given_up)
    }

    /// Finds out how many pages there are now that some are lost. While parts are damaged that cannot be known; the last
    /// of them that is given up sets it right.
    fn count_pages(&mut self, nodes: &dyn Nodes) {
        let mut count = CountPages::default();
        self.visit(nodes, &mut count);
        if !count.unreadable {
            self.pages = count.pages;
        }
    }

    /// Writes all nodes that have been changed, those below before those above. `sink` says where each goes.
    pub(crate) fn store<E>(
        &mut self,
        sink: &mut impl FnMut(NodeId, &[u8]) -> Result<Located, E>,
    ) -> Result<(), E> {
        let id = self.root_id();
        self.root.store(id, sink)
    }

    /// Shows every stored page in order, and every node that is stored, to `visitor`. Nodes that cannot be
    /// read are passed over, with the reason. Returns how many pages there are.
    pub(crate) fn visit(&self, nodes: &dyn Nodes, visitor: &mut dyn Visitor) -> u64 {
        let id = self.root_id();
        self.root.visit(id, &self.origins, nodes, visitor)
    }
}

/// Sees a whole tree.
pub(crate) trait Visitor {
    fn page(&mut self, page: u64, at: Located);
    /// Answers how many pages lie below the node if that need not be looked at.
    fn node(&mut self, id: NodeId, at: Place) -> Option<u64>;
    /// All below the node, so many pages, has been shown.
    fn seen(&mut self, _id: NodeId, _at: Place, _pages: u64) {}
    fn unreadable(&mut self, id: NodeId, error: ReadError);
    /// What was told of these pages is lost; they are not counted.
    fn lost(&mut self, damage: Damage);
}

/// Counts pages that are stored.
#[derive(Default)]
struct CountPages {
    pages: u64,
    unreadable: bool,
}

impl Visitor for CountPages {
    fn page(&mut self, _: u64, _: Located) {
        self.pages += 1;
    }

    fn node(&mut self, _: NodeId, _: Place) -> Option<u64> {
        None
    }

    fn unreadable(&mut self, _: NodeId, _: ReadError) {
        self.unreadable = true;
    }

    fn lost(&mut self, _: Damage) {}
}

impl NodeId {
    fn below(self, slot: usize) -> NodeId {
        NodeId {
            container: self.container,
            level: self.level - 1,
            index: self.index << 8 | slot as u32,
        }
    }

    /// Which child of its ancestor at `level` leads to this node.
    fn slot_at(self, level: u8) -> usize {
        (self.index >> (8 * u32::from(level - self.level - 1))) as usize % FANOUT
    }
}

fn empty_children() -> Box<[Child; FANOUT]> {
    Box::new(std::array::from_fn(|_| Child::default()))
}

impl Child {
    fn changed(entries: Entries, memory: &MapMemory) -> Child {
        let node = Arc::new(Node::new(entries, memory));
        Child { stored: Located::NEVER, loaded: OnceLock::from(node) }
    }

    fn is_empty(&self) -> bool {
        self.stored.is_never() && self.loaded.get().is_none()
    }

    fn node(
        &self,
        id: NodeId,
        origins: &Origins,
        nodes: &dyn Nodes,
    ) -> Result<Option<&Arc<Node>>, ReadError> {
        if self.loaded.get().is_none() && !self.stored.is_never() {
            if self.stored.is_lost() {
                return Err(self.stored.lost(id).into());
            }
            let node = self.read(id, origins, nodes)?;
            // Another reader may have been quicker, with the same node.
            let _ = self.loaded.set(node);
        }
        let node = self.loaded.get();
        if let Some(node) = node
            && !node.used.load(Ordering::Relaxed)
        {
            node.used.store(true, Ordering::Relaxed);
        }
        Ok(node)
    }

    fn read(
        &self,
        id: NodeId,
        origins: &Origins,
        nodes: &dyn Nodes,
    ) -> Result<Arc<Node>, ReadError> {
        let block = nodes.load(id, origins, self.stored)?;
        Ok(Arc::new(Node::new(Entries::decode(&block, id.level), nodes.memory())))
    }

    /// As [`Child::node`], for somebody who passes by all nodes once: they are kept only while there is room.
    fn passed(
        &self,
        id: NodeId,
        origins: &Origins,
        nodes: &dyn Nodes,
    ) -> Result<Option<Arc<Node>>, ReadError> {
        if self.loaded.get().is_some() || self.is_empty() || nodes.memory().has_room() {
            return Ok(self.node(id, origins, nodes)?.cloned());
        }
        self.read(id, origins, nodes).map(Some)
    }

    /// The node, made if there was none, its own copy if another version shares it. One that is damaged is made anew,
    /// with everything below it lost, and noted in `given_up`.
    fn node_mut(
        &mut self,
        id: NodeId,
        origins: &Origins,
        nodes: &dyn Nodes,
        given_up: &mut Vec<GivenUp>,
    ) -> Result<&mut Entries, ReadError> {
        let missing = match self.node(id, origins, nodes) {
            Ok(Some(_)) => None,
            Ok(None) => Some(Located::NEVER),
            Err(ReadError::Damaged(_)) if planted::is(Bug::LostReadsZero) => Some(Located::NEVER),
            Err(ReadError::Damaged(_)) if self.stored.is_lost() => Some(self.stored),
            Err(ReadError::Damaged(_)) => {
                given_up.push(GivenUp { id, place: self.stored.place });
                Some(Located::lost_with(self.stored.place))
            }
            Err(error) => return Err(error),
        };
        if let Some(all) = missing {
            let node = Node::new(Entries::all(id.level, all), nodes.memory());
            self.loaded = OnceLock::from(Arc::new(node));
        }
        let node = self.loaded.get_mut().expect("loaded or made just now");
        Ok(&mut Arc::make_mut(node).entries)
    }

    /// Gives up the stored block, because the node, which is loaded, is being changed.
    fn change(&mut self, id: NodeId, released: &mut Vec<Released>) {
        if !self.stored.is_never() && !self.stored.is_lost() {
            released.push(Released { block: Block::Node(id), place: self.stored.place });
        }
        self.stored = Located::NEVER;
    }

    fn store<E>(
        &mut self,
        id: NodeId,
        sink: &mut impl FnMut(NodeId, &[u8]) -> Result<Located, E>,
    ) -> Result<(), E> {
        if !self.stored.is_never() {
            return Ok(());
        }
        let Some(node) = self.loaded.get_mut() else { return Ok(()) };
        let node = &mut Arc::make_mut(node).entries;
        if let Entries::Inner(children) = node {
            for (slot, child) in children.iter_mut().enumerate() {
                child.store(id.below(slot), sink)?;
            }
        }
        self.stored = sink(id, &node.encode())?;
        Ok(())
    }

    fn visit(
        &self,
        id: NodeId,
        origins: &Origins,
        nodes: &dyn Nodes,
        visitor: &mut dyn Visitor,
    ) -> u64 {
        if self.stored.is_lost() {
            visitor.lost(self.stored.lost(id));
            return 0;
        }
        let at = self.stored.place;
        if !at.is_none()
            && let Some(pages) = visitor.node(id, at)
        {
            return pages;
        }
        let mut count = 0;
        let node = self.passed(id, origins, nodes).unwrap_or_else(|error| {
            visitor.unreadable(id, error);
            None
        });
        match node.as_ref().map(|node| &node.entries) {
            None => {}
            Some(Entries::Leaf(pages)) => {
                let first = u64::from(id.index) << 8;
                for (page, &at) in (first..).zip(pages.iter()) {
                    if at.is_lost() {
                        let id = PageId { container: id.container, page: PageNo(page) };
                        visitor.lost(at.lost_page(id));
                    } else if !at.is_never() {
                        visitor.page(page, at);
                        count += 1;
                    }
                }
            }
            Some(Entries::Inner(children)) => {
                for (slot, child) in children.iter().enumerate() {
                    count += child.visit(id.below(slot), origins, nodes, visitor);
                }
            }
        }
        if !at.is_none() {
            visitor.seen(id, at, count);
        }
        count
    }
}

impl Node {
    fn new(entries: Entries, memory: &MapMemory) -> Node {
        let below = match entries {
            Entries::Leaf(_) => size_of::<[Located; FANOUT]>(),
            Entries::Inner(_) => size_of::<[Child; FANOUT]>(),
        };
        // With the two counts of an `Arc`.
        let bytes = below + size_of::<Node>() + 2 * size_of::<usize>();
        Node { entries, used: AtomicBool::new(true), taken: memory.take(bytes as u64) }
    }
}

impl Clone for Node {
    fn clone(&self) -> Self {
        let entries = self.entries.clone();
        Node { entries, used: AtomicBool::new(true), taken: self.taken.clone() }
    }
}

impl Entries {
    /// Those of a node, all of which are the same.
    fn all(level: u8, entry: Located) -> Entries {
        let child = || Child { stored: entry, loaded: OnceLock::new() };
        match level {
            0 => Entries::Leaf(Box::new([entry; FANOUT])),
            _ => Entries::Inner(Box::new(std::array::from_fn(|_| child()))),
        }
    }

    fn decode(block: &[u8], level: u8) -> Entries {
        let at = |slot: usize| Located::get(block, slot * 16);
        if level == 0 {
            return Entries::Leaf(Box::new(std::array::from_fn(at)));
        }
        Entries::Inner(Box::new(std::array::from_fn(|slot| Child {
            stored: at(slot),
            loaded: OnceLock::new(),
        })))
    }

    fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        for slot in 0..FANOUT {
            let at = match self {
                Entries::Leaf(pages) => pages[slot],
                Entries::Inner(children) => children[slot].stored,
            };
            put(&mut block, slot * 16, &at.place.0.to_le_bytes());
            put(&mut block, slot * 16 + 8, &at.checksum.to_le_bytes());
        }
        block
    }

    fn is_empty(&self) -> bool {
        match self {
            Entries::Leaf(pages) => pages.iter().all(|at| at.is_never()),
            Entries::Inner(children) => children.iter().all(Child::is_empty),
        }
    }
}

struct Edit<'a> {
    nodes: &'a dyn Nodes,
    origins: &'a Origins,
    released: &'a mut Vec<Released>,
    pages: u64,
    given_up: Vec<GivenUp>,
}

impl Edit<'_> {
    fn update(
        &mut self,
        child: &mut Child,
        id: NodeId,
        updates: &[(u64, Located)],
    ) -> Result<(), ReadError> {
        if updates.is_empty() || child.is_empty() && updates.iter().all(|(_, at)| at.is_never()) {
            return Ok(());
        }
        let node = child.node_mut(id, self.origins, self.nodes, &mut self.given_up)?;
        match node {
            Entries::Leaf(pages) => {
                for &(page, at) in updates {
                    let old = std::mem::replace(&mut pages[page as usize % FANOUT], at);
                    if !old.is_never() && !old.is_lost() {
                        let block = Block::Page(page);
                        self.released.push(Released { block, place: old.place });
                        // The number that the table told may be wrong; it is for people.
                        self.pages = self.pages.saturating_sub(1);
                    }
                    if !at.is_never() {
                        self.pages = self.pages.saturating_add(1);
                    }
                }
            }
            Entries::Inner(children) => {
                let slot_of = |page: u64| (page >> (8 * u32::from(id.level))) as usize % FANOUT;
                for group in updates.chunk_by(|a, b| slot_of(a.0) == slot_of(b.0)) {
                    let slot = slot_of(group[0].0);
                    self.update(&mut children[slot], id.below(slot), group)?;
                }
            }
        }
        let emptied = node.is_empty();
        child.change(id, self.released);
        if emptied {
            *child = Child::default();
        }
        Ok(())
    }
}
