//! The system container: which containers a store has, under which names, at which addresses. It is
//! a container like any other; only the site writes it. Read [`Directory`] first.

use stead_derive::Persist;
use stead_heap::{AllocError, HashMap, Text, Tx};
use stead_model::windows::WindowRun;
use stead_model::{Address, ContainerId};

/// The root of the system container.
#[derive(Persist)]
#[persist(crate = stead_heap, name = "stead.Directory")]
#[repr(C)]
pub(crate) struct Directory<'s> {
    /// The number that the next container gets. Numbers are never used again.
    next_id: u64,
    by_name: HashMap<'s, Text<'s>, Entry>,
}

/// One container.
#[derive(Persist, Clone, Copy, Debug)]
#[persist(crate = stead_heap, name = "stead.DirectoryEntry")]
#[repr(C)]
pub(crate) struct Entry {
    base: u64,
    id: u32,
    windows: u32,
    created_unix_s: u64,
}

impl Entry {
    pub(crate) fn id(&self) -> ContainerId {
        ContainerId(self.id)
    }

    pub(crate) fn base(&self) -> Address {
        Address(self.base as usize)
    }

    /// Its windows; `None` when what the directory says cannot be.
    pub(crate) fn run(&self) -> Option<WindowRun> {
        WindowRun::at(self.base(), self.windows)
    }

    pub(crate) fn windows(&self) -> u32 {
        self.windows
    }

    pub(crate) fn created_unix_s(&self) -> u64 {
        self.created_unix_s
    }
}

impl<'s> Directory<'s> {
    pub(crate) fn new(tx: &Tx<'s>) -> Self {
        Directory { next_id: 1, by_name: HashMap::new(tx) }
    }

    pub(crate) fn get(&self, name: &str) -> Option<Entry> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, Entry)> {
        self.by_name.iter().map(|(name, entry)| (&**name, *entry))
    }

    /// Enters a new container.
    pub(crate) fn add(
        &mut self,
        tx: &Tx<'s>,
        name: &str,
        run: WindowRun,
        created_unix_s: u64,
    ) -> Result<Entry, AllocError> {
        let id = u32::try_from(self.next_id).expect("fewer than 2^22 containers are ever made");
        assert!(id <= ContainerId::MAX.0, "fewer than 2^22 containers are ever made");
        self.next_id += 1;
        let entry = Entry { base: run.base().0 as u64, id, windows: run.count, created_unix_s };
        let name = Text::from_str(tx, name)?;
        self.by_name.insert(tx, name, entry)?;
        Ok(entry)
    }

    /// The number that the next container gets.
    pub(crate) fn next_id(&self) -> ContainerId {
        ContainerId(u32::try_from(self.next_id).expect("fewer than 2^22 containers are ever made"))
    }

    /// Has the next container get this number or a higher one.
    pub(crate) fn number_from(&mut self, id: ContainerId) {
        self.next_id = self.next_id.max(u64::from(id.0));
    }

    /// Takes a container out.
    pub(crate) fn remove(&mut self, tx: &Tx<'s>, name: &str) -> Option<Entry> {
        self.by_name.remove(tx, name)
    }
}
