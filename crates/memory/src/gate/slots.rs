//! One slot for each thread, in which it writes which gates it is inside of. A slot lives as long as
//! the program and passes to another thread when its own ends, so that nobody who looks through them
//! needs a lock. What being inside means is absent. Read [`Slot`] first.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use stead_model::ContainerId;

use super::{EnterError, Holder};
use crate::sys::linux::place::AtomicPlace;

/// Inside of no gate.
pub(super) const NONE: usize = 0;
/// Written in place of a gate's number: inside an exclusive section. Nobody looks for that: its gate is
/// held closed by the section itself.
pub(super) const EXCLUSIVE: usize = usize::MAX;
/// Reading sections inside each other.
pub(super) const READS_MAX: usize = 8;

/// What one thread is inside of. Written by that thread alone.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Slot {
    /// The gate of its mutating section.
    pub(super) writing: AtomicUsize,
    /// The gates of its reading sections.
    pub(super) reading: [AtomicUsize; READS_MAX],
    /// Where it entered its latest section.
    pub(super) place: AtomicPlace,
    thread_id: AtomicU32,
    thread_name: Mutex<Option<String>>,
    next: OnceLock<&'static Slot>,
}

impl Slot {
    fn new() -> Slot {
        Slot {
            writing: AtomicUsize::new(NONE),
            reading: [const { AtomicUsize::new(NONE) }; READS_MAX],
            place: AtomicPlace::new(),
            thread_id: AtomicU32::new(0),
            thread_name: Mutex::new(None),
            next: OnceLock::new(),
        }
    }

    /// Whether its own thread is inside of nothing.
    #[inline]
    pub(super) fn is_free(&self) -> bool {
        let used = self.reading.iter().fold(0, |used, gate| used | gate.load(Ordering::Relaxed));
        self.writing.load(Ordering::Relaxed) | used == NONE
    }

    /// Room for one reading section more.
    #[inline]
    pub(super) fn free_read(&self) -> Result<usize, EnterError> {
        if self.writing.load(Ordering::Relaxed) == EXCLUSIVE {
            return Err(EnterError::InExclusive);
        }
        if self.reading[0].load(Ordering::Relaxed) == NONE {
            return Ok(0);
        }
        self.free_read_slowly()
    }

    #[cold]
    fn free_read_slowly(&self) -> Result<usize, EnterError> {
        let free = self.reading.iter().position(|gate| gate.load(Ordering::Relaxed) == NONE);
        free.ok_or(EnterError::TooDeep)
    }

    /// Why a thread that is inside of something may not change things elsewhere.
    #[cold]
    pub(super) fn refuse_write(&self) -> EnterError {
        if self.writing.load(Ordering::Relaxed) == EXCLUSIVE {
            EnterError::InExclusive
        } else {
            EnterError::Nested
        }
    }

    /// Whether its thread is inside a mutating section of this gate.
    pub(super) fn is_writing(&self, gate: usize) -> bool {
        self.writing.load(Ordering::Acquire) == gate
    }

    /// Whether its thread is inside any section of this gate.
    pub(super) fn is_inside(&self, gate: usize) -> bool {
        self.is_writing(gate) || self.reading.iter().any(|r| r.load(Ordering::Acquire) == gate)
    }

    /// Words about its thread.
    pub(super) fn holder(&self, container: ContainerId, open_at_least: Duration) -> Holder {
        let name = self.thread_name.lock().unwrap_or_else(PoisonError::into_inner);
        Holder {
            container,
            thread_id: self.thread_id.load(Ordering::Relaxed),
            thread_name: name.clone(),
            entered_at: self.place.load(),
            open_at_least,
        }
    }
}

/// The slot of this thread.
#[inline]
pub(super) fn mine() -> &'static Slot {
    match MINE.get() {
        Some(slot) => slot,
        None => take(),
    }
}

/// Every slot there is. One that is added meanwhile may be left out: its thread comes later than the
/// barrier of whoever looks, and sees the closed gate.
pub(super) fn all() -> impl Iterator<Item = &'static Slot> {
    std::iter::successors(FIRST.get().copied(), |slot| slot.next.get().copied())
}

static FIRST: OnceLock<&'static Slot> = OnceLock::new();
static SPARE: Mutex<Spare> = Mutex::new(Spare { last: None, free: Vec::new() });

struct Spare {
    last: Option<&'static Slot>,
    free: Vec<&'static Slot>,
}

thread_local! {
    /// Without a destructor, so that the fast path needs no check.
    static MINE: Cell<Option<&'static Slot>> = const { Cell::new(None) };
    static GIVE_BACK: GiveBack = const { GiveBack };
}

/// Gives the slot back when the thread ends.
struct GiveBack;

impl Drop for GiveBack {
    fn drop(&mut self) {
        // A section that is open now was leaked, and stays open for ever: its slot is never given to
        // another thread.
        if let Some(slot) = MINE.get()
            && slot.is_free()
        {
            MINE.set(None);
            lock().free.push(slot);
        }
    }
}

#[cold]
#[inline(never)]
fn take() -> &'static Slot {
    let mut spare = lock();
    let slot = spare.free.pop().unwrap_or_else(|| {
        let slot: &'static Slot = Box::leak(Box::new(Slot::new()));
        let link = spare.last.map_or(&FIRST, |last| &last.next);
        link.set(slot).expect("the last slot has no next one");
        spare.last = Some(slot);
        slot
    });
    drop(spare);
    let id = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
    slot.thread_id.store(id, Ordering::Relaxed);
    let name = std::thread::current().name().map(str::to_owned);
    *slot.thread_name.lock().unwrap_or_else(PoisonError::into_inner) = name;
    MINE.set(Some(slot));
    // Fails only while the thread's destructors run: then the slot is not given to another thread,
    // which costs a few hundred bytes.
    let _ = GIVE_BACK.try_with(|_| {});
    slot
}

fn lock() -> std::sync::MutexGuard<'static, Spare> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}
