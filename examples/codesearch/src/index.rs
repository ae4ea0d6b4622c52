//! The persistent index: a vector of documents and a hash table from trigrams to lists of them, in
//! a container of their own for each tree. They are changed in place, inside sections, and are
//! there again when the next run opens the container. No file is read here. Read [`Index`] first,
//! then [`Tree`].

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use stead::{Container, ContainerOptions, Persist, Store};

use crate::pipeline::{Batch, Kind};
use crate::postings;
use crate::query::{Candidates, Lists, Query};
use crate::trigrams::Trigram;
use crate::walk::{self, Stamp};

/// Addresses for an index: enough for one of some terabytes of text.
const ADDRESS_BYTES: u64 = 64 << 30;

/// The root of a tree's container.
#[derive(Persist)]
#[repr(C)]
#[expect(missing_debug_implementations, reason = "it would print megabytes")]
pub struct Index<'s> {
    /// The tree's canonical path, as bytes.
    root: stead::Vec<'s, u8>,
    /// Every document ever added, by number; those that have gone stay until the index is compacted.
    documents: stead::Vec<'s, Document<'s>>,
    /// The documents that hold a trigram, by its number.
    lists: stead::HashMap<'s, u32, List<'s>>,
    /// Documents that could not be read, so that every search says so.
    unreadable: stead::Vec<'s, u32>,
    /// Bytes of text in live documents.
    text_bytes: u64,
    /// Bytes of lists.
    list_bytes: u64,
    /// How many documents have gone.
    gone: u32,
    /// This many documents from the first stand in the order of their paths.
    ordered: u32,
    /// Not 0 if a walk came to its end, and nothing was changed since.
    complete: u32,
    /// Keeps the layout free of padding.
    unused: u32,
}

/// A file of the tree.
#[derive(Persist)]
#[repr(C)]
struct Document<'s> {
    /// Its path below the root.
    path: stead::Vec<'s, u8>,
    /// Its size in bytes when it was read.
    size: u64,
    /// When it had been changed last; see [`Stamp::mtime_ns`].
    mtime_ns: i64,
    /// How many bytes of it are text.
    text_bytes: u64,
    /// [`READ`], [`UNREADABLE`] or [`GONE`].
    state: u64,
}

const READ: u64 = 0;
const UNREADABLE: u64 = 1;
const GONE: u64 = 2;

/// The documents that hold a trigram; see [`postings`].
#[derive(Persist)]
#[repr(C)]
struct List<'s> {
    bytes: stead::Vec<'s, u8>,
    /// One more than the last document in it.
    next: u32,
    /// How many documents are in it, gone ones included.
    count: u32,
}

impl Document<'_> {
    fn stamp(&self) -> Stamp {
        Stamp { size: self.size, mtime_ns: self.mtime_ns }
    }
}

impl Lists for Index<'_> {
    fn count(&self, trigram: Trigram) -> usize {
        self.lists.get(&trigram.number()).map_or(0, |list| list.count as usize)
    }

    fn documents(&self, trigram: Trigram) -> Vec<u32> {
        let list = self.lists.get(&trigram.number());
        list.map_or(Vec::new(), |list| postings::documents(&list.bytes).collect())
    }
}

/// A tree with its index, or a directory in such a tree.
#[derive(Debug)]
pub struct Tree {
    /// Where the indexed tree is, canonical.
    root: PathBuf,
    /// The directory in it, by its path below the root; empty for all of it.
    part: Vec<u8>,
    container: Container<Index<'static>>,
}

/// What the index knows of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The document's number.
    pub number: u32,
    /// What the file was when it was read; `None` if it could not be read.
    pub stamp: Option<Stamp>,
}

/// A document worth reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its path below the root.
    pub path: Vec<u8>,
    /// What the file was when it was read; `None` if it could not be read.
    pub stamp: Option<Stamp>,
}

/// The documents worth reading, in the order of their paths.
#[derive(Debug)]
pub struct Shortlist {
    numbers: Vec<u32>,
}

impl Shortlist {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }
}

/// How large an index is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Documents that have not gone.
    pub documents: u64,
    /// Documents that have, and wait for the index to be compacted.
    pub gone: u64,
    /// Documents that could not be read.
    pub unreadable: u64,
    /// Bytes of text in them.
    pub text_bytes: u64,
    /// Distinct trigrams.
    pub trigrams: u64,
    /// Bytes of their lists.
    pub list_bytes: u64,
}

impl Tree {
    /// Finds the index of the tree at `directory`, which is a canonical path. If there is none yet,
    /// that of the nearest tree around it, provided that it knows something in the directory. If
    /// there is none such either, makes an empty one.
    ///
    /// # Errors
    /// If the store cannot give a container, or holds something else under its name.
    pub fn open(store: &Store, directory: &Path) -> stead::Result<Tree> {
        let names = store.names();
        for root in directory.ancestors() {
            if names.contains(&container_name(root)) {
                let mut tree = Tree::open_root(store, root)?;
                if root == directory {
                    return Ok(tree);
                }
                let part = directory.strip_prefix(root).expect("it is an ancestor");
                tree.part = part.as_os_str().as_bytes().to_owned();
                if tree.is_complete()? && tree.knows_its_part()? {
                    return Ok(tree);
                }
            }
        }
        Tree::open_root(store, directory)
    }

    fn open_root(store: &Store, root: &Path) -> stead::Result<Tree> {
        let bytes = root.as_os_str().as_bytes();
        let options = ContainerOptions::new().address_bytes(ADDRESS_BYTES);
        let container = store.container_with(&container_name(root), &options, |tx| {
            let mut path = stead::Vec::new(tx);
            path.extend_from_slice(tx, bytes)?;
            Ok(Index {
                root: path,
                documents: stead::Vec::new(tx),
                lists: stead::HashMap::new(tx),
                unreadable: stead::Vec::new(tx),
                text_bytes: 0,
                list_bytes: 0,
                gone: 0,
                ordered: 0,
                complete: 0,
                unused: 0,
            })
        })?;
        let tree = Tree { root: root.to_owned(), part: Vec::new(), container };
        let is_the_one = tree.container.read(|index: &Index<'_>, _| index.root[..] == *bytes)?;
        if !is_the_one {
            let name = tree.container.name();
            return Err(stead::Error::other(format!("container {name:?} is another tree's index")));
        }
        Ok(tree)
    }

    fn knows_its_part(&self) -> stead::Result<bool> {
        let knows = self.container.read(|index, _| {
            let (ordered, others) = index.documents.split_at(index.ordered as usize);
            let first = ordered
                .partition_point(|document| walk::compare(&document.path, &self.part).is_lt());
            let mut maybe = ordered[first..].iter().take(1).chain(others);
            maybe.any(|document| walk::is_at_or_below(&document.path, &self.part))
        })?;
        Ok(knows)
    }

    /// The canonical path of the tree that the index is of. Paths are relative to it.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory in it that is searched, by its path below the root; empty for all of it.
    #[must_use]
    pub fn part(&self) -> &[u8] {
        &self.part
    }

    /// The canonical path of that directory.
    #[must_use]
    pub fn start(&self) -> PathBuf {
        self.root.join(OsStr::from_bytes(&self.part))
    }

    /// Whether the whole tree was read at some time, and every change begun since was completed.
    ///
    /// # Errors
    /// If the container cannot be entered.
    pub fn is_complete(&self) -> stead::Result<bool> {
        Ok(self.container.read(|index, _| index.complete != 0)?)
    }

    /// What is known of every path in the part of the tree that is searched.
    ///
    /// # Errors
    /// If the container cannot be entered.
    pub fn known(&self) -> stead::Result<HashMap<Vec<u8>, Known>> {
        let known = self.container.read(|index, _| {
            let mut known = HashMap::with_capacity(index.documents.len());
            for (number, document) in index.documents.iter().enumerate() {
                if document.state != GONE && walk::is_at_or_below(&document.path, &self.part) {
                    let stamp = (document.state == READ).then(|| document.stamp());
                    known.insert(document.path.to_vec(), Known { number: number as u32, stamp });
                }
            }
            known
        })?;
        Ok(known)
    }

    /// Takes documents out. The index is incomplete from here to [`Tree::finish`].
    ///
    /// # Errors
    /// If the container cannot be entered or is full; nothing is changed then.
    pub fn begin(&self, gone: &[u32]) -> stead::Result<()> {
        self.container.exclusive(|index, tx| {
            index.complete = 0;
            for number in gone {
                if let Some(document) = index.documents.get_mut(tx, *number as usize) {
                    document.state = GONE;
                    index.gone += 1;
                    index.text_bytes -= document.text_bytes;
                }
            }
            let documents = &index.documents;
            index.unreadable.retain(tx, |number| documents[*number as usize].state != GONE);
            Ok(())
        })
    }

    /// Adds a batch, whole or not at all.
    ///
    /// # Errors
    /// If the container cannot be entered or is full; nothing is changed then.
    pub fn add(&self, batch: &Batch) -> stead::Result<()> {
        let mut encoded = Vec::new();
        self.container.exclusive(|index, tx| {
            let first = index.documents.len() as u32;
            for document in &batch.documents {
                let number = index.documents.len() as u32;
                let in_order = match index.documents.last() {
                    None => true,
                    Some(last) => walk::compare(&last.path, &document.path).is_lt(),
                };
                if index.ordered == number && in_order {
                    index.ordered += 1;
                }
                if document.kind == Kind::Unreadable {
                    index.unreadable.push(tx, number)?;
                }
                let mut path = stead::Vec::with_capacity(tx, document.path.len())?;
                path.extend_from_slice(tx, &document.path)?;
                let document = Document {
                    path,
                    size: document.stamp.size,
                    mtime_ns: document.stamp.mtime_ns,
                    text_bytes: document.text_bytes,
                    state: match document.kind {
                        Kind::Read => READ,
                        Kind::Unreadable => UNREADABLE,
                    },
                };
                index.text_bytes += document.text_bytes;
                index.documents.push(tx, document)?;
            }
            for (trigram, numbers) in batch.lists() {
                let list = index.lists.get_or_insert_with(tx, trigram.number(), || {
                    Ok::<_, stead::Error>(List { bytes: stead::Vec::new(tx), next: 0, count: 0 })
                })?;
                list.count += numbers.len() as u32;
                encoded.clear();
                list.next = postings::append(&mut encoded, list.next, numbers.map(|n| first + n));
                list.bytes.extend_from_slice(tx, &encoded)?;
                index.list_bytes += encoded.len() as u64;
            }
            Ok(())
        })
    }

    /// Says that the whole tree has been read. Compacts the index if much of it has gone or stands
    /// out of order.
    ///
    /// # Errors
    /// If the container cannot be entered or is full; nothing is changed then.
    pub fn finish(&self) -> stead::Result<()> {
        let worth_compacting = self.container.exclusive(|index, _| -> stead::Result<_> {
            index.complete = 1;
            let len = index.documents.len() as u32;
            Ok((index.gone + (len - index.ordered)) > 64 + len / 4)
        })?;
        if worth_compacting { self.compact() } else { Ok(()) }
    }

    /// Leaves out what has gone and puts the documents back into the order of their paths.
    fn compact(&self) -> stead::Result<()> {
        self.container.exclusive(|index, tx| {
            let mut order: Vec<u32> = (0..index.documents.len() as u32)
                .filter(|number| index.documents[*number as usize].state != GONE)
                .collect();
            let old = &index.documents;
            order.sort_by(|a, b| walk::compare(&old[*a as usize].path, &old[*b as usize].path));

            let mut new_numbers = vec![None; old.len()];
            let mut documents = stead::Vec::with_capacity(tx, order.len())?;
            for (new, number) in order.iter().enumerate() {
                new_numbers[*number as usize] = Some(new as u32);
                let document = &old[*number as usize];
                let mut path = stead::Vec::with_capacity(tx, document.path.len())?;
                path.extend_from_slice(tx, &document.path)?;
                let Document { size, mtime_ns, text_bytes, state, .. } = *document;
                documents.push(tx, Document { path, size, mtime_ns, text_bytes, state })?;
            }
            let mut unreadable = stead::Vec::new(tx);
            for number in index.unreadable.iter() {
                if let Some(new) = new_numbers[*number as usize] {
                    unreadable.push(tx, new)?;
                }
            }

            let mut list_bytes = 0;
            let mut numbers = Vec::new();
            let mut encoded = Vec::new();
            for (_, list) in index.lists.iter_mut(tx) {
                numbers.clear();
                numbers.extend(
                    postings::documents(&list.bytes).filter_map(|old| new_numbers[old as usize]),
                );
                numbers.sort_unstable();
                encoded.clear();
                list.next = postings::append(&mut encoded, 0, numbers.iter().copied());
                list.count = numbers.len() as u32;
                list.bytes = stead::Vec::with_capacity(tx, encoded.len())?;
                list.bytes.extend_from_slice(tx, &encoded)?;
                list_bytes += encoded.len() as u64;
            }
            index.lists.retain(tx, |_, list| list.count > 0);

            index.ordered = documents.len() as u32;
            index.gone = 0;
            index.documents = documents;
            index.unreadable = unreadable;
            index.list_bytes = list_bytes;
            Ok(())
        })
    }

    /// The documents that may match, and those that cannot be read.
    ///
    /// # Errors
    /// If the container cannot be entered.
    pub fn shortlist(&self, query: &Query) -> stead::Result<Shortlist> {
        let shortlist = self.container.read(|index, _| {
            let wanted = |number: &u32| {
                let document = &index.documents[*number as usize];
                document.state != GONE && walk::is_at_or_below(&document.path, &self.part)
            };
            let mut numbers: Vec<u32> = match query.candidates(index) {
                Candidates::All => (0..index.documents.len() as u32).collect(),
                Candidates::Only(mut numbers) => {
                    if !index.unreadable.is_empty() {
                        numbers.extend(index.unreadable.iter());
                        numbers.sort_unstable();
                        numbers.dedup();
                    }
                    numbers
                }
            };
            // Where all are wanted, looking at each would fetch pages for nothing.
            if index.gone > 0 || !self.part.is_empty() {
                numbers.retain(wanted);
            }
            if numbers.last().is_some_and(|last| *last >= index.ordered) {
                let path = |number: u32| &index.documents[number as usize].path;
                numbers.sort_by(|a, b| walk::compare(path(*a), path(*b)));
            }
            Shortlist { numbers }
        })?;
        Ok(shortlist)
    }

    /// Some of the documents of a shortlist; those beyond its end are left out.
    ///
    /// # Errors
    /// If the container cannot be entered.
    pub fn found(
        &self,
        shortlist: &Shortlist,
        from: usize,
        to: usize,
    ) -> stead::Result<Vec<Found>> {
        let numbers = &shortlist.numbers[from..to.min(shortlist.len())];
        let found = self.container.read(|index, _| {
            numbers
                .iter()
                .map(|number| {
                    let document = &index.documents[*number as usize];
                    let stamp = (document.state == READ).then(|| document.stamp());
                    Found { path: document.path.to_vec(), stamp }
                })
                .collect()
        })?;
        Ok(found)
    }

    /// How large the index is.
    ///
    /// # Errors
    /// If the container cannot be entered.
    pub fn size(&self) -> stead::Result<Size> {
        let size = self.container.read(|index, _| Size {
            documents: index.documents.len() as u64 - u64::from(index.gone),
            gone: u64::from(index.gone),
            unreadable: index.unreadable.len() as u64,
            text_bytes: index.text_bytes,
            trigrams: index.lists.len() as u64,
            list_bytes: index.list_bytes,
        })?;
        Ok(size)
    }
}

/// The tree's path where that is a container's name, so that `stead stat` shows it; otherwise
/// something short made from it.
fn container_name(root: &Path) -> String {
    const NAME_BYTES_MAX: usize = 255;
    match root.to_str() {
        Some(path) if path.len() <= NAME_BYTES_MAX && !path.contains(char::is_control) => {
            path.to_owned()
        }
        _ => format!("path {:032x}", xxhash_rust::xxh3::xxh3_128(root.as_os_str().as_bytes())),
    }
}
