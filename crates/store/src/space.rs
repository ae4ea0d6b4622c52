//! Which segments of the file hold what, and when a segment may be written again. It keeps counts, no
//! contents, and reads no file. Read [`Space`] first.
//!
//! The rule that all safety hangs on: each of the two roots is at any time a complete starting point. So
//! a segment that nothing needs any more is written again only when *both* roots have been written since.

use std::collections::{BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use crate::format::{BLOCK, CHUNK_ENTRIES, HEADER_BLOCKS, LogPosition, Place, RECORD_FIXED_BLOCKS};
use crate::planted::{self, Bug};

/// Sizes that a segment may have, in blocks.
pub(crate) const SEGMENT_BLOCKS: RangeInclusive<u32> = 8..=1 << 16;

/// Segments that the record chain leaves to the cold streams, so that a full store can still be kept.
pub(crate) const COLD_RESERVE: usize = 2;

/// The same for records without images, or that give up a container: in a full store they are what makes room.
pub(crate) const COLD_RESERVE_LEAST: usize = 1;

/// Set in the table for a segment that may be written when the table's root is durable.
const TABLE_FREE: u32 = 1 << 31;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free,
    InUse,
    /// Not needed by the root of this generation and later ones.
    Pending {
        since: u64,
    },
}

/// How far cleaning has come with a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cleaning {
    No,
    /// What is live in it has been read, and is to be moved.
    Gathered,
    /// It has been moved: the next root refers to nothing here.
    Moved,
    /// Something was left in it that cannot be read, so cleaning it again would gain nothing.
    Stuck,
}

/// The streams beside the record chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Head {
    Map,
    Moved,
}

/// A segment that cleaning may empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Victim {
    pub(crate) segment: u32,
    /// Blocks to move.
    pub(crate) live: u32,
    /// When the youngest of them was written, by [`Space`]'s clock.
    pub(crate) born: u64,
}

/// What stands in the way of cutting off the end of the file.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tail {
    /// Segments in it.
    pub(crate) segments: usize,
    /// Free segments before it.
    pub(crate) free_before: usize,
    /// One whose live blocks can be moved.
    pub(crate) victim: Option<Victim>,
    /// Whether there are some that the next roots make free, or make it possible to empty.
    pub(crate) waiting: bool,
    /// Whether the record chain goes through it.
    pub(crate) chain: bool,
    pub(crate) map_head: bool,
    pub(crate) moved_head: bool,
    /// Whether something lies there that cannot be moved.
    pub(crate) stuck: bool,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    state: State,
    cleaning: Cleaning,
    /// When the youngest image in it was written, by the clock; 0 if that was before the store was opened.
    born: u64,
    /// Blocks that the stored map, its table included, refers to.
    tree: u32,
    /// Blocks that the layers over it refer to.
    layer: u32,
    /// Whether blocks have been moved here of which no root knows yet: there is more in it than is counted.
    arriving: bool,
}

impl Segment {
    const FREE: Segment = Segment {
        state: State::Free,
        cleaning: Cleaning::No,
        born: 0,
        tree: 0,
        layer: 0,
        arriving: false,
    };

    fn live(self) -> u32 {
        self.tree + self.layer
    }

    fn is_pending(&self) -> bool {
        matches!(self.state, State::Pending { .. })
    }

    fn is_emptying(&self) -> bool {
        self.state == State::InUse && self.cleaning == Cleaning::Moved
    }

    fn is_gathered(&self) -> bool {
        self.state == State::InUse && self.cleaning == Cleaning::Gathered
    }
}

/// No segment is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NoSegment;

/// Where segments lie: pure arithmetic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    pub(crate) segment_blocks: u64,
}

impl Layout {
    pub(crate) fn start(self, segment: u32) -> Place {
        Place(HEADER_BLOCKS + u64::from(segment) * self.segment_blocks)
    }

    /// The segment of a block; `None` for the blocks before the first.
    pub(crate) fn segment(self, place: Place) -> Option<u32> {
        let blocks = place.0.checked_sub(HEADER_BLOCKS)?;
        u32::try_from(blocks / self.segment_blocks).ok()
    }

    fn segment_of(self, place: Place) -> usize {
        self.segment(place).expect("what is referred to lies in a segment") as usize
    }

    /// Blocks from `place` to the end of its segment.
    pub(crate) fn room(self, place: Place) -> u64 {
        self.segment_blocks - (place.0 - HEADER_BLOCKS) % self.segment_blocks
    }

    /// Whether a segment begins with this block, which must be one of a segment.
    pub(crate) fn is_start(self, place: Place) -> bool {
        self.room(place) == self.segment_blocks
    }

    /// Most blocks of one chunk of a cold stream: at least two chunks go into a segment, so that behind a chunk that
    /// cannot be read there is one to be found.
    pub(crate) fn chunk_blocks(self) -> u64 {
        (1 + CHUNK_ENTRIES as u64).min(self.segment_blocks / 2)
    }

    /// The same of one of the record chain.
    pub(crate) fn record_blocks(self) -> u64 {
        (RECORD_FIXED_BLOCKS + CHUNK_ENTRIES as u64).min(self.segment_blocks / 2)
    }

    /// Most images in one chunk of the record chain.
    pub(crate) fn record_images(self) -> u64 {
        self.record_blocks() - RECORD_FIXED_BLOCKS
    }

    /// Where the chain goes on behind a chunk at `place`: in place if two blocks fit there, else in the next
    /// segment, and then the one after that is not chosen yet.
    pub(crate) fn behind(self, place: Place, blocks: u64, next_segment: Place) -> (Place, Place) {
        if self.room(place) >= blocks + 2 {
            (place.plus(blocks), next_segment)
        } else {
            (next_segment, Place::NONE)
        }
    }

    /// Whole segments in a file of this length.
    pub(crate) fn segments_in(self, file_bytes: u64) -> usize {
        let blocks = (file_bytes / BLOCK as u64).saturating_sub(HEADER_BLOCKS);
        (blocks / self.segment_blocks) as usize
    }

    pub(crate) fn file_bytes(self, segments: usize) -> u64 {
        Place(HEADER_BLOCKS + segments as u64 * self.segment_blocks).offset()
    }
}

/// All segments.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    layout: Layout,
    segments: Vec<Segment>,
    free: BTreeSet<u32>,
    /// Segments whose blocks the file system has promised but nobody has written yet: a first write there
    /// changes the file's metadata as well, and its flush takes longer. Not known of what an earlier process
    /// left.
    unwritten: BTreeSet<u32>,
    /// Segments from where the newest root has the record chain go on, to the one reserved for its future.
    chain: VecDeque<u32>,
    /// The segments that the cold streams are writing, by [`Head`].
    heads: [Option<u32>; 2],
    live: u64,
    /// Pending segments that only wait for readers.
    kept: usize,
    /// The part of it that the stored map, its table included, refers to.
    tree: u64,
    pending: usize,
    emptying: usize,
    gathered: usize,
    /// Counts images as they are stored: the age of what is in a segment.
    clock: u64,
}

impl Space {
    pub(crate) fn new(layout: Layout) -> Self {
        Space {
            layout,
            segments: Vec::new(),
            free: BTreeSet::new(),
            unwritten: BTreeSet::new(),
            chain: VecDeque::new(),
            heads: [None; 2],
            live: 0,
            kept: 0,
            tree: 0,
            pending: 0,
            emptying: 0,
            gathered: 0,
            clock: 0,
        }
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    pub(crate) fn segments(&self) -> usize {
        self.segments.len()
    }

    pub(crate) fn free_segments(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn is_free(&self, segment: u32) -> bool {
        self.free.contains(&segment)
    }

    /// The first blocks of segments that nothing refers to, those first that are taken first.
    pub(crate) fn unneeded(&self, most: usize) -> Vec<Place> {
        (0..self.segments.len() as u32)
            .filter(|&i| self.segments[i as usize].live() == 0 && !self.is_being_written(i))
            .take(most)
            .map(|segment| self.layout.start(segment))
            .collect()
    }

    pub(crate) fn is_pending(&self, segment: u32) -> bool {
        matches!(self.segments[segment as usize].state, State::Pending { .. })
    }

    /// Whether the record chain or the cold stream goes on in this segment.
    pub(crate) fn is_being_written(&self, segment: u32) -> bool {
        self.chain.contains(&segment) || self.heads.contains(&Some(segment))
    }

    /// Segments that become free as roots are written, or readers go.
    pub(crate) fn pending_segments(&self) -> usize {
        self.pending
    }

    /// Those of them that, when the last root was written, waited for readers only.
    pub(crate) fn kept_segments(&self) -> usize {
        self.kept
    }

    /// Blocks that something refers to; those that a layer will let go of at the next root included.
    pub(crate) fn live_blocks(&self) -> u64 {
        self.live
    }

    /// Blocks that the stored map, its table included, refers to.
    pub(crate) fn tree_blocks(&self) -> u64 {
        self.tree
    }

    /// Whether something that has been read of segments is waiting to be moved.
    pub(crate) fn has_gathered(&self) -> bool {
        self.gathered > 0
    }

    /// Segments that wait for nothing but roots to be free.
    pub(crate) fn coming_segments(&self) -> usize {
        self.pending - self.kept + self.emptying
    }

    /// Images stored since the store was opened.
    pub(crate) fn clock(&self) -> u64 {
        self.clock
    }

    fn count_states(&mut self) {
        let count = |is: fn(&Segment) -> bool| self.segments.iter().filter(|s| is(s)).count();
        let (pending, emptying) = (count(Segment::is_pending), count(Segment::is_emptying));
        self.gathered = count(Segment::is_gathered);
        (self.pending, self.emptying) = (pending, emptying);
    }

    /// Whether the file has a segment for this block.
    pub(crate) fn has(&self, place: Place) -> bool {
        self.layout.segment(place).is_some_and(|segment| (segment as usize) < self.segments.len())
    }

    /// Takes note of free segments at the end of the file, and whether their blocks have been written.
    pub(crate) fn add_segments(&mut self, count: usize, written: bool) {
        let first = self.segments.len();
        if !written {
            self.unwritten.extend(first as u32..(first + count) as u32);
        }
        self.segments.resize(first + count, Segment::FREE);
        self.free.extend(first as u32..(first + count) as u32);
    }

    fn take(&mut self, keep: usize) -> Result<u32, NoSegment> {
        if self.free.len() <= keep {
            return Err(NoSegment);
        }
        let segment =
            *self.free.difference(&self.unwritten).next().or(self.free.first()).ok_or(NoSegment)?;
        self.free.remove(&segment);
        self.segments[segment as usize] = Segment { state: State::InUse, ..Segment::FREE };
        Ok(segment)
    }

    /// Whether a free segment is still to be written for the first time.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.unwritten.iter().any(|segment| self.free.contains(segment))
    }

    /// Whether the chain is about to go on in blocks that nobody has written yet; each such segment is named
    /// once.
    pub(crate) fn unwritten_ahead(&mut self, position: &LogPosition) -> Vec<Place> {
        let mut ahead = vec![position.place, position.next_segment];
        ahead.retain(|&place| {
            !place.is_none() && self.unwritten.remove(&(self.layout.segment_of(place) as u32))
        });
        ahead
    }

    /// Takes such a segment out of the free ones, so that nobody else writes it meanwhile. It counts as free
    /// in every root, since nothing refers to it. Given back by [`Space::written`].
    pub(crate) fn take_unwritten(&mut self) -> Option<Place> {
        let segment = *self.unwritten.iter().find(|segment| self.free.contains(segment))?;
        self.free.remove(&segment);
        Some(self.layout.start(segment))
    }

    /// A segment taken by [`Space::take_unwritten`] is free again; `done` when it has been written.
    pub(crate) fn written(&mut self, start: Place, done: bool) {
        let segment = self.layout.segment_of(start) as u32;
        if done {
            self.unwritten.remove(&segment);
        }
        self.free.insert(segment);
    }

    /// A segment for the record chain, which now ends with it, if as many as `reserve` are left.
    pub(crate) fn extend_chain(&mut self, reserve: usize) -> Result<Place, NoSegment> {
        let segment = self.take(reserve)?;
        self.chain.push_back(segment);
        Ok(self.layout.start(segment))
    }

    /// Takes back the last `count` extensions of the chain, in which nothing has been written.
    pub(crate) fn shorten_chain(&mut self, count: usize) {
        for _ in 0..count {
            let segment = self.chain.pop_back().expect("the chain has been extended as often");
            self.segments[segment as usize].state = State::Free;
            self.free.insert(segment);
        }
    }

    /// How many segments the chain can still be given.
    pub(crate) fn chain_supply(&self) -> usize {
        self.free.len().saturating_sub(COLD_RESERVE)
    }

    /// A segment in which the record chain starts anew; the chain behind the old place ends.
    pub(crate) fn fresh_chain(&mut self) -> Result<Place, NoSegment> {
        // From the reserve, if need be: nothing else can be done before.
        let segment = self.take(0)?;
        Ok(self.layout.start(segment))
    }

    /// Takes back a segment in which nothing has been written.
    pub(crate) fn give_back(&mut self, start: Place) {
        let segment = self.layout.segment_of(start);
        debug_assert!(self.segments[segment].live() == 0, "nothing refers to an unused segment");
        self.segments[segment].state = State::Free;
        self.free.insert(segment as u32);
    }

    /// A segment for a cold stream.
    pub(crate) fn take_cold(&mut self, head: Head) -> Result<Place, NoSegment> {
        let segment = self.take(0)?;
        self.heads[head as usize] = Some(segment);
        if head == Head::Map {
            // Its nodes are soon replaced, however old the pages are that they speak of.
            self.segments[segment as usize].born = self.clock;
        }
        Ok(self.layout.start(segment))
    }

    pub(crate) fn leave_cold(&mut self, head: Head) {
        self.heads[head as usize] = None;
    }

    /// A record's image lies at `place`.
    pub(crate) fn count_layer(&mut self, place: Place) {
        self.clock += 1;
        let segment = &mut self.segments[self.layout.segment_of(place)];
        segment.layer += 1;
        segment.born = self.clock;
        self.live += 1;
    }

    /// An image has been moved to `place` that is not younger than `born`. The next root knows of it.
    pub(crate) fn note_moved(&mut self, place: Place, born: u64) {
        let segment = &mut self.segments[self.layout.segment_of(place)];
        segment.born = segment.born.max(born);
        segment.arriving = true;
    }

    pub(crate) fn uncount_layer(&mut self, place: Place) {
        let segment = &mut self.segments[self.layout.segment_of(place)];
        segment.layer = segment.layer.checked_sub(1).expect("a block is let go of once");
        self.live -= 1;
    }

    /// How many blocks of each segment the stored map refers to.
    pub(crate) fn tree_counts(&self) -> Vec<u32> {
        self.segments.iter().map(|s| s.tree).collect()
    }

    /// How many blocks of each segment the layers refer to.
    pub(crate) fn layer_counts(&self) -> Vec<u32> {
        self.segments.iter().map(|s| s.layer).collect()
    }

    fn is_free_at(&self, segment: usize, generation: u64) -> bool {
        match self.segments[segment].state {
            State::Free => true,
            State::Pending { since } => since < generation,
            State::InUse => false,
        }
    }

    /// The segments' part of the table of root `generation`, with the map's counts as they will be then.
    pub(crate) fn encode(&self, tree_counts: &[u32], generation: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.segments.len() * 4);
        for (i, &count) in tree_counts.iter().enumerate() {
            let free = if self.is_free_at(i, generation) { TABLE_FREE } else { 0 };
            bytes.extend_from_slice(&(count | free).to_le_bytes());
        }
        bytes
    }

    /// The segments as the table of root `generation` says. `None` if it says what cannot be.
    pub(crate) fn decode(layout: Layout, generation: u64, table: &[u32]) -> Option<Self> {
        let mut space = Space::new(layout);
        for (i, &entry) in table.iter().enumerate() {
            let (free, tree) = (entry & TABLE_FREE != 0, entry & !TABLE_FREE);
            if u64::from(tree) > layout.segment_blocks || free && tree != 0 {
                return None;
            }
            let state = match (free, tree) {
                (true, _) => State::Free,
                (false, 0) => State::Pending { since: generation },
                (false, _) => State::InUse,
            };
            if free {
                space.free.insert(i as u32);
            }
            space.live += u64::from(tree);
            space.tree += u64::from(tree);
            space.segments.push(Segment { state, tree, ..Segment::FREE });
        }
        space.count_states();
        Some(space)
    }

    /// Recovery has found the chain to go through the segment of `place`.
    pub(crate) fn note_chain(&mut self, place: Place) {
        let segment = self.layout.segment_of(place) as u32;
        if self.chain.back() != Some(&segment) {
            self.free.remove(&segment);
            self.segments[segment as usize].state = State::InUse;
            self.chain.push_back(segment);
            self.count_states();
        }
    }

    /// Recovery goes on writing cold blocks at `place`.
    pub(crate) fn note_cold(&mut self, place: Place) {
        let segment = self.layout.segment_of(place) as u32;
        self.free.remove(&segment);
        self.segments[segment as usize].state = State::InUse;
        self.heads[Head::Map as usize] = Some(segment);
        self.count_states();
    }

    /// Root `generation` is durable: the map's counts are now `tree_counts`, the record chain is needed
    /// from `position` on, and what no root needs becomes free, unless a reader needs it who still reads from
    /// a root as old as `oldest_pin`.
    pub(crate) fn publish(
        &mut self,
        generation: u64,
        mut tree_counts: Vec<u32>,
        position: &LogPosition,
        oldest_pin: u64,
    ) {
        tree_counts.resize(self.segments.len(), 0);
        let first = self.layout.segment_of(position.place) as u32;
        match self.chain.iter().position(|&segment| segment == first) {
            Some(at) => drop(self.chain.drain(..at)),
            None => self.chain = VecDeque::from([first]),
        }
        let heads = self.heads.into_iter().flatten();
        let needed: BTreeSet<u32> = self.chain.iter().copied().chain(heads).collect();
        (self.live, self.tree) = (0, 0);
        self.kept = 0;
        for (i, segment) in self.segments.iter_mut().enumerate() {
            segment.tree = tree_counts[i];
            segment.arriving = false;
            self.live += u64::from(segment.live());
            self.tree += u64::from(segment.tree);
            let unneeded = segment.live() == 0 && !needed.contains(&(i as u32));
            let was = segment.state;
            segment.state = match was {
                State::Pending { since } if since < generation && since <= oldest_pin => {
                    State::Free
                }
                State::Pending { since } => {
                    self.kept += usize::from(since > oldest_pin);
                    was
                }
                State::InUse if unneeded && planted::is(Bug::EarlyReuse) => State::Free,
                State::InUse if unneeded => State::Pending { since: generation },
                state => state,
            };
            if segment.cleaning == Cleaning::Moved && segment.live() > 0 {
                segment.cleaning = Cleaning::Stuck;
            }
            if segment.state == State::Free && was != State::Free {
                // It has been written on its way here.
                self.unwritten.remove(&(i as u32));
                self.free.insert(i as u32);
            }
        }
        self.count_states();
    }

    /// Free segments wait for readers of roots before `since`: which of them one still needs is not known of what an
    /// earlier owner gave free.
    pub(crate) fn hold_back(&mut self, since: u64) {
        for segment in std::mem::take(&mut self.free) {
            self.segments[segment as usize].state = State::Pending { since };
            self.kept += 1;
        }
        self.count_states();
    }

    /// Segments that cleaning may empty, the best first: those that give most room for the work, and of which the
    /// least is likely to be replaced soon anyway (cost and benefit, after Rosenblum and Ousterhout).
    /// Not those with more than `live_most` live blocks.
    pub(crate) fn best_victim(&self, live_most: u64) -> Option<Victim> {
        let whole = self.layout.segment_blocks;
        let score = |victim: &Victim| {
            let used = f64::from(victim.live) / whole as f64;
            let age = (self.clock - victim.born + 1) as f64;
            // The age counts less than the room: where all pages are alike, age says nothing.
            (1.0 - used) / used * age.sqrt()
        };
        self.victims(live_most).max_by(|a, b| score(a).total_cmp(&score(b)))
    }

    /// Whether there is any.
    pub(crate) fn has_victim(&self, live_most: u64) -> bool {
        self.victims(live_most).next().is_some()
    }

    fn victims(&self, live_most: u64) -> impl Iterator<Item = Victim> {
        (0u32..)
            .zip(&self.segments)
            .filter(move |&(i, segment)| {
                segment.state == State::InUse
                    && segment.cleaning == Cleaning::No
                    // What the map does not know yet cannot be moved.
                    && segment.layer == 0
                    // Nor what has just been moved.
                    && !segment.arriving
                    // The next root sees to those that are empty.
                    && (1..=live_most).contains(&u64::from(segment.live()))
                    && !self.heads.contains(&Some(i))
                    && !self.chain.contains(&i)
            })
            .map(|(i, s)| Victim { segment: i, live: s.live(), born: s.born })
    }

    /// Whether what has been read of the segment is still what is in it.
    pub(crate) fn is_gathered(&self, segment: u32) -> bool {
        self.segments[segment as usize].is_gathered()
    }

    /// No root names the places to which blocks have been moved: they count where they were.
    pub(crate) fn forget_moves(&mut self) {
        for segment in &mut self.segments {
            segment.arriving = false;
            if segment.cleaning == Cleaning::Moved {
                segment.cleaning = Cleaning::No;
            }
        }
        self.count_states();
    }

    /// Cleaning has come so far with a segment.
    pub(crate) fn set_cleaning(&mut self, segment: u32, cleaning: Cleaning) {
        let segment = &mut self.segments[segment as usize];
        self.emptying -= usize::from(segment.is_emptying());
        self.gathered -= usize::from(segment.is_gathered());
        segment.cleaning = cleaning;
        self.emptying += usize::from(segment.is_emptying());
        self.gathered += usize::from(segment.is_gathered());
    }

    /// What lies in the segments from `from` on.
    pub(crate) fn tail(&self, from: usize) -> Tail {
        let head = |head: Head| self.heads[head as usize].is_some_and(|i| i as usize >= from);
        let mut tail = Tail {
            segments: self.segments.len().saturating_sub(from),
            free_before: self.free.range(..from as u32).count(),
            chain: self.chain.iter().any(|&i| i as usize >= from),
            map_head: head(Head::Map),
            moved_head: head(Head::Moved),
            ..Tail::default()
        };
        for (i, segment) in self.segments.iter().enumerate().skip(from) {
            let i = i as u32;
            match (segment.state, segment.cleaning) {
                (State::Free, _) => {}
                (State::InUse, _) if self.chain.contains(&i) => {}
                (State::InUse, Cleaning::Stuck) => tail.stuck = true,
                (State::InUse, Cleaning::No)
                    if segment.layer == 0 && segment.tree > 0 && !segment.arriving =>
                {
                    let victim = Victim { segment: i, live: segment.tree, born: segment.born };
                    tail.victim = tail.victim.or(Some(victim));
                }
                (State::InUse, Cleaning::Gathered) => {}
                (State::InUse | State::Pending { .. }, _) => tail.waiting = true,
            }
        }
        tail
    }

    /// Forgets the segments from `from` on, if all of them are free; how many there were in all.
    pub(crate) fn cut(&mut self, from: usize) -> Option<usize> {
        let all_free = self.segments.iter().skip(from).all(|s| s.state == State::Free);
        // One that is being written for the first time is not among the free ones.
        let idle = (from..self.segments.len()).all(|i| self.free.contains(&(i as u32)));
        if !all_free || !idle || from >= self.segments.len() {
            return None;
        }
        self.free.split_off(&(from as u32));
        self.unwritten.split_off(&(from as u32));
        let before = self.segments.len();
        self.segments.truncate(from);
        Some(before)
    }

    /// Blocks by what their segment is: free, pending, in use.
    pub(crate) fn blocks_by_state(&self) -> (u64, u64, u64) {
        let count = |wanted: fn(State) -> bool| {
            let segments = self.segments.iter().filter(|s| wanted(s.state)).count();
            segments as u64 * self.layout.segment_blocks
        };
        (
            count(|s| s == State::Free),
            count(|s| matches!(s, State::Pending { .. })),
            count(|s| s == State::InUse),
        )
    }

    /// Segments that are free or pending although something refers to them: there must be none.
    pub(crate) fn contradictions(&self) -> Vec<u32> {
        (0..self.segments.len() as u32)
            .filter(|&i| {
                let segment = self.segments[i as usize];
                let free = self.free.contains(&i);
                let needed =
                    segment.live() > 0 || self.chain.contains(&i) || self.heads.contains(&Some(i));
                segment.state != State::InUse && needed || free != (segment.state == State::Free)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(place: Place) -> LogPosition {
        LogPosition {
            epoch: 1,
            place,
            next_segment: Place::NONE,
            sequence: 0,
            serial: 0,
            chain: 0,
            time: 0,
        }
    }

    #[test]
    fn a_segment_waits_for_two_roots() {
        let layout = Layout { segment_blocks: 8 };
        let mut space = Space::new(layout);
        space.add_segments(6, true);
        let a = space.extend_chain(COLD_RESERVE).unwrap();
        let b = space.extend_chain(COLD_RESERVE).unwrap();
        assert_eq!((a, b), (Place(16), Place(24)));
        space.count_layer(a.plus(1));
        assert_eq!(space.live_blocks(), 1);
        // The chain has gone on to b, and the root knows it; a still holds a page.
        space.publish(5, vec![], &position(b), u64::MAX);
        assert_eq!(space.pending_segments(), 0);
        space.uncount_layer(a.plus(1));
        space.publish(6, vec![], &position(b), u64::MAX);
        assert_eq!((space.pending_segments(), space.free_segments()), (1, 4));
        space.publish(7, vec![], &position(b), u64::MAX);
        assert_eq!((space.pending_segments(), space.free_segments()), (0, 5));
        assert_eq!(space.contradictions(), []);
        // Two free segments stay for the cold stream.
        for _ in 0..3 {
            space.extend_chain(COLD_RESERVE).unwrap();
        }
        assert_eq!(space.extend_chain(COLD_RESERVE), Err(NoSegment));
        space.take_cold(Head::Map).unwrap();
        space.shorten_chain(3);
        assert_eq!(space.free_segments(), 4);
        assert_eq!(space.contradictions(), []);
    }

    #[test]
    fn a_segment_waits_for_readers() {
        let mut space = Space::new(Layout { segment_blocks: 8 });
        space.add_segments(6, true);
        let a = space.extend_chain(COLD_RESERVE).unwrap();
        let b = space.extend_chain(COLD_RESERVE).unwrap();
        // Somebody reads from root 5, which still begins in a.
        space.publish(5, vec![], &position(a), u64::MAX);
        space.publish(6, vec![], &position(b), 5);
        assert_eq!((space.pending_segments(), space.kept_segments()), (1, 0), "waits for root 7");
        for generation in 7..9 {
            space.publish(generation, vec![], &position(b), 5);
            assert_eq!((space.pending_segments(), space.kept_segments()), (1, 1));
        }
        // A reader of the root that let go of it does not need it.
        space.publish(9, vec![], &position(b), 6);
        assert_eq!((space.pending_segments(), space.kept_segments()), (0, 0));
        // What an earlier owner gave free may be what a reader of its time still reads.
        space.hold_back(10);
        assert_eq!((space.free_segments(), space.kept_segments()), (0, 5));
        space.publish(10, vec![], &position(b), 8);
        space.publish(11, vec![], &position(b), 8);
        assert_eq!(space.kept_segments(), 5);
        space.publish(12, vec![], &position(b), 12);
        assert_eq!((space.free_segments(), space.kept_segments()), (5, 0));
        assert_eq!(space.contradictions(), []);
    }

    #[test]
    fn the_table_brings_all_back() {
        let layout = Layout { segment_blocks: 8 };
        let mut space = Space::new(layout);
        space.add_segments(5, true);
        let a = space.extend_chain(COLD_RESERVE).unwrap();
        let cold = space.take_cold(Head::Map).unwrap();
        let counts = vec![0, 3, 0, 0, 0];
        let bytes = space.encode(&counts, 9);
        space.publish(9, counts, &position(a), u64::MAX);
        let table: Vec<u32> =
            bytes.chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
        let mut back = Space::decode(layout, 9, &table).unwrap();
        back.note_chain(a);
        back.note_cold(cold);
        assert_eq!(back.tree_counts(), space.tree_counts());
        assert_eq!(back.free_segments(), 3);
        assert_eq!(back.live_blocks(), 3);
        assert_eq!(back.contradictions(), []);
        assert!(Space::decode(layout, 9, &[9]).is_none());
        assert!(Space::decode(layout, 9, &[TABLE_FREE | 1]).is_none());
    }

    #[test]
    fn places_and_segments() {
        let layout = Layout { segment_blocks: 16 };
        assert_eq!(layout.segment(Place(15)), None);
        assert_eq!(layout.segment(Place(16)), Some(0));
        assert_eq!(layout.segment(Place(32)), Some(1));
        assert_eq!(layout.room(Place(16)), 16);
        assert_eq!(layout.room(Place(31)), 1);
        assert_eq!(layout.behind(Place(16), 14, Place(48)), (Place(30), Place(48)));
        assert_eq!(layout.behind(Place(16), 15, Place(48)), (Place(48), Place::NONE));
        assert_eq!(layout.behind(Place(16), 16, Place(48)), (Place(48), Place::NONE));
        assert_eq!(layout.chunk_blocks(), 8);
        assert_eq!(Layout { segment_blocks: 1024 }.chunk_blocks(), 249);
        assert_eq!((layout.record_blocks(), layout.record_images()), (8, 6));
        assert_eq!(Layout { segment_blocks: 1024 }.record_blocks(), 250);
    }

    #[test]
    fn segments_written_before_are_taken_first() {
        let mut space = Space::new(Layout { segment_blocks: 64 });
        space.add_segments(3, false);
        space.add_segments(COLD_RESERVE + 1, true);
        let first = space.extend_chain(COLD_RESERVE).unwrap();
        assert_eq!(first, space.layout.start(3), "the first that has been written");
        let ahead = space.take_unwritten().unwrap();
        assert_eq!(ahead, space.layout.start(0));
        space.written(ahead, false);
        assert_eq!(space.take_unwritten(), Some(ahead), "still to be written");
        space.written(ahead, true);
        assert_eq!(space.take_unwritten(), Some(space.layout.start(1)));
        space.written(space.layout.start(1), true);
        assert!(space.has_unwritten());
        assert!(space.contradictions().is_empty());
    }
}
