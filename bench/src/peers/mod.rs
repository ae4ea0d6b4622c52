//! Stabilising pages at random places, side by side with databases that write the same data durably, and with
//! the raw disk: one sequential direct write of as many bytes and one flush. All in one process and one run,
//! block by block in turn. Read [`Engine`] first.
//!
//! The time is that of the change and of making it durable, as databases divide the work differently: one writes all
//! pages at the commit, another one at each change. A database gets rows of 4,000 bytes under keys of 32 bits, which a page of LMDB or SQLite holds, and the settings
//! that make its commits quickest while they are durable; they stand beside its numbers. Contents are
//! random, so nothing is won by compressing them.

mod fjall;
mod lmdb;
mod redb;
mod sqlite;
mod stead;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::disk::RawDisk;
use crate::{Row, median};

const PAGE: usize = 4096;
/// Of a row in a database.
const ROW: usize = 4000;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Something that keeps numbered rows.
trait Engine {
    fn name(&self) -> &'static str;
    /// How it was set up.
    fn settings(&self) -> &'static str;
    /// Changes these rows. The change need not be durable yet; some do much of their writing here.
    fn change(&mut self, rows: &[u32]) -> Outcome<()>;
    /// Makes the change durable.
    fn commit(&mut self) -> Outcome<()>;
}

/// Rows of random bytes; each has a number in front that changes with every write.
struct Contents {
    bytes: Vec<u8>,
    count: u64,
}

impl Contents {
    fn new() -> Contents {
        let mut chance = fastrand::Rng::with_seed(5);
        Contents { bytes: (0..1 << 20).map(|_| chance.u8(..)).collect(), count: 0 }
    }

    fn next(&mut self) -> &[u8] {
        self.count += 1;
        let at = (self.count as usize * 4099) % (self.bytes.len() - ROW);
        self.bytes[at..at + 8].copy_from_slice(&self.count.to_ne_bytes());
        &self.bytes[at..at + ROW]
    }
}

/// Rows are filled in by so many in a transaction.
const FILL: u32 = 4096;

fn filling(rows: u32) -> impl Iterator<Item = std::ops::Range<u32>> {
    (0..rows).step_by(FILL as usize).map(move |from| from..(from + FILL).min(rows))
}

/// What has been written so far. The file system marks more of a file as written than was, and writes less: what
/// reaches the device counts, as long as nobody else writes to it.
#[derive(Clone, Copy, Default)]
struct Io {
    /// Bytes that this process has sent to the disk: `write_bytes` of `/proc/self/io`.
    own_bytes: f64,
    /// Bytes written to the device by anybody, and flushes it was asked for: `/sys/dev/block`.
    device_bytes: f64,
    flushes: f64,
}

/// Where the device of a directory keeps its counts, if it does.
fn device(dir: &Path) -> Option<PathBuf> {
    let dev = rustix::fs::stat(dir).ok()?.st_dev;
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let mut path = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    // Flushes are counted for the whole disk.
    if path.join("partition").exists() {
        path.pop();
    }
    Some(path.join("stat"))
}

fn io(device: Option<&Path>) -> Io {
    let own = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
    let stat = device.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let numbers: Vec<f64> =
        stat.split_whitespace().map(|n| n.parse().unwrap_or(f64::NAN)).collect();
    let number = |at: usize| numbers.get(at).copied().unwrap_or(f64::NAN);
    Io { own_bytes: own.unwrap_or(f64::NAN), device_bytes: number(6) * 512.0, flushes: number(15) }
}

/// What several rounds took.
#[derive(Default)]
struct Measured {
    whole_us: Vec<f64>,
    commit_us: Vec<f64>,
    io: Vec<Io>,
}

impl Measured {
    fn io(&self, of: impl Fn(&Io) -> f64) -> f64 {
        median(self.io.iter().map(of).collect())
    }
}

pub(crate) fn measure(dir: &Path, mib: u64) -> Outcome<Vec<Row>> {
    let rows = u32::try_from(mib * (1 << 20) / PAGE as u64)?;
    let device = device(dir);
    let mut raw = RawDisk::new(&dir.join("raw"), 256 << 20, 10_000 * PAGE)?;
    let make = |name: &str| -> Outcome<PathBuf> {
        let path = dir.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    };
    let mut engines: Vec<Box<dyn Engine>> = vec![
        Box::new(stead::Stead::new(&dir.join("stead"), rows)?),
        Box::new(lmdb::Lmdb::new(&make("lmdb")?, rows, false)?),
        Box::new(lmdb::Lmdb::new(&make("lmdb-map")?, rows, true)?),
        Box::new(redb::Redb::new(&make("redb")?, rows)?),
        Box::new(sqlite::Sqlite::new(&make("sqlite")?, rows)?),
        Box::new(fjall::Fjall::new(&dir.join("fjall"), rows)?),
    ];
    println!("rows in each: {rows}; settings:");
    for engine in &engines {
        println!("  {:<14} {}", engine.name(), engine.settings());
    }
    rustix::fs::sync();
    let mut chance = fastrand::Rng::with_seed(8);
    let mut table = Vec::new();
    for (dirty, blocks, rounds) in [(1usize, 20, 20), (100, 20, 10), (10_000, 8, 2)] {
        let dirty = dirty.min(rows as usize);
        let mut limit = Measured::default();
        let mut measured: Vec<Measured> = engines.iter().map(|_| Measured::default()).collect();
        for _ in 0..blocks {
            for _ in 0..rounds {
                let before = io(device.as_deref());
                limit.commit_us.push(raw.write_and_flush(dirty * PAGE)?);
                limit.io.push(since(before, device.as_deref()));
            }
            for (engine, measured) in engines.iter_mut().zip(&mut measured) {
                for _ in 0..rounds {
                    let mut picked = std::collections::BTreeSet::new();
                    while picked.len() < dirty {
                        picked.insert(chance.u32(..rows));
                    }
                    let picked: Vec<u32> = picked.into_iter().collect();
                    let before = io(device.as_deref());
                    let began = Instant::now();
                    engine.change(&picked)?;
                    let changed = Instant::now();
                    engine.commit()?;
                    let done = Instant::now();
                    measured.whole_us.push((done - began).as_secs_f64() * 1e6);
                    measured.commit_us.push((done - changed).as_secs_f64() * 1e6);
                    measured.io.push(since(before, device.as_deref()));
                }
            }
        }
        let limit_us = median(limit.commit_us.clone());
        let bytes = (dirty * PAGE) as f64;
        let io_note = |m: &Measured| {
            format!(
                "{:.2}x the dirty bytes by the process, {:.2}x at the device; {:.1} flushes",
                m.io(|io| io.own_bytes) / bytes,
                m.io(|io| io.device_bytes) / bytes,
                m.io(|io| io.flushes),
            )
        };
        table.push(
            Row::new(format!("{dirty} pages: raw write + flush"), limit_us, "us")
                .against("itself", limit_us)
                .note(io_note(&limit)),
        );
        for (engine, m) in engines.iter().zip(&measured) {
            table.push(
                Row::new(
                    format!("{dirty} pages: {}", engine.name()),
                    median(m.whole_us.clone()),
                    "us",
                )
                .against("raw", limit_us)
                .note(format!(
                    "{}; {:.0} us of it in the last call",
                    io_note(m),
                    median(m.commit_us.clone())
                )),
            );
        }
    }
    Ok(table)
}

fn since(before: Io, device: Option<&Path>) -> Io {
    let now = io(device);
    Io {
        own_bytes: now.own_bytes - before.own_bytes,
        device_bytes: now.device_bytes - before.device_bytes,
        flushes: now.flushes - before.flushes,
    }
}
