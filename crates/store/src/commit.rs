//! Making a batch stable: planning its chunks, writing them with one write and one flush (two of each when
//! it is large), and only then entering them into the map in memory. It never waits for upkeep, except
//! when there is no room. Read [`Store::commit`] first.

use std::io::IoSlice;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use stead_model::PageId;

use crate::aligned::AlignedBuf;
use crate::batch::{Batch, Image};
use crate::disk::{Failures, Purpose};
use crate::error::CommitError;
use crate::format::{BLOCK, CHUNK_ENTRIES, Chunk, ChunkKind, Entry, LogPosition, Place};
use crate::medium::WriteRequest;
use crate::planted::{self, Bug};
use crate::space::NoSegment;
use crate::store::{State, Store};

/// What a chunk costs recovery at most, in blocks read one after the other: behind a long chunk it reads at
/// another place instead.
const CHUNK_REPLAY_BLOCKS: u64 = 25;

/// A stabilisation that is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// Its number; they go up by one. Of an empty batch: the last one's.
    pub sequence: u64,
    /// Images stored.
    pub pages: u64,
    /// Bytes written for it, headers included.
    pub bytes_written: u64,
    /// Flushes it took.
    pub flushes: u32,
    /// Bytes by which the file had to be made longer for it.
    pub file_grown: u64,
    /// Whether [`Store::maintain`] has something to do.
    pub maintain_soon: bool,
}

/// What only the one stabilisation under way uses.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    /// Set while the current epoch's chain may be gone on with: how many failures there were when it began.
    pub(crate) epoch: Option<Failures>,
    /// Whether the segment being written is suspect, so that the next epoch must begin in another.
    pub(crate) suspect: bool,
    headers: Option<AlignedBuf>,
}

/// A chunk, and which of the batch's images are its payload.
#[derive(Debug)]
struct Planned {
    at: Place,
    chunk: Chunk,
    first_image: usize,
    images: usize,
}

#[derive(Debug)]
struct Plan {
    chunks: Vec<Planned>,
    /// The position behind, its chain checksum not known yet.
    behind: LogPosition,
    segments_taken: usize,
    has_images: bool,
}

impl Store {
    /// Makes everything in the batch stable, all or nothing: when this returns `Ok`, it is durable
    /// (catalogue B1, B6). The batch is then empty, with its memory kept for the next one.
    ///
    /// # Errors
    /// The store is as before and the batch still holds everything: committing it again, or with newer images, is
    /// right. After a failed write or flush that goes to another place, behind new roots.
    pub fn commit(&self, batch: &mut Batch) -> Result<Committed, CommitError> {
        self.check_writable()?;
        let mut writer = self.writer();
        let images = batch.settle();
        let entries = self.entries(batch, &images);
        if entries.is_empty() {
            if writer.suspect {
                // To say that the state is stable, an attempt that failed must be out of the way.
                self.begin_epoch(&mut writer)?;
            }
            batch.clear();
            return Ok(self.nothing_to_commit());
        }
        let grown_before = self.state().space.segments();
        // Only images take a block each; pages that became zero lie in the chunks' headers.
        let blocks_needed = (images.len() + entries.len().div_ceil(CHUNK_ENTRIES)) as u64;
        let mut no_room;
        loop {
            if writer.epoch != Some(self.disk.failures()) {
                self.begin_epoch(&mut writer)?;
            }
            no_room = self.make_room(blocks_needed).err();
            // Making room may have met a failure of its own, and then a new epoch is due again.
            if writer.epoch == Some(self.disk.failures()) {
                break;
            }
        }
        let plan = self.plan_with_room(&entries, no_room)?;
        let file_grown =
            (self.state().space.segments() - grown_before) as u64 * self.layout().segment_blocks;
        let written = self.write_record(&mut writer, batch, plan);
        let (plan, flushes) = match written {
            Ok(written) => written,
            Err(error) => {
                writer.epoch = None;
                writer.suspect = true;
                self.needs_epoch.store(true, Ordering::SeqCst);
                return Err(error);
            }
        };
        let blocks: u64 = plan.chunks.iter().map(|planned| planned.chunk.blocks()).sum();
        self.note_need(blocks / self.layout().segment_blocks);
        self.enter_record(&plan);
        batch.clear();
        Ok(Committed {
            sequence: plan.behind.sequence,
            pages: images.len() as u64,
            bytes_written: blocks * BLOCK as u64,
            flushes,
            file_grown: file_grown * BLOCK as u64,
            maintain_soon: self.wants_maintenance(),
        })
    }

    fn nothing_to_commit(&self) -> Committed {
        Committed {
            sequence: self.state().position.sequence,
            pages: 0,
            bytes_written: 0,
            flushes: 0,
            file_grown: 0,
            maintain_soon: self.wants_maintenance(),
        }
    }

    /// The record's entries: containers dropped, then images, then zero pages. What is known to be so
    /// already is left out.
    fn entries(&self, batch: &Batch, images: &[Image]) -> Vec<(Entry, u64)> {
        let state = self.state();
        let known = |container| {
            state.trees.contains_key(&container)
                || state.active.changes(container).is_some()
                || state.frozen.as_ref().is_some_and(|f| f.changes(container).is_some())
        };
        let zero_already = |id: PageId| match state.find_in_layers(id) {
            Some(at) => at.is_never(),
            None => !state.trees.contains_key(&id.container),
        };
        // A page that is zero in the layer but not below a container dropped by this very batch stays
        // zero; a page of such a container needs no entry either.
        let drops: Vec<_> = batch.dropped().filter(|&container| known(container)).collect();
        let zeros = batch
            .zeros()
            .into_iter()
            .filter(|id| !zero_already(*id) && drops.binary_search(&id.container).is_err());
        let mut entries: Vec<(Entry, u64)> =
            drops.iter().map(|&container| (Entry::Drop(container), 0)).collect();
        entries.extend(images.iter().map(|image| (Entry::Image(image.id), image.checksum)));
        entries.extend(zeros.map(|id| (Entry::Zero(id), 0)));
        entries
    }

    fn plan_with_room(
        &self,
        entries: &[(Entry, u64)],
        mut no_room: Option<CommitError>,
    ) -> Result<Plan, CommitError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        loop {
            let planned = plan(&mut self.state_mut(), entries, time);
            match planned {
                Ok(plan) => return Ok(plan),
                Err(NoSegment) => match no_room.take() {
                    Some(error) => return Err(error),
                    // Upkeep has been quicker.
                    None => self.grow(1, false)?,
                },
            }
        }
    }

    /// Writes and flushes; returns the plan with all checksums filled in, and how many flushes it took.
    fn write_record(
        &self,
        writer: &mut Writer,
        batch: &Batch,
        mut plan: Plan,
    ) -> Result<(Plan, u32), CommitError> {
        let since = self.disk.failures();
        let header_bytes = plan.chunks.len() * BLOCK;
        if writer.headers.as_ref().is_none_or(|headers| headers.len() < header_bytes) {
            writer.headers = Some(AlignedBuf::zeroed(header_bytes.next_power_of_two()));
        }
        let headers = writer.headers.as_mut().expect("made just now").as_mut_slice();
        let mut chain = self.state().position.chain;
        for (planned, header) in plan.chunks.iter_mut().zip(headers.chunks_mut(BLOCK)) {
            planned.chunk.previous = chain;
            chain = planned.chunk.encode(self.header.store_id, header);
        }
        plan.behind.chain = chain;

        let has_commit = plan.chunks.last().is_some_and(|p| p.chunk.kind == ChunkKind::Commit);
        let (body, commit) = plan.chunks.split_at(plan.chunks.len() - usize::from(has_commit));
        let adjacent = |a: &Planned, b: &Planned| a.at.plus(a.chunk.blocks()) == b.at;
        let mut done = 0;
        let mut groups: Vec<(u64, Vec<IoSlice<'_>>)> = Vec::new();
        for group in body.chunk_by(adjacent) {
            let mut parts = Vec::new();
            for planned in group {
                parts.push(IoSlice::new(&headers[done * BLOCK..(done + 1) * BLOCK]));
                parts.extend(batch.slices(planned.first_image, planned.images).map(IoSlice::new));
                done += 1;
            }
            groups.push((group[0].at.offset(), parts));
        }
        let mut writes: Vec<WriteRequest<'_>> =
            groups.iter().map(|(offset, parts)| WriteRequest { offset: *offset, parts }).collect();
        let header = commit.first().map(|_| [IoSlice::new(&headers[done * BLOCK..][..BLOCK])]);
        if let (Some(commit), Some(header)) = (commit.first(), &header) {
            // A record this large may have made the file longer in a hurry. The small ones behind it shall not
            // pay for that: what they will use is written now, under the flush that is due anyway.
            let ahead = self.state_mut().space.unwritten_ahead(&plan.behind);
            for place in ahead {
                let end = place.plus(self.layout().room(place));
                self.write_zeros(place.offset(), end.offset())?;
            }
            if !planted::is(Bug::CommitBeforeBody) {
                self.disk.write_and_sync(Purpose::Record, &writes, since)?;
                writes.clear();
            }
            writes.push(WriteRequest { offset: commit.at.offset(), parts: header });
        }
        self.disk.write_and_sync(Purpose::Record, &writes, since)?;
        Ok((plan, if has_commit { 2 } else { 1 }))
    }

    fn enter_record(&self, plan: &Plan) {
        let mut state = self.state_mut();
        for planned in &plan.chunks {
            for (entry, at) in planned.chunk.located(planned.at) {
                state.enter(entry, at);
            }
            state.replay_blocks += replay_cost(&planned.chunk);
        }
        state.position = plan.behind;
    }
}

pub(crate) fn replay_cost(chunk: &Chunk) -> u64 {
    chunk.blocks().min(CHUNK_REPLAY_BLOCKS)
}

/// Cuts the entries into chunks behind the current position, taking segments as needed.
fn plan(state: &mut State, entries: &[(Entry, u64)], time: u64) -> Result<Plan, NoSegment> {
    let layout = state.space.layout();
    let most = layout.chunk_blocks();
    let light = entries.len() < most as usize;
    let mut plan = Plan {
        chunks: Vec::new(),
        behind: LogPosition { sequence: state.position.sequence + 1, time, ..state.position },
        segments_taken: 0,
        has_images: entries.iter().any(|(entry, _)| entry.has_payload()),
    };
    let mut rest = entries;
    let mut first_image = 0;
    while !rest.is_empty() {
        let room = (layout.room(plan.behind.place).min(most) - 1) as usize;
        let mut images = 0;
        let mut count = 0;
        for (entry, _) in rest.iter().take(CHUNK_ENTRIES) {
            if entry.has_payload() {
                if images == room {
                    break;
                }
                images += 1;
            }
            count += 1;
        }
        let (these, others) = rest.split_at(count);
        let last = light && others.is_empty();
        let chunk = (ChunkKind::Record, last, these.to_vec());
        push_chunk(state, &mut plan, chunk, first_image, images)?;
        first_image += images;
        rest = others;
    }
    if !light {
        push_chunk(state, &mut plan, (ChunkKind::Commit, false, Vec::new()), first_image, 0)?;
    }
    Ok(plan)
}

fn push_chunk(
    state: &mut State,
    plan: &mut Plan,
    (kind, last, entries): (ChunkKind, bool, Vec<(Entry, u64)>),
    first_image: usize,
    images: usize,
) -> Result<(), NoSegment> {
    let behind = &mut plan.behind;
    if behind.next_segment.is_none() {
        match state.space.extend_chain(plan.has_images) {
            Ok(place) => behind.next_segment = place,
            Err(NoSegment) => {
                state.space.shorten_chain(plan.segments_taken);
                return Err(NoSegment);
            }
        }
        plan.segments_taken += 1;
    }
    let chunk = Chunk {
        kind,
        epoch: behind.epoch,
        serial: behind.serial,
        sequence: behind.sequence,
        ordinal: plan.chunks.len() as u32,
        last,
        previous: 0,
        next_segment: behind.next_segment,
        time: behind.time,
        entries,
    };
    let at = behind.place;
    let layout = state.space.layout();
    (behind.place, behind.next_segment) = layout.behind(at, chunk.blocks(), behind.next_segment);
    behind.serial += 1;
    plan.chunks.push(Planned { at, chunk, first_image, images });
    Ok(())
}
