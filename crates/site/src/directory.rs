//! The system container: which containers a store has, under which names, at which addresses. It is
//! a container like any other; only the site writes it. Read [`Directory`] first.

use std::collections::BTreeSet;

use stead_derive::Persist;
use stead_heap::{AllocError, HashMap, Text, Tx};
use stead_model::windows::WindowRun;
use stead_model::{Address, ContainerId, ContainerName};

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

    /// Enters a new container, whose number is [`Directory::next_id`].
    pub(crate) fn add(
        &mut self,
        tx: &Tx<'s>,
        name: &str,
        id: ContainerId,
        run: WindowRun,
        created_unix_s: u64,
    ) -> Result<(), AllocError> {
        assert_eq!(self.next_id(), Some(id), "numbers are given under one lock");
        self.next_id += 1;
        let base = run.base().0 as u64;
        let entry = Entry { base, id: id.0, windows: run.count, created_unix_s };
        let name = Text::from_str(tx, name)?;
        self.by_name.insert(tx, name, entry)?;
        Ok(())
    }

    /// The number that the next container gets; `None` if all have been given.
    pub(crate) fn next_id(&self) -> Option<ContainerId> {
        let id = u32::try_from(self.next_id).ok().map(ContainerId)?;
        (id < ContainerId::SPARE).then_some(id)
    }

    /// Looks whether what it says can be: of a directory that has been read from a disk, and whose pointers are right.
    /// Windows are looked at by whoever takes them.
    ///
    /// # Errors
    /// Names an entry, and says what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), (String, &'static str)> {
        let mut seen = BTreeSet::new();
        for (name, entry) in self.iter() {
            let wrong = |what| Err((name.to_owned(), what));
            if ContainerName::existing(name).is_err() {
                return wrong("is no name of a container");
            }
            if self.get(name).is_none_or(|found| found.id != entry.id) {
                return wrong("is not where it is looked for");
            }
            let of_program = (1..ContainerId::SPARE.0).contains(&entry.id);
            if !of_program || u64::from(entry.id) >= self.next_id {
                return wrong("has a number that has not been given");
            }
            if !seen.insert(entry.id) {
                return wrong("has the number of another one");
            }
        }
        Ok(())
    }

    /// Has the next container get a higher number than this one.
    pub(crate) fn number_behind(&mut self, id: ContainerId) {
        self.next_id = self.next_id.max(u64::from(id.0) + 1);
    }

    /// Takes a container out.
    pub(crate) fn remove(&mut self, tx: &Tx<'s>, name: &str) -> Option<Entry> {
        self.by_name.remove(tx, name)
    }
}
