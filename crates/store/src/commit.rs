//! Making a batch stable: planning its chunks, writing them with one write and one flush (two of each when
//! it is large), and only then entering them into the map in memory. It never waits for upkeep, except
//! when there is no room. Read [`Store::commit`] first.

use std::collections::HashSet;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use stead_model::PageId;

use crate::aligned::AlignedBuf;
use crate::batch::{Batch, Image};
use crate::disk::{Failures, Purpose};
use crate::error::CommitError;
use crate::format::{
    BLOCK, CHUNK_ENTRIES, Chunk, ChunkKind, Entry, LogPosition, Place, RECORD_FIXED_BLOCKS,
};
use crate::medium::{SharedPart, WriteRequest, WriteUnderWay};
use crate::planted::{self, Bug};
use crate::settings::Held;
use crate::space::{COLD_RESERVE, COLD_RESERVE_LEAST, NoSegment};
use crate::store::{State, Store};

/// What a chunk costs recovery at most, in blocks read one after the other: behind a long chunk it reads at
/// another place instead.
const CHUNK_REPLAY_BLOCKS: u64 = 25;

/// What has gone wrong, when it has.
pub(crate) const WRITING: &str = "writing a stabilisation to log";

/// Nodes of the map above those that a small record changes.
const ROOT_NODES: u64 = 8;

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

/// What a caller does while the disk writes its batch. It is done once in any case: at the latest before anything else
/// is waited for.
pub(crate) struct Meanwhile<'a>(Option<&'a mut dyn FnMut()>);

impl<'a> Meanwhile<'a> {
    pub(crate) fn new(act: &'a mut dyn FnMut()) -> Self {
        Meanwhile(Some(act))
    }

    /// Nothing.
    pub(crate) fn none() -> Self {
        Meanwhile(None)
    }

    /// Does it, if it has not been done.
    pub(crate) fn now(&mut self) {
        if let Some(act) = self.0.take() {
            act();
        }
    }
}

impl Drop for Meanwhile<'_> {
    fn drop(&mut self) {
        self.now();
    }
}

/// What only the one stabilisation under way uses.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    /// Set while the current epoch's chain may be gone on with: how many failures there were when it began.
    pub(crate) epoch: Option<Failures>,
    /// Whether the segment being written is suspect, so that the next epoch must begin in another.
    pub(crate) suspect: bool,
    headers: Option<AlignedBuf>,
    pub(crate) held: Held,
    /// Whether the last stabilisation was refused because of a container's quota.
    pub(crate) refused: bool,
}

/// A chunk, and which images of which batch are its payload.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) at: Place,
    pub(crate) chunk: Chunk,
    batch: usize,
    pub(crate) first_image: usize,
    pub(crate) images: usize,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) chunks: Vec<Planned>,
    /// The position behind; its chain checksum is that behind the last chunk that has been sealed.
    pub(crate) behind: LogPosition,
    segments_taken: usize,
    /// Segments that it leaves to the map: fewer if it is what makes room in a full store.
    reserve: usize,
}

impl Plan {
    /// Nothing yet, behind the last stabilisation.
    pub(crate) fn at(state: &State, reserve: usize) -> Plan {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let behind = LogPosition { time, ..state.position };
        Plan { chunks: Vec::new(), behind, segments_taken: 0, reserve }
    }

    /// Nothing yet, behind this one.
    pub(crate) fn go_on(&self) -> Plan {
        let (behind, reserve) = (self.behind, self.reserve);
        Plan { chunks: Vec::new(), behind, segments_taken: 0, reserve }
    }

    /// Takes up what was planned behind it.
    pub(crate) fn append(&mut self, more: Plan) {
        self.chunks.extend(more.chunks);
        self.behind = more.behind;
        self.segments_taken += more.segments_taken;
    }
}

/// What one batch asks to have recorded.
#[derive(Debug)]
struct Asked {
    association: u32,
    entries: Vec<(Entry, u64)>,
    images: usize,
}

impl Asked {
    /// Whether a container is given up. Some images belong to that: the directory in which it stood.
    fn drops(&self) -> bool {
        // They stand first.
        matches!(self.entries.first(), Some((Entry::Drop(_), _)))
    }
}

impl Store {
    /// Makes everything in the batch stable, all or nothing: when this returns `Ok`, it is durable
    /// (catalogue B1, B6). The batch is then empty, with its memory kept for the next one.
    ///
    /// Several threads may do so at once: those who come while one is at it go together behind it, with one
    /// flush for all (see `group`). Each batch is still all or nothing by itself.
    ///
    /// # Errors
    /// The store is as before and the batch still holds everything: committing it again, or with newer images, is
    /// right. After a failed write or flush that goes to another place, behind new roots.
    pub fn commit(&self, batch: &mut Batch) -> Result<Committed, CommitError> {
        self.check_writable()?;
        self.commit_with_others(batch, &mut Meanwhile::none())
    }

    /// As [`Store::commit`]; and does something else while the disk writes, if the medium allows it, or before anything has to
    /// be waited for. `meanwhile` is called once, whatever becomes of the batch.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn commit_while(
        &self,
        batch: &mut Batch,
        mut meanwhile: impl FnMut(),
    ) -> Result<Committed, CommitError> {
        let mut meanwhile = Meanwhile::new(&mut meanwhile);
        self.check_writable()?;
        self.commit_with_others(batch, &mut meanwhile)
    }

    /// Whether a record of so many entries is flushed before its commit chunk is written.
    pub(crate) fn is_heavy(&self, entries: usize) -> bool {
        entries as u64 > self.layout().record_images()
    }

    /// Commits batches, in their order, with the flushes of one; each is all or nothing, and an outcome of its own.
    /// Only the last may be heavy. If there is no room for all of them together, each has to make do by itself.
    pub(crate) fn commit_together(
        &self,
        writer: &mut Writer,
        batches: &mut [&mut Batch],
        meanwhile: &mut Meanwhile<'_>,
    ) -> Vec<Result<Committed, CommitError>> {
        match self.commit_records(writer, batches, meanwhile) {
            Ok(committed) => committed.into_iter().map(Ok).collect(),
            Err(error)
                if batches.len() > 1
                    && (error.is_no_room()
                        || matches!(error, CommitError::ContainerFull { .. })) =>
            {
                batches
                    .iter_mut()
                    .map(|batch| {
                        let alone = std::slice::from_mut(batch);
                        let committed = self.commit_records(writer, alone, meanwhile)?;
                        Ok(committed.into_iter().next().expect("there is one for each batch"))
                    })
                    .collect()
            }
            Err(error) => {
                let mut outcomes: Vec<_> = batches.iter().map(|_| Err(error.again())).collect();
                if planted::is(Bug::FollowersUnflushed) {
                    let told = || Ok(self.nothing_to_commit());
                    outcomes[1..].iter_mut().for_each(|outcome| *outcome = told());
                }
                outcomes[0] = Err(error);
                outcomes
            }
        }
    }

    fn commit_records(
        &self,
        writer: &mut Writer,
        batches: &mut [&mut Batch],
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<Vec<Committed>, CommitError> {
        let mut asked: Vec<Asked> = Vec::with_capacity(batches.len());
        for i in 0..batches.len() {
            let images = batches[i].settle();
            let (earlier, rest) = batches.split_at(i);
            asked.push(Asked {
                association: rest[0].association(),
                entries: self.entries(&*rest[0], &images, earlier),
                images: images.len(),
            });
        }
        if asked.iter().all(|asked| asked.entries.is_empty()) {
            meanwhile.now();
            if writer.suspect {
                // To say that the state is stable, an attempt that failed must be out of the way.
                self.begin_epoch(writer)?;
            }
            batches.iter_mut().for_each(|batch| batch.clear());
            return Ok(asked.iter().map(|_| self.nothing_to_commit()).collect());
        }
        let entries = asked.iter().flat_map(|asked| &asked.entries).map(|&(entry, _)| entry);
        let held = self.check_quotas(writer, entries)?;
        let records = asked.iter().filter(|asked| !asked.entries.is_empty()).count();
        if records > 1 && !self.groups.swap(true, Ordering::SeqCst) {
            // Both roots must say so before there is such a thing in the chain.
            writer.epoch = None;
        }
        let grown_before = self.state().space.segments();
        // Only images take a block each; pages that became zero lie in the chunks' headers.
        let blocks_needed: u64 =
            asked.iter().map(|asked| record_blocks(asked.images, asked.entries.len())).sum();
        let mut no_room;
        if writer.epoch != Some(self.disk.failures()) || !self.has_room(blocks_needed) {
            meanwhile.now();
        }
        loop {
            if writer.epoch != Some(self.disk.failures()) {
                self.begin_epoch(writer)?;
            }
            no_room = self.make_room(blocks_needed).err();
            // Making room may have met a failure of its own, and then a new epoch is due again.
            if writer.epoch == Some(self.disk.failures()) {
                break;
            }
        }
        let plan = {
            let images = asked.iter().map(|asked| asked.images).sum();
            let plan = |state: &mut State, to_the_last| plan(state, &asked, to_the_last);
            let at_once = plan(&mut self.state_mut(), false);
            match at_once {
                Ok(plan) => plan,
                Err(NoSegment) => {
                    meanwhile.now();
                    self.plan_with_room(plan, images, no_room)?
                }
            }
        };
        // It may have become shorter meanwhile.
        let grown = self.state().space.segments().saturating_sub(grown_before);
        let file_grown = grown as u64 * self.layout().segment_blocks;
        // Should this end in a panic, what has been written is as suspect as after an error.
        let epoch = writer.epoch.take();
        let suspect = std::mem::replace(&mut writer.suspect, true);
        let under_way = self.disk.record_under_way();
        let since = self.disk.failures();
        let written = self.write_records(writer, batches, plan, since, meanwhile);
        drop(under_way);
        let (plan, flushes) = match written {
            Ok(written) => written,
            Err(error) => {
                self.needs_epoch.store(true, Ordering::SeqCst);
                return Err(error);
            }
        };
        (writer.epoch, writer.suspect) = (epoch, suspect);
        let mut sequence = self.conclude(&plan);
        (writer.held, writer.refused) = (held, false);
        let maintain_soon = self.wants_maintenance();
        let mut shared = (flushes, file_grown * BLOCK as u64);
        let mut committed = Vec::with_capacity(batches.len());
        for (i, (batch, asked)) in batches.iter_mut().zip(&asked).enumerate() {
            let chunks = plan.chunks.iter().filter(|planned| planned.batch == i);
            let blocks: u64 = chunks.map(|planned| planned.chunk.blocks()).sum();
            // What they share is told once.
            let (flushes, file_grown) =
                if blocks > 0 { std::mem::take(&mut shared) } else { (0, 0) };
            sequence += u64::from(blocks > 0);
            batch.clear();
            committed.push(Committed {
                sequence,
                pages: asked.images as u64,
                bytes_written: blocks * BLOCK as u64,
                flushes,
                file_grown,
                maintain_soon,
            });
        }
        Ok(committed)
    }

    /// Takes note of what is durable now; the number of the stabilisation before.
    pub(crate) fn conclude(&self, plan: &Plan) -> u64 {
        let blocks: u64 = plan.chunks.iter().map(|planned| planned.chunk.blocks()).sum();
        let now = u64::try_from(self.opened.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.last_commit.store(now, Ordering::Relaxed);
        self.note_need(blocks / self.layout().segment_blocks);
        self.enter_records(plan)
    }

    pub(crate) fn nothing_to_commit(&self) -> Committed {
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
    /// already is left out, unless an `earlier` batch of the same group changes it.
    pub(crate) fn entries(
        &self,
        batch: &Batch,
        images: &[Image],
        earlier: &[&mut Batch],
    ) -> Vec<(Entry, u64)> {
        let state = self.state();
        let known = |container| {
            state.trees.contains_key(&container)
                || state.settings.containers.contains_key(&container)
                || state.active.changes(container).is_some()
                || state.frozen.as_ref().is_some_and(|f| f.changes(container).is_some())
                || earlier.iter().any(|batch| batch.holds_any_of(container))
                || batch.given_pages().any(|id| id.container == container)
        };
        let zero_already = |id: PageId| match state.find_in_layers(id) {
            Some(at) => at.is_never(),
            None => !state.trees.contains_key(&id.container),
        };
        // A page that is zero in the layer but not below a container dropped by this very batch stays
        // zero; a page of such a container needs no entry either.
        let drops: Vec<_> = batch.dropped().filter(|&container| known(container)).collect();
        let zeros = batch.zeros();
        let given: HashSet<PageId> =
            if zeros.is_empty() { HashSet::new() } else { batch.given_pages().collect() };
        let changed =
            |id: PageId| given.contains(&id) || earlier.iter().any(|batch| batch.contains(id));
        let zeros = zeros
            .iter()
            .copied()
            .filter(|id| !zero_already(*id) || changed(*id))
            .filter(|id| drops.binary_search(&id.container).is_err());
        let mut entries: Vec<(Entry, u64)> =
            drops.iter().map(|&container| (Entry::Drop(container), 0)).collect();
        entries.extend(images.iter().map(|image| (Entry::Image(image.id), image.checksum)));
        entries.extend(zeros.map(|id| (Entry::Zero(id), 0)));
        entries
    }

    /// Takes the room that `plan` says, of a record with so many images; if there is none otherwise, and it is asked to,
    /// to the last segment.
    pub(crate) fn plan_with_room(
        &self,
        plan: impl Fn(&mut State, bool) -> Result<Plan, NoSegment>,
        images: usize,
        mut no_room: Option<CommitError>,
    ) -> Result<Plan, CommitError> {
        loop {
            let planned = plan(&mut self.state_mut(), false);
            match planned {
                Ok(plan) => return Ok(plan),
                Err(NoSegment) => match no_room.take() {
                    Some(error) if self.needs_no_reserve(images) => {
                        let planned = plan(&mut self.state_mut(), true);
                        return planned.map_err(|NoSegment| error);
                    }
                    Some(error) => return Err(error),
                    // Upkeep has been quicker.
                    None => self.grow(1, false)?,
                },
            }
        }
    }

    /// Whether the map can be stored behind a record of so many images, which makes room, in the segment that its stream is
    /// writing: then the record may have the last one.
    fn needs_no_reserve(&self, images: usize) -> bool {
        let keeper = self.keeper();
        // Until a segment that is let go of is free it takes three roots, or four if an epoch begins, each with a table
        // and two headers.
        let roots = 4 * (keeper.cold.table_blocks() + 2);
        keeper.cold.room(self) >= roots + 2 * images as u64 + ROOT_NODES
    }

    /// Writes and flushes what `plan` has, which must come behind what is sealed up to there; fails if anything has since
    /// `since`. Returns the plan with all checksums filled in, and how many flushes it took.
    pub(crate) fn write_records(
        &self,
        writer: &mut Writer,
        batches: &[&mut Batch],
        mut plan: Plan,
        since: Failures,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<(Plan, u32), CommitError> {
        // A header and its twin for each chunk.
        let header_bytes = plan.chunks.len() * 2 * BLOCK;
        let headers = writer.headers.take().filter(|headers| headers.len() >= header_bytes);
        let mut headers =
            headers.unwrap_or_else(|| AlignedBuf::zeroed(header_bytes.next_power_of_two()));
        let mut chain = plan.behind.chain;
        let pairs = headers.as_mut_slice().chunks_mut(2 * BLOCK);
        for (planned, both) in plan.chunks.iter_mut().zip(pairs) {
            let (header, twin) = both.split_at_mut(BLOCK);
            planned.chunk.previous = chain;
            chain = planned.chunk.encode(self.header.store_id, header);
            Chunk::encode_twin(header, twin);
        }
        plan.behind.chain = chain;

        let has_commit = plan.chunks.last().is_some_and(|p| p.chunk.kind == ChunkKind::Commit);
        let (body, commit) = plan.chunks.split_at(plan.chunks.len() - usize::from(has_commit));
        let adjacent = |a: &Planned, b: &Planned| a.at.plus(a.chunk.blocks()) == b.at;
        let headers = Arc::new(headers);
        let mut header_parts = (0..header_bytes)
            .step_by(BLOCK)
            .map(|at| SharedPart::new(Arc::clone(&headers), at..at + BLOCK));
        let mut under_way = Vec::new();
        let mut groups: Vec<(u64, Vec<SharedPart>)> = Vec::new();
        for group in body.chunk_by(adjacent) {
            let mut parts = Vec::new();
            for planned in group {
                parts.extend(header_parts.next());
                parts.extend(batches[planned.batch].parts(planned.first_image, planned.images));
                parts.extend(header_parts.next());
            }
            match self.disk.begin_record_write(group[0].at.offset(), parts) {
                Ok(write) => under_way.push(write),
                Err(parts) => groups.push((group[0].at.offset(), parts)),
            }
        }
        meanwhile.now();
        let slices: Vec<(u64, Vec<IoSlice<'_>>)> = groups
            .iter()
            .map(|(offset, parts)| {
                (*offset, parts.iter().map(|p| IoSlice::new(p.bytes())).collect())
            })
            .collect();
        let mut writes: Vec<WriteRequest<'_>> =
            slices.iter().map(|(offset, parts)| WriteRequest { offset: *offset, parts }).collect();
        let commit_parts: Vec<SharedPart> = header_parts.collect();
        let both: Vec<IoSlice<'_>> =
            commit_parts.iter().map(|part| IoSlice::new(part.bytes())).collect();
        if !planted::is(Bug::FlushUnderWay) {
            finish(&mut under_way)?;
        }
        if let Some(commit) = commit.first() {
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
            writes.push(WriteRequest { offset: commit.at.offset(), parts: &both });
        }
        self.disk.write_and_sync(Purpose::Record, &writes, since)?;
        finish(&mut under_way)?;
        drop((commit_parts, groups));
        writer.headers = Arc::into_inner(headers);
        Ok((plan, if has_commit { 2 } else { 1 }))
    }

    /// Enters what has been written into the map; the number of the stabilisation before.
    fn enter_records(&self, plan: &Plan) -> u64 {
        let mut state = self.state_mut();
        for planned in &plan.chunks {
            for (entry, at) in planned.chunk.located(planned.at) {
                state.enter(entry, at);
            }
            state.replay_blocks += replay_cost(&planned.chunk);
            state.written.add_record(&planned.chunk);
        }
        let before = state.position.sequence;
        state.position = plan.behind;
        before
    }
}

/// About how many blocks a record takes.
pub(crate) fn record_blocks(images: usize, entries: usize) -> u64 {
    images as u64 + entries.div_ceil(CHUNK_ENTRIES) as u64 * RECORD_FIXED_BLOCKS
}

/// Waits for writes under way. After an error the others are waited for by dropping them.
pub(crate) fn finish(under_way: &mut Vec<Box<dyn WriteUnderWay>>) -> Result<(), CommitError> {
    for write in under_way.drain(..) {
        write.finish().map_err(|source| CommitError::io(WRITING, source))?;
    }
    Ok(())
}

pub(crate) fn replay_cost(chunk: &Chunk) -> u64 {
    chunk.blocks().min(CHUNK_REPLAY_BLOCKS)
}

/// Cuts the batches' entries into chunks behind the current position, taking segments as needed.
fn plan(state: &mut State, asked: &[Asked], to_the_last: bool) -> Result<Plan, NoSegment> {
    let makes_room = asked.iter().all(|asked| asked.images == 0 || asked.drops());
    let reserve = match (makes_room, to_the_last) {
        (true, true) => 0,
        (true, false) => COLD_RESERVE_LEAST,
        (false, _) => COLD_RESERVE,
    };
    let mut plan = Plan::at(state, reserve);
    let most = state.space.layout().record_images() as usize;
    let asking = asked.iter().enumerate().filter(|(_, asked)| !asked.entries.is_empty());
    for (group, (batch, asked)) in asking.enumerate() {
        plan.behind.sequence += 1;
        let end = if asked.entries.len() <= most { End::Last } else { End::Commit };
        let head = Head { batch, association: asked.association, group: group as u32, ordinal: 0 };
        plan_record(state, &mut plan, &head, (&asked.entries, 0), end)?;
    }
    Ok(plan)
}

/// What all chunks of a record have in common.
pub(crate) struct Head {
    pub(crate) batch: usize,
    pub(crate) association: u32,
    /// Records of the same group before it.
    pub(crate) group: u32,
    /// Of the first chunk that is planned now.
    pub(crate) ordinal: u32,
}

/// How chunks of a record end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The last of them ends the record.
    Last,
    /// A commit chunk follows.
    Commit,
    /// More follow.
    Open,
}

/// Cuts a record's entries, and its images from one of a batch on, into chunks.
pub(crate) fn plan_record(
    state: &mut State,
    plan: &mut Plan,
    head: &Head,
    (entries, mut first_image): (&[(Entry, u64)], usize),
    end: End,
) -> Result<(), NoSegment> {
    let layout = state.space.layout();
    let most = layout.record_blocks();
    let mut rest = entries;
    let mut ordinal = head.ordinal;
    while !rest.is_empty() {
        // There is always room for the header and its twin, and so for entries without images.
        let room = (layout.room(plan.behind.place).min(most) - RECORD_FIXED_BLOCKS) as usize;
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
        let last = end == End::Last && others.is_empty();
        let chunk = (ChunkKind::Record, last, these.to_vec());
        push_chunk(state, plan, head, ordinal, chunk, first_image..first_image + images)?;
        ordinal += 1;
        first_image += images;
        rest = others;
    }
    if end == End::Commit {
        let commit = (ChunkKind::Commit, false, Vec::new());
        push_chunk(state, plan, head, ordinal, commit, first_image..first_image)?;
    }
    Ok(())
}

fn push_chunk(
    state: &mut State,
    plan: &mut Plan,
    head: &Head,
    ordinal: u32,
    (kind, last, entries): (ChunkKind, bool, Vec<(Entry, u64)>),
    images: Range<usize>,
) -> Result<(), NoSegment> {
    let behind = &mut plan.behind;
    if behind.next_segment.is_none() {
        match state.space.extend_chain(plan.reserve) {
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
        ordinal,
        association: head.association,
        group: head.group,
        last,
        twin: true,
        previous: 0,
        next_segment: behind.next_segment,
        time: behind.time,
        entries,
    };
    let at = behind.place;
    let layout = state.space.layout();
    (behind.place, behind.next_segment) = layout.behind(at, chunk.blocks(), behind.next_segment);
    behind.serial += 1;
    let (first_image, images) = (images.start, images.len());
    plan.chunks.push(Planned { at, chunk, batch: head.batch, first_image, images });
    Ok(())
}
