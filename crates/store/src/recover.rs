//! Opening: the newest root, and the record chain behind it. It reads headers, and of images only those of
//! the last record, whose flush may not have come to pass. It writes nothing. Read [`Store::open_on`] first.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use stead_model::ContainerId;

use crate::aligned::AlignedBuf;
use crate::clean::Gathered;
use crate::cold::{Cold, extent_checksum};
use crate::commit::{Writer, replay_cost};
use crate::directory::DirectoryLock;
use crate::disk::{Disk, Purpose};
use crate::error::{Damage, OpenError, ReadError};
use crate::format::{
    BLOCK, BadSuperblock, Chunk, ChunkKind, Entry, FORMAT_VERSION, HEADER_BLOCKS, Located,
    LogPosition, Place, RECORD_FIXED_BLOCKS, ROOT_VERSION_NEWEST, ROOTS, Root, SUPERBLOCKS, Sealer,
    Superblock, TABLE_CONTAINER_BYTES, TABLE_QUOTA_BYTES, TABLE_SEGMENT_BYTES, get_u32, get_u64,
};
use crate::group::Queue;
use crate::keep::Keeper;
use crate::layer::Layer;
use crate::medium::Medium;
use crate::planted::{self, Bug};
use crate::reader::Reading;
use crate::settings::{SPACE_PERCENT, Settings};
use crate::space::{Layout, Space};
use crate::store::{State, Store, StoreHeader, enter};
use crate::tidy::{LOOK_AGAIN_BYTES, Untidy};
use crate::tree::{Moves, Origins, Tree};
use crate::versions::{Trees, Versions};
use crate::written::Written;

/// How far behind an unreadable chunk another of the chain is looked for, in blocks: more than the longest chunk.
const LOOK_ONWARD: u64 = 320;

/// In how many of the segments that the chain would have taken next its chunks are looked for: a write that never
/// reached the disk may have filled whole segments, and then the way onward is not known.
const LOOK_ONWARD_SEGMENTS: usize = 64;

/// Blocks that recovery reads at once, at the least and at the most.
const READ_LEAST: u64 = 16;
const READ_MOST: u64 = 256;

/// What opening found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenReport {
    /// The last stabilisation: the state that the store is in.
    pub last_sequence: u64,
    /// Stabilisations found behind the root.
    pub records_replayed: u64,
    /// Chunks that they consist of.
    pub chunks_replayed: u64,
    /// Of these, how many have a damaged header, or one that a crash cut off, and were found by its copy.
    pub found_by_copy: u64,
    /// Bytes read in all.
    pub bytes_read: u64,
    /// Whether one root could not be used: a crash while it was written, or damage. Nothing is lost by it.
    pub fell_back: bool,
    /// A stabilisation that seems to have been begun and not finished. It was never acknowledged, unless what
    /// is missing of it was not cut off by a crash but damaged later: at the very end of the log one looks like
    /// the other.
    pub unfinished: Option<u64>,
}

impl Store {
    /// Opens a store on any medium. Nothing is written; the first stabilisation, or [`Store::maintain`], begins a new
    /// epoch.
    ///
    /// # Errors
    /// If it is no store, a newer one, or so damaged that a whole state cannot be had.
    pub fn open_on(medium: Arc<dyn Medium>) -> Result<(Store, OpenReport), OpenError> {
        open_at(medium, Path::new("log"), Hold::Alone)
    }
}

/// In which way a store is held.
#[derive(Debug)]
pub(crate) enum Hold {
    /// On a medium that nobody else can reach.
    Alone,
    /// By the one process that may write it.
    Owner(DirectoryLock),
    /// For reading, while its owner, if there is one, goes on.
    Reader(Reading),
}

impl Hold {
    /// The oldest generation that somebody reads.
    pub(crate) fn oldest_pin(&self) -> u64 {
        match self {
            Hold::Owner(lock) => lock.oldest_pin(),
            Hold::Alone | Hold::Reader(_) => u64::MAX,
        }
    }

    fn reading(&self) -> Option<&Reading> {
        match self {
            Hold::Reader(reading) => Some(reading),
            Hold::Alone | Hold::Owner(_) => None,
        }
    }
}

/// How often a reader begins again because the owner has written a root meanwhile.
const READER_ATTEMPTS: u32 = 10_000;

pub(crate) fn open_at(
    medium: Arc<dyn Medium>,
    path: &Path,
    hold: Hold,
) -> Result<(Store, OpenReport), OpenError> {
    let mut hold = hold;
    for _ in 0..READER_ATTEMPTS {
        match try_open(Arc::clone(&medium), path, hold, None)? {
            Opening::Done(opened) => return Ok(*opened),
            Opening::Overtaken(again) => hold = again,
        }
    }
    let source = io::Error::other("its owner writes roots faster than they can be read");
    Err(OpenError::Io { path: path.into(), action: "reading", source })
}

/// Opens a store at the newest state that can be proven whole, whatever may have been acknowledged behind it.
pub(crate) fn open_giving_up(
    medium: Arc<dyn Medium>,
    path: &Path,
    hold: Hold,
) -> Result<(Store, Left), OpenError> {
    let mut left = Left::default();
    match try_open(medium, path, hold, Some(&mut left))? {
        Opening::Done(opened) => Ok((opened.0, left)),
        Opening::Overtaken(_) => unreachable!("only readers are overtaken"),
    }
}

/// What is not in the state that a store was opened at.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// What the state behind it would have needed; nothing if it is the newest.
    pub(crate) damages: Vec<Damage>,
    /// The newest stabilisation that a root knows of.
    pub(crate) acknowledged: u64,
    /// The epoch of the state.
    pub(crate) epoch: u64,
}

impl Left {
    /// Takes note of damage, if that is how the store is opened; else it is an error.
    fn or(left: &mut Option<&mut Left>, damage: Damage) -> Result<(), Damage> {
        match left {
            Some(left) => {
                left.damages.push(damage);
                Ok(())
            }
            None => Err(damage),
        }
    }
}

enum Opening {
    Done(Box<(Store, OpenReport)>),
    /// The root that a reader chose has been written over before it was pinned.
    Overtaken(Hold),
}

fn try_open(
    medium: Arc<dyn Medium>,
    path: &Path,
    hold: Hold,
    mut left: Option<&mut Left>,
) -> Result<Opening, OpenError> {
    let io_error = |action, source| OpenError::Io { path: path.into(), action, source };
    let damaged = |damage| OpenError::Damaged { path: path.into(), damage };
    let read_error = |error| match error {
        ReadError::Damaged(damage) => damaged(damage),
        // What is read here is needed: a reader does not ask how long the file is, which its owner may change.
        ReadError::Io { offset, source } if source.kind() == io::ErrorKind::UnexpectedEof => {
            damaged(Damage::new(offset, "the file has been cut off before this"))
        }
        ReadError::Io { source, .. } => io_error("reading", source),
    };

    let len = medium.len().map_err(|source| io_error("asking for the length of", source))?;
    let header_len = HEADER_BLOCKS as usize * BLOCK;
    if len < header_len as u64 {
        // A store's all the same, if it begins as one.
        let mut first = vec![0; BLOCK];
        if len >= BLOCK as u64
            && medium.read(0, &mut first).is_ok()
            && Superblock::decode(&first).is_ok()
        {
            return Err(damaged(Damage::new(len, "the file has been cut off here")));
        }
        let why = format!("its {len} bytes are fewer than a store's header has");
        return Err(OpenError::NotAStore { path: path.into(), why });
    }
    let mut header = vec![0; header_len];
    let mut refused = read_header(&*medium, &mut header).err();
    let block = |index: u64| &header[index as usize * BLOCK..(index as usize + 1) * BLOCK];
    let superblocks = decode_superblocks(SUPERBLOCKS.map(block), path);
    let superblocks = superblocks.map_err(|error| match refused.take() {
        Some(source) => io_error("reading", source),
        None => error,
    })?;
    let roots_of = |superblock: &Superblock| -> Vec<(usize, Root)> {
        let id = superblock.store_id;
        (0..2)
            .filter_map(|slot| Some((slot, Root::decode_astray(block(ROOTS[slot]), id, slot)?)))
            .collect()
    };
    // One may be another store's.
    let its_own = superblocks.iter().find(|superblock| !roots_of(superblock).is_empty());
    let its_own = its_own.filter(|_| !planted::is(Bug::OneSuperblock));
    let superblock = *its_own.unwrap_or(&superblocks[0]);
    let store_id = superblock.store_id;

    let disk = Disk::new(Arc::clone(&medium), Sealer::new(store_id));
    let layout = Layout { segment_blocks: u64::from(superblock.segment_blocks) };
    let segments = layout.segments_in(len);

    // The newest root whose table can be read as well; the older one leads to the same state.
    let mut roots = roots_of(&superblock);
    roots.sort_by_key(|(_, root)| std::cmp::Reverse(root.generation));
    let versions = (0..2).filter_map(|slot| Root::version(block(ROOTS[slot]), store_id, slot));
    if let Some(found) = versions.max().filter(|&version| version > ROOT_VERSION_NEWEST) {
        let known = ROOT_VERSION_NEWEST;
        return Err(OpenError::NewerFormat { path: path.into(), found, known });
    }
    let newest = roots.first().map(|(_, root)| root.clone()).ok_or_else(|| match refused {
        Some(source) => io_error("reading", source),
        None => damaged(Damage::new(Place(ROOTS[0]).offset(), "both roots are unreadable")),
    })?;
    let mut loaded = None;
    let mut first_error = None;
    for (slot, root) in &roots {
        if let Some(reading) = hold.reading() {
            let pinned = reading.pin(root.generation).and_then(|()| {
                let mut block = vec![0; BLOCK];
                medium.read(Place(ROOTS[*slot]).offset(), &mut block)?;
                Ok(Root::decode_astray(&block, store_id, *slot).as_ref() == Some(root))
            });
            if !pinned.map_err(|source| io_error("pinning", source))? {
                return Ok(Opening::Overtaken(hold));
            }
        }
        // A file that its owner has made shorter since has lost segments that were free already.
        let segments =
            if hold.reading().is_some() { segments.max(root.segments as usize) } else { segments };
        match load_table(&disk, layout, root, segments) {
            Ok(table) => {
                loaded = Some((*slot, root.clone(), table));
                break;
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    let Some((slot, root, (versions, space, settings))) = loaded else {
        return Err(read_error(first_error.expect("no root was loaded, so one failed")));
    };
    let fell_back = roots.len() < 2 || root.generation != newest.generation;
    let mut replay =
        Replay::new(&disk, layout, store_id, space, root.position, hold.reading().is_some());
    let written_before = root.written.before(root.position.sequence);
    (replay.settings, replay.twins, replay.written) = (settings, root.twins, written_before);
    if let Some(damage) = replay.run().map_err(read_error)? {
        Left::or(&mut left, damage).map_err(damaged)?;
    }
    if replay.position.sequence < newest.position.sequence {
        let offset = replay.position.place.offset();
        let what = format!(
            "the record chain ends behind stabilisation {}, though {} was acknowledged",
            replay.position.sequence, newest.position.sequence
        );
        Left::or(&mut left, Damage::new(offset, what)).map_err(damaged)?;
    }
    if newest.position.epoch > root.position.epoch && !planted::is(Bug::EpochForgotten) {
        // Nothing is appended in an epoch before both roots name it.
        if let Some((at, chunk)) = replay.begun_at(&newest.position).map_err(read_error)? {
            let mut why = first_error.expect("the newest root was not loaded");
            if let ReadError::Damaged(damage) = &mut why {
                damage.what.push_str(&format!(
                    "; the other root is too old to do without it: chunk {} at offset {:#x}, of stabilisation {}, \
                     was written later",
                    chunk.serial,
                    at.offset(),
                    chunk.sequence
                ));
            }
            match why {
                ReadError::Damaged(damage) => Left::or(&mut left, damage).map_err(damaged)?,
                refused @ ReadError::Io { .. } => return Err(read_error(refused)),
            }
        }
    }
    if let Some(left) = left {
        (left.acknowledged, left.epoch) = (newest.position.sequence, replay.position.epoch);
        // Behind all that is given up.
        replay.position.epoch = replay.position.epoch.max(newest.position.epoch);
    }
    let Replay { position, layer, mut space, report, replay_blocks, settings, written, .. } =
        replay;
    // Going back to the older root leaves the cold stream's end unknown.
    let usable = space.has(root.cold) && layout.room(root.cold) >= 2;
    let cold = if fell_back || !usable { Place::NONE } else { root.cold };
    if !cold.is_none() {
        space.note_cold(cold);
    }
    let oldest_pin = hold.oldest_pin();
    if oldest_pin <= newest.generation && (fell_back || oldest_pin < root.generation) {
        space.hold_back(newest.generation + 1);
    }
    if report.records_replayed > 0 && hold.reading().is_none() {
        // What is shown from now on must not vanish: the last record may not have been flushed.
        disk.sync(Purpose::Upkeep, disk.failures())
            .map_err(|error| io_error("flushing", io::Error::other(error.to_string())))?;
    }
    let live = hold.reading().is_some_and(Reading::has_owner);
    let report = OpenReport {
        last_sequence: position.sequence,
        bytes_read: disk.counters().read_bytes + header_len as u64,
        // While the owner is at work, that is how its own writing looks.
        fell_back: fell_back && !live,
        unfinished: report.unfinished.filter(|_| !live),
        ..report
    };
    let needs_epoch = hold.reading().is_none();
    let store = Store {
        header: StoreHeader::from(superblock),
        disk,
        state: RwLock::new(State {
            active: layer,
            frozen: None,
            trees: versions.live,
            snapshots: versions.snapshots,
            leaving: None,
            space,
            position,
            replay_blocks,
            version: 0,
            generation: root.generation,
            settings,
            written,
        }),
        writer: Mutex::new(Writer::default()),
        queue: Queue::default(),
        keeper: Mutex::new(Keeper {
            generation: newest.generation,
            slot: 1 - slot,
            stand_in: fell_back.then(|| Root { written: written_before, ..root.clone() }),
            cold: Cold::new(position.epoch, cold, root.table),
            moved: Cold::of_moved(position.epoch),
            gathered: Gathered::default(),
            reading: None,
            untidy: Untidy::default(),
            roots_in_vain: 0,
            moves: Moves::default(),
            lost: root.lost,
            recount: root.lost,
        }),
        growing: Mutex::new(()),
        needs_epoch: AtomicBool::new(needs_epoch),
        groups: AtomicBool::new(root.groups),
        recent_need: AtomicU64::new(0),
        fruitless: AtomicU64::new(0),
        shrink_rest: AtomicU64::new(0),
        tidied_at: AtomicU64::new(LOOK_AGAIN_BYTES),
        opened: Instant::now(),
        last_commit: AtomicU64::new(0),
        disk_full: AtomicBool::new(false),
        space_percent: AtomicU32::new(SPACE_PERCENT),
        quota_bytes: AtomicU64::new(u64::MAX),
        hold,
    };
    store.heed(&store.state().settings);
    Ok(Opening::Done(Box::new((store, report))))
}

/// Reads the blocks before the first segment; those that the disk refuses to read are as good as damaged, and zero.
fn read_header(medium: &dyn Medium, header: &mut [u8]) -> io::Result<()> {
    if medium.read(0, header).is_ok() {
        return Ok(());
    }
    let mut outcome = Ok(());
    for (index, block) in (0..).zip(header.chunks_mut(BLOCK)) {
        if let Err(error) = medium.read(Place(index).offset(), block) {
            block.fill(0);
            outcome = Err(error);
        }
    }
    outcome
}

/// The superblock and its copy, as far as they are whole; one of them at the least.
fn decode_superblocks(blocks: [&[u8]; 2], path: &Path) -> Result<Vec<Superblock>, OpenError> {
    let path = path.to_path_buf();
    let decoded = blocks.map(Superblock::decode);
    let whole: Vec<Superblock> = decoded.iter().filter_map(|decoded| decoded.ok()).collect();
    if !whole.is_empty() {
        return Ok(whole);
    }
    // The most telling reason of the two.
    let reasons = decoded.map(|decoded| decoded.expect_err("none was read"));
    let telling = reasons
        .iter()
        .find(|reason| !matches!(reason, BadSuperblock::NoMagic | BadSuperblock::Checksum))
        .or_else(|| reasons.iter().find(|reason| matches!(reason, BadSuperblock::Checksum)))
        .copied()
        .unwrap_or(BadSuperblock::NoMagic);
    Err(match telling {
        BadSuperblock::NoMagic => {
            let why = "it does not begin as a store does".into();
            OpenError::NotAStore { path, why }
        }
        BadSuperblock::Checksum => {
            let what = "the superblock and its copy do not have their checksums";
            OpenError::Damaged { path, damage: Damage::new(0, what) }
        }
        BadSuperblock::Newer { found } => {
            OpenError::NewerFormat { path, found, known: FORMAT_VERSION }
        }
        BadSuperblock::Features { unknown } => OpenError::UnknownFeatures { path, unknown },
        BadSuperblock::Nonsense(why) => OpenError::NotAStore { path, why: format!("it has {why}") },
    })
}

type Table = (Versions, Space, Settings);

pub(crate) fn load_table(
    disk: &Disk,
    layout: Layout,
    root: &Root,
    segments_in_file: usize,
) -> Result<Table, ReadError> {
    let (containers, segments) = (root.containers as usize, root.segments as usize);
    if segments_in_file < segments {
        let offset = layout.file_bytes(segments_in_file);
        let what = format!(
            "the file has been cut off: {} bytes are missing at its end",
            layout.file_bytes(segments) - offset
        );
        return Err(Damage::new(offset, what).into());
    }
    let mut bytes = Vec::new();
    let mut index = 0;
    let end = HEADER_BLOCKS + segments_in_file as u64 * layout.segment_blocks;
    for extent in &root.table {
        let offset = extent.place.offset();
        let inside = extent.place.0 >= HEADER_BLOCKS
            && extent.place.0.checked_add(u64::from(extent.blocks)).is_some_and(|e| e <= end);
        if !inside || u64::from(extent.blocks) >= layout.chunk_blocks() {
            return Err(Damage::new(offset, "the table lies beyond the end of the file").into());
        }
        let mut part = AlignedBuf::zeroed(extent.blocks as usize * BLOCK);
        disk.read(offset, part.as_mut_slice())?;
        let checksums = part.as_slice().chunks(BLOCK).map(|block| {
            let entry = Entry::Table(index);
            index += 1;
            disk.sealer().block(entry, block)
        });
        if extent_checksum(checksums) != extent.checksum {
            let what = "the table of containers does not have the checksum it was written with";
            return Err(Damage::new(offset, what).into());
        }
        bytes.extend_from_slice(part.as_slice());
    }
    let nonsense = |what: &str| {
        let offset = root.table.first().map_or(0, |extent| extent.place.offset());
        ReadError::from(Damage::new(offset, format!("the table of containers {what}")))
    };
    let lengths = [
        containers * TABLE_CONTAINER_BYTES,
        segments * TABLE_SEGMENT_BYTES,
        root.versions as usize,
        root.quotas as usize * TABLE_QUOTA_BYTES,
    ];
    if bytes.len() < lengths.iter().sum() {
        return Err(nonsense("is shorter than its root says"));
    }
    let mut trees = Trees::new();
    let (tree_bytes, rest) = bytes.split_at(lengths[0]);
    let (segment_bytes, rest) = rest.split_at(lengths[1]);
    for entry in tree_bytes.chunks(TABLE_CONTAINER_BYTES) {
        let container = ContainerId(get_u32(entry, 0));
        let at = Located { place: Place(get_u64(entry, 8)), checksum: get_u64(entry, 16) };
        let levels = u8::try_from(get_u32(entry, 4)).unwrap_or(u8::MAX);
        let tree = Tree::stored(container, Origins::default(), levels, at, get_u64(entry, 24))
            .filter(|_| container <= ContainerId::MAX)
            .ok_or_else(|| nonsense("names a map that cannot be"))?;
        trees.insert(container, Arc::new(tree));
    }
    let table: Vec<u32> =
        segment_bytes.chunks(TABLE_SEGMENT_BYTES).map(|entry| get_u32(entry, 0)).collect();
    let mut space = Space::decode(layout, root.generation, &table)
        .ok_or_else(|| nonsense("counts more blocks than a segment has"))?;
    space.add_segments(segments_in_file - segments, true);
    let position = &root.position;
    // Behind a chunk there is always room for another one and a block of its own.
    let next = position.next_segment;
    let next_can_be = next.is_none() || space.has(next) && layout.is_start(next);
    if !space.has(position.place) || layout.room(position.place) < 2 || !next_can_be {
        return Err(nonsense("lies apart from the record chain"));
    }
    let (version_bytes, rest) = rest.split_at(lengths[2]);
    let settings = Settings::decode(root.quota, root.space_percent, &rest[..lengths[3]])
        .ok_or_else(|| nonsense("gives a quota to what is no container"))?;
    let versions = Versions::decode(trees, root.pinned, version_bytes)
        .ok_or_else(|| nonsense("names snapshots that cannot be"))?;
    let snapshots = versions.snapshots.list.iter().flat_map(|snapshot| snapshot.trees.values());
    // Snapshots get the generations of roots as numbers, and later ones higher numbers.
    let numbers = versions.snapshots.list.iter().map(|snapshot| snapshot.info.number);
    if numbers.max().is_some_and(|number| number > root.generation) {
        return Err(nonsense("names snapshots that cannot be"));
    }
    let can_be = |at: Located| at.is_never() || space.has(at.place);
    if !versions.live.values().chain(snapshots).all(|tree| can_be(tree.root())) {
        return Err(nonsense("names a map beyond the end of the file"));
    }
    if versions.snapshots.pinned > end {
        return Err(nonsense("counts more blocks of snapshots than the file has"));
    }
    Ok((versions, space, settings))
}

/// A record whose chunks have all been found.
struct Record {
    chunks: Vec<(Place, Chunk)>,
    behind: LogPosition,
}

/// Follows the record chain from a root.
struct Replay<'a> {
    disk: &'a Disk,
    layout: Layout,
    store_id: u128,
    window: Window,
    /// Whether the owner may be writing at the chain's end.
    live: bool,
    /// Whether chunks have twins of their headers.
    twins: bool,
    /// Behind the last record that counts.
    position: LogPosition,
    layer: Layer,
    space: Space,
    settings: Settings,
    written: Written,
    report: OpenReport,
    replay_blocks: u64,
}

impl<'a> Replay<'a> {
    fn new(
        disk: &'a Disk,
        layout: Layout,
        store_id: u128,
        space: Space,
        position: LogPosition,
        live: bool,
    ) -> Self {
        Replay {
            disk,
            layout,
            store_id,
            window: Window {
                first: Place::NONE,
                held: 0,
                // It never holds blocks of more than one segment.
                buffer: AlignedBuf::zeroed(READ_MOST.min(layout.segment_blocks) as usize * BLOCK),
                blocks: 0,
                scanning: false,
            },
            live,
            twins: false,
            position,
            layer: Layer::default(),
            space,
            settings: Settings::default(),
            written: Written::default(),
            report: OpenReport::default(),
            replay_blocks: 0,
        }
    }

    /// What is damaged behind the last state that can be had, if something is.
    fn run(&mut self) -> Result<Option<Damage>, ReadError> {
        self.space.note_chain(self.position.place);
        // Where the next chunk must lie, behind all that has been found.
        let mut cursor = self.position;
        let mut open: Vec<(Place, Chunk)> = Vec::new();
        // Complete, but only a later chunk behind another flush or their own images show that they were flushed.
        let mut unproven: VecDeque<Record> = VecDeque::new();
        while let Some((chunk, checksum)) = self.next(&cursor, open.len())? {
            let believed = planted::is(Bug::GroupBelieved);
            while let Some(record) =
                unproven.pop_front_if(|r| r.behind.sequence <= chunk.proves() || believed)
            {
                self.apply(record);
            }
            let (at, kind, last, time) = (cursor.place, chunk.kind, chunk.last, chunk.time);
            (cursor.place, cursor.next_segment) =
                self.layout.behind(at, chunk.blocks(), chunk.next_segment);
            cursor.serial += 1;
            cursor.chain = checksum;
            open.push((at, chunk));
            let record_ends = last || kind == ChunkKind::Commit;
            if record_ends {
                cursor.sequence += 1;
                cursor.time = time;
                let record = Record { chunks: std::mem::take(&mut open), behind: cursor };
                if last {
                    unproven.push_back(record);
                } else {
                    self.apply(record);
                }
            }
        }
        let mut cut_off = None;
        for record in unproven {
            if planted::is(Bug::ChecksumSkipped) || self.is_whole(&record)? {
                self.apply(record);
            } else {
                self.report.unfinished = Some(record.behind.sequence);
                cursor.sequence = record.behind.sequence - 1;
                cut_off = Some(record);
                break;
            }
        }
        let under_way = cursor.sequence + 1;
        let mut cut = None;
        if !open.is_empty() || self.resembles_next(&cursor)? {
            self.report.unfinished = Some(under_way);
        }
        if !planted::is(Bug::BlindTail)
            && let Some((at, chunk)) = self.look_onward(&cursor, under_way)?
            && !(self.live && self.has_come(&cursor, open.len(), cut_off)?)
        {
            let what = format!(
                "chunk {} of the record chain, of stabilisation {under_way} or later, is unreadable; a chunk \
                 of stabilisation {} at offset {:#x} shows that it was acknowledged",
                cursor.serial,
                chunk.sequence,
                at.offset()
            );
            cut = Some(Damage::new(cursor.place.offset(), what));
        }
        self.space.note_chain(self.position.place);
        if !self.position.next_segment.is_none() {
            self.space.note_chain(self.position.next_segment);
        }
        Ok(cut)
    }

    /// Whether what was missing at the cursor is there now: the owner has written it, and more, since it was looked
    /// for. The state before it has been acknowledged then, and is as good as any later one.
    fn has_come(
        &mut self,
        cursor: &LogPosition,
        ordinal: usize,
        cut_off: Option<Record>,
    ) -> Result<bool, ReadError> {
        if let Some(record) = cut_off {
            return self.is_whole(&record);
        }
        self.window.held = 0;
        self.window.scanning = false;
        Ok(self.next(cursor, ordinal)?.is_some())
    }

    /// Whether the file has a segment for this block.
    fn has(&mut self, place: Place) -> bool {
        if !self.space.has(place)
            && self.live
            && let Ok(len) = self.disk.len()
        {
            // The owner has made it longer meanwhile.
            let (now, then) = (self.layout.segments_in(len), self.space.segments());
            self.space.add_segments(now.saturating_sub(then), true);
        }
        self.space.has(place)
    }

    /// The chunk at the cursor, if it is the chain's next, with its checksum.
    fn next(
        &mut self,
        cursor: &LogPosition,
        ordinal: usize,
    ) -> Result<Option<(Chunk, u64)>, ReadError> {
        let header = self.header_at(cursor.place);
        if let Ok(Some((chunk, _))) = &header
            && self.continues(cursor, ordinal, chunk)
        {
            return header;
        }
        // What the disk refuses to read, and not only once, is as good as damaged, if its twin's place can be read.
        match (header, self.next_by_twin(cursor, ordinal)) {
            (_, Ok(Some(found))) => Ok(Some(found)),
            (Err(refused), twin) if twin.is_err() || !self.twins => Err(refused),
            (_, Ok(None) | Err(_)) => Ok(None),
        }
    }

    /// The same by the twin of its header: that itself is damaged, or a crash has kept only the other. An error if there is
    /// none where it can be read, and it may be where it cannot.
    fn next_by_twin(
        &mut self,
        cursor: &LogPosition,
        ordinal: usize,
    ) -> Result<Option<(Chunk, u64)>, ReadError> {
        if !self.twins || !self.has(cursor.place) || planted::is(Bug::TwinIgnored) {
            return Ok(None);
        }
        let room = self.layout.room(cursor.place);
        let segment_end = cursor.place.plus(room);
        self.window.scanning = true;
        let mut found = None;
        let mut refused = None;
        for blocks in RECORD_FIXED_BLOCKS..=self.layout.record_blocks().min(room) {
            let place = cursor.place.plus(blocks - 1);
            let block = match self.window.block(self.disk, place, segment_end) {
                Ok(block) => block,
                Err(error) => {
                    refused = Some(error);
                    continue;
                }
            };
            let twin = Chunk::by_twin(block, self.store_id, blocks);
            // With the bug, one other: more might lead in circles.
            let another = planted::is(Bug::TwinOfAnother) && self.report.found_by_copy == 0;
            found = twin.filter(|(chunk, _)| {
                self.continues(cursor, ordinal, chunk) || another && self.is_in_chain(chunk)
            });
            if found.is_some() {
                self.report.found_by_copy += 1;
                break;
            }
        }
        self.window.scanning = false;
        match refused.filter(|_| found.is_none()) {
            Some(error) => Err(error),
            None => Ok(found),
        }
    }

    /// Whether a chunk at the cursor is the chain's next.
    fn continues(&mut self, cursor: &LogPosition, ordinal: usize, chunk: &Chunk) -> bool {
        self.is_in_chain(chunk)
            && chunk.serial == cursor.serial
            && chunk.previous == cursor.chain
            && chunk.sequence == cursor.sequence + 1
            && chunk.ordinal as usize == ordinal
            && chunk.blocks() <= self.layout.room(cursor.place)
            && self.has(chunk.next_segment)
            && self.layout.is_start(chunk.next_segment)
    }

    /// Whether what lies at the cursor seems to have been meant as the chain's next chunk.
    fn resembles_next(&mut self, cursor: &LogPosition) -> Result<bool, ReadError> {
        if !self.has(cursor.place) {
            return Ok(false);
        }
        let end = cursor.place.plus(self.layout.room(cursor.place));
        let block = self.window.block(self.disk, cursor.place, end);
        Ok(block
            .is_ok_and(|block| Chunk::resembles(block, self.store_id, cursor.epoch, cursor.serial)))
    }

    fn is_in_chain(&self, chunk: &Chunk) -> bool {
        chunk.kind != ChunkKind::Cold && chunk.epoch == self.position.epoch
    }

    fn header_at(&mut self, place: Place) -> Result<Option<(Chunk, u64)>, ReadError> {
        if !self.has(place) {
            return Ok(None);
        }
        let segment_end = place.plus(self.layout.room(place));
        let block = self.window.block(self.disk, place, segment_end)?;
        Ok(Chunk::decode(block, self.store_id))
    }

    /// Whether all images of the record have their checksums.
    fn is_whole(&self, record: &Record) -> Result<bool, ReadError> {
        for (at, chunk) in &record.chunks {
            let mut payload = AlignedBuf::zeroed(chunk.payload_blocks() * BLOCK);
            self.disk.read(at.plus(1).offset(), payload.as_mut_slice())?;
            for (entry, located) in chunk.located(*at).filter(|(entry, _)| entry.has_payload()) {
                let start = (located.place.0 - at.0 - 1) as usize * BLOCK;
                let block = &payload.as_slice()[start..start + BLOCK];
                if self.disk.sealer().block(entry, block) != located.checksum {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn apply(&mut self, record: Record) {
        for (at, chunk) in &record.chunks {
            self.space.note_chain(*at);
            for (entry, located) in chunk.located(*at) {
                let (layer, space) = (&mut self.layer, &mut self.space);
                if planted::is(Bug::QuotaOutlives) {
                    enter(layer, space, &mut Settings::default(), entry, located);
                } else {
                    enter(layer, space, &mut self.settings, entry, located);
                }
            }
            self.replay_blocks += replay_cost(chunk);
            self.written.add_record(chunk);
        }
        self.report.records_replayed += 1;
        self.report.chunks_replayed += record.chunks.len() as u64;
        self.position = record.behind;
    }

    /// Looks behind the chain's seeming end for a chunk that could only have been written after the one under
    /// way there had been acknowledged.
    fn look_onward(
        &mut self,
        from: &LogPosition,
        under_way: u64,
    ) -> Result<Option<(Place, Chunk)>, ReadError> {
        self.window.scanning = true;
        let ways = [(from.place, from.next_segment, LOOK_ONWARD)];
        // If a whole segment is missing, the way onward is not known. Some of those that the chain would
        // have taken next wait for roots as far as is known here.
        let starts = self.space.unneeded(LOOK_ONWARD_SEGMENTS);
        let ways = ways.into_iter().chain(starts.into_iter().map(|at| (at, Place::NONE, 1)));
        for (mut place, mut next_segment, mut left) in ways {
            // Serials only go up: a chunk that was written to a wrong place must not lead in circles.
            let mut seen = from.serial;
            // What a chunk names as the next segment has been checked only for those on the chain itself.
            while left > 0 && self.has(place) {
                left -= 1;
                match self.onward(place, seen, under_way)? {
                    Onward::Later(chunk) => return Ok(Some((place, chunk))),
                    // Of the one under way, some chunks have come through.
                    Onward::UnderWay(at, chunk) => {
                        seen = chunk.serial;
                        left = LOOK_ONWARD;
                        (place, next_segment) =
                            self.layout.behind(at, chunk.blocks(), chunk.next_segment);
                    }
                    Onward::Nothing if self.layout.room(place) > 1 => place = place.plus(1),
                    Onward::Nothing => (place, next_segment) = (next_segment, Place::NONE),
                }
            }
            self.window.scanning = false;
        }
        Ok(None)
    }

    /// Looks for chunks of the chain that begins at `from`, in an epoch of its own.
    fn begun_at(&mut self, from: &LogPosition) -> Result<Option<(Place, Chunk)>, ReadError> {
        if !self.has(from.place) {
            return Ok(None);
        }
        let (epoch, report) = (self.position.epoch, self.report);
        self.position.epoch = from.epoch;
        let begun = match self.header_at(from.place)? {
            Some((first, _)) if self.is_in_chain(&first) => Some((from.place, first)),
            _ => self.look_onward(from, 0)?,
        };
        (self.position.epoch, self.report) = (epoch, report);
        Ok(begun)
    }

    /// What the block at `place` says of the chain behind chunk `behind`.
    fn onward(&mut self, place: Place, behind: u64, under_way: u64) -> Result<Onward, ReadError> {
        // One that the disk refuses to read tells nothing, as one that is damaged.
        let Ok(Some((at, chunk))) = self.chunk_of(place) else { return Ok(Onward::Nothing) };
        if !self.is_in_chain(&chunk) || chunk.serial <= behind {
            return Ok(Onward::Nothing);
        }
        if chunk.proves() >= under_way {
            return Ok(Onward::Later(chunk));
        }
        self.report.unfinished = Some(under_way);
        Ok(Onward::UnderWay(at, chunk))
    }

    /// The chunk of which the block at `place` is the header or its twin, and where it begins.
    fn chunk_of(&mut self, place: Place) -> Result<Option<(Place, Chunk)>, ReadError> {
        if let Some((chunk, _)) = self.header_at(place)? {
            return Ok(Some((place, chunk)));
        }
        if !self.twins {
            return Ok(None);
        }
        let segment_end = place.plus(self.layout.room(place));
        let block = self.window.block(self.disk, place, segment_end)?;
        let Some((chunk, _)) = Chunk::decode_twin(block, self.store_id) else { return Ok(None) };
        let begins = place.0.checked_sub(chunk.blocks() - 1).map(Place);
        Ok(begins.filter(|&at| self.space.has(at)).map(|at| (at, chunk)))
    }
}

/// What lies behind the chain's seeming end.
enum Onward {
    /// A chunk that could only have been written after what is missing had been acknowledged.
    Later(Chunk),
    /// A chunk of the stabilisation that is not complete, and where it begins.
    UnderWay(Place, Chunk),
    Nothing,
}

/// Blocks read ahead: more of them the more of them are of use.
struct Window {
    first: Place,
    held: u64,
    buffer: AlignedBuf,
    /// How many were read last time.
    blocks: u64,
    /// Whether every block is going to be looked at.
    scanning: bool,
}

impl Window {
    /// The block at `place`, and those behind it up to `end` at the most.
    fn block(&mut self, disk: &Disk, place: Place, end: Place) -> Result<&[u8], ReadError> {
        let held = self.held;
        if place < self.first || place.0 >= self.first.0 + held {
            // Until it succeeds nothing is held.
            self.held = 0;
            // Just behind what was read: it was all of use. Far from it: none behind the first was.
            let near = place.0.saturating_sub(self.first.0 + held) <= READ_LEAST;
            self.blocks = match (self.scanning, near) {
                (true, _) => READ_MOST,
                (false, true) => (self.blocks * 2).clamp(READ_LEAST, READ_MOST),
                (false, false) => 1,
            };
            let blocks = self.blocks.min(end.0 - place.0);
            let bytes = &mut self.buffer.as_mut_slice()[..blocks as usize * BLOCK];
            // Past the cache: what was written past it is not there, and reading ahead is done here.
            let mut held = blocks;
            if disk.read_from_disk(place.offset(), bytes).is_err() {
                // Another of them may be what the disk refuses, or it refused only once.
                disk.read_from_disk(place.offset(), &mut bytes[..BLOCK])?;
                held = 1;
            }
            (self.first, self.held) = (place, held);
        }
        let at = (place.0 - self.first.0) as usize * BLOCK;
        Ok(&self.buffer.as_slice()[at..at + BLOCK])
    }
}
