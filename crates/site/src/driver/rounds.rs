//! Takes a stabilisation: copies dirty pages, closes the gates and drains, copies the rest, commits
//! (B1, B4, B5, B8). In which order is decided in `step::rounds`. Runs on the thread that asked for it, never
//! on the fault loop. Read [`RoundTable::stabilise`] first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use stead_memory::{
    CloseError, Closed, Cluster, CounterValues, Gate, LogUse, Scan, Unsupported, close_writers,
};
use stead_model::{PageId, PageNo, PageRange};
use stead_store::{Batch, CommitError, Committed};

use super::ahead::Ahead;
use super::{Shared, spare};
use crate::container::Opened;
use crate::error::StabiliseError;
use crate::site::say_lost;
use crate::step::rounds::{Effect, Event, Pace, Rounds, Stable, Wish};
use crate::step::search::{Change, Found, Search};

/// The rounds of a site: one at a time; who comes while one is under way waits for the next, together
/// with all others who came meanwhile.
pub(crate) struct RoundTable {
    state: Mutex<RoundState>,
    /// Rounds begun. A round that began after a program asked covers all that the program had done.
    begun: AtomicU64,
    counts: RoundCounts,
}

/// Times and amounts of rounds, for `stat`.
#[derive(Debug, Default)]
pub(crate) struct RoundCounts {
    pub(crate) rounds: AtomicU64,
    pub(crate) defeats: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) pages: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) scan_us_last: AtomicU64,
    pub(crate) pause_us_last: AtomicU64,
    pub(crate) pause_us_max: AtomicU64,
}

struct RoundState {
    rounds: Rounds,
    /// What was copied. Kept over a failed round: a page in it that is not dirty again is as it was.
    batch: Batch,
    /// What a search found, and for each run the number of its container in the round.
    dirty: Vec<PageRange>,
    found: Vec<usize>,
    /// The last round that ended well, and what it made stable.
    last: Option<(u64, Stable)>,
    /// New pages there were when the last round ended.
    new_pages_seen: u64,
    failure: Option<Arc<StabiliseError>>,
    /// Whether there are to be no more rounds.
    ended: bool,
    search: Search,
    /// What the search wants changed, until the background has done so.
    change: Option<Change>,
    /// Counts when the search was last reckoned.
    searched: CounterValues,
    log_refusal: Option<Unsupported>,
    /// Whether it has been seen to that the system container is stored twice.
    spare_is_sound: bool,
}

/// Closed gates, and pages that have to be protected before they open, whatever happens.
struct Behind<'g> {
    unprotected: Vec<(Arc<Cluster>, Vec<PageRange>)>,
    _gates: Closed<'g>,
    began: Instant,
}

impl Drop for Behind<'_> {
    fn drop(&mut self) {
        for (cluster, ranges) in self.unprotected.drain(..) {
            cluster.protect_found(&ranges);
        }
    }
}

impl RoundTable {
    pub(crate) fn new(pace: Pace, batch: Batch) -> Self {
        RoundTable {
            state: Mutex::new(RoundState {
                rounds: Rounds::new(pace, Duration::ZERO),
                batch,
                dirty: Vec::new(),
                found: Vec::new(),
                last: None,
                new_pages_seen: 0,
                failure: None,
                ended: false,
                search: Search::default(),
                change: None,
                searched: CounterValues::default(),
                log_refusal: None,
                spare_is_sound: false,
            }),
            begun: AtomicU64::new(0),
            counts: RoundCounts::default(),
        }
    }

    pub(crate) fn counts(&self) -> &RoundCounts {
        &self.counts
    }

    /// Why the last round by the background failed, until one succeeds.
    pub(crate) fn failure(&self) -> Option<Arc<StabiliseError>> {
        self.lock().failure.clone()
    }

    /// Durable on return: everything that sections had done before the call.
    pub(crate) fn stabilise(
        &self,
        shared: &Shared,
        gate: Duration,
    ) -> Result<Stable, StabiliseError> {
        let asked_after = self.begun.load(Ordering::SeqCst);
        let mut state = self.lock();
        if let Some((round, stable)) = state.last
            && round > asked_after
        {
            return Ok(stable);
        }
        self.run(shared, &mut state, Wish::Asked { gate })
    }

    /// Durable on return, together with everything before: what `edit` did to the directory, and what it has put
    /// into the batch. No round can come between, so that no stable state has one without the other.
    pub(crate) fn stabilise_edit<E>(
        &self,
        shared: &Shared,
        gate: Duration,
        edit: impl FnOnce(&mut Batch) -> Result<(), E>,
    ) -> Result<Result<Stable, StabiliseError>, E> {
        let mut state = self.lock();
        edit(&mut state.batch)?;
        Ok(self.run(shared, &mut state, Wish::Asked { gate }))
    }

    /// Has the next round look whether the system container is stored twice, as the first one did.
    pub(crate) fn doubt_spare(&self) {
        self.lock().spare_is_sound = false;
    }

    /// Makes everything durable, and then, before any other round can begin, does `then`.
    pub(crate) fn stabilise_and<T>(
        &self,
        shared: &Shared,
        gate: Duration,
        then: impl FnOnce() -> T,
    ) -> Result<T, StabiliseError> {
        let mut state = self.lock();
        if !shared.store.is_read_only() {
            self.run(shared, &mut state, Wish::Asked { gate })?;
        }
        Ok(then())
    }

    /// A background round, if it is time for one.
    pub(crate) fn tick(&self, shared: &Shared) {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(p)) => p.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let new_pages = shared.space.counters().pages_zeroed - state.new_pages_seen;
        if !state.ended && state.rounds.is_due(shared.now(), new_pages) {
            let outcome = self.run(shared, &mut state, Wish::Background);
            state.failure = match outcome {
                Ok(_) => None,
                // Somebody's section stayed open: tried again soon.
                Err(StabiliseError::Held(_)) => state.failure.take(),
                Err(error) => {
                    if state.failure.is_none() {
                        let what = "changes cannot be made stable, and are kept in memory only";
                        say_lost(&shared.dir, what, &error);
                    }
                    Some(Arc::new(error))
                }
            };
        }
    }

    /// Lets the round under way end, and has no background round follow it.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
    }

    /// How long the background may sleep. While a program's own round is under way it does not wait for
    /// that to end.
    pub(crate) fn sleep_from(&self, now: Duration) -> Duration {
        match self.state.try_lock() {
            Ok(state) => state.rounds.sleep_from(now),
            Err(TryLockError::Poisoned(p)) => p.into_inner().rounds.sleep_from(now),
            Err(TryLockError::WouldBlock) => Duration::from_millis(10),
        }
    }

    /// Starts or stops the fault log, if the rounds so far want it. Not on the thread of a round, which it would
    /// hold up for some milliseconds.
    pub(crate) fn tend_search(&self, shared: &Shared) {
        let change = match self.state.try_lock() {
            Ok(state) => state.change,
            Err(_) => return,
        };
        let Some(change) = change else { return };
        let outcome = match change {
            Change::Start => shared.space.start_log(),
            Change::Stop => {
                shared.space.stop_log();
                Ok(())
            }
        };
        let mut state = self.lock();
        state.change = None;
        if let Err(refusal) = outcome {
            state.search.refused();
            state.log_refusal = Some(refusal);
        }
    }

    /// Why there is no fault log, if one was wanted.
    pub(crate) fn log_refusal(&self) -> Option<Unsupported> {
        self.lock().log_refusal.clone()
    }

    fn lock(&self) -> MutexGuard<'_, RoundState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(
        &self,
        shared: &Shared,
        state: &mut RoundState,
        wish: Wish,
    ) -> Result<Stable, StabiliseError> {
        let round = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        if !std::mem::replace(&mut state.spare_is_sound, true) {
            spare::mend(shared, &mut state.batch);
        }
        let containers = shared.containers();
        let gates: Vec<&Gate> = containers.iter().map(|c| &c.gate).collect();
        let mut closed: Option<Behind<'_>> = None;
        let mut outcome = None;
        self.counts.pause_us_last.store(0, Ordering::Relaxed);
        self.counts.scan_us_last.store(0, Ordering::Relaxed);
        let new_pages_now = shared.space.counters().pages_zeroed;
        let mut ahead: Option<Ahead<'_>> = None;
        let mut effect = state.rounds.step(shared.now(), Event::Begin(wish));
        loop {
            let event = match effect {
                Effect::PreCopy => {
                    // What could not be searched is dirty still: the search behind the gates meets the same error.
                    let _ = self.search(shared, state, &containers, None);
                    let page_count = copy_ahead(shared, state, &containers, &mut ahead);
                    Event::PreCopied { page_count }
                }
                Effect::CloseGates { within } => {
                    let began = Instant::now();
                    match close_writers(&gates, Some(began + within)) {
                        Ok(gates) => {
                            closed = Some(Behind { unprotected: Vec::new(), _gates: gates, began });
                            Event::Drained
                        }
                        Err(error) => {
                            RoundCounts::add(&self.counts.defeats, 1);
                            outcome = Some(Err(match error {
                                CloseError::Nested => StabiliseError::InSection,
                                CloseError::Held(held) => StabiliseError::Held(held),
                            }));
                            Event::Held
                        }
                    }
                }
                Effect::Search => {
                    self.take_freed(state, &containers);
                    match self.search(shared, state, &containers, closed.as_mut()) {
                        Ok(page_count) => Event::Found { page_count },
                        Err(error) => {
                            // What was found is protected now, and would not be found again.
                            copy_found(state, &containers, &mut None);
                            self.open(&mut closed);
                            outcome = Some(Err(error));
                            Event::Failed
                        }
                    }
                }
                Effect::Copy => {
                    copy_ahead(shared, state, &containers, &mut ahead);
                    Event::Captured
                }
                Effect::OpenAndCopy => {
                    self.open(&mut closed);
                    let page_count = copy_ahead(shared, state, &containers, &mut ahead);
                    Event::PreCopied { page_count }
                }
                Effect::OpenAndCommit => {
                    let committed = match ahead.take() {
                        Some(ahead) => {
                            self.open(&mut closed);
                            ahead.commit(&mut state.batch)
                        }
                        // What was copied need not be protected before it is written, only before it changes.
                        None => {
                            shared.store.commit_while(&mut state.batch, || self.open(&mut closed))
                        }
                    };
                    match committed {
                        Ok(committed) => {
                            self.count(&committed);
                            let stable = Stable { number: committed.sequence };
                            state.last = Some((round, stable));
                            state.new_pages_seen = new_pages_now;
                            outcome = Some(Ok(stable));
                            self.reckon_search(shared, state, &containers);
                            if committed.maintain_soon {
                                shared.wake_background();
                            }
                            Event::Committed
                        }
                        Err(error) => {
                            RoundCounts::add(&self.counts.failures, 1);
                            outcome = Some(Err(named(error, &containers)));
                            Event::Failed
                        }
                    }
                }
                // The batch keeps what was copied: such a page is as it was copied, or dirty again.
                Effect::KeepCopies | Effect::Done { .. } => {
                    if let Some(ahead) = ahead {
                        ahead.give_up(&mut state.batch);
                    }
                    return outcome.expect("a round that is over has ended well or not");
                }
            };
            effect = state.rounds.step(shared.now(), event);
        }
    }

    fn open(&self, closed: &mut Option<Behind<'_>>) {
        if let Some(behind) = closed.take() {
            let began = behind.began;
            drop(behind);
            let pause_us = began.elapsed().as_micros() as u64;
            // Of several in a round the longest.
            self.counts.pause_us_last.fetch_max(pause_us, Ordering::Relaxed);
            self.counts.pause_us_max.fetch_max(pause_us, Ordering::Relaxed);
        }
    }

    fn count(&self, committed: &Committed) {
        RoundCounts::add(&self.counts.rounds, 1);
        RoundCounts::add(&self.counts.pages, committed.pages);
        RoundCounts::add(&self.counts.bytes_written, committed.bytes_written);
        RoundCounts::add(&self.counts.flushes, u64::from(committed.flushes));
    }

    /// Finds the dirty pages of all containers, and protects them: `behind` closed gates perhaps not before they open. How
    /// many there are. After an error what was found before it has to be copied all the same.
    fn search(
        &self,
        shared: &Shared,
        state: &mut RoundState,
        containers: &[Arc<Opened>],
        mut behind: Option<&mut Behind<'_>>,
    ) -> Result<u64, StabiliseError> {
        let began = Instant::now();
        let RoundState { dirty, found, .. } = state;
        dirty.clear();
        found.clear();
        let reading = shared.space.read_log();
        for (number, container) in containers.iter().enumerate() {
            for cluster in container.place.clusters() {
                let before = dirty.len();
                match &mut behind {
                    None => cluster.scan_read(reading, Scan::Protect, dirty)?,
                    Some(behind) => {
                        let mut unprotected = Vec::new();
                        let scanned = cluster.scan_still(reading, dirty, &mut unprotected);
                        if !unprotected.is_empty() {
                            behind.unprotected.push((cluster, unprotected));
                        }
                        scanned?;
                    }
                }
                found.extend(dirty[before..].iter().map(|_| number));
            }
        }
        // Of several in a round the longest.
        self.counts.scan_us_last.fetch_max(began.elapsed().as_micros() as u64, Ordering::Relaxed);
        Ok(dirty.iter().map(|range| range.page_count()).sum())
    }

    /// Reckons whether written pages had better be found in the other way.
    fn reckon_search(&self, shared: &Shared, state: &mut RoundState, containers: &[Arc<Opened>]) {
        if state.change.is_some() {
            return;
        }
        let clusters = containers.iter().flat_map(|container| container.place.clusters());
        let resident_pages = clusters.map(|cluster| cluster.resident_page_count()).sum();
        let now = shared.space.counters();
        let before = std::mem::replace(&mut state.searched, now);
        let log_use = shared.space.log_use();
        if log_use == LogUse::Checked {
            return;
        }
        let by_log = log_use == LogUse::Log;
        let faults = if by_log {
            now.log_faults - before.log_faults
        } else {
            now.pages_found_written - before.pages_found_written
        };
        let scanned = !by_log || now.log_holed > before.log_holed;
        state.change = state.search.round(Found { by_log, resident_pages, faults, scanned });
        if state.change.is_some() {
            shared.wake_background();
        }
    }

    /// Pages whose memory the heap has given up: they leave the store and the memory.
    fn take_freed(&self, state: &mut RoundState, containers: &[Arc<Opened>]) {
        let batch = &mut state.batch;
        for container in containers {
            container.arena.take_freed_pages(&mut |range: PageRange| {
                for page in range.pages() {
                    spare::zero(batch, PageId { container: container.id(), page });
                }
                if let Some(cluster) = container.place.cluster_of(PageNo(range.start)) {
                    // Memory that cannot be given back now is given back when it is next free.
                    let _ = cluster.punch(range);
                }
            });
        }
    }
}

/// Why a commit failed, with the name of the container if that is why.
fn named(error: CommitError, containers: &[Arc<Opened>]) -> StabiliseError {
    let CommitError::ContainerFull { container, quota_bytes, held_bytes, asked_bytes } = error
    else {
        return error.into();
    };
    let opened = containers.iter().find(|opened| opened.id() == container);
    // Copies of one that has been closed since may be left in the batch.
    let name = opened.map_or_else(|| format!("#{}", container.0), |c| c.name().to_owned());
    StabiliseError::ContainerFull { name, quota_bytes, held_bytes, asked_bytes }
}

/// As [`copy_found`], and has what is copied written while more is, if that is much.
fn copy_ahead<'a>(
    shared: &'a Shared,
    state: &mut RoundState,
    containers: &[Arc<Opened>],
    ahead: &mut Option<Ahead<'a>>,
) -> u64 {
    if ahead.is_none() && state.rounds.writes_ahead() {
        let found = state.dirty.iter().map(|range| range.page_count()).sum();
        *ahead = Ahead::begin(&shared.store, &state.batch, found);
    }
    copy_found(state, containers, ahead)
}

/// Copies what a search found into the batch. How many pages.
fn copy_found(
    state: &mut RoundState,
    containers: &[Arc<Opened>],
    ahead: &mut Option<Ahead<'_>>,
) -> u64 {
    let RoundState { dirty, found, batch, .. } = state;
    let found = dirty.drain(..).zip(found.drain(..));
    found.map(|(range, number)| copy_range(batch, &containers[number], range, ahead)).sum()
}

/// Pages that are copied in one go, so that writing them can begin.
const COPY_AT_ONCE: u64 = 256;

/// Copies the pages of a run that hold something, part by part. How many.
pub(super) fn copy_range(
    batch: &mut Batch,
    container: &Opened,
    range: PageRange,
    ahead: &mut Option<Ahead<'_>>,
) -> u64 {
    let mut page_count = 0;
    let mut at = range.start;
    while at < range.end {
        if container.arena.page_is_free(PageNo(at)) {
            at += 1;
            continue;
        }
        let mut end = at + 1;
        let most = range.end.min(at + COPY_AT_ONCE);
        while end < most && !container.arena.page_is_free(PageNo(end)) {
            end += 1;
        }
        let first = PageId { container: container.id(), page: PageNo(at) };
        spare::push_run(batch, &container.place, first, end - at);
        page_count += end - at;
        if let Some(ahead) = ahead {
            ahead.give(batch);
        }
        at = end;
    }
    page_count
}

impl RoundCounts {
    fn add(count: &AtomicU64, n: u64) {
        count.fetch_add(n, Ordering::Relaxed);
    }
}
