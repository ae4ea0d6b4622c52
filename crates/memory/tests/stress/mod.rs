//! Threads that write, read, nest, stabilise and run exclusive sections in three containers at once.
//! Each container has two pairs of numbers; a pair that is not equal where it has to be is torn. Start
//! at [`run`].
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use stead_memory::{CloseError, EnterError, Gate, close_writers};
use stead_model::ContainerId;

/// Ends the process when nothing has happened for a while: threads that wait for each other would
/// otherwise hang the tests.
pub struct Watchdog {
    beats: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Watchdog {
    pub fn start(what: &'static str) -> Watchdog {
        let dog = Watchdog { beats: Arc::default(), over: Arc::default() };
        let (beats, over) = (Arc::clone(&dog.beats), Arc::clone(&dog.over));
        std::thread::spawn(move || {
            let mut last = u64::MAX;
            let mut since = Instant::now();
            while !over.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                let now = beats.load(Relaxed);
                if now != last {
                    (last, since) = (now, Instant::now());
                } else if since.elapsed() > Duration::from_secs(30) {
                    eprintln!("{what}: nobody has got on for 30 s");
                    std::process::abort();
                }
            }
        });
        dog
    }

    pub fn alive(&self) {
        self.beats.fetch_add(1, Relaxed);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
    }
}

struct Container {
    gate: Gate,
    /// Orders writers among themselves, as the program's own locks do.
    writers: Mutex<()>,
    /// Changed by writers one after the other; equal whenever no writer is inside.
    x: AtomicU64,
    y: AtomicU64,
    /// Changed by exclusive sections one after the other; equal whenever anybody reads.
    p: AtomicU64,
    q: AtomicU64,
}

impl Container {
    fn new(gate: Gate) -> Container {
        let zero = || AtomicU64::new(0);
        Container { gate, writers: Mutex::new(()), x: zero(), y: zero(), p: zero(), q: zero() }
    }

    fn written_whole(&self) -> bool {
        self.x.load(Relaxed) == self.y.load(Relaxed)
    }

    fn changed_whole(&self) -> bool {
        let p = self.p.load(Relaxed);
        pause();
        p == self.q.load(Relaxed) && p == self.p.load(Relaxed)
    }
}

fn pause() {
    for _ in 0..fastrand::u32(..200) {
        std::hint::spin_loop();
    }
    if fastrand::u8(..32) == 0 {
        std::thread::yield_now();
    }
}

fn bump(first: &AtomicU64, second: &AtomicU64) {
    first.store(first.load(Relaxed) + 1, Relaxed);
    pause();
    second.store(second.load(Relaxed) + 1, Relaxed);
}

/// What was seen torn.
#[derive(Debug)]
pub struct Torn(pub &'static str);

pub fn run(gate: fn(ContainerId) -> Gate, time: Duration) -> Result<(), Torn> {
    let watchdog = Watchdog::start("gate stress");
    let containers: Vec<Container> =
        (1..=3).map(|id| Container::new(gate(ContainerId(id)))).collect();
    let torn = Mutex::new(None);
    let end = Instant::now() + time;
    let go_on = || Instant::now() < end && torn.lock().unwrap().is_none();
    let saw = |what| *torn.lock().unwrap() = Some(Torn(what));
    let done: [AtomicU64; 4] = Default::default();
    let any = || &containers[fastrand::usize(..containers.len())];

    let write = || {
        while go_on() {
            let c = any();
            let _entry = c.gate.enter_write().unwrap();
            let _lock = c.writers.lock().unwrap();
            if fastrand::bool() {
                let other = any();
                let _read = other.gate.enter_read().unwrap();
                if !other.changed_whole() {
                    saw("an exclusive change, by a reader inside a writer");
                }
            }
            bump(&c.x, &c.y);
            done[0].fetch_add(1, Relaxed);
            watchdog.alive();
        }
    };
    let read = || {
        while go_on() {
            let mut entries = Vec::new();
            for _ in 0..fastrand::usize(1..4) {
                let c = any();
                entries.push(c.gate.enter_read().unwrap());
                if !c.changed_whole() {
                    saw("an exclusive change, by a reader");
                }
            }
            done[1].fetch_add(1, Relaxed);
            watchdog.alive();
        }
    };
    let stabilise = || {
        while go_on() {
            let gates: Vec<&Gate> =
                containers.iter().filter(|_| fastrand::bool()).map(|c| &c.gate).collect();
            let deadline = fastrand::bool()
                .then(|| Instant::now() + Duration::from_micros(fastrand::u64(..500)));
            match close_writers(&gates, deadline) {
                Ok(_closed) => {
                    let is_closed = |c: &Container| gates.iter().any(|g| std::ptr::eq(*g, &c.gate));
                    for _ in 0..5 {
                        if containers.iter().any(|c| is_closed(c) && !c.written_whole()) {
                            saw("a writer's change, behind closed gates");
                        }
                        pause();
                    }
                    done[2].fetch_add(1, Relaxed);
                }
                Err(CloseError::Held(_)) => assert!(deadline.is_some()),
                Err(CloseError::Nested) => unreachable!("no section is open here"),
            }
            watchdog.alive();
            pause();
        }
    };
    let alone = || {
        while go_on() {
            let c = any();
            let deadline = fastrand::bool()
                .then(|| Instant::now() + Duration::from_micros(fastrand::u64(..500)));
            match c.gate.enter_exclusive(deadline) {
                Ok(_entry) => {
                    if !c.written_whole() {
                        saw("a writer's change, by an exclusive section");
                    }
                    bump(&c.p, &c.q);
                    done[3].fetch_add(1, Relaxed);
                }
                Err(EnterError::Held(_)) => assert!(deadline.is_some()),
                Err(other) => panic!("{other}"),
            }
            watchdog.alive();
            std::thread::sleep(Duration::from_micros(fastrand::u64(..200)));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(write);
            scope.spawn(read);
            scope.spawn(stabilise);
            scope.spawn(alone);
        }
    });
    match torn.into_inner().unwrap() {
        Some(torn) => Err(torn),
        None => {
            // All four kinds got their turns.
            assert!(done.iter().all(|n| n.load(Relaxed) > 20), "{done:?}");
            Ok(())
        }
    }
}

/// How a thread goes in and out in [`race`].
#[derive(Clone, Copy, Debug)]
pub enum Entering {
    Write,
    Read,
    /// Inside a reading section of another container.
    NestedRead,
}

/// How the other keeps it out.
#[derive(Clone, Copy, Debug)]
pub enum Closing {
    Writers,
    Exclusive,
}

/// One thread goes in and out as fast as it can while another keeps it out as often as it can: what each
/// writes first is still on its way when it reads what the other wrote. True if both were in.
pub fn race(gate: &Gate, entering: Entering, closing: Closing, time: Duration) -> bool {
    #[repr(align(128))]
    struct Line<T>(T);
    let watchdog = Watchdog::start("gate race");
    let inside = Line(AtomicBool::new(false));
    let far = Line(AtomicU64::new(0));
    let over = AtomicBool::new(false);
    let other = Gate::new(ContainerId(99));
    std::thread::scope(|scope| {
        let (inside, far, over, other) = (&inside.0, &far.0, &over, &other);
        scope.spawn(move || {
            while !over.load(Relaxed) {
                let work = || {
                    inside.store(true, Relaxed);
                    for _ in 0..10 {
                        std::hint::spin_loop();
                    }
                    inside.store(false, Relaxed);
                };
                hold_up_stores(far);
                match entering {
                    Entering::Write => {
                        let _entry = gate.enter_write().unwrap();
                        work();
                    }
                    Entering::Read => {
                        let _entry = gate.enter_read().unwrap();
                        work();
                    }
                    Entering::NestedRead => {
                        let _outer = other.enter_read().unwrap();
                        for _ in 0..50 {
                            hold_up_stores(far);
                            let _entry = gate.enter_read().unwrap();
                            work();
                        }
                    }
                }
            }
        });
        let end = Instant::now() + time;
        let mut both = false;
        // Longer than the other's stores can be held up.
        let look = || (0..5000).any(|_| inside.load(Relaxed));
        while !both && Instant::now() < end {
            both = match closing {
                Closing::Writers => {
                    let _closed = close_writers(&[gate], None).unwrap();
                    look()
                }
                Closing::Exclusive => {
                    let _alone = gate.enter_exclusive(None).unwrap();
                    look()
                }
            };
            watchdog.alive();
            // Let the other in again, for different times.
            for _ in 0..fastrand::u32(..100) {
                std::hint::spin_loop();
            }
        }
        over.store(true, Relaxed);
        both
    })
}

/// Writes to a line that is in no cache: all that this processor writes next waits behind it for a
/// tenth of a microsecond or more, while it reads on.
fn hold_up_stores(far: &AtomicU64) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: flushing a line that is borrowed changes nothing but time.
    unsafe {
        std::arch::x86_64::_mm_clflush(std::ptr::from_ref(far).cast());
    }
    far.store(1, Relaxed);
}

/// The pairs of [`Entering`] and [`Closing`] that exclude each other.
pub const RACES: [(Entering, Closing); 4] = [
    (Entering::Write, Closing::Writers),
    (Entering::Write, Closing::Exclusive),
    (Entering::Read, Closing::Exclusive),
    (Entering::NestedRead, Closing::Exclusive),
];
