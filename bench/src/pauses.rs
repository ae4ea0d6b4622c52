//! How long the threads of a program wait while it is stabilised, and how much slower the program gets by it.
//!
//! A pause is the time for which the gates are closed: that is how long a thread that wants to change
//! something may have to wait. Slow-down compares how much a program gets done while it is stabilised every
//! 100 ms with how much it gets done while it is not, in turns. Read [`measure`] first.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use stead::{Container, Options, Result, Store};

use crate::stabilise::{Pages, filled};
use crate::{Row, median};

type Rows = std::result::Result<std::vec::Vec<Row>, Box<dyn std::error::Error>>;

pub(crate) fn measure(dir: &Path, resident_mib: u64) -> Rows {
    let store = Store::open_with(dir.join("pauses"), &Options::new().interval(None))?;
    let c = filled(&store, resident_mib)?;
    let pages = resident_mib as usize * 256;
    let mut rows = std::vec::Vec::new();
    for (share, rounds) in [(pages / 1000, 300), (pages / 100, 300), (pages, 12)] {
        rows.extend(pauses(&store, &c, pages, share.max(1), rounds)?);
    }
    for (what, work) in [
        ("appends", Work::Append),
        ("1 % of the pages an interval", Work::Some(pages / 100)),
        ("uniform updates", Work::Uniform),
    ] {
        rows.push(slow_down(&store, &c, pages, what, work)?);
    }
    Ok(rows)
}

/// What a thread needs that only ever waits for the gate.
fn small_sections(c: &Container<Pages<'static>>, pages: usize, over: &AtomicBool) -> Result<f64> {
    let mut longest = Duration::ZERO;
    let mut at = 0;
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        c.exclusive(|root, tx| -> Result<()> {
            // The same few pages, so that what is dirty stays what the measurement made it.
            at = (at + 1) % 8;
            root.pages.get_mut(tx, pages - 1 - at).expect("a page")[3] += 1;
            Ok(())
        })?;
        longest = longest.max(began.elapsed());
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(longest.as_secs_f64() * 1e6)
}

/// So many pages are changed, then stabilised, while a thread makes small changes.
fn pauses(
    store: &Store,
    c: &Container<Pages<'static>>,
    pages: usize,
    share: usize,
    rounds: usize,
) -> Rows {
    let mut chance = fastrand::Rng::with_seed(4);
    let (mut closed, mut waits) = (vec![], vec![]);
    for round in 0..rounds + 2 {
        dirty(c, pages, share, &mut chance)?;
        let over = AtomicBool::new(false);
        let wait = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| small_sections(c, pages, &over));
            std::thread::sleep(Duration::from_millis(2));
            let done = store.stabilise();
            over.store(true, Ordering::Relaxed);
            let wait = waiting.join().expect("measuring does not panic");
            done?;
            wait
        })?;
        // The first ones tell the store what to expect.
        if round >= 2 {
            closed.push(store.counters().pause_us_last as f64);
            waits.push(wait);
        }
    }
    let percent = share as f64 / pages as f64 * 100.0;
    let name = format!("gates closed, {percent:.1} % of {pages} pages dirty");
    let floor = scan_and_protect(store, c, pages, share, &mut chance)?;
    let note = format!(
        "median {:.0} us; longest wait of a thread, p99, {:.0} us",
        median(closed.clone()),
        p99(waits)
    );
    Ok(vec![
        Row::new(format!("{name}: p99"), p99(closed), "us")
            .against("scan + protect", floor)
            .note(note),
    ])
}

/// What finding so many pages and protecting them again costs, with nobody writing.
fn scan_and_protect(
    store: &Store,
    c: &Container<Pages<'static>>,
    pages: usize,
    share: usize,
    chance: &mut fastrand::Rng,
) -> Result<f64> {
    let mut times = vec![];
    for _ in 0..5 {
        dirty(c, pages, share, chance)?;
        store.stabilise()?;
        times.push(store.counters().scan_us_last as f64);
    }
    Ok(median(times))
}

fn dirty(
    c: &Container<Pages<'static>>,
    pages: usize,
    share: usize,
    chance: &mut fastrand::Rng,
) -> Result<()> {
    let first = chance.usize(..pages);
    for part in (0..share).step_by(4096) {
        c.exclusive(|root, tx| -> Result<()> {
            for i in part..(part + 4096).min(share) {
                let page = if share == pages { (first + i) % pages } else { chance.usize(..pages) };
                root.pages.get_mut(tx, page).expect("a page")[7] += 1;
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Work {
    /// Fills the pages one after the other, word by word.
    Append,
    /// Writes all over so many pages, others in each interval.
    Some(usize),
    /// Writes all over all pages.
    Uniform,
}

const INTERVAL: Duration = Duration::from_millis(100);

/// Sections done in a second without stabilisations, against with one every 100 ms.
fn slow_down(
    store: &Store,
    c: &Container<Pages<'static>>,
    pages: usize,
    what: &str,
    work: Work,
) -> std::result::Result<Row, Box<dyn std::error::Error>> {
    const TURNS: usize = 7;
    let (mut with, mut without) = (vec![], vec![]);
    // One turn to get used to it.
    for turn in 0..=TURNS {
        let plain = turn_of(store, c, pages, work, false)?;
        let stabilised = turn_of(store, c, pages, work, true)?;
        if turn > 0 {
            without.push(plain);
            with.push(stabilised);
        }
    }
    let (with, without) = (median(with), median(without));
    let way = store.stat().written_pages;
    Ok(Row::new(format!("time of a section, stabilised every 100 ms: {what}"), 1e9 / with, "ns")
        .against("not stabilised", 1e9 / without)
        .note(format!(
            "slower by {:.0} %; written pages found by {way}",
            (without / with - 1.0) * 100.0
        )))
}

/// A second of work. Sections in a second.
fn turn_of(
    store: &Store,
    c: &Container<Pages<'static>>,
    pages: usize,
    work: Work,
    stabilised: bool,
) -> std::result::Result<f64, Box<dyn std::error::Error>> {
    const TURN: Duration = Duration::from_secs(1);
    store.stabilise()?;
    let over = AtomicBool::new(false);
    let interval = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| -> Result<f64> {
            let mut chance = fastrand::Rng::with_seed(6);
            let mut sections = 0u64;
            let began = Instant::now();
            while !over.load(Ordering::Relaxed) {
                let first = interval.load(Ordering::Relaxed) as usize * 7919;
                c.exclusive(|root, tx| -> Result<()> {
                    for _ in 0..64 {
                        let (page, word) = match work {
                            Work::Append => {
                                ((sections / 64) as usize % pages, (sections % 64 * 8) as usize)
                            }
                            Work::Some(some) => {
                                ((first + chance.usize(..some)) % pages, chance.usize(..512))
                            }
                            Work::Uniform => (chance.usize(..pages), chance.usize(..512)),
                        };
                        root.pages.get_mut(tx, page).expect("a page")[word] += 1;
                    }
                    Ok(())
                })?;
                sections += 1;
            }
            Ok(sections as f64 / began.elapsed().as_secs_f64())
        });
        let mut done = Ok(());
        let began = Instant::now();
        while began.elapsed() < TURN && done.is_ok() {
            std::thread::sleep(INTERVAL);
            interval.fetch_add(1, Ordering::Relaxed);
            if stabilised {
                done = store.stabilise().map(drop);
            }
        }
        over.store(true, Ordering::Relaxed);
        let sections = worker.join().expect("measuring does not panic")?;
        done?;
        Ok(sections)
    })
}

/// The value that one in a hundred exceeds.
fn p99(mut values: std::vec::Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() * 99).div_ceil(100).min(values.len()) - 1]
}
