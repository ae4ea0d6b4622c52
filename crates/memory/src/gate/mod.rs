//! The gate of a container, which every section passes (catalogue B1, B8): entering and leaving cost a
//! few nanoseconds and write no line that another thread writes; whoever closes the gate pays for
//! both sides. What a section does inside is absent. Read [`Gate`] first.
//!
//! # How it works
//!
//! Every thread has a slot of its own, in which it writes which gates it is inside of. Entering writes
//! the slot, then reads the gate's state; closing writes the state, then reads all slots. Each side must
//! see what the other wrote first, which needs a full barrier between the write and the read on both
//! sides. The closing side makes all running threads of the process execute one (`membarrier`), so
//! that the entering side needs none.
//!
//! # Why nothing waits for ever
//!
//! - A thread has at most one writing section, entered with no other section open. So who waits to
//!   write holds nothing.
//! - A reading section may be entered from within others. It waits only for an exclusive section that has
//!   begun (`HELD`), in which nothing can be entered and which therefore waits for no gate.
//! - An exclusive section that waits to begin does so at `CLOSING`, where nested readers still pass; it
//!   goes to `HELD` to look, and goes back when a nested reader got in meanwhile. It never *waits* at
//!   `HELD`.
//! - Closers of one gate take turns, by a lock taken in the order of the gates' numbers and before any
//!   gate is closed; who waits for it is inside of no section.

mod slots;

use std::marker::PhantomData;
use std::panic::Location;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, compiler_fence, fence};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};
use stead_model::ContainerId;

use slots::{EXCLUSIVE, NONE, READS_MAX, Slot};

/// Everyone may enter.
const OPEN: u32 = 0;
/// Writers wait: a stabilisation drains them or copies.
const WRITERS: u32 = 1;
/// An exclusive section waits to begin: only readers that are inside of something may enter.
const CLOSING: u32 = 2;
/// An exclusive section is open, or looks whether it may.
const HELD: u32 = 3;
/// Set where `membarrier` is refused: the entering side has to execute its barrier itself.
const FENCED: u32 = 1 << 8;

/// The gate of one container.
#[derive(Debug)]
pub struct Gate {
    door: Door,
    container: ContainerId,
    /// Whether a closer has its turn.
    turn: Mutex<bool>,
    turn_over: Condvar,
    /// Held while the state changes to something that lets more threads in.
    waiting: Mutex<()>,
    opened: Condvar,
}

/// What the fast path reads. Alone on its lines, which change only when the gate closes or opens.
#[derive(Debug)]
#[repr(align(128))]
struct Door {
    state: AtomicU32,
    id: usize,
}

/// Why a section could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// A mutating or exclusive section was asked for inside another section of this thread.
    #[error(
        "a section that changes things cannot be opened inside another section: end that one first"
    )]
    Nested,
    /// A section was asked for inside an exclusive one.
    #[error("no section can be opened inside an exclusive one: use what the exclusive one lends")]
    InExclusive,
    /// Too many reading sections inside each other.
    #[error("more than {READS_MAX} reading sections inside each other")]
    TooDeep,
    /// The deadline passed while others were inside.
    #[error(transparent)]
    Held(#[from] Held),
}

/// Why gates could not be closed.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// The calling thread is inside a section, and would wait for itself.
    #[error("not possible inside a section: end it first")]
    Nested,
    /// The deadline passed while others were inside.
    #[error(transparent)]
    Held(#[from] Held),
}

/// Sections were still open when the time was up. The gates are open again.
#[derive(Debug, Clone, thiserror::Error)]
pub struct Held {
    /// Who was inside. Empty if an exclusive section or another closing was under way.
    pub holders: Vec<Holder>,
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.holders.is_empty() {
            return f
                .write_str("an exclusive section, or another closing of the gate, took too long");
        }
        f.write_str("sections stayed open too long:")?;
        for (i, holder) in self.holders.iter().enumerate() {
            write!(f, "{} {holder}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// A thread inside a section that somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The container whose gate it passed.
    pub container: ContainerId,
    /// The thread, as the kernel numbers it.
    pub thread_id: u32,
    /// The thread's name, if it has one.
    pub thread_name: Option<String>,
    /// Where in the program it entered its latest section.
    pub entered_at: Option<&'static Location<'static>>,
    /// How long it has been waited for. The section itself is at least as old.
    pub open_at_least: Duration,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "thread {}", self.thread_id)?;
        if let Some(name) = &self.thread_name {
            write!(f, " \"{name}\"")?;
        }
        write!(f, " in container {}", self.container)?;
        if let Some(place) = self.entered_at {
            write!(f, ", entered at {place}")?;
        }
        write!(f, ", for at least {} ms", self.open_at_least.as_millis())
    }
}

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn new(container: ContainerId) -> Gate {
        Gate::with(container, barrier_works())
    }

    /// An open gate, as on a system that refuses `membarrier`.
    #[must_use]
    pub fn fenced(container: ContainerId) -> Gate {
        Gate::with(container, false)
    }

    fn with(container: ContainerId, barrier: bool) -> Gate {
        static NEXT_ID: AtomicUsize = AtomicUsize::new(NONE + 1);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        assert!(id != EXCLUSIVE);
        let state = AtomicU32::new(if barrier { OPEN } else { OPEN | FENCED });
        Gate {
            door: Door { state, id },
            container,
            turn: Mutex::new(false),
            turn_over: Condvar::new(),
            waiting: Mutex::new(()),
            opened: Condvar::new(),
        }
    }

    /// The container it belongs to.
    #[must_use]
    pub fn container(&self) -> ContainerId {
        self.container
    }

    /// Enters a mutating section, which lasts until the entry is dropped. Waits while the gate is
    /// closed.
    ///
    /// # Errors
    /// If this thread is inside any section, of any container.
    #[inline]
    #[track_caller]
    pub fn enter_write(&self) -> Result<WriteEntry<'_>, EnterError> {
        let slot = slots::mine();
        if !slot.is_free() {
            return Err(slot.refuse_write());
        }
        slot.place.store(Location::caller());
        slot.writing.store(self.door.id, Ordering::Relaxed);
        // The processor may still read the state before it writes the slot: see "How it works".
        compiler_fence(Ordering::SeqCst);
        if self.door.state.load(Ordering::Acquire) != OPEN {
            self.enter_write_slowly(slot);
        }
        Ok(WriteEntry { slot, gate: PhantomData, stays: PhantomData })
    }

    #[cold]
    #[inline(never)]
    fn enter_write_slowly(&self, slot: &'static Slot) {
        #[cfg(feature = "planted")]
        if crate::planted::is(crate::planted::Bug::GateLeftOut) {
            return;
        }
        loop {
            fence(Ordering::SeqCst);
            if self.state() == OPEN {
                return;
            }
            slot.writing.store(NONE, Ordering::Release);
            self.wait_while(|state| state != OPEN);
            slot.writing.store(self.door.id, Ordering::Relaxed);
        }
    }

    /// Enters a reading section, which lasts until the entry is dropped. Waits only for an exclusive
    /// section, never for a stabilisation.
    ///
    /// # Errors
    /// If this thread is inside an exclusive section, or inside too many reading ones.
    #[inline]
    #[track_caller]
    pub fn enter_read(&self) -> Result<ReadEntry<'_>, EnterError> {
        let slot = slots::mine();
        let depth = slot.free_read()?;
        slot.place.store(Location::caller());
        slot.reading[depth].store(self.door.id, Ordering::Relaxed);
        // As in `enter_write`.
        compiler_fence(Ordering::SeqCst);
        if self.door.state.load(Ordering::Acquire) > WRITERS {
            self.enter_read_slowly(slot, depth);
        }
        Ok(ReadEntry { slot, depth, gate: PhantomData, stays: PhantomData })
    }

    #[cold]
    #[inline(never)]
    fn enter_read_slowly(&self, slot: &'static Slot, depth: usize) {
        #[cfg(feature = "planted")]
        if crate::planted::is(crate::planted::Bug::GateLeftOut) {
            return;
        }
        slot.reading[depth].store(NONE, Ordering::Release);
        let first_closed = if slot.is_free() { CLOSING } else { HELD };
        loop {
            slot.reading[depth].store(self.door.id, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.state() < first_closed {
                return;
            }
            slot.reading[depth].store(NONE, Ordering::Release);
            self.wait_while(|state| state >= first_closed);
        }
    }

    /// Enters an exclusive section, which lasts until the entry is dropped: nobody else is inside, not
    /// even to read. Waits for all who are, until `deadline` (`None`: for as long as they take).
    ///
    /// # Errors
    /// If this thread is inside any section, or the deadline passes.
    #[track_caller]
    pub fn enter_exclusive(
        &self,
        deadline: Option<Instant>,
    ) -> Result<ExclusiveEntry<'_>, EnterError> {
        let slot = slots::mine();
        if !slot.is_free() {
            return Err(slot.refuse_write());
        }
        let place = Location::caller();
        let turn = self.take_turn(deadline)?;
        // Opens again on every way out.
        let closing = Opening { gate: self, _turn: turn };
        let since = Instant::now();
        loop {
            self.set(CLOSING);
            // Without a barrier this may overlook somebody; the second look does not.
            self.drain(since, deadline, Slot::is_inside)?;
            self.set(HELD);
            barrier();
            if !slots::all().any(|slot| slot.is_inside(self.door.id)) {
                break;
            }
            // A nested reader got in between the two. It may be waiting for a gate whose closer waits
            // for a reader in front of ours: let those in before waiting.
            self.set_and_wake(CLOSING);
        }
        slot.place.store(place);
        slot.writing.store(EXCLUSIVE, Ordering::Relaxed);
        Ok(ExclusiveEntry { slot, closing, stays: PhantomData })
    }

    fn take_turn(&self, deadline: Option<Instant>) -> Result<Turn<'_>, Held> {
        let mut taken = lock(&self.turn);
        while *taken {
            let Some(deadline) = deadline else {
                taken = self.turn_over.wait(taken).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Held { holders: Vec::new() });
            }
            (taken, _) =
                self.turn_over.wait_timeout(taken, left).unwrap_or_else(PoisonError::into_inner);
        }
        *taken = true;
        Ok(Turn { gate: self })
    }

    /// Waits until no slot is `inside` this gate any more.
    fn drain(
        &self,
        since: Instant,
        deadline: Option<Instant>,
        inside: fn(&Slot, usize) -> bool,
    ) -> Result<(), Held> {
        let mut patience = Patience::default();
        for slot in slots::all() {
            while inside(slot, self.door.id) {
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    let holders = slots::all()
                        .filter(|slot| inside(slot, self.door.id))
                        .map(|slot| slot.holder(self.container, since.elapsed()))
                        .collect();
                    return Err(Held { holders });
                }
                patience.wait();
            }
        }
        Ok(())
    }

    fn state(&self) -> u32 {
        self.door.state.load(Ordering::Acquire) & !FENCED
    }

    fn set(&self, state: u32) {
        let fenced = self.door.state.load(Ordering::Relaxed) & FENCED;
        self.door.state.store(state | fenced, Ordering::SeqCst);
    }

    fn set_and_wake(&self, state: u32) {
        let waiting = lock(&self.waiting);
        self.set(state);
        drop(waiting);
        self.opened.notify_all();
    }

    fn wait_while(&self, closed: impl Fn(u32) -> bool) {
        const SPIN_COUNT: u32 = 100;
        for _ in 0..SPIN_COUNT {
            if !closed(self.state()) {
                return;
            }
            std::hint::spin_loop();
        }
        let mut waiting = lock(&self.waiting);
        while closed(self.state()) {
            waiting = self.opened.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Whether this thread is inside a section of any container.
#[must_use]
pub fn in_section() -> bool {
    !slots::mine().is_free()
}

/// Closes gates to writers, all at once, and waits until none is inside of any of them, until
/// `deadline` (`None`: for as long as they take). Readers come and go. The gates open when the result is
/// dropped.
///
/// # Errors
/// If this thread is inside a section, or the deadline passes; then all gates are open again.
pub fn close_writers<'g>(
    gates: &[&'g Gate],
    deadline: Option<Instant>,
) -> Result<Closed<'g>, CloseError> {
    if in_section() {
        return Err(CloseError::Nested);
    }
    let mut gates = gates.to_vec();
    // One order for all closers, so that they cannot wait for each other in a circle.
    gates.sort_unstable_by_key(|gate| gate.door.id);
    gates.dedup_by_key(|gate| gate.door.id);
    let mut turns = Vec::with_capacity(gates.len());
    for gate in gates {
        turns.push(gate.take_turn(deadline)?);
    }
    let mut closings = Vec::with_capacity(turns.len());
    for turn in turns {
        turn.gate.set(WRITERS);
        closings.push(Opening { gate: turn.gate, _turn: turn });
    }
    barrier();
    let since = Instant::now();
    for closing in &closings {
        closing.gate.drain(since, deadline, Slot::is_writing)?;
    }
    Ok(Closed { closings })
}

/// Gates that are closed to writers, with none inside. Dropping it opens them.
#[derive(Debug)]
#[must_use = "the gates open when this is dropped"]
pub struct Closed<'g> {
    closings: Vec<Opening<'g>>,
}

impl Closed<'_> {
    /// How many gates are closed.
    #[must_use]
    pub fn gate_count(&self) -> usize {
        self.closings.len()
    }
}

/// The right to close a gate.
#[derive(Debug)]
struct Turn<'g> {
    gate: &'g Gate,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.gate.turn) = false;
        self.gate.turn_over.notify_one();
    }
}

/// Opens the gate when dropped, then gives the turn away.
#[derive(Debug)]
struct Opening<'g> {
    gate: &'g Gate,
    _turn: Turn<'g>,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.gate.set_and_wake(OPEN);
    }
}

/// A mutating section is open as long as this lives. Stays on its thread.
#[derive(Debug)]
#[must_use = "the section ends when this is dropped"]
pub struct WriteEntry<'g> {
    slot: &'static Slot,
    gate: PhantomData<&'g Gate>,
    stays: PhantomData<*const ()>,
}

impl Drop for WriteEntry<'_> {
    #[inline]
    fn drop(&mut self) {
        self.slot.writing.store(NONE, Ordering::Release);
    }
}

/// A reading section is open as long as this lives. Stays on its thread.
#[derive(Debug)]
#[must_use = "the section ends when this is dropped"]
pub struct ReadEntry<'g> {
    slot: &'static Slot,
    depth: usize,
    gate: PhantomData<&'g Gate>,
    stays: PhantomData<*const ()>,
}

impl Drop for ReadEntry<'_> {
    #[inline]
    fn drop(&mut self) {
        self.slot.reading[self.depth].store(NONE, Ordering::Release);
    }
}

/// An exclusive section is open as long as this lives. Stays on its thread.
#[derive(Debug)]
#[must_use = "the section ends when this is dropped"]
pub struct ExclusiveEntry<'g> {
    slot: &'static Slot,
    #[expect(dead_code, reason = "opens the gate when dropped")]
    closing: Opening<'g>,
    stays: PhantomData<*const ()>,
}

impl Drop for ExclusiveEntry<'_> {
    fn drop(&mut self) {
        self.slot.writing.store(NONE, Ordering::Release);
    }
}

/// Waits a little longer each time.
#[derive(Default)]
struct Patience {
    rounds: u32,
}

impl Patience {
    fn wait(&mut self) {
        const SPINS: u32 = 64;
        const YIELDS_END: u32 = SPINS + 64;
        match self.rounds {
            0..SPINS => std::hint::spin_loop(),
            SPINS..YIELDS_END => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(50)),
        }
        self.rounds = self.rounds.saturating_add(1);
    }
}

/// Whether this process may make its running threads execute a barrier; registers it the first time.
pub(crate) fn barrier_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        membarrier_query().contains_command(MembarrierCommand::PrivateExpedited)
            && membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
            && membarrier(MembarrierCommand::PrivateExpedited).is_ok()
    })
}

/// Makes every running thread of this process execute a full barrier, this one too.
fn barrier() {
    fence(Ordering::SeqCst);
    #[cfg(feature = "planted")]
    if crate::planted::is(crate::planted::Bug::BarrierLeftOut) {
        return;
    }
    if barrier_works() {
        membarrier(MembarrierCommand::PrivateExpedited)
            .expect("a registered process may use membarrier");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
