//! The medium as the rest of the store uses it: blocks checked as they are read, bytes and flushes counted,
//! and no success reported for what a failed flush may have lost. Read [`Disk`] first.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stead_model::ContainerId;

use crate::commit::WRITING;
use crate::error::{CommitError, Damage, ReadError};
use crate::format::{BLOCK, Entry, HEADER_BLOCKS, Located, NodeId, Sealer};
use crate::medium::{Medium, ReadRequest, SharedPart, WriteRequest, WriteSyncError, WriteUnderWay};
use crate::planted::{self, Bug};
use crate::tree::{MapMemory, Nodes, Origins};

/// What bytes are written for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// Stabilisations.
    Record,
    /// Map, table, roots.
    Upkeep,
    /// Pages moved out of sparse segments.
    Cleaning,
    /// Scattered pages put in order.
    Tidying,
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
    /// Written for the map, its table and the roots.
    pub upkeep_bytes: u64,
    /// Flushes for the map, roots and moved pages.
    pub upkeep_flushes: u64,
    /// Written for pages that cleaning moved.
    pub cleaning_bytes: u64,
    /// Written for pages that were put in order while nothing else was to do.
    pub tidying_bytes: u64,
    /// Written as zeros, to have room that costs no metadata later.
    pub prewritten_bytes: u64,
    /// Read: images, map, recovery, verification.
    pub read_bytes: u64,
}

impl Counters {
    /// Written for all purposes together. What [`Counters::record_bytes`] is not is write amplification.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.record_bytes
            + self.upkeep_bytes
            + self.cleaning_bytes
            + self.tidying_bytes
            + self.prewritten_bytes
    }
}

#[derive(Debug, Default)]
struct Counts {
    record_bytes: AtomicU64,
    record_flushes: AtomicU64,
    upkeep_bytes: AtomicU64,
    upkeep_flushes: AtomicU64,
    cleaning_bytes: AtomicU64,
    tidying_bytes: AtomicU64,
    prewritten_bytes: AtomicU64,
    read_bytes: AtomicU64,
}

/// How often a write or flush had failed when this was asked. What is written after asking is durable if a
/// flush has succeeded since and [`Disk::sync`] finds the number unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Failures(u64);

/// A block to be read together with others.
#[derive(Debug)]
pub(crate) struct BlockRead<'a> {
    pub(crate) entry: Entry,
    pub(crate) origins: Origins,
    pub(crate) at: Located,
    pub(crate) into: &'a mut [u8],
    /// What [`Disk::read_block`] would have said.
    pub(crate) outcome: Result<(), ReadError>,
}

/// Bytes that upkeep writes or reads at a time while stabilisations may come: what one may have to wait for.
const ASIDE_BYTES: usize = 256 << 10;

/// How long upkeep waits for a stabilisation that is being written: so often, and each time so long.
const GIVE_WAY_MOST: u32 = 40;
const GIVE_WAY_STEP: Duration = Duration::from_micros(50);

/// A stabilisation is being written.
#[derive(Debug)]
pub(crate) struct UnderWay<'a>(&'a AtomicU32);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Bytes of memory that the maps may take if nobody says otherwise: the leaves of 16 GiB whose pages lie close together.
const MAP_BYTES: u64 = 64 << 20;

#[derive(Debug)]
pub(crate) struct Disk {
    /// Stabilisations being written.
    records: AtomicU32,
    medium: Arc<dyn Medium>,
    sealer: Sealer,
    counts: Counts,
    failures: AtomicU64,
    /// One flush at a time: a failed one is reported to one caller only, but may have lost what
    /// another's covers.
    flushing: Mutex<()>,
    /// That the nodes take which have been read.
    map_memory: MapMemory,
}

impl Disk {
    pub(crate) fn new(medium: Arc<dyn Medium>, sealer: Sealer) -> Self {
        Disk {
            records: AtomicU32::new(0),
            medium,
            sealer,
            counts: Counts::default(),
            failures: AtomicU64::new(0),
            flushing: Mutex::new(()),
            map_memory: MapMemory::new(MAP_BYTES),
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
            cleaning_bytes: get(&self.counts.cleaning_bytes),
            tidying_bytes: get(&self.counts.tidying_bytes),
            prewritten_bytes: get(&self.counts.prewritten_bytes),
            read_bytes: get(&self.counts.read_bytes),
        }
    }

    pub(crate) fn describe(&self) -> String {
        self.medium.describe()
    }

    /// For writing what [`Disk::count_ahead`] has counted.
    pub(crate) fn medium(&self) -> Arc<dyn Medium> {
        Arc::clone(&self.medium)
    }

    /// Counts bytes of a stabilisation that are to be written ahead.
    pub(crate) fn count_ahead(&self, bytes: u64) {
        self.counts.record_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Begins to write a part of a stabilisation, as [`Medium::begin_write`].
    pub(crate) fn begin_record_write(
        &self,
        offset: u64,
        parts: Vec<SharedPart>,
    ) -> Result<Box<dyn WriteUnderWay>, Vec<SharedPart>> {
        let bytes = parts.iter().map(|part| part.bytes().len() as u64).sum();
        let under_way = self.medium.begin_write(offset, parts)?;
        self.count_ahead(bytes);
        Ok(under_way)
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
        origins: &Origins,
        at: Located,
        into: &mut [u8],
    ) -> Result<(), ReadError> {
        self.counts.read_bytes.fetch_add(into.len() as u64, Ordering::Relaxed);
        let read = self.medium.read(at.place.offset(), into);
        read.map_err(|source| self.read_failed(entry, at, source))?;
        self.check(entry, origins, at, into)
    }

    /// As [`Disk::read_block`] for several blocks, read at the same time where the medium can.
    pub(crate) fn read_blocks(&self, blocks: &mut [BlockRead<'_>]) {
        let bytes = blocks.iter().map(|block| block.into.len() as u64).sum();
        self.counts.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut reads: Vec<ReadRequest<'_>> = blocks
            .iter_mut()
            .map(|block| ReadRequest::new(block.at.place.offset(), &mut *block.into))
            .collect();
        self.medium.read_many(&mut reads);
        let outcomes: Vec<io::Result<()>> = reads.into_iter().map(|read| read.outcome).collect();
        for (block, outcome) in blocks.iter_mut().zip(outcomes) {
            block.outcome = match outcome {
                Ok(()) => self.check(block.entry, &block.origins, block.at, block.into),
                Err(source) => Err(self.read_failed(block.entry, block.at, source)),
            };
        }
    }

    /// Reads bytes that are not known to be anything, at several places at the same time where the medium can.
    pub(crate) fn read_many(&self, reads: &mut [ReadRequest<'_>]) {
        let bytes = reads.iter().map(|read| read.into.len() as u64).sum();
        self.counts.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.medium.read_many(reads);
    }

    fn read_failed(&self, entry: Entry, at: Located, source: io::Error) -> ReadError {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            damage(entry, at, "lies beyond the end of the file").into()
        } else {
            ReadError::Io { offset: at.place.offset(), source }
        }
    }

    /// Whether a block is the one that `entry` names; what a branch has taken over is sealed as its origin's.
    pub(crate) fn check(
        &self,
        entry: Entry,
        origins: &Origins,
        at: Located,
        bytes: &[u8],
    ) -> Result<(), ReadError> {
        let as_origin = |&origin: &ContainerId| entry.of_container(origin);
        let mut entries = std::iter::once(entry).chain(origins.ids().iter().map(as_origin));
        if entries.any(|entry| self.sealer.block(entry, bytes) == at.checksum) {
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
        let action = self.count_write(purpose, parts);
        self.medium.write(offset, parts).map_err(|source| CommitError::io(action, source))
    }

    /// As [`Disk::write`], in pieces between which stabilisations go first.
    pub(crate) fn write_aside(
        &self,
        purpose: Purpose,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), CommitError> {
        let mut at = offset;
        for piece in bytes.chunks(ASIDE_BYTES) {
            self.give_way();
            self.write(purpose, at, &[IoSlice::new(piece)])?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// As [`Disk::read_from_disk`], in pieces between which stabilisations go first.
    pub(crate) fn read_aside(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let mut at = offset;
        for piece in into.chunks_mut(ASIDE_BYTES) {
            self.give_way();
            self.read_from_disk(at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// A stabilisation is being written, until the answer is dropped.
    pub(crate) fn record_under_way(&self) -> UnderWay<'_> {
        self.records.fetch_add(1, Ordering::SeqCst);
        UnderWay(&self.records)
    }

    /// Waits a moment while a stabilisation is being written; not for ever, so that upkeep gets on.
    fn give_way(&self) {
        for _ in 0..GIVE_WAY_MOST {
            if self.records.load(Ordering::SeqCst) == 0 {
                return;
            }
            std::thread::sleep(GIVE_WAY_STEP);
        }
    }

    /// Counts bytes that are about to be written; says what for.
    fn count_write(&self, purpose: Purpose, parts: &[IoSlice<'_>]) -> &'static str {
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        let (count, action) = match purpose {
            Purpose::Record => (&self.counts.record_bytes, WRITING),
            Purpose::Upkeep => (&self.counts.upkeep_bytes, "writing the map to log"),
            Purpose::Cleaning => (&self.counts.cleaning_bytes, "moving pages in log"),
            Purpose::Tidying => (&self.counts.tidying_bytes, "putting pages in order in log"),
            Purpose::Prewrite => (&self.counts.prewritten_bytes, "extending log"),
        };
        count.fetch_add(bytes, Ordering::Relaxed);
        action
    }

    /// Makes durable what has been written since `since` was asked for; fails if any flush, this one or
    /// another's, has failed in between.
    pub(crate) fn sync(&self, purpose: Purpose, since: Failures) -> Result<(), CommitError> {
        self.write_and_sync(purpose, &[], since)
    }

    /// Makes the writes, and durable what has been written since `since` was asked for, these included; fails
    /// as [`Disk::write`] and [`Disk::sync`] do.
    pub(crate) fn write_and_sync(
        &self,
        purpose: Purpose,
        writes: &[WriteRequest<'_>],
        since: Failures,
    ) -> Result<(), CommitError> {
        let mut action = "";
        for write in writes {
            action = self.count_write(purpose, write.parts);
        }
        let flushes = match purpose {
            Purpose::Record => &self.counts.record_flushes,
            Purpose::Upkeep | Purpose::Cleaning | Purpose::Tidying | Purpose::Prewrite => {
                &self.counts.upkeep_flushes
            }
        };
        if purpose != Purpose::Record {
            self.give_way();
        }
        let _one_at_a_time = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        flushes.fetch_add(1, Ordering::Relaxed);
        let flushed = match self.medium.write_and_sync(writes) {
            Ok(()) => Ok(()),
            Err(WriteSyncError::Write(source)) => return Err(CommitError::io(action, source)),
            Err(WriteSyncError::Sync(_)) if planted::is(Bug::SwallowedEio) => Ok(()),
            Err(WriteSyncError::Sync(_)) if planted::is(Bug::RetriedFlush) => self.medium.sync(),
            Err(WriteSyncError::Sync(source)) => Err(source),
        };
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
    match entry {
        Entry::Image(id) => {
            Damage { page: Some(id), ..Damage::new(offset, format!("the image of {id} {how}")) }
        }
        Entry::Node(node) => {
            let (container, pages) = (node.container, node.pages());
            let (first, end, level) = (pages.start, pages.end, node.level);
            let what = format!(
                "the map of container {container} from page {first} to {end} (level {level}) {how}"
            );
            Damage { map_of: Some((container, pages)), ..Damage::new(offset, what) }
        }
        Entry::Table(index) => Damage::new(offset, format!("block {index} of the table {how}")),
        Entry::Zero(_) | Entry::Drop(_) => unreachable!("these have no block"),
    }
}

impl Nodes for Disk {
    fn memory(&self) -> &MapMemory {
        &self.map_memory
    }

    fn load(&self, id: NodeId, origins: &Origins, at: Located) -> Result<Vec<u8>, ReadError> {
        let mut block = vec![0; BLOCK];
        let entry = Entry::Node(id);
        match self.read_block(entry, origins, at, &mut block) {
            // A cache may have gone bad, and not the disk: much depends on a part of the map.
            Err(ReadError::Damaged(damage)) => {
                let again = self.read_from_disk(at.place.offset(), &mut block);
                again.and_then(|()| self.check(entry, origins, at, &block)).map_err(|_| damage)?;
            }
            read => read?,
        }
        let len = self.len().map_err(|source| ReadError::Io { offset: 0, source })?;
        // What a checksum cannot tell: only a whole program that went wrong writes such a thing.
        let blocks = len / BLOCK as u64;
        let lies_in_file = |at: Located| {
            at.is_never() || at.is_lost() || (HEADER_BLOCKS..blocks).contains(&at.place.0)
        };
        if !(0..BLOCK).step_by(16).map(|slot| Located::get(&block, slot)).all(lies_in_file) {
            return Err(damage(entry, at, "refers to blocks beyond the file").into());
        }
        Ok(block)
    }
}
