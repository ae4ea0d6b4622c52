//! A large stabilisation whose first pages are written while its last ones are still being copied. Nothing of it counts
//! before its commit chunk, which comes behind a flush behind all other chunks. No thread is started here: who has one to
//! spare runs the [`Ahead`]s on it. Read [`Store::stream`] first.

use std::io::IoSlice;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::aligned::AlignedBuf;
use crate::batch::{Batch, Given};
use crate::commit::{
    Committed, End, Head, Meanwhile, Plan, WRITING, Writer, finish, plan_record, record_blocks,
};
use crate::disk::{Failures, UnderWay};
use crate::error::{CommitError, again};
use crate::format::{BLOCK, Chunk, Entry, RECORD_FIXED_BLOCKS};
use crate::group::Lead;
use crate::medium::{Medium, SharedPart, WriteUnderWay};
use crate::planted::{self, Bug};
use crate::space::{COLD_RESERVE, NoSegment};
use crate::store::{State, Store};

/// Parts that are written with one call at the most.
const PARTS_AT_ONCE: usize = 64;

/// A stabilisation under way: the only one, until it has ended.
///
/// [`Stream::give`] as the batch fills, [`Stream::commit`] when it is full. Dropped before that, or after an error, nothing
/// of it has become stable, and the batch can be committed as any other once [`Stream::give_up`] has been told.
pub struct Stream<'a> {
    store: &'a Store,
    /// Upkeep gives way, unless it is to make room for this.
    under_way: Option<UnderWay<'a>>,
    // Let go of in this order.
    writer: MutexGuard<'a, Writer>,
    _lead: Lead<'a>,
    /// Of the epoch, which goes on if this one ends well.
    failures: Failures,
    association: u32,
    plan: Plan,
    /// What the medium writes by itself.
    writing: Vec<Box<dyn WriteUnderWay>>,
    ledger: Arc<Ledger>,
    /// With a bug planted, chunks that wait until it is too late.
    late: Vec<Ahead>,
    /// Whether something of it may be in the log.
    begun: bool,
    committed: bool,
}

impl std::fmt::Debug for Stream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("chunks", &self.plan.chunks.len()).finish_non_exhaustive()
    }
}

/// What has become of the chunks that were given to be written.
#[derive(Debug, Default)]
struct Ledger {
    state: Mutex<Outstanding>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct Outstanding {
    count: usize,
    error: Option<std::io::Error>,
}

impl Ledger {
    fn state(&self) -> MutexGuard<'_, Outstanding> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for all chunks; the first error there was.
    fn settle(&self) -> Result<(), std::io::Error> {
        let mut state = self.state();
        while state.count > 0 {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.error.take().map_or(Ok(()), Err)
    }
}

/// Chunks of a stabilisation, to be written by whoever has time. Its stream waits until it has been run or dropped.
#[derive(Debug)]
pub struct Ahead {
    medium: Arc<dyn Medium>,
    offset: u64,
    parts: Vec<SharedPart>,
    ledger: Arc<Ledger>,
    /// `None` until it has been run.
    outcome: Option<std::io::Result<()>>,
}

impl Ahead {
    /// Writes these chunks, given by one stream in this order, in as few calls as possible. What goes wrong the stream
    /// will say.
    pub fn run(aheads: &mut Vec<Ahead>) {
        let adjacent = |a: &Ahead, b: &Ahead| a.offset + a.bytes() as u64 == b.offset;
        for group in aheads.chunk_by_mut(adjacent) {
            for some in group.chunks_mut(PARTS_AT_ONCE / 3) {
                let parts = some.iter().flat_map(|ahead| &ahead.parts);
                let parts: Vec<IoSlice<'_>> = parts.map(|p| IoSlice::new(p.bytes())).collect();
                let written = some[0].medium.write(some[0].offset, &parts);
                drop(parts);
                for ahead in some {
                    ahead.outcome = Some(match &written {
                        Ok(()) => Ok(()),
                        Err(error) => Err(again(error)),
                    });
                }
            }
        }
        aheads.clear();
    }

    fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes().len()).sum()
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // Behind this the batch may change them.
        self.parts.clear();
        let dropped = || Err(std::io::Error::other("a part of it was not written"));
        let outcome = self.outcome.take().unwrap_or_else(dropped);
        let mut state = self.ledger.state();
        state.count -= 1;
        if let Err(error) = outcome {
            state.error.get_or_insert(error);
        }
        if state.count == 0 {
            self.ledger.done.notify_all();
        }
    }
}

impl Store {
    /// Begins a stabilisation of about so many pages, of what the batch holds and what it will be given. `None` if it had
    /// better be made as any other: it is small, another one is under way, containers are dropped, there is
    /// no room, or the last one was refused because of a quota.
    ///
    /// Other stabilisations wait until it has ended. A page that the batch is given a second time may be written
    /// twice.
    pub fn stream(&self, batch: &Batch, page_count: u64) -> Option<Stream<'_>> {
        let large = page_count >= 2 * self.layout().record_blocks();
        if self.is_read_only() || !large || batch.dropped().next().is_some() {
            return None;
        }
        let lead = self.lead_alone()?;
        let mut writer = self.writer();
        if writer.refused {
            // It may be again, and would have been written in vain.
            return None;
        }
        let blocks = record_blocks(page_count as usize, page_count as usize);
        // What finds no room yet is written at the end, and upkeep may make some until then.
        let has_room = matches!(self.grow_for(blocks), Ok(None));
        if writer.epoch != Some(self.disk.failures()) {
            self.begin_epoch(&mut writer).ok()?;
        }
        let failures = writer.epoch.take().filter(|&failures| failures == self.disk.failures())?;
        writer.suspect = true;
        let mut plan = Plan::at(&self.state(), COLD_RESERVE);
        plan.behind.sequence += 1;
        Some(Stream {
            store: self,
            under_way: has_room.then(|| self.disk.record_under_way()),
            writer,
            _lead: lead,
            failures,
            association: batch.association(),
            plan,
            writing: Vec::new(),
            ledger: Arc::default(),
            late: Vec::new(),
            begun: false,
            committed: false,
        })
    }
}

impl Stream<'_> {
    /// Has written what can be by now. What the medium does not write by itself is handed out, to be run, on any thread, in
    /// this order.
    pub fn give(&mut self, batch: &mut Batch) -> Vec<Ahead> {
        let mut aheads = Vec::new();
        while batch.has_full_piece()
            && self.ledger.state().error.is_none()
            && let Some(given) = batch.give()
        {
            match self.plan_given(&given) {
                Ok(planned) => aheads.extend(self.ahead(&given, planned)),
                Err(NoSegment) => {
                    batch.take_last_back();
                    break;
                }
            }
        }
        if planted::is(Bug::ChunksBehindFlush) {
            self.late.append(&mut aheads);
        }
        aheads
    }

    /// Takes room for a piece; how many chunks it has become.
    fn plan_given(&mut self, given: &Given) -> Result<usize, NoSegment> {
        let entries: Vec<_> =
            given.images.iter().map(|i| (Entry::Image(i.id), i.checksum)).collect();
        let mut more = self.plan.go_on();
        let head = self.head();
        plan_record(&mut self.store.state_mut(), &mut more, &head, (&entries, 0), End::Open)?;
        let count = more.chunks.len();
        self.plan.append(more);
        Ok(count)
    }

    fn head(&self) -> Head {
        let ordinal = self.plan.chunks.len() as u32;
        Head { batch: 0, association: self.association, group: 0, ordinal }
    }

    /// Seals the last chunks of the plan.
    fn ahead(&mut self, given: &Given, count: usize) -> Vec<Ahead> {
        self.begun = true;
        let first = self.plan.chunks.len() - count;
        let store = self.store;
        let mut aheads = Vec::with_capacity(count);
        for planned in &mut self.plan.chunks[first..] {
            let mut headers = AlignedBuf::zeroed(2 * BLOCK);
            let (header, twin) = headers.as_mut_slice().split_at_mut(BLOCK);
            planned.chunk.previous = self.plan.behind.chain;
            self.plan.behind.chain = planned.chunk.encode(store.header.store_id, header);
            Chunk::encode_twin(header, twin);
            let from = planned.first_image * BLOCK;
            let to = from + planned.images * BLOCK;
            let headers = Arc::new(headers);
            let parts = vec![
                SharedPart::new(Arc::clone(&headers), 0..BLOCK),
                SharedPart::new(Arc::clone(&given.bytes), from..to),
                SharedPart::new(headers, BLOCK..2 * BLOCK),
            ];
            let offset = planned.at.offset();
            let begun = if planted::is(Bug::ChunksBehindFlush) {
                Err(parts)
            } else {
                store.disk.begin_record_write(offset, parts)
            };
            let parts = match begun {
                Ok(write) => {
                    self.writing.push(write);
                    continue;
                }
                Err(parts) => parts,
            };
            store.disk.count_ahead((2 * BLOCK + to - from) as u64);
            self.ledger.state().count += 1;
            aheads.push(Ahead {
                medium: store.disk.medium(),
                offset,
                parts,
                ledger: Arc::clone(&self.ledger),
                outcome: None,
            });
        }
        aheads
    }

    /// Makes the batch stable, with what has been given of it, all or nothing: as [`Store::commit`].
    ///
    /// What has been given must have been run or dropped, or be about to be by another thread.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn commit(mut self, batch: &mut Batch) -> Result<Committed, CommitError> {
        let committed = self.try_commit(batch);
        if committed.is_err() {
            self.end(batch);
        }
        committed
    }

    /// Ends it with nothing stable; the batch holds all that it held.
    pub fn give_up(mut self, batch: &mut Batch) {
        self.end(batch);
    }

    fn end(&mut self, batch: &mut Batch) {
        drop(self.settle());
        batch.take_back();
    }

    /// Waits for all that has been given.
    fn settle(&mut self) -> Result<(), CommitError> {
        let finished = finish(&mut self.writing);
        self.late.clear();
        let settled = self.ledger.settle();
        finished?;
        settled.map_err(|source| CommitError::io(WRITING, source))
    }

    fn try_commit(&mut self, batch: &mut Batch) -> Result<Committed, CommitError> {
        let store = self.store;
        let images = batch.settle();
        let entries = store.entries(batch, &images, &[]);
        let page_count = batch.given_images() + images.len();
        if self.plan.chunks.is_empty() && entries.is_empty() {
            // Nothing was given, and nothing is to be said.
            batch.clear();
            return Ok(store.nothing_to_commit());
        }
        let heavy = !self.plan.chunks.is_empty() || store.is_heavy(entries.len());
        let end = if heavy { End::Commit } else { End::Last };
        let grown_before = store.state().space.segments();
        // With the commit chunk.
        let blocks = record_blocks(images.len(), entries.len()) + RECORD_FIXED_BLOCKS;
        // Who waits for upkeep here must not have it give way.
        self.under_way = None;
        let no_room = store.make_room(blocks).err();
        let (head, first) = (self.head(), batch.given_images());
        let given = self.plan.chunks.iter().flat_map(|planned| &planned.chunk.entries);
        let all = given.chain(&entries).map(|&(entry, _)| entry);
        let held = store.check_quotas(&mut self.writer, all)?;
        let rest = |state: &mut State, _| {
            let mut rest = self.plan.go_on();
            plan_record(state, &mut rest, &head, (&entries, first), end).map(|()| rest)
        };
        let rest = store.plan_with_room(rest, images.len(), no_room)?;
        let grown = store.state().space.segments().saturating_sub(grown_before);
        self.under_way = Some(store.disk.record_under_way());
        let late = planted::is(Bug::ChunksBehindFlush);
        let settled = if late { Ok(()) } else { self.settle() };
        if !planted::is(Bug::AheadUnheeded) {
            // All chunks that were given have been written when the flush begins that the commit chunk waits for: a
            // commit chunk in the log proves them, as it proves those that are written now.
            settled?;
        }
        self.begun = true;
        let lent = [&mut *batch];
        let meanwhile = &mut Meanwhile::none();
        let (rest, flushes) =
            store.write_records(&mut self.writer, &lent, rest, self.failures, meanwhile)?;
        Ahead::run(&mut self.late);
        self.plan.append(rest);
        (self.writer.epoch, self.writer.suspect) = (Some(self.failures), false);
        (self.writer.held, self.writer.refused) = (held, false);
        self.committed = true;
        let sequence = store.conclude(&self.plan) + 1;
        batch.clear();
        let blocks: u64 = self.plan.chunks.iter().map(|planned| planned.chunk.blocks()).sum();
        Ok(Committed {
            sequence,
            pages: page_count as u64,
            bytes_written: blocks * BLOCK as u64,
            flushes,
            file_grown: grown as u64 * store.layout().segment_blocks * BLOCK as u64,
            maintain_soon: store.wants_maintenance(),
        })
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        // Nobody may write to these places when they may belong to somebody else.
        drop(self.settle());
        if !self.begun {
            (self.writer.epoch, self.writer.suspect) = (Some(self.failures), false);
            return;
        }
        // What was written is no part of the chain: another one begins elsewhere.
        self.store.needs_epoch.store(true, Ordering::SeqCst);
    }
}
