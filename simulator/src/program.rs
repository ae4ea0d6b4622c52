//! What the programs of a simulated cluster do: nine workloads, and scripts for litmus tests.
//! Nothing here knows where a page is. Read [`Workload`] first.

use stead_coherence::PageKey;

/// Words of a simulated page.
pub const WORDS: usize = 8;

/// A word of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The page.
    pub page: PageKey,
    /// Which of its [`WORDS`].
    pub word: usize,
}

/// One thing that a thread does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Loads a word.
    Load(Place),
    /// Stores a value that no other store has.
    Store(Place),
    /// Stores this value (litmus tests).
    StoreValue(Place, u64),
    /// Waits for a lock; the page may come with it.
    Lock(PageKey, Option<PageKey>),
    /// Gives it back.
    Unlock(PageKey),
    /// Begins a mutating section; waits while the gate is closed.
    Enter,
    /// Ends it.
    Leave,
    /// Asks for a stabilisation, unless one that was asked for here has not ended.
    Stabilise,
    /// Wants it no longer.
    GiveUp,
}

impl Op {
    /// What it may have to wait for.
    #[must_use]
    pub fn page(&self) -> Option<PageKey> {
        match self {
            Op::Load(place) | Op::Store(place) | Op::StoreValue(place, _) => Some(place.page),
            Op::Lock(lock, _) | Op::Unlock(lock) => Some(*lock),
            Op::Enter | Op::Leave | Op::Stabilise | Op::GiveUp => None,
        }
    }
}

/// The kinds of sharing that protocols are known to differ in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    /// Any thread, any page.
    Uniform,
    /// Nine of ten go to one page.
    HotPage,
    /// One writes, all others read.
    ProducerConsumer,
    /// Each thread in turn reads and then writes a few times.
    Migratory,
    /// Threads keep to words of their own in the same pages.
    FalseSharing,
    /// Rarely a store.
    ReadMostly,
    /// Everything under locks.
    LockHeavy,
    /// Pages in order, asked for in runs.
    Streaming,
    /// Everything persists: sections that change several pages, some under a lock, readers, and
    /// stabilisations in between.
    Sections,
}

impl Workload {
    /// All of them.
    pub const ALL: [Workload; 9] = [
        Workload::Uniform,
        Workload::HotPage,
        Workload::ProducerConsumer,
        Workload::Migratory,
        Workload::FalseSharing,
        Workload::ReadMostly,
        Workload::LockHeavy,
        Workload::Streaming,
        Workload::Sections,
    ];

    /// Whether faults ask for runs of pages.
    #[must_use]
    pub fn asks_runs(self) -> bool {
        self == Workload::Streaming
    }
}

/// What a thread chooses from.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The pages, in order.
    pub pages: Vec<PageKey>,
    /// The locks; lock `n` protects page `n`.
    pub locks: Vec<PageKey>,
}

/// A thread's program.
#[derive(Clone, Debug)]
pub enum Program {
    /// Draws operations until `left` are done.
    Workload {
        /// Which.
        workload: Workload,
        /// The thread's number among all.
        thread: usize,
        /// Operations to do.
        left: u32,
        /// Operations drawn and not done, last first.
        drawn: Vec<Op>,
        /// How many were drawn in all.
        count: usize,
    },
    /// Does these, last first, and remembers what it loaded.
    Script {
        /// Operations to do, last first.
        ops: Vec<Op>,
        /// Values loaded, in order.
        loaded: Vec<u64>,
    },
}

impl Program {
    /// A thread of a workload.
    #[must_use]
    pub fn new(workload: Workload, thread: usize, ops: u32) -> Program {
        Program::Workload { workload, thread, left: ops, drawn: Vec::new(), count: 0 }
    }

    /// The next operation; `None` when the program is over.
    pub fn next(&mut self, around: &Surroundings, rng: &mut fastrand::Rng) -> Option<Op> {
        match self {
            Program::Script { ops, .. } => ops.pop(),
            Program::Workload { workload, thread, left, drawn, count } => {
                if drawn.is_empty() {
                    if *left == 0 {
                        return None;
                    }
                    *left -= 1;
                    *count += 1;
                    draw(*workload, *thread, *count, around, rng, drawn);
                    drawn.reverse();
                }
                drawn.pop()
            }
        }
    }
}

fn draw(
    workload: Workload,
    thread: usize,
    count: usize,
    around: &Surroundings,
    rng: &mut fastrand::Rng,
    ops: &mut Vec<Op>,
) {
    let pages = &around.pages;
    let any = |rng: &mut fastrand::Rng| Place {
        page: pages[rng.usize(..pages.len())],
        word: rng.usize(..WORDS),
    };
    let one = |place, store| if store { Op::Store(place) } else { Op::Load(place) };
    match workload {
        Workload::Uniform => ops.push(one(any(rng), rng.u8(..) < 100)),
        Workload::HotPage => {
            let place = if rng.u8(..10) < 9 { Place { page: pages[0], word: 0 } } else { any(rng) };
            ops.push(one(place, rng.u8(..) < 100));
        }
        Workload::ProducerConsumer => ops.push(one(any(rng), thread == 0)),
        Workload::Migratory => {
            let place = any(rng);
            ops.extend([Op::Load(place), Op::Store(place), Op::Load(place), Op::Store(place)]);
        }
        Workload::FalseSharing => {
            let place = Place { word: thread % WORDS, ..any(rng) };
            ops.push(one(place, rng.bool()));
        }
        Workload::ReadMostly => ops.push(one(any(rng), rng.u8(..) < 5)),
        Workload::LockHeavy => {
            let at = rng.usize(..around.locks.len());
            let (lock, page) = (around.locks[at], pages[at % pages.len()]);
            let place = Place { page, word: 0 };
            ops.push(Op::Lock(lock, Some(page)));
            ops.extend([Op::Load(place), Op::Store(place)]);
            ops.push(Op::Unlock(lock));
        }
        Workload::Streaming => {
            let place = Place { page: pages[count % pages.len()], word: thread % WORDS };
            ops.push(one(place, thread == 0));
        }
        Workload::Sections => draw_section(around, rng, ops),
    }
}

fn draw_section(around: &Surroundings, rng: &mut fastrand::Rng, ops: &mut Vec<Op>) {
    let pages = &around.pages;
    let any = |rng: &mut fastrand::Rng| Place {
        page: pages[rng.usize(..pages.len())],
        word: rng.usize(..WORDS),
    };
    match rng.u8(..10) {
        // A reading section; it is not gated.
        0..3 => ops.extend([Op::Load(any(rng)), Op::Load(any(rng))]),
        kind => {
            let first = any(rng);
            let lock = (kind < 6).then(|| around.locks[rng.usize(..around.locks.len())]);
            ops.push(Op::Enter);
            ops.extend(lock.map(|lock| Op::Lock(lock, Some(first.page))));
            ops.extend([Op::Load(first), Op::Store(first)]);
            for _ in 0..rng.u8(..3) {
                let place = any(rng);
                ops.push(if rng.u8(..3) == 0 { Op::Load(place) } else { Op::Store(place) });
            }
            ops.extend(lock.map(Op::Unlock));
            ops.push(Op::Leave);
        }
    }
    if rng.u8(..6) == 0 {
        ops.push(Op::Stabilise);
        if rng.u8(..8) == 0 {
            ops.push(Op::GiveUp);
        }
    }
}
