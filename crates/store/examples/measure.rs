//! What a stabilisation costs the store alone, without memory and sections, beside one raw sequential direct
//! write of as many bytes and one flush; and what reading pages that lie scattered costs, one by one and
//! together. By plain system calls and by io_uring, in turns. Not a test.
//!
//! `cargo run --release -p stead-store --example measure [DIRECTORY]`; the directory lies on the disk to be
//! measured (default: `target`).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{Advice, OFlags, fadvise};
use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::{AlignedBuf, Calls, CreateOptions, FileMedium, Store};

type Error = Box<dyn std::error::Error>;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn micros(work: impl FnOnce() -> Result<(), Error>) -> Result<f64, Error> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64() * 1e6)
}

/// A file that was written before, and whole blocks to write to it.
struct Raw {
    file: File,
    bytes: AlignedBuf,
    at: u64,
    len: u64,
}

impl Raw {
    fn new(path: &Path, len: u64, most: usize) -> Result<Self, Error> {
        let flags = OFlags::DIRECT.bits() as i32;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).custom_flags(flags);
        let mut bytes = AlignedBuf::zeroed(most);
        bytes.as_mut_slice().fill(0x5A);
        let file = options.open(path)?;
        let mut at = 0;
        while at < len {
            file.write_all_at(&bytes.as_slice()[..most.min(1 << 20)], at)?;
            at += most.min(1 << 20) as u64;
        }
        file.sync_all()?;
        Ok(Raw { file, bytes, at: 0, len })
    }

    fn write_and_flush(&mut self, bytes: usize) -> Result<f64, Error> {
        if self.at + bytes as u64 > self.len {
            self.at = 0;
        }
        let (file, at) = (&self.file, self.at);
        let us = micros(|| {
            file.write_all_at(&self.bytes.as_slice()[..bytes], at)?;
            Ok(file.sync_data()?)
        })?;
        self.at += bytes as u64;
        Ok(us)
    }
}

fn id(page: u64) -> PageId {
    PageId { container: ContainerId(1), page: PageNo(page) }
}

fn open(dir: &Path, calls: Calls) -> Result<Store, Error> {
    let log = dir.join("log");
    if !log.exists() {
        drop(Store::create(dir, &CreateOptions::default())?);
    }
    Ok(Store::open_on(Arc::new(FileMedium::open_with(&log, true, calls)?))?.0)
}

fn upkeep(store: &Store) -> Result<(), Error> {
    while store.maintain()?.more {}
    Ok(())
}

fn stabilising(dir: &Path) -> Result<(), Error> {
    let mut raw = Raw::new(&dir.join("raw"), 256 << 20, 10_000 * PAGE_SIZE)?;
    let stores = [
        ("plain", open(&dir.join("plain"), Calls::Plain)?),
        ("ring", open(&dir.join("ring"), Calls::Ring)?),
    ];
    println!("dirty   calls  raw us  push us  commit us  both/raw  commit/raw  bytes  flushes");
    for (dirty, rounds) in [(1u64, 300), (100, 200), (10_000, 15)] {
        let mut raw_us = Vec::new();
        let mut times = [(); 2].map(|()| (Vec::new(), Vec::new(), Vec::new()));
        let before = stores.each_ref().map(|(_, store)| store.stat().counters);
        let mut batches = stores.each_ref().map(|(_, store)| store.batch());
        let mut chance = fastrand::Rng::with_seed(dirty);
        // Where images are copied from: as far apart as the pages of a program.
        let source: Vec<u8> = (0..64usize << 20).map(|i| (i / 7) as u8 | 1).collect();
        for _ in 0..rounds {
            raw_us.push(raw.write_and_flush(dirty as usize * PAGE_SIZE)?);
            for (i, (_, store)) in stores.iter().enumerate() {
                let batch = &mut batches[i];
                let push = micros(|| {
                    for page in 0..dirty {
                        let at = chance.usize(0..source.len() / PAGE_SIZE) * PAGE_SIZE;
                        let from = &source[at..at + PAGE_SIZE];
                        batch.push(id(page * 26 % 262_144), |into| into.copy_from_slice(from));
                    }
                    Ok(())
                })?;
                let commit = micros(|| Ok(store.commit(batch).map(drop)?))?;
                times[i].0.push(push);
                times[i].1.push(commit);
                times[i].2.push(push + commit);
                upkeep(store)?;
            }
        }
        let raw = median(raw_us);
        for ((push, commit, both), ((name, store), before)) in
            times.into_iter().zip(stores.iter().zip(before))
        {
            let after = store.stat().counters;
            let bytes = (after.record_bytes - before.record_bytes) as f64;
            let flushes = (after.record_flushes - before.record_flushes) as f64 / f64::from(rounds);
            let (push, commit, both) = (median(push), median(commit), median(both));
            println!(
                "{dirty:<7} {name:<5} {raw:>7.0} {push:>8.0} {commit:>10.0} {:>8.2}x {:>10.2}x {:>5.3}x {flushes:>6.1}",
                both / raw,
                commit / raw,
                bytes / f64::from(rounds) / (dirty as f64 * PAGE_SIZE as f64),
            );
        }
    }
    Ok(())
}

fn reading(dir: &Path) -> Result<(), Error> {
    let pages = 65_536u64;
    let dir = dir.join("scattered");
    let store = open(&dir, Calls::Plain)?;
    let mut chance = fastrand::Rng::with_seed(1);
    let mut order: Vec<u64> = (0..pages).collect();
    chance.shuffle(&mut order);
    let mut batch = store.batch();
    for some in order.chunks(4096) {
        for &page in some {
            batch.push(id(page), |into| into.fill(page as u8 | 1));
        }
        store.commit(&mut batch)?;
    }
    store.checkpoint()?;
    drop(store);
    let log = File::open(dir.join("log"))?;
    println!("\nscattered pages, not in the cache: us a page, reading so many at a time");
    println!("at a time   one by one   plain   ring");
    for together in [8usize, 32, 128] {
        let mut us = [Vec::new(), Vec::new(), Vec::new()];
        for round in 0..9u64 {
            for (kind, us) in us.iter_mut().enumerate() {
                let store = open(&dir, if kind == 2 { Calls::Ring } else { Calls::Plain })?;
                let first = (round * 3 + kind as u64) * 2048;
                let ids: Vec<PageId> = (first..first + 1024).map(id).collect();
                let mut into = vec![0; together * PAGE_SIZE];
                // The map is read before.
                for &id in ids.iter().step_by(128) {
                    store.read_page(id, into.first_chunk_mut().expect("a page at least"))?;
                }
                fadvise(&log, 0, None, Advice::DontNeed)?;
                let all = micros(|| {
                    for ids in ids.chunks(together) {
                        if kind == 0 {
                            for (&id, into) in ids.iter().zip(into.chunks_mut(PAGE_SIZE)) {
                                store.read_page(id, into.try_into()?)?;
                            }
                        } else {
                            for outcome in store.read_pages(ids, &mut into) {
                                outcome?;
                            }
                        }
                    }
                    Ok(())
                })?;
                us.push(all / ids.len() as f64);
            }
        }
        let [single, plain, ring] = us.map(median);
        println!("{together:<11} {single:>10.1} {plain:>7.1} {ring:>6.1}");
    }
    Ok(())
}

fn main() -> Result<(), Error> {
    let place = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("target"), PathBuf::from);
    std::fs::create_dir_all(&place)?;
    let dir = tempfile::tempdir_in(place)?;
    stabilising(dir.path())?;
    reading(dir.path())
}
