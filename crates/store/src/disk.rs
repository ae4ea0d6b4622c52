//! The medium as the rest of the store uses it: blocks checked as they are read, bytes and flushes counted,
//! and no success reported for what a failed flush may have lost. Read [`Disk`] first.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{CommitError, Damage, ReadError};
use crate::format::{BLOCK, Entry, Located, NodeId, Sealer};
use crate::medium::Medium;
use crate::planted::{self, Bug};
use crate::tree::Nodes;

/// What bytes are written for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// Stabilisations.
    Record,
    /// Map, table, roots, moved pages.
    Upkeep,
    /// Room ahead of need.
    Prewrite,
}

/// Bytes and flushes since the store was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Written for stabilisations.
    pub record_bytes: u64,
    /// Flushes for stabilisations.
    pub record_flushes: u64,
    /// Written for the map, roots and moved pages.
    pub upkeep_bytes: u64,
    /// Flushes for the map, roots and moved pages.
    pub upkeep_flushes: u64,
    /// Written as zeros, to have room that costs no metadata later.
    pub prewritten_bytes: u64,
    /// Read: images, map, recovery, verification.
    pub read_bytes: u64,
}

#[derive(Debug, Default)]
struct Counts {
    record_bytes: AtomicU64,
    record_flushes: AtomicU64,
    upkeep_bytes: AtomicU64,
    upkeep_flushes: AtomicU64,
    prewritten_bytes: AtomicU64,
    read_bytes: AtomicU64,
}

/// How often a write or flush had failed when this was asked. What is written after asking is durable if a
/// flush has succeeded since and [`Disk::sync`] finds the number unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Failures(u64);

#[derive(Debug)]
pub(crate) struct Disk {
    medium: Arc<dyn Medium>,
    sealer: Sealer,
    counts: Counts,
    failures: AtomicU64,
    /// One flush at a time: a failed one is reported to one caller only, but may have lost what
    /// another's covers.
    flushing: Mutex<()>,
}

impl Disk {
    pub(crate) fn new(medium: Arc<dyn Medium>, sealer: Sealer) -> Self {
        Disk {
            medium,
            sealer,
            counts: Counts::default(),
            failures: AtomicU64::new(0),
            flushing: Mutex::new(()),
        }
    }

    pub(crate) fn sealer(&self) -> Sealer {
        self.sealer
    }

    pub(crate) fn counters(&self) -> Counters {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counters {
            record_bytes: get(&self.counts.record_bytes),
            record_flushes: get(&self.counts.record_flushes),
            upkeep_bytes: get(&self.counts.upkeep_bytes),
            upkeep_flushes: get(&self.counts.upkeep_flushes),
            prewritten_bytes: get(&self.counts.prewritten_bytes),
            read_bytes: get(&self.counts.read_bytes),
        }
    }

    pub(crate) fn len(&self) -> io::Result<u64> {
        self.medium.len()
    }

    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        self.medium.set_len(len)
    }

    pub(crate) fn failures(&self) -> Failures {
        Failures(self.failures.load(Ordering::SeqCst))
    }

    /// Has the next stabilisation begin a new epoch, behind two new roots.
    pub(crate) fn note_failure(&self) {
        self.failures.fetch_add(1, Ordering::SeqCst);
    }

    /// Reads bytes that are not known to be anything.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        self.counts.read_bytes.fetch_add(into.len() as u64, Ordering::Relaxed);
        self.medium.read(offset, into).map_err(|source| ReadError::Io { offset, source })
    }

    /// As [`Disk::read`], past any cache.
    pub(crate) fn read_from_disk(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        self.counts.read_bytes.fetch_add(into.len() as u64, Ordering::Relaxed);
        self.medium.read_from_disk(offset, into).map_err(|source| ReadError::Io { offset, source })
    }

    /// Reads the block that `entry` names, and checks it.
    pub(crate) fn read_block(
        &self,
        entry: Entry,
        at: Located,
        into: &mut [u8],
    ) -> Result<(), ReadError> {
        match self.read(at.place.offset(), into) {
            Err(ReadError::Io { source, .. }) if source.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(damage(entry, at, "lies beyond the end of the file").into());
            }
            read => read?,
        }
        self.check(entry, at, into)
    }

    pub(crate) fn check(&self, entry: Entry, at: Located, bytes: &[u8]) -> Result<(), ReadError> {
        if self.sealer.block(entry, bytes) == at.checksum {
            return Ok(());
        }
        Err(damage(entry, at, "does not have the checksum it was written with").into())
    }

    pub(crate) fn write(
        &self,
        purpose: Purpose,
        offset: u64,
        parts: &[IoSlice<'_>],
    ) -> Result<(), CommitError> {
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        let (count, action) = match purpose {
            Purpose::Record => (&self.counts.record_bytes, "writing a stabilisation to log"),
            Purpose::Upkeep => (&self.counts.upkeep_bytes, "writing the map to log"),
            Purpose::Prewrite => (&self.counts.prewritten_bytes, "extending log"),
        };
        count.fetch_add(bytes, Ordering::Relaxed);
        self.medium.write(offset, parts).map_err(|source| CommitError::io(action, source))
    }

    /// Makes durable what has been written since `since` was asked for; fails if any flush, this one or
    /// another's, has failed in between.
    pub(crate) fn sync(&self, purpose: Purpose, since: Failures) -> Result<(), CommitError> {
        let count = match purpose {
            Purpose::Record => &self.counts.record_flushes,
            Purpose::Upkeep | Purpose::Prewrite => &self.counts.upkeep_flushes,
        };
        let _one_at_a_time = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        count.fetch_add(1, Ordering::Relaxed);
        let mut flushed = self.medium.sync();
        if flushed.is_err() && planted::is(Bug::RetriedFlush) {
            flushed = self.medium.sync();
        }
        if planted::is(Bug::SwallowedEio) {
            flushed = Ok(());
        }
        if let Err(source) = flushed {
            self.note_failure();
            return Err(CommitError::io("flushing log", source));
        }
        if self.failures() != since {
            return Err(CommitError::Io {
                action: "flushing log",
                source: io::Error::other("an earlier flush failed and may have lost this write"),
            });
        }
        Ok(())
    }
}

fn damage(entry: Entry, at: Located, how: &str) -> Damage {
    let offset = at.place.offset();
    let (page, what) = match entry {
        Entry::Image(id) => (Some(id), format!("the image of {id} {how}")),
        Entry::Node(node) => {
            let first = u64::from(node.index) << (8 * (u32::from(node.level) + 1));
            let container = node.container;
            let level = node.level;
            let what = format!(
                "the map of container {container} from page {first} on (level {level}) {how}"
            );
            (None, what)
        }
        Entry::Table(index) => (None, format!("block {index} of the table {how}")),
        Entry::Zero(_) | Entry::Drop(_) => unreachable!("these have no block"),
    };
    Damage { page, offset, what }
}

impl Nodes for Disk {
    fn load(&self, id: NodeId, at: Located) -> Result<Vec<u8>, ReadError> {
        let mut block = vec![0; BLOCK];
        self.read_block(Entry::Node(id), at, &mut block)?;
        Ok(block)
    }
}
