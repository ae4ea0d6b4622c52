//! What a store becomes when it is written at random for as long as an hour: how large its file is, what is
//! written beside the images, how long stabilisations take while cleaning runs, and how long a scan takes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::{CommitError, CreateOptions, Stat, Store, Stored};

use crate::Row;
use crate::disk::RawDisk;

const CONTAINER: ContainerId = ContainerId(1);

/// Pages asked for at once by a scan, as the streaming fault comes to do.
const SCAN_PAGES: usize = 256;

/// Which pages are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Pattern {
    /// All alike.
    Uniform,
    /// As Zipf has it, with exponent 0.99: a tenth of the pages gets most of the writes.
    Zipf,
}

/// How much is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) live_mib: u64,
    /// Random writes, in multiples of the live data.
    pub(crate) overwrites: u64,
    /// Pages of one stabilisation.
    pub(crate) commit_pages: u64,
    /// How quickly; as quickly as possible if 0.
    pub(crate) mib_per_second: u64,
}

/// Draws pages.
struct Chance {
    random: fastrand::Rng,
    pages: u64,
    pattern: Pattern,
    zeta: f64,
    zeta_two: f64,
}

/// Rounds behind which the raw disk is asked once.
const RAW_EVERY: u64 = 4;

const EXPONENT: f64 = 0.99;

impl Chance {
    fn new(pages: u64, pattern: Pattern) -> Self {
        let zeta = (1..=pages).map(|rank| (rank as f64).powf(-EXPONENT)).sum();
        let zeta_two = 1.0 + 0.5f64.powf(EXPONENT);
        Chance { random: fastrand::Rng::with_seed(11), pages, pattern, zeta, zeta_two }
    }

    fn page(&mut self) -> u64 {
        match self.pattern {
            Pattern::Uniform => self.random.u64(..self.pages),
            Pattern::Zipf => {
                // Gray and others, "Quickly generating billion-record synthetic databases".
                let u = self.random.f64();
                let scaled = u * self.zeta;
                let rank = if scaled < 1.0 {
                    0
                } else if scaled < self.zeta_two {
                    1
                } else {
                    let n = self.pages as f64;
                    let alpha = 1.0 / (1.0 - EXPONENT);
                    let eta =
                        (1.0 - (2.0 / n).powf(1.0 - EXPONENT)) / (1.0 - self.zeta_two / self.zeta);
                    (n * (eta * u - eta + 1.0).powf(alpha)) as u64
                };
                // The ranks lie scattered over the container.
                rank.min(self.pages - 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) % self.pages
            }
        }
    }
}

fn id(page: u64) -> PageId {
    PageId { container: CONTAINER, page: PageNo(page) }
}

/// Commits pages, each different from all others and from what it was.
fn commit(
    store: &Store,
    batch: &mut stead_store::Batch,
    pages: &[u64],
    round: u64,
) -> Result<f64, CommitError> {
    for &page in pages {
        batch.push(id(page), |bytes| {
            bytes.fill(0x5a);
            bytes[..8].copy_from_slice(&page.to_le_bytes());
            bytes[8..16].copy_from_slice(&round.to_le_bytes());
        });
    }
    let began = Instant::now();
    store.commit(batch)?;
    Ok(began.elapsed().as_secs_f64() * 1e6)
}

/// Reads everything in order, with nothing in the page cache. Seconds, and how many reads it took.
fn scan(dir: &Path, store: &Store, pages: u64) -> Result<(f64, u64), Box<dyn std::error::Error>> {
    let file = std::fs::File::open(dir.join("log"))?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut buffer = vec![0; SCAN_PAGES * PAGE_SIZE];
    let (began, mut at, mut runs) = (Instant::now(), 0, 0);
    while at < pages {
        let most = SCAN_PAGES.min((pages - at) as usize);
        let run = store.read_run(id(at), &mut buffer[..most * PAGE_SIZE])?;
        assert_eq!(run.stored, Stored::Image, "page {at} is there");
        for (i, image) in buffer.chunks(PAGE_SIZE).take(run.pages).enumerate() {
            assert_eq!(image[..8], (at + i as u64).to_le_bytes(), "the right page");
        }
        at += run.pages as u64;
        runs += 1;
    }
    Ok((began.elapsed().as_secs_f64(), runs))
}

/// Does the upkeep that a site's background thread does, until told to stop.
fn keep(store: &Store, stopping: &AtomicBool) -> Result<(), CommitError> {
    while !stopping.load(Ordering::Acquire) {
        while store.wants_maintenance() && !stopping.load(Ordering::Acquire) {
            store.maintain()?;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// The value below which such a part of all values lies.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() as f64 * part) as usize).min(sorted.len() - 1)]
}

pub(crate) fn measure(
    dir: &Path,
    size: Size,
    patterns: &[Pattern],
) -> Result<Vec<Row>, Box<dyn std::error::Error>> {
    let mut rows = Vec::new();
    for &pattern in patterns {
        let dir = dir.join(format!("aging-{pattern:?}"));
        rows.extend(age(&dir, size, pattern)?);
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(rows)
}

fn age(dir: &Path, size: Size, pattern: Pattern) -> Result<Vec<Row>, Box<dyn std::error::Error>> {
    let store = Arc::new(Store::create(dir, &CreateOptions::default())?);
    let pages = size.live_mib * 256;
    let live = pages * PAGE_SIZE as u64;
    let stopping = Arc::new(AtomicBool::new(false));
    let keeper = {
        let (store, stopping) = (Arc::clone(&store), Arc::clone(&stopping));
        std::thread::spawn(move || keep(&store, &stopping))
    };
    let mut batch = store.batch();
    let mut next = 0;
    while next < pages {
        let some: Vec<u64> = (next..(next + 4096).min(pages)).collect();
        commit(&store, &mut batch, &some, 0)?;
        next += 4096;
    }
    let settle = || {
        while store.wants_maintenance() {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    settle();
    let (fresh, fresh_runs) = scan(dir, &store, pages)?;

    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let before = store.stat();
    let mut chance = Chance::new(pages, pattern);
    let (mut times, mut largest, mut drawn) = (Vec::new(), 0, 0);
    // What the disk itself takes now and then, whoever else uses it.
    let raw_bytes = size.commit_pages as usize * PAGE_SIZE;
    let mut raw = RawDisk::new(&dir.with_extension("raw"), 64 << 20, raw_bytes)?;
    let mut raw_times = Vec::new();
    let rounds = pages * size.overwrites / size.commit_pages;
    let mut some = Vec::new();
    let began = Instant::now();
    for round in 1..=rounds {
        some.clear();
        some.extend((0..size.commit_pages).map(|_| chance.page()));
        some.sort_unstable();
        some.dedup();
        drawn += some.len() as u64;
        if size.mib_per_second > 0 {
            let due = mib(drawn * PAGE_SIZE as u64) / size.mib_per_second as f64;
            let ahead = due - began.elapsed().as_secs_f64();
            std::thread::sleep(Duration::from_secs_f64(ahead.max(0.0)));
        }
        times.push(commit(&store, &mut batch, &some, round)?);
        if round % RAW_EVERY == 0 {
            raw_times.push(raw.write_and_flush(raw_bytes)?);
        }
        if round % 16 == 0 {
            largest = largest.max(store.stat().file_bytes);
        }
    }
    let took = began.elapsed().as_secs_f64();
    let after = store.stat();
    let (aged, aged_runs) = scan(dir, &store, pages)?;
    std::thread::sleep(Duration::from_secs(2));
    settle();
    let tidied_stat = store.stat();
    let (tidied, tidied_runs) = scan(dir, &store, pages)?;
    stopping.store(true, Ordering::Release);
    keeper.join().expect("upkeep does not panic")?;
    let verified = store.verify_map()?;
    assert!(verified.is_clean(), "{verified:?}");

    times.sort_by(f64::total_cmp);
    raw_times.sort_by(f64::total_cmp);
    let name = format!("{pattern:?}, {} MiB written {}x", size.live_mib, size.overwrites);
    let written = |a: &Stat, b: &Stat| {
        let (a, b) = (a.counters, b.counters);
        (
            b.record_bytes - a.record_bytes,
            b.upkeep_bytes - a.upkeep_bytes,
            b.cleaning_bytes - a.cleaning_bytes,
            b.tidying_bytes - a.tidying_bytes,
            b.prewritten_bytes - a.prewritten_bytes,
        )
    };
    let (record, map, cleaning, tidying, ahead) = written(&before, &after);
    let images = drawn as f64 * PAGE_SIZE as f64;
    let runs = |runs: u64| format!("{:.1} pages a run", pages as f64 / runs as f64);
    let p = |part| quantile(&times, part);
    Ok(vec![
        Row::new(format!("{name}: largest file"), mib(largest), "MiB").against("live", mib(live)),
        Row::new(format!("{name}: written"), mib(record + map + cleaning + tidying + ahead), "MiB")
            .against("images", images / f64::from(1 << 20))
            .note(format!(
                "records {:.2}x, map {:.2}x, cleaning {:.2}x, tidying {:.2}x, prewritten {:.2}x; {:.0} MiB/s",
                record as f64 / images,
                map as f64 / images,
                cleaning as f64 / images,
                tidying as f64 / images,
                ahead as f64 / images,
                mib(record) / took,
            )),
        Row::new(format!("{name}: commit of {}, p99", size.commit_pages), p(0.99), "us")
            .against("median", p(0.5))
            .note(format!("p90 {:.0}, p99.9 {:.0}, slowest {:.0} us", p(0.9), p(0.999), p(1.0))),
        Row::new(format!("{name}: raw write + flush, p99"), quantile(&raw_times, 0.99), "us")
            .against("median", quantile(&raw_times, 0.5))
            .note("in the same minutes, upkeep and all"),
        Row::new(format!("{name}: scan, at once"), aged * 1e3, "ms")
            .against("fresh", fresh * 1e3)
            .note(format!("{}; fresh {}", runs(aged_runs), runs(fresh_runs))),
        Row::new(format!("{name}: scan, after idle upkeep"), tidied * 1e3, "ms")
            .against("fresh", fresh * 1e3)
            .note(format!(
                "{}; idle upkeep wrote {:.0} MiB",
                runs(tidied_runs),
                mib(tidied_stat.counters.written_bytes() - after.counters.written_bytes())
            )),
    ])
}
