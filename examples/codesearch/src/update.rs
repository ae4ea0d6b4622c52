//! Brings an index up to date with its tree: what is new or changed is read, what has gone is taken
//! out, and what an earlier run already read (before it was killed, say) is left alone. Read
//! [`update`] first.

use std::path::Path;

use crate::index::{Known, Tree};
use crate::pipeline;
use crate::walk::{Entry, What, walk};

/// What an update found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Documents that were in the index already, and are as they were.
    pub already_there: u64,
    /// Files read for the first time.
    pub new: u64,
    /// Files read again.
    pub changed: u64,
    /// Documents whose file is no more.
    pub gone: u64,
    /// Bytes of text read.
    pub text_bytes: u64,
}

/// How far an update has come.
#[derive(Clone, Copy, Debug)]
pub enum Progress {
    /// So many files were found so far.
    Walking(u64),
    /// So many files, of so many bytes in all, are about to be read.
    Reading { files: u64, bytes: u64 },
    /// So many more bytes of files were read and are in the index.
    Read { bytes: u64 },
}

/// Updates the index of a tree, or of the part of it that is searched, leaving out what stands at `except`.
///
/// # Errors
/// If the container fails. What was added by then stays.
pub fn update(
    tree: &Tree,
    except: Option<&Path>,
    mut progress: impl FnMut(Progress),
) -> stead::Result<Tally> {
    let mut tally = Tally::default();
    let mut known = tree.known()?;
    let mut file_count = 0;
    let mut entries = walk(tree.root(), &tree.start(), except, |_| {
        file_count += 1;
        progress(Progress::Walking(file_count));
    });

    let mut stale = Vec::new();
    entries.retain(|entry| match known.remove(&entry.path) {
        Some(known) if is_as_it_was(entry, &known) => {
            tally.already_there += 1;
            false
        }
        Some(known) => {
            tally.changed += 1;
            stale.push(known.number);
            true
        }
        None => {
            tally.new += 1;
            true
        }
    });
    tally.gone = known.len() as u64;
    stale.extend(known.values().map(|known| known.number));
    if stale.is_empty() && entries.is_empty() && tree.is_complete()? {
        return Ok(tally);
    }

    tree.begin(&stale)?;
    let bytes = entries.iter().map(size).sum();
    progress(Progress::Reading { files: entries.len() as u64, bytes });
    pipeline::run(tree.root(), &entries, |batch| -> stead::Result<()> {
        tree.add(&batch)?;
        tally.text_bytes += batch.text_bytes();
        let bytes = batch.documents.iter().map(|document| document.stamp.size).sum();
        progress(Progress::Read { bytes });
        Ok(())
    })?;
    tree.finish()?;
    Ok(tally)
}

fn is_as_it_was(entry: &Entry, known: &Known) -> bool {
    // What could not be read is tried again: rights change without leaving a trace in the stamp.
    matches!((entry.what, known.stamp), (What::File(now), Some(then)) if now == then)
}

fn size(entry: &Entry) -> u64 {
    match entry.what {
        What::File(stamp) => stamp.size,
        What::UnreadableDirectory => 0,
    }
}
