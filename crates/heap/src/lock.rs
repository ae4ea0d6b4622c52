//! How locks are granted, waited for and released: strictly two-phase, held to the section's end, with
//! wait-die against deadlock. The state of a lock is a volatile word in the shadow of the lock's eight
//! bytes in the container, which are never written. What is protected is not known here. Read
//! [`acquire`] first.
//!
//! Word: bit 31 a writer holds it, bit 30 somebody sleeps, bits 0..30 the number of readers; the upper
//! half is the age of the writer's section.
//!
//! Wait-die: a section that holds no lock waits for anybody. One that holds locks waits only for a
//! writer that is younger than itself, otherwise it is told [`LockError::Deadlock`]. So along a chain of
//! waiting sections that hold locks ages grow, and it cannot close. Readers are not waited for, as their
//! ages are not known.

use std::ptr::{self, with_exposed_provenance};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::thread::futex;

use crate::alloc::Shared;
use crate::error::LockError;
use crate::journal::{Hold, Journal, Mode, note_death};
use crate::planted::{self, Bug};
use crate::section::Locker;

const WRITER: u32 = 1 << 31;
const SLEEPER: u32 = 1 << 30;
const READERS: u32 = SLEEPER - 1;

/// Looks at a held lock before sleeping.
const SPINS: u32 = 100;

/// Names a lock that a section could not wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusyLock {
    /// Address of the state word.
    word: usize,
}

impl BusyLock {
    pub(crate) fn new(word: *const AtomicU64) -> Self {
        BusyLock { word: word.expose_provenance() }
    }
}

/// Takes the lock at `lock` for the section of `locker`; returns the place of the hold in the journal.
pub(crate) fn acquire(locker: &Locker<'_>, lock: *const u64, want: Mode) -> Result<u32, LockError> {
    let journal = locker.journal();
    let address = lock.expose_provenance();
    if !locker.shared().contains(address) {
        // The lock is in a value on the stack: no other thread can see it.
        return match held_already(locker, address, want)? {
            Held::Again(at) => Ok(at),
            Held::New | Held::Upgrade(_) => {
                Ok(push_hold(journal, address, ptr::null(), locker.section, want))
            }
        };
    }
    let word_address = address.wrapping_add(locker.shared().shadow_offset);
    // SAFETY: the shadow is mapped wherever the container is, aligned like it, and zero or a lock's
    // state; the arena outlives the section.
    let word = unsafe { &*with_exposed_provenance::<AtomicU64>(word_address) };
    let taken = match want {
        Mode::Read => 1,
        Mode::Write => u64::from(WRITER) | u64::from(journal.age()) << 32,
    };
    // Nobody holds it, so neither does this thread.
    if word.compare_exchange(0, taken, Ordering::Acquire, Ordering::Relaxed).is_ok() {
        return Ok(push_hold(journal, address, word, locker.section, want));
    }
    match held_already(locker, address, want)? {
        Held::Again(at) => Ok(at),
        Held::Upgrade(at) => upgrade(journal, word, at),
        Held::New => {
            wait_and_take(journal, word, want)?;
            Ok(push_hold(journal, address, word, locker.section, want))
        }
    }
}

enum Held {
    /// Not by this section.
    New,
    /// By this section, which lends it again.
    Again(u32),
    /// By this section for reading, and it wants to write.
    Upgrade(u32),
}

/// Looks among the locks that this thread holds.
fn held_already(locker: &Locker<'_>, address: usize, want: Mode) -> Result<Held, LockError> {
    // SAFETY: only this thread touches the list, and nothing here calls out.
    let holds = unsafe { &mut *locker.journal().holds.get() };
    let mut mine = None;
    for (at, hold) in holds.iter_mut().enumerate().filter(|(_, h)| h.lock == address) {
        if hold.section == locker.section {
            mine = Some(at);
        } else if hold.mode == Mode::Write || want == Mode::Write {
            return Err(LockError::AlreadyLent);
        }
    }
    let Some(at) = mine else { return Ok(Held::New) };
    let hold = &mut holds[at];
    match want {
        // As many guards as can be counted: forgotten ones are counted too.
        Mode::Read if (0..i32::MAX).contains(&hold.guards) => {
            hold.guards += 1;
            Ok(Held::Again(at as u32))
        }
        Mode::Write if hold.guards == 0 && hold.mode == Mode::Write => {
            hold.guards = -1;
            Ok(Held::Again(at as u32))
        }
        Mode::Write if hold.guards == 0 => Ok(Held::Upgrade(at as u32)),
        _ => Err(LockError::AlreadyLent),
    }
}

/// From reading to writing, if no other section reads.
fn upgrade(journal: &Journal, word: &AtomicU64, at: u32) -> Result<u32, LockError> {
    let writer = u64::from(WRITER) | u64::from(journal.age()) << 32;
    let mut seen = word.load(Ordering::Relaxed);
    while seen as u32 & READERS == 1 {
        let new = writer | seen & u64::from(SLEEPER);
        match word.compare_exchange_weak(seen, new, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {
                // SAFETY: only this thread touches the list, and nothing here calls out.
                let hold = unsafe { &mut (&mut *journal.holds.get())[at as usize] };
                hold.mode = Mode::Write;
                hold.guards = -1;
                return Ok(at);
            }
            Err(now) => seen = now,
        }
    }
    journal.busy.set(word);
    note_death();
    Err(LockError::Deadlock)
}

fn wait_and_take(journal: &Journal, word: &AtomicU64, want: Mode) -> Result<(), LockError> {
    // SAFETY: only this thread touches the list, and nothing here calls out.
    let holds_none =
        unsafe { &*journal.holds.get() }.iter().all(|h| h.word.is_null() || h.lock == 0);
    let age = journal.age();
    let mut spins = 0;
    let mut seen = word.load(Ordering::Relaxed);
    loop {
        let state = seen as u32;
        // Somebody who wants to write sleeps until the readers are gone: a reader that nobody can be waiting
        // for lets it go first, or readers that overlap would keep it, and its open section, for ever.
        let gives_way = holds_none && state & SLEEPER != 0 && state & READERS != 0;
        let new = match want {
            Mode::Read if state & WRITER == 0 && !gives_way => Some(seen + 1),
            Mode::Write if state & (WRITER | READERS) == 0 => {
                Some(u64::from(WRITER | state & SLEEPER) | u64::from(age) << 32)
            }
            _ => None,
        };
        if let Some(new) = new {
            match word.compare_exchange_weak(seen, new, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
            continue;
        }
        let younger = |other: u32| (other.wrapping_sub(age) as i32) > 0;
        let may_wait = holds_none || (state & WRITER != 0 && younger((seen >> 32) as u32));
        if !may_wait {
            journal.busy.set(word);
            note_death();
            return Err(LockError::Deadlock);
        }
        if spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        } else {
            sleep(word, seen, None);
        }
        seen = word.load(Ordering::Relaxed);
    }
}

/// Sleeps until the state changes from `seen`, or earlier.
fn sleep(word: &AtomicU64, seen: u64, timeout: Option<&futex::Timespec>) {
    let asleep = seen | u64::from(SLEEPER);
    if seen != asleep
        && word.compare_exchange(seen, asleep, Ordering::Relaxed, Ordering::Relaxed).is_err()
    {
        return;
    }
    // An error here is an interruption, a timeout, or a state that has changed: the caller looks again.
    let _ = futex::wait(low_half(word), futex::Flags::empty(), asleep as u32, timeout);
}

fn low_half(word: &AtomicU64) -> &AtomicU32 {
    const { assert!(cfg!(target_endian = "little")) }
    // SAFETY: the first four bytes of eight that are aligned and atomic. The kernel reads them, and
    // nobody accesses them as four bytes otherwise.
    unsafe { &*ptr::from_ref(word).cast::<AtomicU32>() }
}

fn push_hold(
    journal: &Journal,
    lock: usize,
    word: *const AtomicU64,
    section: u64,
    mode: Mode,
) -> u32 {
    journal.touch();
    // SAFETY: only this thread touches the list, and nothing here calls out.
    let holds = unsafe { &mut *journal.holds.get() };
    holds.push(Hold { lock, word, section, mode, guards: if mode == Mode::Read { 1 } else { -1 } });
    (holds.len() - 1) as u32
}

/// A guard is gone; the section goes on holding the lock.
#[inline]
pub(crate) fn guard_dropped(journal: &Journal, at: u32) {
    // SAFETY: only this thread touches the list, and nothing here calls out.
    let holds = unsafe { &mut *journal.holds.get() };
    let hold = &mut holds[at as usize];
    hold.guards = if hold.mode == Mode::Write && hold.guards < 0 { 0 } else { hold.guards - 1 };
    if planted::on(Bug::LocksNotTwoPhase) && hold.guards == 0 {
        release(hold);
    }
}

/// Releases all locks of a section.
pub(crate) fn release_all(journal: &Journal, section: u64) {
    // SAFETY: only this thread touches the list, and nothing here calls out.
    let holds = unsafe { &mut *journal.holds.get() };
    for hold in holds.iter_mut().filter(|h| h.section == section) {
        release(hold);
    }
    // Guards of a section around this one name their holds by place, so only the tail may go.
    while holds.last().is_some_and(|h| h.lock == 0) {
        holds.pop();
    }
}

fn release(hold: &mut Hold) {
    if std::mem::take(&mut hold.lock) == 0 || hold.word.is_null() {
        return;
    }
    // SAFETY: the shadow is mapped while the arena is open, which outlives its sections.
    let word = unsafe { &*hold.word };
    let before = match hold.mode {
        Mode::Write => word.swap(0, Ordering::Release),
        Mode::Read => {
            let mut seen = word.load(Ordering::Relaxed);
            loop {
                let last = seen as u32 & READERS == 1;
                let new = if last { 0 } else { seen - 1 };
                match word.compare_exchange_weak(seen, new, Ordering::Release, Ordering::Relaxed) {
                    Ok(_) if last => break seen,
                    Ok(_) => return,
                    Err(now) => seen = now,
                }
            }
        }
    };
    if before as u32 & SLEEPER != 0 {
        // Waking can fail only for an address that is not mapped.
        let _ = futex::wake(low_half(word), futex::Flags::empty(), i32::MAX as u32);
    }
}

/// Waits until the lock is free, or was free for a moment that is now past; a hint, so that a section
/// that was undone for it does not come back too early.
pub(crate) fn wait_free(shared: &Shared, busy: BusyLock) {
    if !shared.contains(busy.word.wrapping_sub(shared.shadow_offset)) {
        // A lock of another container, met in a reading section inside: its arena may be gone, so its word
        // cannot be looked at. Some time is what can be given to it.
        std::thread::sleep(std::time::Duration::from_millis(1));
        return;
    }
    // SAFETY: a state word of this arena, whose shadow is mapped while it is open.
    let word = unsafe { &*with_exposed_provenance::<AtomicU64>(busy.word) };
    for _ in 0..SPINS {
        if word.load(Ordering::Relaxed) == 0 {
            return;
        }
        std::hint::spin_loop();
    }
    let seen = word.load(Ordering::Relaxed);
    if seen != 0 {
        let at_most = futex::Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        sleep(word, seen, Some(&at_most));
    }
}
