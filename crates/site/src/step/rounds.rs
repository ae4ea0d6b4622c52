//! When a stabilisation is taken, and in which order its parts happen: gate, drain, cut (B1, B5, B8).
//!
//! Pure: time is a number, the caller performs each [`Effect`] and comes back with the [`Event`] that
//! it led to. No page, gate or file is touched here. Read [`Rounds::step`] first.

use std::time::Duration;

/// A state that is durable. Later ones have higher numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Stable {
    /// The number of its stabilisation.
    pub number: u64,
}

/// Who wants a round, which decides how long its gates may stay closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// Time or amount: gives way when open sections hold it up.
    Background,
    /// A program waits for it.
    Asked {
        /// How long its gates may stay closed.
        gate: Duration,
    },
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A round is to begin.
    Begin(Wish),
    /// Dirty pages were copied while programs ran.
    PreCopied {
        /// How many.
        page_count: u64,
    },
    /// All gates are closed and no mutating section is open.
    Drained,
    /// The gates had to be opened again: a section stayed open too long.
    Held,
    /// What is still dirty is known, behind closed gates.
    Found {
        /// How many pages.
        page_count: u64,
    },
    /// It was copied behind closed gates.
    Captured,
    /// The record is durable.
    Committed,
    /// It is not, or not known to be.
    Failed,
}

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Copy the dirty pages while programs run, protecting them first.
    PreCopy,
    /// Close the gates and wait for open mutating sections to end; give up after `within`.
    CloseGates {
        /// Longest time that the gates may be closed before the drain is complete.
        within: Duration,
    },
    /// Find what is still dirty and protect it.
    Search,
    /// Copy what was found.
    Copy,
    /// Open the gates, copy what was found while programs run, and come back for what they dirty meanwhile.
    OpenAndCopy,
    /// Open the gates, then write the record and flush it.
    OpenAndCommit,
    /// Nothing became stable. What was copied is kept for the next round: a page in it is as it was
    /// copied, or dirty again.
    KeepCopies,
    /// The round is over.
    Done {
        /// Whether its state is stable now.
        stable: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Idle,
    PreCopying,
    Closing,
    Searching,
    Capturing,
    Committing,
}

/// Times and amounts that a program may choose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// Longest time between two background stabilisations; `None`: none by time.
    pub interval: Option<Duration>,
    /// A background stabilisation begins when this many pages are new since the last one.
    pub new_pages_max: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { interval: Some(Duration::from_secs(1)), new_pages_max: 64 * 1024 }
    }
}

/// Gates of a background round stay closed at most this long, at first.
const BACKGROUND_GATE: Duration = Duration::from_millis(20);
/// After repeated defeats they may stay closed this long, or sections that follow each other closely
/// could keep a program from ever being stable.
const BACKGROUND_GATE_MAX: Duration = Duration::from_millis(640);
/// A defeated background round is tried again after this time.
const RETRY: Duration = Duration::from_millis(50);
/// Below this many pages, copying them behind closed gates takes less than a millisecond, and less than a second
/// search for dirty pages.
const PRE_COPY_MIN: u64 = 512;
/// What is copied ahead is written ahead as well if less than this part of it is dirtied again in the same round.
const WRITTEN_TWICE_PART: u64 = 16;
/// Passes over dirty pages while programs run, in one round. Each must at least halve what is left.
const PASSES_MAX: u32 = 3;

/// The state of stabilisation at one site.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rounds {
    pace: Pace,
    phase: Phase,
    wish: Wish,
    /// Pages copied by the last pass while programs ran, and by all of them in this round.
    pre_copied: u64,
    pre_copied_all: u64,
    /// By the first pass of this round.
    pre_copied_first: u64,
    passes: u32,
    /// Pages found behind the gates.
    found: u64,
    /// Pages that the last whole round made stable.
    last_page_count: u64,
    /// More than half of what the last round copied ahead was dirtied again: not worth it now.
    ahead_was_waste: bool,
    /// Enough of it was that it is not to be written ahead as well, since each page would be written twice.
    writing_was_waste: bool,
    defeats_in_a_row: u32,
    /// When the next background round by time is due.
    due_at: Option<Duration>,
}

impl Rounds {
    /// Nothing under way; the first background round is due one interval after `now`.
    #[must_use]
    pub fn new(pace: Pace, now: Duration) -> Self {
        Rounds {
            pace,
            phase: Phase::Idle,
            wish: Wish::Background,
            pre_copied: 0,
            pre_copied_all: 0,
            pre_copied_first: 0,
            passes: 0,
            found: 0,
            last_page_count: 0,
            ahead_was_waste: false,
            writing_was_waste: false,
            defeats_in_a_row: 0,
            due_at: pace.interval.map(|i| now + i),
        }
    }

    /// Whether a background round should begin, given how many pages are new since the last.
    #[must_use]
    pub fn is_due(&self, now: Duration, new_pages: u64) -> bool {
        // A defeated round waits out its pause even when the amount is exceeded.
        let paused = self.defeats_in_a_row > 0 && self.due_at.is_some_and(|at| now < at);
        self.due_at.is_some_and(|at| now >= at) || (new_pages >= self.pace.new_pages_max && !paused)
    }

    /// How long the background may sleep before it has to ask [`Rounds::is_due`] again.
    #[must_use]
    pub fn sleep_from(&self, now: Duration) -> Duration {
        const LOOK_AT_AMOUNT: Duration = Duration::from_millis(100);
        self.due_at.map_or(LOOK_AT_AMOUNT, |at| at.saturating_sub(now).min(LOOK_AT_AMOUNT))
    }

    /// Whether what is copied now may be written at once. A page that a program changes before the round is over is then
    /// written twice.
    #[must_use]
    pub fn writes_ahead(&self) -> bool {
        // Behind closed gates nothing changes.
        !self.writing_was_waste || self.phase == Phase::Capturing
    }

    /// Takes what happened and says what to do next.
    ///
    /// # Panics
    /// If the event does not follow from the last effect: a bug of the driver.
    pub fn step(&mut self, now: Duration, event: Event) -> Effect {
        match (self.phase, event) {
            (Phase::Idle, Event::Begin(wish)) => {
                self.wish = wish;
                (self.pre_copied, self.pre_copied_all, self.passes) = (0, 0, 0);
                self.pre_copied_first = 0;
                if self.ahead_was_waste {
                    self.ahead_was_waste = false;
                    self.passes = PASSES_MAX;
                    self.close()
                } else if self.last_page_count >= PRE_COPY_MIN {
                    self.phase = Phase::PreCopying;
                    Effect::PreCopy
                } else {
                    self.close()
                }
            }
            (Phase::PreCopying, Event::PreCopied { page_count }) => {
                self.pre_copied = page_count;
                self.pre_copied_all += page_count;
                if self.passes == 0 {
                    self.pre_copied_first = page_count;
                }
                self.passes += 1;
                self.close()
            }
            (Phase::Closing, Event::Drained) => {
                self.phase = Phase::Searching;
                Effect::Search
            }
            (Phase::Searching, Event::Found { page_count }) => {
                self.found = page_count;
                let shrinks = self.passes == 0 || page_count <= self.pre_copied / 2;
                if page_count >= PRE_COPY_MIN && shrinks && self.passes < PASSES_MAX {
                    self.phase = Phase::PreCopying;
                    Effect::OpenAndCopy
                } else {
                    self.phase = Phase::Capturing;
                    Effect::Copy
                }
            }
            (Phase::Closing, Event::Held) => {
                self.phase = Phase::Idle;
                self.defeats_in_a_row = self.defeats_in_a_row.saturating_add(1);
                if self.pace.interval.is_some() {
                    self.due_at = Some(now + RETRY);
                }
                Effect::KeepCopies
            }
            (Phase::Capturing, Event::Captured) => {
                self.phase = Phase::Committing;
                self.ahead_was_waste = self.found >= PRE_COPY_MIN
                    && self.found > self.pre_copied / 2
                    && self.pre_copied > 0;
                if self.pre_copied_first > 0 {
                    let again = self.pre_copied_all - self.pre_copied_first + self.found;
                    self.writing_was_waste = again > self.pre_copied_first / WRITTEN_TWICE_PART;
                }
                self.last_page_count = self.pre_copied_all.max(self.found);
                Effect::OpenAndCommit
            }
            (Phase::Committing, Event::Committed) => {
                self.phase = Phase::Idle;
                self.defeats_in_a_row = 0;
                self.due_at = self.pace.interval.map(|i| now + i);
                Effect::Done { stable: true }
            }
            (Phase::Searching | Phase::Committing, Event::Failed) => {
                self.phase = Phase::Idle;
                self.due_at = self.pace.interval.map(|i| now + i);
                Effect::KeepCopies
            }
            (phase, event) => unreachable!("{event:?} while {phase:?}"),
        }
    }

    fn close(&mut self) -> Effect {
        self.phase = Phase::Closing;
        let within = match self.wish {
            Wish::Asked { gate } => gate,
            Wish::Background => {
                let patience = BACKGROUND_GATE * 2u32.saturating_pow(self.defeats_in_a_row.min(5));
                patience.min(BACKGROUND_GATE_MAX)
            }
        };
        Effect::CloseGates { within }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn rounds() -> Rounds {
        Rounds::new(Pace { interval: Some(1000 * MS), new_pages_max: 100 }, Duration::ZERO)
    }

    fn whole_round(r: &mut Rounds, now: Duration, dirty: u64) {
        let mut left = dirty;
        let mut effect = r.step(now, Event::Begin(Wish::Background));
        loop {
            effect = match effect {
                Effect::PreCopy | Effect::OpenAndCopy => {
                    r.step(now, Event::PreCopied { page_count: std::mem::take(&mut left) })
                }
                Effect::CloseGates { .. } => r.step(now, Event::Drained),
                Effect::Search => r.step(now, Event::Found { page_count: left }),
                Effect::Copy => r.step(now, Event::Captured),
                Effect::OpenAndCommit => r.step(now, Event::Committed),
                Effect::Done { stable } => {
                    assert!(stable);
                    return;
                }
                Effect::KeepCopies => unreachable!("nothing failed"),
            };
        }
    }

    #[test]
    fn due_by_time_and_by_amount() {
        let mut r = rounds();
        assert!(!r.is_due(999 * MS, 99));
        assert!(r.is_due(1000 * MS, 0));
        assert!(r.is_due(MS, 100));
        whole_round(&mut r, 1500 * MS, 3);
        assert!(!r.is_due(2499 * MS, 0));
        assert!(r.is_due(2500 * MS, 0));
    }

    #[test]
    fn few_pages_are_copied_under_the_gate_many_ahead_of_it() {
        let mut r = rounds();
        whole_round(&mut r, Duration::ZERO, PRE_COPY_MIN);
        assert_eq!(r.step(Duration::ZERO, Event::Begin(Wish::Background)), Effect::PreCopy);
        r.step(Duration::ZERO, Event::PreCopied { page_count: 1000 });
        r.step(Duration::ZERO, Event::Drained);
        // Most of it was dirtied again: the next round does not copy ahead, the one after does.
        let effect = r.step(Duration::ZERO, Event::Found { page_count: 900 });
        assert_eq!(effect, Effect::Copy);
        r.step(Duration::ZERO, Event::Captured);
        r.step(Duration::ZERO, Event::Committed);
        let within = BACKGROUND_GATE;
        assert_eq!(
            r.step(Duration::ZERO, Event::Begin(Wish::Background)),
            Effect::CloseGates { within }
        );
        r.step(Duration::ZERO, Event::Drained);
        let effect = r.step(Duration::ZERO, Event::Found { page_count: 900 });
        assert_eq!(effect, Effect::Copy);
        r.step(Duration::ZERO, Event::Captured);
        r.step(Duration::ZERO, Event::Committed);
        assert_eq!(r.step(Duration::ZERO, Event::Begin(Wish::Background)), Effect::PreCopy);
    }

    #[test]
    fn what_takes_long_to_copy_is_copied_with_the_gates_open() {
        let mut r = rounds();
        let now = Duration::ZERO;
        r.step(now, Event::Begin(Wish::Background));
        // Nobody knew that there was so much.
        for left in [100_000, 40_000, 10_000] {
            r.step(now, Event::Drained);
            let effect = r.step(now, Event::Found { page_count: left });
            assert_eq!(effect, Effect::OpenAndCopy);
            let effect = r.step(now, Event::PreCopied { page_count: left });
            assert_eq!(effect, Effect::CloseGates { within: BACKGROUND_GATE });
        }
        // Not for ever.
        r.step(now, Event::Drained);
        assert_eq!(r.step(now, Event::Found { page_count: 4000 }), Effect::Copy);
        r.step(now, Event::Captured);
        assert_eq!(r.step(now, Event::Committed), Effect::Done { stable: true });
        // A pass that does not halve what is left is the last one.
        assert_eq!(r.step(now, Event::Begin(Wish::Background)), Effect::PreCopy);
        r.step(now, Event::PreCopied { page_count: 8000 });
        r.step(now, Event::Drained);
        assert_eq!(r.step(now, Event::Found { page_count: 4001 }), Effect::Copy);
    }

    #[test]
    fn what_is_dirtied_again_is_not_written_ahead_in_the_next_round() {
        let mut r = rounds();
        let now = Duration::ZERO;
        let round = |r: &mut Rounds, again: u64| {
            r.step(now, Event::Begin(Wish::Background));
            r.step(now, Event::PreCopied { page_count: 1600 });
            let while_running = r.writes_ahead();
            r.step(now, Event::Drained);
            assert_eq!(r.step(now, Event::Found { page_count: again }), Effect::Copy);
            assert!(r.writes_ahead(), "nothing changes behind closed gates");
            r.step(now, Event::Captured);
            r.step(now, Event::Committed);
            while_running
        };
        // So that the first of them copies ahead.
        whole_round(&mut r, now, 1600);
        assert!(round(&mut r, 100) && round(&mut r, 101));
        assert!(!round(&mut r, 101) && !round(&mut r, 100));
        assert!(round(&mut r, 0));
    }

    #[test]
    fn a_defeated_background_round_waits_and_grows_patient() {
        let mut r = rounds();
        let mut patience = BACKGROUND_GATE;
        for attempt in 0..8u32 {
            let now = 10_000 * MS * (attempt + 1);
            let effect = r.step(now, Event::Begin(Wish::Background));
            assert_eq!(effect, Effect::CloseGates { within: patience });
            assert_eq!(r.step(now, Event::Held), Effect::KeepCopies);
            assert!(!r.is_due(now, 1_000_000), "paused though much is new");
            assert!(r.is_due(now + RETRY, 0));
            patience = (patience * 2).min(BACKGROUND_GATE_MAX);
        }
        whole_round(&mut r, 100_000 * MS, 1);
        let effect = r.step(100_000 * MS, Event::Begin(Wish::Background));
        assert_eq!(effect, Effect::CloseGates { within: BACKGROUND_GATE });
    }

    #[test]
    fn after_a_failed_write_a_round_begins_anew() {
        let mut r = rounds();
        r.step(Duration::ZERO, Event::Begin(Wish::Asked { gate: 5 * MS }));
        r.step(Duration::ZERO, Event::Drained);
        r.step(Duration::ZERO, Event::Found { page_count: 4 });
        r.step(Duration::ZERO, Event::Captured);
        assert_eq!(r.step(Duration::ZERO, Event::Failed), Effect::KeepCopies);
        assert_eq!(
            r.step(Duration::ZERO, Event::Begin(Wish::Asked { gate: 5 * MS })),
            Effect::CloseGates { within: 5 * MS }
        );
    }

    #[test]
    #[should_panic(expected = "Drained while Idle")]
    fn an_event_out_of_order_is_a_bug() {
        rounds().step(Duration::ZERO, Event::Drained);
    }
}
