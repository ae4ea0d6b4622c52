//! The bytes of a store: superblock, roots, chunks, map nodes, checksums. Nothing here reads or writes a
//! file; `docs/store-format.md` tells the same in words. Read [`Superblock`], [`Root`] and [`Chunk`] first.
//!
//! All numbers are little-endian. The unit of place is the block of [`BLOCK`] bytes.

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo, PageRange, WINDOW_COUNT};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::Damage;
use crate::planted::{self, Bug};
use crate::written::Written;

/// Bytes in a block, the unit of places in the file. One page fills one block.
pub(crate) const BLOCK: usize = PAGE_SIZE;

/// Blocks before the first segment: the superblock, two roots, the superblock's copy, and room.
pub(crate) const HEADER_BLOCKS: u64 = 16;

/// Where the superblock and its copy lie.
pub(crate) const SUPERBLOCKS: [u64; 2] = [0, 3];

/// Where the two roots lie.
pub(crate) const ROOTS: [u64; 2] = [1, 2];

/// The format that this version writes, and the newest that it reads.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// The version of a root that names neither snapshots nor branches, and of one that does. A reader that knows only
/// the first takes the second for no root at all, since it is sealed in another way.
const ROOT_VERSION: u32 = 1;
const ROOT_VERSION_SNAPSHOTS: u32 = 2;
/// As the second, of a store in whose chain there may be stabilisations that shared a flush. A reader that does
/// not know of those would believe too much of what it finds at the chain's end.
const ROOT_VERSION_GROUPS: u32 = 3;
const ROOT_VERSION_LOST: u32 = 4;
/// Of a store with settings. It says with flags what the numbers of the former say, and has more room before its
/// extents. A reader that knows only those would forget the settings.
const ROOT_VERSION_SETTINGS: u32 = 5;
/// As the fifth, of a store in whose chain each chunk has a twin of its header: there is more room between headers than a
/// reader that knows only the former would skip. What is begun now is of this version.
const ROOT_VERSION_TWINS: u32 = 6;
pub(crate) const ROOT_VERSION_NEWEST: u32 = ROOT_VERSION_TWINS;

/// Flags of a root with settings: [`Root::groups`], [`Root::lost`].
const ROOT_GROUPS: u32 = 1;
const ROOT_LOST: u32 = 2;

const SUPERBLOCK_MAGIC: u64 = u64::from_le_bytes(*b"STEADLOG");
const ROOT_MAGIC: u64 = u64::from_le_bytes(*b"STEADRUT");
const CHUNK_MAGIC: u64 = u64::from_le_bytes(*b"STEADCHK");
const TWIN_MAGIC: u64 = u64::from_le_bytes(*b"STEADTWN");

/// Where a superblock's or a root's checksum lies: the end of the block.
const SEAL: usize = BLOCK - 8;

/// Bytes of a chunk's header before its entries.
const CHUNK_FIXED: usize = 128;
const CHUNK_CHECKSUM: usize = 120;
const ENTRY_BYTES: usize = 16;

/// Blocks of a chunk that is a part of the record chain, beside its payload: the header and its twin.
pub(crate) const RECORD_FIXED_BLOCKS: u64 = 2;

/// Most entries, and so most payload blocks, of one chunk.
pub(crate) const CHUNK_ENTRIES: usize = (BLOCK - CHUNK_FIXED) / ENTRY_BYTES;

/// Bytes of a container and of a segment in the table.
pub(crate) const TABLE_CONTAINER_BYTES: usize = 40;
pub(crate) const TABLE_SEGMENT_BYTES: usize = 4;
/// The same of a container that has a quota.
pub(crate) const TABLE_QUOTA_BYTES: usize = 12;

/// Bytes of a root before its extents, without settings and with them.
const ROOT_FIXED: usize = 128;
const ROOT_FIXED_SETTINGS: usize = 224;
const EXTENT_BYTES: usize = 24;

/// Where a root with settings says what has been written so far.
const ROOT_WRITTEN: usize = 152;

/// More than any number that goes up by one can come to.
const COUNTER_MOST: u64 = 1 << 62;

/// Most extents of the table that a root of any version can name.
pub(crate) const ROOT_EXTENTS: usize = (SEAL - ROOT_FIXED_SETTINGS) / EXTENT_BYTES;

/// A block's number in the file; 0, where the superblock lies, stands for "nowhere".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Place(pub(crate) u64);

impl Place {
    pub(crate) const NONE: Place = Place(0);
    /// See [`Located::lost_with`].
    const LOST: Place = Place(u64::MAX);

    pub(crate) fn is_none(self) -> bool {
        self == Place::NONE
    }

    /// In bytes; a place that no file can have becomes an offset that no file has.
    pub(crate) fn offset(self) -> u64 {
        self.0.saturating_mul(BLOCK as u64)
    }

    pub(crate) fn plus(self, blocks: u64) -> Place {
        Place(self.0 + blocks)
    }
}

/// Where a block lies and what its checksum must be. With [`Place::NONE`]: never stored, all zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Located {
    pub(crate) place: Place,
    pub(crate) checksum: u64,
}

impl Located {
    pub(crate) const NEVER: Located = Located { place: Place::NONE, checksum: 0 };

    /// Stands in a map for what a damaged part of it, at `place`, told: nobody knows any more.
    pub(crate) fn lost_with(place: Place) -> Located {
        Located { place: Place::LOST, checksum: place.0 }
    }

    /// As it stands in a node of a map.
    pub(crate) fn get(node: &[u8], at: usize) -> Located {
        Located { place: Place(get_u64(node, at)), checksum: get_u64(node, at + 8) }
    }

    pub(crate) fn is_lost(self) -> bool {
        self.place == Place::LOST
    }

    /// Where it lies; of what is lost, where the damaged part lay that told of it.
    pub(crate) fn told_at(self) -> Place {
        if self.is_lost() { Place(self.checksum) } else { self.place }
    }

    /// The error for what is lost.
    pub(crate) fn lost(self, id: NodeId) -> Damage {
        let (container, pages) = (id.container, id.pages());
        let what = format!(
            "a part of the map of container {container} was found damaged here, and what it told of pages {} to {} is \
             lost; storing them anew heals them",
            pages.start, pages.end
        );
        Damage {
            map_of: Some((container, pages)),
            ..Damage::new(Place(self.checksum).offset(), what)
        }
    }

    /// As [`Located::lost`], for one page.
    pub(crate) fn lost_page(self, id: PageId) -> Damage {
        let what = format!(
            "the part of the map that told of {id} was found damaged here, and it is lost; storing it anew heals it"
        );
        Damage { page: Some(id), ..Damage::new(Place(self.checksum).offset(), what) }
    }

    pub(crate) fn is_never(self) -> bool {
        self.place.is_none()
    }
}

fn get_u16(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(block[at..at + 2].try_into().expect("two bytes"))
}

pub(crate) fn get_u32(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn get_u64(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"))
}

fn get_u128(block: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(block[at..at + 16].try_into().expect("sixteen bytes"))
}

pub(crate) fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

/// What a block or page *is*, in one number: 2 bits of operation, 22 of container, 40 of page. For a node
/// of the map the 40 bits are 8 of level and 32 of index.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct EntryId(pub(crate) u64);

/// What an entry of a chunk says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    /// The next payload block is this page's image.
    Image(PageId),
    /// This page is now all zero, or freed.
    Zero(PageId),
    /// All pages of this container are gone.
    Drop(ContainerId),
    /// The next payload block is this node of the map.
    Node(NodeId),
    /// The next payload block is this block of the table.
    Table(u32),
}

/// A node of a container's map: level 0 are leaves; node `index` of level `l` covers the pages from
/// `index << 8 * (l + 1)` on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct NodeId {
    pub(crate) container: ContainerId,
    pub(crate) level: u8,
    pub(crate) index: u32,
}

impl NodeId {
    /// The pages whose places the node, or those below it, tell.
    pub(crate) fn pages(self) -> PageRange {
        let shift = 8 * (u32::from(self.level) + 1);
        let first = u64::from(self.index) << shift;
        PageRange::new(first, first + (1 << shift))
    }
}

const OP_IMAGE: u64 = 0;
const OP_ZERO: u64 = 1;
const OP_DROP: u64 = 2;
const OP_NODE: u64 = 3;
/// Stands in the level of an entry that names a block of the table.
const TABLE_LEVEL: u8 = 0xff;

impl Entry {
    pub(crate) fn id(self) -> EntryId {
        let (op, container, low) = match self {
            Entry::Image(id) => (OP_IMAGE, id.container, id.page.0),
            Entry::Zero(id) => (OP_ZERO, id.container, id.page.0),
            Entry::Drop(container) => (OP_DROP, container, 0),
            Entry::Node(node) => {
                (OP_NODE, node.container, u64::from(node.level) << 32 | u64::from(node.index))
            }
            Entry::Table(index) => {
                (OP_NODE, ContainerId(0), u64::from(TABLE_LEVEL) << 32 | u64::from(index))
            }
        };
        debug_assert!(container <= ContainerId::MAX && low < PageNo::LIMIT);
        EntryId(op << 62 | u64::from(container.0) << 40 | low)
    }

    /// The same page or node of another container.
    pub(crate) fn of_container(self, container: ContainerId) -> Entry {
        match self {
            Entry::Image(id) => Entry::Image(PageId { container, ..id }),
            Entry::Zero(id) => Entry::Zero(PageId { container, ..id }),
            Entry::Drop(_) => Entry::Drop(container),
            Entry::Node(id) => Entry::Node(NodeId { container, ..id }),
            Entry::Table(index) => Entry::Table(index),
        }
    }

    /// Whether a payload block belongs to it.
    pub(crate) fn has_payload(self) -> bool {
        matches!(self, Entry::Image(_) | Entry::Node(_) | Entry::Table(_))
    }
}

impl EntryId {
    pub(crate) fn entry(self) -> Entry {
        let container = ContainerId((self.0 >> 40) as u32 & ContainerId::MAX.0);
        let low = self.0 & (PageNo::LIMIT - 1);
        let page = PageId { container, page: PageNo(low) };
        let level = (low >> 32) as u8;
        let index = low as u32;
        match self.0 >> 62 {
            OP_IMAGE => Entry::Image(page),
            OP_ZERO => Entry::Zero(page),
            OP_DROP => Entry::Drop(container),
            _ if level == TABLE_LEVEL => Entry::Table(index),
            _ => Entry::Node(NodeId { container, level, index }),
        }
    }
}

/// Makes checksums that hold only for one block of one store: the seed says what the block is, so that
/// a block that was written or read at a wrong place does not pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sealer {
    store_id: u128,
}

impl Sealer {
    pub(crate) fn new(store_id: u128) -> Self {
        Sealer { store_id }
    }

    fn seed(self, what: u64) -> u64 {
        let store = (self.store_id as u64) ^ ((self.store_id >> 64) as u64).rotate_left(32);
        // An odd multiplier maps different identities to different seeds.
        store ^ what.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    /// The checksum of the block that `entry` names.
    pub(crate) fn block(self, entry: Entry, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, self.seed(entry.id().0))
    }

    pub(crate) fn page(self, id: PageId, bytes: &[u8]) -> u64 {
        self.block(Entry::Image(id), bytes)
    }
}

/// Why a block is not the superblock of a store that this version can open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BadSuperblock {
    NoMagic,
    Checksum,
    Newer { found: u32 },
    Features { unknown: u64 },
    Nonsense(&'static str),
}

/// What never changes about a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Superblock {
    pub(crate) format_version: u32,
    pub(crate) segment_blocks: u32,
    pub(crate) store_id: u128,
    pub(crate) base_window: u32,
    pub(crate) created: u64,
}

impl Superblock {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        put(&mut block, 0, &SUPERBLOCK_MAGIC.to_le_bytes());
        put(&mut block, 8, &self.format_version.to_le_bytes());
        put(&mut block, 12, &(PAGE_SIZE as u32).to_le_bytes());
        // 16: features that older versions may ignore; 24: features that they may not. None yet.
        put(&mut block, 32, &(BLOCK as u32).to_le_bytes());
        put(&mut block, 36, &self.segment_blocks.to_le_bytes());
        put(&mut block, 40, &self.store_id.to_le_bytes());
        put(&mut block, 56, &self.base_window.to_le_bytes());
        put(&mut block, 64, &self.created.to_le_bytes());
        Superblock::seal(&mut block);
        block
    }

    pub(crate) fn seal(block: &mut [u8]) {
        let seal = xxh3_64_with_seed(&block[..SEAL], SUPERBLOCK_MAGIC);
        put(block, SEAL, &seal.to_le_bytes());
    }

    pub(crate) fn decode(block: &[u8]) -> Result<Self, BadSuperblock> {
        if get_u64(block, 0) != SUPERBLOCK_MAGIC {
            return Err(BadSuperblock::NoMagic);
        }
        if get_u64(block, SEAL) != xxh3_64_with_seed(&block[..SEAL], SUPERBLOCK_MAGIC) {
            return Err(BadSuperblock::Checksum);
        }
        let format_version = get_u32(block, 8);
        if format_version > FORMAT_VERSION {
            return Err(BadSuperblock::Newer { found: format_version });
        }
        let unknown = get_u64(block, 24);
        if unknown != 0 {
            return Err(BadSuperblock::Features { unknown });
        }
        if get_u32(block, 12) as usize != PAGE_SIZE || get_u32(block, 32) as usize != BLOCK {
            return Err(BadSuperblock::Nonsense("pages of another size than 4096 bytes"));
        }
        let segment_blocks = get_u32(block, 36);
        if !crate::space::SEGMENT_BLOCKS.contains(&segment_blocks) {
            return Err(BadSuperblock::Nonsense("segments of an impossible size"));
        }
        let base_window = get_u32(block, 56);
        if base_window >= WINDOW_COUNT {
            return Err(BadSuperblock::Nonsense("addresses outside the range of all stores"));
        }
        Ok(Superblock {
            format_version,
            segment_blocks,
            store_id: get_u128(block, 40),
            base_window,
            created: get_u64(block, 64),
        })
    }
}

/// Where the record chain goes on, and what its last link was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct LogPosition {
    /// Counts openings and failed writes; chunks of another epoch than the root's are not the chain's.
    pub(crate) epoch: u64,
    /// Where the next chunk will lie if there is room for two blocks in its segment.
    pub(crate) place: Place,
    /// First block of the segment in which it will lie otherwise.
    pub(crate) next_segment: Place,
    /// The last stabilisation.
    pub(crate) sequence: u64,
    /// Chunks written so far: the number of the next one.
    pub(crate) serial: u64,
    /// The checksum of the last chunk's header.
    pub(crate) chain: u64,
    /// When the last stabilisation was taken, in nanoseconds since 1970.
    pub(crate) time: u64,
}

/// Some blocks of the table that lie side by side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub(crate) place: Place,
    pub(crate) blocks: u32,
    pub(crate) checksum: u64,
}

/// A complete starting point: the map as it was at a position of the record chain.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Root {
    pub(crate) generation: u64,
    pub(crate) position: LogPosition,
    /// Where the cold stream goes on; nowhere if it starts a new segment.
    pub(crate) cold: Place,
    pub(crate) containers: u32,
    pub(crate) segments: u32,
    /// Bytes of the table's part with snapshots and branches; 0 if there are none.
    pub(crate) versions: u32,
    /// Blocks that nothing but snapshots refers to.
    pub(crate) pinned: u64,
    /// Whether stabilisations of the chain may have shared a flush.
    pub(crate) groups: bool,
    /// Whether maps may have entries that are lost, or segments be counted as fuller than what can be reached.
    pub(crate) lost: bool,
    /// Whether the chunks of the chain have twins of their headers.
    pub(crate) twins: bool,
    /// What the store's file may have, in bytes; 0 if nobody has said.
    pub(crate) quota: u64,
    /// What it may have in hundredths of what is live; 0 if nobody has said.
    pub(crate) space_percent: u32,
    /// Containers in the table that have a quota.
    pub(crate) quotas: u32,
    /// What has been written to the store, this root included.
    pub(crate) written: Written,
    pub(crate) table: Vec<Extent>,
}

impl Root {
    fn has_settings(&self) -> bool {
        self.quota != 0 || self.space_percent != 0 || self.quotas != 0
    }

    /// The block for slot `slot` of [`ROOTS`].
    pub(crate) fn encode(&self, store_id: u128, slot: usize) -> Vec<u8> {
        assert!(self.table.len() <= ROOT_EXTENTS, "the table has too many extents for a root");
        let mut block = vec![0; BLOCK];
        let p = &self.position;
        put(&mut block, 0, &ROOT_MAGIC.to_le_bytes());
        let version = match self {
            Root { twins: true, .. } => ROOT_VERSION_TWINS,
            root if root.has_settings() => ROOT_VERSION_SETTINGS,
            Root { lost: true, .. } => ROOT_VERSION_LOST,
            Root { groups: true, .. } => ROOT_VERSION_GROUPS,
            Root { versions: 0, .. } => ROOT_VERSION,
            Root { .. } => ROOT_VERSION_SNAPSHOTS,
        };
        put(&mut block, 8, &version.to_le_bytes());
        put(&mut block, 12, &(self.table.len() as u32).to_le_bytes());
        put(&mut block, 16, &store_id.to_le_bytes());
        put(&mut block, 32, &self.generation.to_le_bytes());
        put(&mut block, 40, &p.epoch.to_le_bytes());
        put(&mut block, 48, &p.place.0.to_le_bytes());
        put(&mut block, 56, &p.next_segment.0.to_le_bytes());
        put(&mut block, 64, &p.sequence.to_le_bytes());
        put(&mut block, 72, &p.serial.to_le_bytes());
        put(&mut block, 80, &p.chain.to_le_bytes());
        put(&mut block, 88, &p.time.to_le_bytes());
        put(&mut block, 96, &self.cold.0.to_le_bytes());
        put(&mut block, 104, &self.containers.to_le_bytes());
        put(&mut block, 108, &self.segments.to_le_bytes());
        put(&mut block, 112, &self.versions.to_le_bytes());
        put(&mut block, 120, &self.pinned.to_le_bytes());
        let mut fixed = ROOT_FIXED;
        if version >= ROOT_VERSION_SETTINGS {
            fixed = ROOT_FIXED_SETTINGS;
            let flag = |is: bool, flag: u32| if is { flag } else { 0 };
            let flags = flag(self.groups, ROOT_GROUPS) | flag(self.lost, ROOT_LOST);
            put(&mut block, 116, &flags.to_le_bytes());
            put(&mut block, 132, &self.quotas.to_le_bytes());
            put(&mut block, 136, &self.quota.to_le_bytes());
            put(&mut block, 144, &self.space_percent.to_le_bytes());
            put_written(&mut block[ROOT_WRITTEN..fixed], &self.written);
        }
        for (i, extent) in self.table.iter().enumerate() {
            let at = fixed + i * EXTENT_BYTES;
            put(&mut block, at, &extent.place.0.to_le_bytes());
            put(&mut block, at + 8, &extent.blocks.to_le_bytes());
            put(&mut block, at + 16, &extent.checksum.to_le_bytes());
        }
        Root::put_seal(&mut block, slot);
        block
    }

    /// Seals a block as a root of the version that it says.
    pub(crate) fn put_seal(block: &mut [u8], slot: usize) {
        let seal = Root::seal(block, get_u32(block, 8), slot);
        put(block, SEAL, &seal.to_le_bytes());
    }

    fn seal(block: &[u8], version: u32, slot: usize) -> u64 {
        let beyond_first = u64::from(version.wrapping_sub(ROOT_VERSION)) << 32;
        xxh3_64_with_seed(&block[..SEAL], ROOT_MAGIC ^ ROOTS[slot] ^ beyond_first)
    }

    /// The version of the whole root of this store in this slot, if the block is one.
    pub(crate) fn version(block: &[u8], store_id: u128, slot: usize) -> Option<u32> {
        let version = get_u32(block, 8);
        let whole = get_u64(block, 0) == ROOT_MAGIC
            && get_u64(block, SEAL) == Root::seal(block, version, slot)
            && get_u128(block, 16) == store_id;
        whole.then_some(version)
    }

    /// As [`Root::decode`], and also a root that was meant for the other slot: what it names was flushed before it
    /// was written, wherever the disk has put it.
    pub(crate) fn decode_astray(block: &[u8], store_id: u128, slot: usize) -> Option<Self> {
        Root::decode(block, store_id, slot).or_else(|| {
            if planted::is(Bug::AstrayRootIgnored) {
                return None;
            }
            Root::decode(block, store_id, 1 - slot)
        })
    }

    /// `None` if the block is not a whole root of this store in this slot, or of a later version.
    pub(crate) fn decode(block: &[u8], store_id: u128, slot: usize) -> Option<Self> {
        let version = Root::version(block, store_id, slot)?;
        if version > ROOT_VERSION_NEWEST {
            return None;
        }
        let has_settings = version >= ROOT_VERSION_SETTINGS;
        let fixed = if has_settings { ROOT_FIXED_SETTINGS } else { ROOT_FIXED };
        let flag = |number: u32, flag| {
            if has_settings { get_u32(block, 116) & flag != 0 } else { version >= number }
        };
        // Only what has settings has these.
        let setting = |at| if has_settings { get_u32(block, at) } else { 0 };
        let extents = get_u32(block, 12) as usize;
        // Generation, epoch, stabilisation and serial only ever go up by one.
        let counters = [32, 40, 64, 72].map(|at| get_u64(block, at));
        if extents > (SEAL - fixed) / EXTENT_BYTES
            || counters.into_iter().any(|counter| counter > COUNTER_MOST)
        {
            return None;
        }
        let table = (0..extents)
            .map(|i| fixed + i * EXTENT_BYTES)
            .map(|at| Extent {
                place: Place(get_u64(block, at)),
                blocks: get_u32(block, at + 8),
                checksum: get_u64(block, at + 16),
            })
            .collect();
        Some(Root {
            generation: get_u64(block, 32),
            position: LogPosition {
                epoch: get_u64(block, 40),
                place: Place(get_u64(block, 48)),
                next_segment: Place(get_u64(block, 56)),
                sequence: get_u64(block, 64),
                serial: get_u64(block, 72),
                chain: get_u64(block, 80),
                time: get_u64(block, 88),
            },
            cold: Place(get_u64(block, 96)),
            containers: get_u32(block, 104),
            segments: get_u32(block, 108),
            versions: get_u32(block, 112),
            pinned: get_u64(block, 120),
            groups: flag(ROOT_VERSION_GROUPS, ROOT_GROUPS),
            lost: flag(ROOT_VERSION_LOST, ROOT_LOST),
            twins: version >= ROOT_VERSION_TWINS,
            quota: if has_settings { get_u64(block, 136) } else { 0 },
            space_percent: setting(144),
            quotas: setting(132),
            written: if has_settings {
                get_written(&block[ROOT_WRITTEN..])
            } else {
                Written::default()
            },
            table,
        })
    }
}

fn put_written(bytes: &mut [u8], written: &Written) {
    let Written { since, pages, record_blocks, map_blocks, .. } = *written;
    let Written { cleaning_blocks, tidying_blocks, ahead_blocks, .. } = *written;
    let counts =
        [since, pages, record_blocks, map_blocks, cleaning_blocks, tidying_blocks, ahead_blocks];
    for (i, count) in counts.into_iter().enumerate() {
        put(bytes, i * 8, &count.to_le_bytes());
    }
}

fn get_written(bytes: &[u8]) -> Written {
    let count = |i: usize| get_u64(bytes, i * 8);
    Written {
        since: count(0),
        pages: count(1),
        record_blocks: count(2),
        map_blocks: count(3),
        cleaning_blocks: count(4),
        tidying_blocks: count(5),
        ahead_blocks: count(6),
    }
}

/// What a chunk is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChunkKind {
    /// Part of a stabilisation, in the record chain.
    Record,
    /// Says that all chunks of a large stabilisation before it are durable; in the record chain.
    Commit,
    /// Nodes, table and moved pages: in no chain, reached from a root only.
    Cold,
}

/// Set on the last chunk of a stabilisation that has no commit chunk: recovery then reads the payload.
const FLAG_LAST: u8 = 1;
/// Set on a chunk that has a twin of its header.
const FLAG_TWIN: u8 = 2;

/// The header block of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Chunk {
    pub(crate) kind: ChunkKind,
    pub(crate) epoch: u64,
    pub(crate) serial: u64,
    pub(crate) sequence: u64,
    /// Which chunk of its stabilisation this is.
    pub(crate) ordinal: u32,
    /// Whose stabilisation this is.
    pub(crate) association: u32,
    /// Stabilisations right before this one that were written under the same flush.
    pub(crate) group: u32,
    /// Whether the stabilisation ends with this record chunk, without a commit chunk.
    pub(crate) last: bool,
    /// Whether the header stands once more behind the payload.
    pub(crate) twin: bool,
    /// Checksum of the header before it in the chain.
    pub(crate) previous: u64,
    pub(crate) next_segment: Place,
    pub(crate) time: u64,
    /// With the checksums of those that have a payload.
    pub(crate) entries: Vec<(Entry, u64)>,
}

impl Chunk {
    /// Writes the header into `block`, whose old bytes do not matter, and returns its checksum.
    pub(crate) fn encode(&self, store_id: u128, block: &mut [u8]) -> u64 {
        assert!(
            self.entries.len() <= CHUNK_ENTRIES,
            "a chunk has room for {CHUNK_ENTRIES} entries"
        );
        block.fill(0);
        put(block, 0, &CHUNK_MAGIC.to_le_bytes());
        put(block, 8, &store_id.to_le_bytes());
        put(block, 24, &self.epoch.to_le_bytes());
        put(block, 32, &self.serial.to_le_bytes());
        put(block, 40, &self.sequence.to_le_bytes());
        put(block, 48, &self.ordinal.to_le_bytes());
        put(block, 52, &self.association.to_le_bytes());
        block[56] = match self.kind {
            ChunkKind::Record => 1,
            ChunkKind::Commit => 2,
            ChunkKind::Cold => 3,
        };
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        block[57] = flag(self.last, FLAG_LAST) | flag(self.twin, FLAG_TWIN);
        put(block, 58, &(self.entries.len() as u16).to_le_bytes());
        put(block, 60, &(self.payload_blocks() as u16).to_le_bytes());
        put(block, 64, &self.previous.to_le_bytes());
        put(block, 72, &self.next_segment.0.to_le_bytes());
        // 80: place of an undo list; 96: round of a distributed stabilisation; 104: the sequence of
        // another association that this one commits after. All 0 until there are such things.
        put(block, 88, &self.time.to_le_bytes());
        put(block, 112, &self.group.to_le_bytes());
        for (i, &(entry, checksum)) in self.entries.iter().enumerate() {
            let at = CHUNK_FIXED + i * ENTRY_BYTES;
            put(block, at, &entry.id().0.to_le_bytes());
            put(block, at + 8, &checksum.to_le_bytes());
        }
        Chunk::seal(block)
    }

    /// Puts in the checksum of a header, or of a twin of one, and returns it.
    pub(crate) fn seal(block: &mut [u8]) -> u64 {
        let checksum = Chunk::checksum(block);
        put(block, CHUNK_CHECKSUM, &checksum.to_le_bytes());
        checksum
    }

    /// The checksum that a header or a twin should have.
    fn checksum(block: &[u8]) -> u64 {
        let mut bare = [0; BLOCK];
        bare.copy_from_slice(block);
        put(&mut bare, CHUNK_CHECKSUM, &0u64.to_le_bytes());
        xxh3_64_with_seed(&bare, get_u64(block, 0))
    }

    /// Writes the twin of a header into `block`.
    pub(crate) fn encode_twin(header: &[u8], block: &mut [u8]) {
        block.copy_from_slice(header);
        put(block, 0, &TWIN_MAGIC.to_le_bytes());
        Chunk::seal(block);
    }

    /// The header of which the block is the twin, and that header's checksum; `None` if the block is no whole twin of one
    /// of this store. It stands [`Chunk::blocks`] less one behind its header.
    pub(crate) fn decode_twin(block: &[u8], store_id: u128) -> Option<(Self, u64)> {
        let sealed = get_u64(block, CHUNK_CHECKSUM) == Chunk::checksum(block)
            || planted::is(Bug::TwinUnchecked);
        if get_u64(block, 0) != TWIN_MAGIC || !sealed {
            return None;
        }
        let mut header = [0; BLOCK];
        header.copy_from_slice(block);
        put(&mut header, 0, &CHUNK_MAGIC.to_le_bytes());
        Chunk::seal(&mut header);
        Chunk::decode(&header, store_id).filter(|(chunk, _)| chunk.twin)
    }

    /// The header and its checksum; `None` if the block is not a whole header of this store.
    pub(crate) fn decode(block: &[u8], store_id: u128) -> Option<(Self, u64)> {
        if get_u64(block, 0) != CHUNK_MAGIC || get_u128(block, 8) != store_id {
            return None;
        }
        let checksum = get_u64(block, CHUNK_CHECKSUM);
        if checksum != Chunk::checksum(block) {
            return None;
        }
        let count = usize::from(get_u16(block, 58));
        if count > CHUNK_ENTRIES {
            return None;
        }
        let kind = match block[56] {
            1 => ChunkKind::Record,
            2 => ChunkKind::Commit,
            3 => ChunkKind::Cold,
            _ => return None,
        };
        let chunk = Chunk {
            kind,
            epoch: get_u64(block, 24),
            serial: get_u64(block, 32),
            sequence: get_u64(block, 40),
            ordinal: get_u32(block, 48),
            association: get_u32(block, 52),
            group: get_u32(block, 112),
            last: block[57] & FLAG_LAST != 0,
            twin: block[57] & FLAG_TWIN != 0,
            previous: get_u64(block, 64),
            next_segment: Place(get_u64(block, 72)),
            time: get_u64(block, 88),
            entries: (0..count)
                .map(|i| CHUNK_FIXED + i * ENTRY_BYTES)
                .map(|at| (EntryId(get_u64(block, at)).entry(), get_u64(block, at + 8)))
                .collect(),
        };
        (usize::from(get_u16(block, 60)) == chunk.payload_blocks()).then_some((chunk, checksum))
    }

    /// The last stabilisation that had been flushed when this chunk, of the record chain, was written.
    pub(crate) fn proves(&self) -> u64 {
        match self.kind {
            // Its group is flushed before it; of a group only the last stabilisation has a commit chunk.
            ChunkKind::Commit => self.sequence,
            ChunkKind::Record | ChunkKind::Cold => {
                self.sequence.saturating_sub(1 + u64::from(self.group))
            }
        }
    }

    /// Whether the block was, before something happened to it, or was to become, chunk `serial` of `epoch`: as
    /// far as one can tell when one part of it is wrong. A whole header is the chunk that it says, and no other: it may have
    /// been left from an earlier use of the segment.
    pub(crate) fn resembles(block: &[u8], store_id: u128, epoch: u64, serial: u64) -> bool {
        if let Some((chunk, _)) = Chunk::decode(block, store_id) {
            return (chunk.epoch, chunk.serial) == (epoch, serial);
        }
        let signs = [
            get_u64(block, 0) == CHUNK_MAGIC,
            get_u128(block, 8) == store_id,
            get_u64(block, 24) == epoch,
            get_u64(block, 32) == serial,
        ];
        signs.into_iter().filter(|&sign| sign).count() >= 3
    }

    pub(crate) fn payload_blocks(&self) -> usize {
        self.entries.iter().filter(|(entry, _)| entry.has_payload()).count()
    }

    /// Blocks of the chunk, its header and that header's twin included.
    pub(crate) fn blocks(&self) -> u64 {
        1 + self.payload_blocks() as u64 + u64::from(self.twin)
    }

    /// The header of the chunk of so many blocks of which this is the last one, and its checksum.
    pub(crate) fn by_twin(block: &[u8], store_id: u128, blocks: u64) -> Option<(Self, u64)> {
        Chunk::decode_twin(block, store_id).filter(|(chunk, _)| chunk.blocks() == blocks)
    }

    /// The entries with the place of each one's payload block, the header lying at `at`; without payload,
    /// [`Place::NONE`].
    pub(crate) fn located(&self, at: Place) -> impl Iterator<Item = (Entry, Located)> {
        let mut next = at.plus(1);
        self.entries.iter().map(move |&(entry, checksum)| {
            if !entry.has_payload() {
                return (entry, Located::NEVER);
            }
            let located = Located { place: next, checksum };
            next = next.plus(1);
            (entry, located)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        Superblock {
            format_version: 1,
            segment_blocks: 1024,
            store_id: 0x0011_2233_4455_6677_8899_AABB_CCDD_EEFF,
            base_window: 17,
            created: 1_700_000_000,
        }
    }

    fn position() -> LogPosition {
        LogPosition {
            epoch: 3,
            place: Place(20),
            next_segment: Place(1040),
            sequence: 9,
            serial: 12,
            chain: 0xFEED,
            time: 1_700_000_000_000_000_000,
        }
    }

    fn chunk() -> Chunk {
        let page = PageId { container: ContainerId(5), page: PageNo(0x12_3456_789A) };
        Chunk {
            kind: ChunkKind::Record,
            epoch: 3,
            serial: 12,
            sequence: 10,
            ordinal: 0,
            association: 0,
            group: 0,
            last: true,
            twin: false,
            previous: 0xFEED,
            next_segment: Place(1040),
            time: 1_700_000_000_000_000_001,
            entries: vec![
                (Entry::Drop(ContainerId(9)), 0),
                (Entry::Image(page), 0xABCD),
                (Entry::Zero(PageId { page: PageNo(0), ..page }), 0),
            ],
        }
    }

    /// The bytes that version 1 wrote once and for ever: a change here is a change of format.
    #[test]
    fn the_bytes_of_version_1() {
        let block = superblock().encode();
        assert_eq!(&block[..16], b"STEADLOG\x01\0\0\0\0\x10\0\0");
        assert_eq!(&block[16..32], [0; 16]);
        assert_eq!(&block[32..40], [0, 0x10, 0, 0, 0, 4, 0, 0]);
        assert_eq!(block[40], 0xFF);
        assert_eq!(block[55], 0x00);
        assert_eq!(&block[56..60], [17, 0, 0, 0]);
        assert_eq!(get_u64(&block, 64), 1_700_000_000);
        let superblock_seal = get_u64(&block, SEAL);

        let root = Root {
            generation: 7,
            position: position(),
            cold: Place(2000),
            containers: 1,
            segments: 4,
            table: vec![Extent { place: Place(2001), blocks: 1, checksum: 0xBEEF }],
            ..Root::default()
        };
        let block = root.encode(superblock().store_id, 1);
        assert_eq!(&block[..8], b"STEADRUT");
        assert_eq!(get_u64(&block, 32), 7);
        assert_eq!(get_u64(&block, 48), 20);
        assert_eq!(get_u64(&block, 128), 2001);
        let root_seal = get_u64(&block, SEAL);

        let mut block = vec![0xEE; BLOCK];
        let chunk_seal = chunk().encode(superblock().store_id, &mut block);
        assert_eq!(&block[..8], b"STEADCHK");
        assert_eq!(&block[56..64], [1, 1, 3, 0, 1, 0, 0, 0]);
        assert_eq!(get_u64(&block, 128), 2 << 62 | 9 << 40);
        assert_eq!(get_u64(&block, 144), 5 << 40 | 0x12_3456_789A);

        let page = PageId { container: ContainerId(5), page: PageNo(1) };
        let sealer = Sealer::new(superblock().store_id);
        let page_seal = sealer.page(page, &[7; BLOCK]);
        let seals = [superblock_seal, root_seal, chunk_seal, page_seal];
        let want = [
            7_461_466_780_921_986_419,
            7_700_847_961_011_106_512,
            9_446_888_221_308_954_343,
            2_182_172_908_589_616_682,
        ];
        assert_eq!(seals, want);
    }

    #[test]
    fn what_is_written_is_read() {
        let block = superblock().encode();
        assert_eq!(Superblock::decode(&block), Ok(superblock()));
        let written = Written { since: 1, pages: 2, ahead_blocks: !7, ..Written::default() };
        for table_len in [0, 1, ROOT_EXTENTS] {
            let table = (0..table_len as u64)
                .map(|i| Extent { place: Place(50 + i), blocks: 2, checksum: !i })
                .collect();
            let root = Root {
                generation: 7,
                position: position(),
                cold: Place(2000),
                containers: 1,
                segments: 4,
                versions: [0, 700][table_len % 2],
                pinned: table_len as u64,
                groups: table_len == 1,
                lost: table_len == 1,
                twins: table_len > 1,
                quota: [0, 1 << 30][table_len % 2],
                space_percent: [0, 300][table_len % 2],
                quotas: [0, 7][table_len % 2],
                // Not in those without settings.
                written: [Written::default(), written][table_len.min(1)],
                table,
            };
            for slot in 0..2 {
                let block = root.encode(1, slot);
                assert_eq!(Root::decode(&block, 1, slot), Some(root.clone()));
                assert_eq!(Root::decode(&block, 2, slot), None);
                assert_eq!(Root::decode(&block, 1, 1 - slot), None);
                assert_eq!(Root::decode_astray(&block, 1, 1 - slot), Some(root.clone()));
                assert_eq!(Root::decode_astray(&block, 2, 1 - slot), None);
            }
        }
        let mut block = vec![0xEE; BLOCK];
        for entries in [0, 1, CHUNK_ENTRIES] {
            let entries = (0..entries as u32).map(|i| (Entry::Table(i), u64::from(i))).collect();
            let chunk = Chunk { entries, kind: ChunkKind::Cold, last: false, ..chunk() };
            let seal = chunk.encode(1, &mut block);
            assert_eq!(Chunk::decode(&block, 1), Some((chunk, seal)));
            assert_eq!(Chunk::decode(&block, 2), None);
        }
        let twins = Chunk { twin: true, ..chunk() };
        let seal = twins.encode(1, &mut block);
        assert_eq!((twins.blocks(), chunk().blocks()), (3, 2));
        let mut twin = vec![0xEE; BLOCK];
        Chunk::encode_twin(&block, &mut twin);
        assert_eq!(Chunk::decode_twin(&twin, 1), Some((twins.clone(), seal)));
        assert_eq!(Chunk::by_twin(&twin, 1, 3), Some((twins, seal)));
        assert_eq!(Chunk::by_twin(&twin, 1, 2), None);
        assert_eq!((Chunk::decode_twin(&twin, 2), Chunk::decode(&twin, 1)), (None, None));
        assert_eq!(Chunk::decode_twin(&block, 1), None, "a header is no twin");
        let mut block = [7; BLOCK];
        let chunk = Chunk { association: 0x0102, group: 4, ..chunk() };
        chunk.encode(1, &mut block);
        assert_eq!((get_u32(&block, 52), get_u32(&block, 112)), (0x0102, 4));
        assert_eq!(chunk.proves(), 10 - 1 - 4);
        assert_eq!(Chunk { kind: ChunkKind::Commit, ..chunk.clone() }.proves(), 10);
        assert_eq!(Chunk::decode(&block, 1).map(|(chunk, _)| chunk), Some(chunk.clone()));
        // A whole header is no other chunk's; a damaged one may have been any that it is like.
        let (epoch, serial) = (chunk.epoch, chunk.serial);
        assert!(Chunk::resembles(&block, 1, epoch, serial));
        assert!(!Chunk::resembles(&block, 1, epoch, serial + 1));
        block[4000] ^= 1;
        assert!(Chunk::resembles(&block, 1, epoch, serial));
        assert!(Chunk::resembles(&block, 1, epoch, serial + 1));
        assert!(!Chunk::resembles(&block, 1, epoch + 1, serial + 1));
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let store_id = superblock().store_id;
        let root = Root { generation: 7, position: position(), ..Root::default() };
        let superblock = superblock().encode();
        let root = root.encode(store_id, 0);
        let mut header = vec![0; BLOCK];
        Chunk { twin: true, ..chunk() }.encode(store_id, &mut header);
        let mut twin = vec![0; BLOCK];
        Chunk::encode_twin(&header, &mut twin);
        for at in 0..BLOCK {
            let flip = |block: &[u8]| {
                let mut block = block.to_vec();
                block[at] ^= 0x10;
                block
            };
            assert!(Superblock::decode(&flip(&superblock)).is_err());
            assert_eq!(Root::decode(&flip(&root), store_id, 0), None);
            assert_eq!(Chunk::decode(&flip(&header), store_id), None);
            assert_eq!(Chunk::decode_twin(&flip(&twin), store_id), None);
        }
    }

    #[test]
    fn ids_tell_what_a_block_is() {
        let page = PageId { container: ContainerId::MAX, page: PageNo(PageNo::LIMIT - 1) };
        let node = NodeId { container: ContainerId(3), level: 4, index: u32::MAX };
        for entry in [
            Entry::Image(page),
            Entry::Zero(page),
            Entry::Drop(ContainerId::MAX),
            Entry::Node(node),
            Entry::Table(77),
        ] {
            assert_eq!(entry.id().entry(), entry);
        }
        let bytes = [1; BLOCK];
        let sealer = Sealer::new(1);
        assert_ne!(
            sealer.block(Entry::Image(page), &bytes),
            sealer.block(Entry::Node(node), &bytes)
        );
        assert_ne!(sealer.page(page, &bytes), Sealer::new(2).page(page, &bytes));
    }

    #[test]
    fn newer_versions_and_features_are_told_apart() {
        let reseal = |block: &mut Vec<u8>| {
            let seal = xxh3_64_with_seed(&block[..SEAL], SUPERBLOCK_MAGIC);
            put(block, SEAL, &seal.to_le_bytes());
        };
        let mut block = superblock().encode();
        put(&mut block, 8, &2u32.to_le_bytes());
        reseal(&mut block);
        assert_eq!(Superblock::decode(&block), Err(BadSuperblock::Newer { found: 2 }));
        let mut block = superblock().encode();
        put(&mut block, 24, &4u64.to_le_bytes());
        reseal(&mut block);
        assert_eq!(Superblock::decode(&block), Err(BadSuperblock::Features { unknown: 4 }));
        // Features that may be ignored are.
        let mut block = superblock().encode();
        put(&mut block, 16, &4u64.to_le_bytes());
        reseal(&mut block);
        assert!(Superblock::decode(&block).is_ok());
        let mut block = superblock().encode();
        put(&mut block, 12, &16384u32.to_le_bytes());
        reseal(&mut block);
        assert!(matches!(Superblock::decode(&block), Err(BadSuperblock::Nonsense(_))));
        assert_eq!(Superblock::decode(&[0; BLOCK]), Err(BadSuperblock::NoMagic));
    }
}
