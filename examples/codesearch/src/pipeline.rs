//! Reads the files of a tree on all processors and hands them on in batches, their trigrams sorted,
//! in the order of the walk. Knows no index: whoever takes the batches keeps one. Read [`run`]
//! first.

use std::ffi::OsStr;
use std::num::NonZero;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use crate::file::Reader;
use crate::trigrams::{Finder, Trigram};
use crate::walk::{Entry, Stamp, What};

/// A batch has at most this many documents ...
const DOCUMENTS_MAX: usize = 1000;
/// ... and ends with the one that takes it beyond this many bytes.
const BYTES_MAX: u64 = 8 << 20;

/// Files that were read together.
#[derive(Debug, Default)]
pub struct Batch {
    /// The files. Their place here is their number within the batch.
    pub documents: Vec<Document>,
    /// Trigram and number within the batch, as `trigram << 16 | number`, ascending.
    occurrences: Vec<u64>,
}

/// A file as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its path below the root.
    pub path: Vec<u8>,
    /// Its stamp when it was opened.
    pub stamp: Stamp,
    /// How many bytes of it are text.
    pub text_bytes: u64,
    /// Whether it could be read at all.
    pub kind: Kind,
}

/// What came of an attempt to read something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It was read; whether it is text, the number of its text bytes says.
    Read,
    /// It is a file or directory that cannot be read: each search has to say so.
    Unreadable,
}

impl Batch {
    /// Each trigram of the batch with the numbers of the documents that hold it, both ascending.
    pub fn lists(&self) -> impl Iterator<Item = (Trigram, impl ExactSizeIterator<Item = u32>)> {
        self.occurrences.chunk_by(|a, b| a >> 16 == b >> 16).map(|list| {
            let trigram = Trigram::from_number((list[0] >> 16) as u32);
            (trigram, list.iter().map(|occurrence| u32::from(*occurrence as u16)))
        })
    }

    /// Bytes of text in it.
    #[must_use]
    pub fn text_bytes(&self) -> u64 {
        self.documents.iter().map(|document| document.text_bytes).sum()
    }
}

/// Reads `entries` of the tree at `root` and gives `take` one batch after the other, in order.
/// Batches ahead of the one that is being taken are read meanwhile; a few of them, not all.
///
/// # Errors
/// The first one that `take` returns; nothing is read from then on.
pub fn run<E>(
    root: &Path,
    entries: &[Entry],
    mut take: impl FnMut(Batch) -> Result<(), E>,
) -> Result<(), E> {
    let parts = parts(entries);
    let reader_count = thread::available_parallelism().map_or(1, NonZero::get).min(parts.len());
    thread::scope(|scope| {
        let mut receivers = Vec::new();
        for reader in 0..reader_count {
            let (sender, receiver) = sync_channel(1);
            let mine = parts.iter().skip(reader).step_by(reader_count);
            scope.spawn(move || read(root, mine.copied(), &sender));
            receivers.push(receiver);
        }
        for part in 0..parts.len() {
            // A reader ends early only by a panic, which the scope passes on.
            let Ok(batch) = receivers[part % reader_count].recv() else { break };
            take(batch)?;
        }
        Ok(())
    })
}

/// Cuts a walk into what will be batches.
fn parts(entries: &[Entry]) -> Vec<&[Entry]> {
    let mut parts = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut bytes = 0;
        let mut len = 0;
        while len < rest.len() && len < DOCUMENTS_MAX && bytes < BYTES_MAX {
            if let What::File(stamp) = rest[len].what {
                bytes += stamp.size;
            }
            len += 1;
        }
        let (part, others) = rest.split_at(len);
        parts.push(part);
        rest = others;
    }
    parts
}

fn read<'a>(root: &Path, parts: impl Iterator<Item = &'a [Entry]>, sender: &SyncSender<Batch>) {
    let mut reader = Reader::default();
    let mut finder = Finder::default();
    let mut found = Vec::new();
    let mut spare = Vec::new();
    for part in parts {
        let mut batch = Batch::default();
        for entry in part {
            let path = root.join(OsStr::from_bytes(&entry.path));
            let mut document = Document {
                path: entry.path.clone(),
                stamp: Stamp::default(),
                text_bytes: 0,
                kind: Kind::Unreadable,
            };
            if let What::File(stamp) = entry.what {
                document.stamp = stamp;
                match reader.read_in_tree(&path) {
                    Ok(Some(content)) => {
                        document.stamp = content.stamp;
                        document.text_bytes = content.text.len() as u64;
                        document.kind = Kind::Read;
                        found.clear();
                        finder.find(content.text, &mut found);
                        let number = batch.documents.len() as u64;
                        batch.occurrences.extend(
                            found.iter().map(|found| u64::from(found.number()) << 16 | number),
                        );
                    }
                    Ok(None) => continue,
                    Err(_) => {}
                }
            }
            batch.documents.push(document);
        }
        sort_by_trigram(&mut batch.occurrences, &mut spare);
        if sender.send(batch).is_err() {
            return;
        }
    }
}

/// Sorts occurrences by trigram; those of one trigram keep their order, which is by document. Two
/// counting passes: a batch has millions of them, and comparing would take longer than reading.
fn sort_by_trigram(occurrences: &mut Vec<u64>, spare: &mut Vec<u64>) {
    spare.clear();
    spare.resize(occurrences.len(), 0);
    for shift in [16, 28] {
        let bucket_of = |occurrence: u64| (occurrence >> shift & 0xfff) as usize;
        let mut ends = [0; 1 << 12];
        for occurrence in &*occurrences {
            ends[bucket_of(*occurrence)] += 1;
        }
        let mut sum = 0;
        for end in &mut ends {
            sum += std::mem::replace(end, sum);
        }
        for occurrence in &*occurrences {
            let place = &mut ends[bucket_of(*occurrence)];
            spare[*place] = *occurrence;
            *place += 1;
        }
        std::mem::swap(occurrences, spare);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::walk::walk;

    #[test]
    fn sorting_is_by_trigram_then_document() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut occurrences: Vec<u64> = (0..5000u64)
            .map(|at| u64::from(random.u32(..1 << 24) & 0xf0_0f0f) << 16 | (at / 10))
            .collect();
        let mut expected = occurrences.clone();
        expected.sort_unstable();
        sort_by_trigram(&mut occurrences, &mut Vec::new());
        assert_eq!(occurrences, expected);
    }

    #[test]
    fn batches_arrive_in_order_and_complete() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..2500 {
            let text = format!("common\nnumber{number:04}\n");
            std::fs::write(dir.path().join(format!("{number:04}")), text).unwrap();
        }
        let entries = walk(dir.path(), dir.path(), None, |_| {});
        std::fs::remove_file(dir.path().join("1300")).unwrap();
        let mut batches = Vec::new();
        run(dir.path(), &entries, |batch| {
            batches.push(batch);
            Ok::<(), Infallible>(())
        })
        .unwrap();

        assert_eq!(batches.len(), 3);
        let paths: Vec<&[u8]> = batches
            .iter()
            .flat_map(|batch| batch.documents.iter().map(|document| document.path.as_slice()))
            .collect();
        assert_eq!(paths.len(), 2499);
        assert!(paths.is_sorted());
        for batch in &batches {
            let all: Vec<u32> = (0..batch.documents.len() as u32).collect();
            let (_, common) =
                batch.lists().find(|(trigram, _)| trigram.bytes() == *b"omm").unwrap();
            assert_eq!(common.collect::<Vec<_>>(), all);
        }
        let (_, holders) =
            batches[2].lists().find(|(trigram, _)| trigram.bytes() == *b"249").unwrap();
        let holders: Vec<&[u8]> =
            holders.map(|number| batches[2].documents[number as usize].path.as_slice()).collect();
        assert!(holders.contains(&b"2491".as_slice()), "{holders:?}");
    }

    #[test]
    fn the_first_error_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..4500 {
            std::fs::write(dir.path().join(format!("{number:04}")), "x").unwrap();
        }
        let entries = walk(dir.path(), dir.path(), None, |_| {});
        let mut taken = 0;
        let result = run(dir.path(), &entries, |_| {
            taken += 1;
            if taken == 2 { Err("full") } else { Ok(()) }
        });
        assert_eq!((result, taken), (Err("full"), 2));
    }
}
