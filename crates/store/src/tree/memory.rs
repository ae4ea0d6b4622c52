//! The memory that nodes of maps take, and forgetting those that can be read again, so that a large map costs no more of
//! it than it may. Read [`MapMemory`] first, then [`Tree::without_idle`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::{Child, Entries, FANOUT, Node, Tree};
use crate::format::Place;

/// How much memory the maps of a store take, and may take.
#[derive(Clone, Debug)]
pub(crate) struct MapMemory(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    bytes: AtomicU64,
    most: AtomicU64,
    /// With how many it is tried again to have less: more than there may be while others hold on to what was
    /// forgotten.
    due: AtomicU64,
}

impl MapMemory {
    pub(crate) fn new(most: u64) -> Self {
        let at = AtomicU64::new;
        MapMemory(Arc::new(Counts { bytes: at(0), most: at(most), due: at(most) }))
    }

    /// Bytes that are taken now.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn set_most(&self, bytes: u64) {
        self.0.most.store(bytes, Ordering::Relaxed);
        self.forget_again();
    }

    /// Whether there is room for what was only passed by: half of what there may be.
    pub(super) fn has_room(&self) -> bool {
        self.bytes() < self.0.most.load(Ordering::Relaxed) / 2
    }

    /// Whether it is time to forget something.
    pub(crate) fn is_over(&self) -> bool {
        self.bytes() > self.0.due.load(Ordering::Relaxed)
    }

    /// Something has been forgotten. Others may hold on to it for a while: until much more has come it is not tried again.
    pub(crate) fn has_forgotten(&self) {
        let most = self.0.most.load(Ordering::Relaxed);
        self.0.due.store(most.max(self.bytes() + most / 8), Ordering::Relaxed);
    }

    /// Whoever held on to something has let go of it.
    pub(crate) fn forget_again(&self) {
        self.0.due.store(self.0.most.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(super) fn take(&self, bytes: u64) -> Taken {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        Taken { memory: self.clone(), bytes }
    }
}

/// Some bytes, until they are dropped.
#[derive(Debug)]
pub(super) struct Taken {
    memory: MapMemory,
    pub(super) bytes: u64,
}

impl Clone for Taken {
    fn clone(&self) -> Self {
        self.memory.take(self.bytes)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.memory.0.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Goes through all versions of all maps, with what it has come to.
pub(crate) struct Forgetting {
    /// What has become of the node above others at a place, by its level too: the same for all that share it. A leaf that
    /// versions have in common below different nodes stays with the first of them.
    nodes: HashMap<(Place, u8), Child>,
    /// Bytes that may still be kept.
    left: u64,
}

impl Forgetting {
    /// Half of what there may be is kept, so that it is not soon over again.
    pub(crate) fn of(memory: &MapMemory) -> Self {
        let left = memory.0.most.load(Ordering::Relaxed) / 2;
        Forgetting { nodes: HashMap::new(), left }
    }

    fn keeps(&mut self, node: &Node) -> bool {
        let bytes = node.taken.bytes;
        let keeps = node.used.swap(false, Ordering::Relaxed) && bytes <= self.left;
        self.left -= if keeps { bytes } else { 0 };
        keeps
    }

    fn kept(&mut self, child: &Child, level: u8) -> Child {
        let Some(node) = child.loaded.get() else { return child.clone() };
        // What has been changed cannot be read again. There is no such thing in a map that is in force.
        if child.stored.is_never() || child.stored.is_lost() {
            return child.clone();
        }
        let loaded = match &node.entries {
            Entries::Leaf(_) if self.keeps(node) => OnceLock::from(Arc::clone(node)),
            Entries::Leaf(_) => OnceLock::new(),
            Entries::Inner(children) => {
                let key = (child.stored.place, level);
                if let Some(kept) = self.nodes.get(&key) {
                    return kept.clone();
                }
                let loaded = self.kept_inner(node, children, level);
                let kept = Child { stored: child.stored, loaded: loaded.clone() };
                self.nodes.insert(key, kept);
                loaded
            }
        };
        Child { stored: child.stored, loaded }
    }

    /// A node above others is kept for its own sake, or for that of what is kept below it.
    fn kept_inner(
        &mut self,
        node: &Arc<Node>,
        children: &[Child; FANOUT],
        level: u8,
    ) -> OnceLock<Arc<Node>> {
        let keeps = self.keeps(node);
        let lower = level.saturating_sub(1);
        let new: Box<[Child; FANOUT]> =
            Box::new(std::array::from_fn(|slot| self.kept(&children[slot], lower)));
        let has_loaded = |children: &[Child; FANOUT]| {
            children.iter().filter(|child| child.loaded.get().is_some()).count()
        };
        let below = has_loaded(&new);
        if !keeps && below == 0 {
            return OnceLock::new();
        }
        if below == has_loaded(children)
            && !new.iter().zip(children).any(|(new, old)| new.is_other(old))
        {
            return OnceLock::from(Arc::clone(node));
        }
        OnceLock::from(Arc::new(Node::new(Entries::Inner(new), &node.taken.memory)))
    }
}

impl Child {
    /// Whether another node is loaded there.
    fn is_other(&self, old: &Child) -> bool {
        match (self.loaded.get(), old.loaded.get()) {
            (Some(new), Some(old)) => !Arc::ptr_eq(new, old),
            (new, old) => new.is_some() != old.is_some(),
        }
    }
}

impl Tree {
    /// The same map without those nodes in memory that have not been used since the last time, nor those for which there is
    /// no room. It must be one that is in force, and so stored.
    pub(crate) fn without_idle(&self, forgetting: &mut Forgetting) -> Tree {
        Tree { root: forgetting.kept(&self.root, self.levels), ..self.clone() }
    }
}
