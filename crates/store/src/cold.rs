//! The cold streams, apart from the record chain: one for the map and its table, which are soon replaced, one
//! for pages moved by cleaning, which have shown that they are not. Nothing written here counts until a later
//! root refers to it. Read [`Cold`] first.

use crate::aligned::AlignedBuf;
use crate::disk::Purpose;
use crate::error::CommitError;
use crate::format::{BLOCK, Chunk, ChunkKind, Entry, Extent, Located, Place};
use crate::space::{Head, NoSegment};
use crate::store::Store;

/// A stream; and, in the map's, the table that the newest root refers to.
#[derive(Debug)]
pub(crate) struct Cold {
    head: Head,
    /// What is written for.
    pub(crate) purpose: Purpose,
    /// The epoch that chunks are marked with.
    pub(crate) epoch: u64,
    /// Where the table of the newest root lies.
    pub(crate) table: Vec<Extent>,
    next: Place,
    open: Option<OpenChunk>,
    /// For the next chunk, so that it finds memory that is there.
    spare: Option<AlignedBuf>,
}

/// A chunk that is being gathered.
#[derive(Debug)]
struct OpenChunk {
    at: Place,
    /// Blocks that it may have, header included.
    room: usize,
    entries: Vec<(Entry, u64)>,
    bytes: AlignedBuf,
}

impl Cold {
    /// The stream of the map.
    pub(crate) fn new(epoch: u64, next: Place, table: Vec<Extent>) -> Self {
        Cold {
            head: Head::Map,
            purpose: Purpose::Upkeep,
            epoch,
            table,
            next,
            open: None,
            spare: None,
        }
    }

    /// The stream of moved pages, in a new segment.
    pub(crate) fn of_moved(epoch: u64) -> Self {
        let (table, next) = (Vec::new(), Place::NONE);
        Cold {
            head: Head::Moved,
            purpose: Purpose::Cleaning,
            epoch,
            table,
            next,
            open: None,
            spare: None,
        }
    }

    /// Goes on in another segment.
    pub(crate) fn leave(&mut self, store: &Store) {
        debug_assert!(self.open.is_none(), "left between chunks");
        self.next = Place::NONE;
        store.state_mut().space.leave_cold(self.head);
    }

    /// Where the stream goes on; [`Place::NONE`] if in a new segment.
    pub(crate) fn next(&self) -> Place {
        debug_assert!(self.open.is_none(), "asked between chunks");
        self.next
    }

    /// Blocks left in the segment in which it goes on.
    pub(crate) fn room(&self, store: &Store) -> u64 {
        if self.next.is_none() { 0 } else { store.layout().room(self.next) }
    }

    /// Blocks that the table takes.
    pub(crate) fn table_blocks(&self) -> u64 {
        self.table.iter().map(|extent| u64::from(extent.blocks)).sum()
    }

    /// Forgets the chunk being gathered, after a failure. What has been written stays, referred to by nothing, and is
    /// not written over: the stream goes on behind it.
    pub(crate) fn abandon(&mut self) {
        self.open = None;
    }

    /// Appends a block; it is durable, like the others, after the next flush that follows
    /// [`Cold::finish_chunk`].
    pub(crate) fn append(
        &mut self,
        store: &Store,
        entry: Entry,
        block: &[u8],
    ) -> Result<Located, CommitError> {
        if self.open.is_none() {
            let at = self.place(store)?;
            let layout = store.layout();
            let room = layout.room(at).min(layout.chunk_blocks()) as usize;
            let most = layout.chunk_blocks() as usize * BLOCK;
            let bytes = self.spare.take().unwrap_or_else(|| AlignedBuf::zeroed(most));
            self.open = Some(OpenChunk { at, room, entries: Vec::new(), bytes });
        }
        let open = self.open.as_mut().expect("opened just now");
        let index = 1 + open.entries.len();
        open.bytes.as_mut_slice()[index * BLOCK..(index + 1) * BLOCK].copy_from_slice(block);
        let checksum = store.disk.sealer().block(entry, block);
        open.entries.push((entry, checksum));
        let located = Located { place: open.at.plus(index as u64), checksum };
        if index + 1 == open.room {
            self.finish_chunk(store)?;
        }
        Ok(located)
    }

    /// Writes the chunk being gathered, if there is one.
    pub(crate) fn finish_chunk(&mut self, store: &Store) -> Result<(), CommitError> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let chunk = self.header(open.entries);
        let blocks = chunk.blocks();
        let bytes = open.bytes.as_mut_slice();
        chunk.encode(store.header.store_id, &mut bytes[..BLOCK]);
        let bytes = &bytes[..blocks as usize * BLOCK];
        let written = store.disk.write_aside(self.purpose, open.at.offset(), bytes);
        self.spare = Some(open.bytes);
        if let Err(error) = written {
            // Who knows what is wrong with this part of the disk.
            self.next = Place::NONE;
            store.state_mut().space.leave_cold(self.head);
            return Err(error);
        }
        self.go_on(store, open.at, blocks);
        Ok(())
    }

    /// Takes a place for up to `blocks` blocks of the table that lie side by side.
    pub(crate) fn reserve_extent(
        &mut self,
        store: &Store,
        blocks: u64,
    ) -> Result<Extent, CommitError> {
        self.finish_chunk(store)?;
        let at = self.place(store)?;
        let layout = store.layout();
        let blocks = blocks.min(layout.room(at).min(layout.chunk_blocks()) - 1);
        self.go_on(store, at, 1 + blocks);
        Ok(Extent { place: at.plus(1), blocks: blocks as u32, checksum: 0 })
    }

    /// Writes the table into the extents taken for it, and fills in their checksums.
    pub(crate) fn write_table(
        &mut self,
        store: &Store,
        extents: &mut [Extent],
        mut table: &[u8],
    ) -> Result<(), CommitError> {
        let mut index = 0;
        for extent in extents {
            let (these, rest) = table.split_at(extent.blocks as usize * BLOCK);
            table = rest;
            let entries = these.chunks(BLOCK).map(|block| {
                let entry = Entry::Table(index);
                index += 1;
                (entry, store.disk.sealer().block(entry, block))
            });
            let chunk = self.header(entries.collect());
            extent.checksum = extent_checksum(chunk.entries.iter().map(|&(_, checksum)| checksum));
            let mut bytes = AlignedBuf::zeroed(BLOCK + these.len());
            chunk.encode(store.header.store_id, &mut bytes.as_mut_slice()[..BLOCK]);
            bytes.as_mut_slice()[BLOCK..].copy_from_slice(these);
            let offset = Place(extent.place.0 - 1).offset();
            store.disk.write_aside(Purpose::Upkeep, offset, bytes.as_slice())?;
        }
        Ok(())
    }

    fn header(&self, entries: Vec<(Entry, u64)>) -> Chunk {
        Chunk {
            kind: ChunkKind::Cold,
            epoch: self.epoch,
            serial: 0,
            sequence: 0,
            ordinal: 0,
            association: 0,
            group: 0,
            last: false,
            // What depends on it is only how easily the segment is emptied.
            twin: false,
            previous: 0,
            next_segment: Place::NONE,
            time: 0,
            entries,
        }
    }

    fn place(&mut self, store: &Store) -> Result<Place, CommitError> {
        while self.next.is_none() {
            let taken = store.state_mut().space.take_cold(self.head);
            match taken {
                Ok(place) => self.next = place,
                Err(NoSegment) => store.grow(1, false)?,
            }
        }
        Ok(self.next)
    }

    fn go_on(&mut self, store: &Store, at: Place, blocks: u64) {
        (self.next, _) = store.layout().behind(at, blocks, Place::NONE);
        if self.next.is_none() {
            store.state_mut().space.leave_cold(self.head);
        }
    }
}

/// One number for the checksums of an extent's blocks.
pub(crate) fn extent_checksum(blocks: impl Iterator<Item = u64>) -> u64 {
    blocks.fold(0x5EED, |sum, block| sum.rotate_left(7).wrapping_mul(0x100_0000_01B3) ^ block)
}
