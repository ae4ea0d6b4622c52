//! What a stabilisation costs beyond the raw disk, with much memory resident and few, some or many pages
//! dirty. The search for dirty pages is shown apart.

use std::path::Path;
use std::time::Instant;

use stead::{Options, Persist, Result, Store, Vec, WrittenPages};

use crate::disk::RawDisk;
use crate::{Row, median};

const PAGE: usize = 4096;

/// An array whose elements are pages.
#[derive(Persist)]
#[repr(C)]
pub(crate) struct Pages<'s> {
    pub(crate) pages: Vec<'s, [u64; PAGE / 8]>,
}

/// A container with so many pages, all different, all stable.
pub(crate) fn filled(store: &Store, mib: u64) -> Result<stead::Container<Pages<'static>>> {
    let c = store.container::<Pages<'_>>("pages", |tx| Ok(Pages { pages: Vec::new(tx) }))?;
    let page_count = mib * 256;
    c.exclusive(|root, tx| -> Result<()> { Ok(root.pages.reserve(tx, page_count as usize)?) })?;
    let mut next = 0;
    while next < page_count {
        c.exclusive(|root, tx| -> Result<()> {
            for i in next..(next + 4096).min(page_count) {
                root.pages.push(tx, [i.wrapping_mul(0x9e37_79b9) | 1; PAGE / 8])?;
            }
            Ok(())
        })?;
        next += 4096;
    }
    store.stabilise()?;
    Ok(c)
}

/// Stabilises small changes until the store has found out which way of finding written pages is the cheaper one
/// for them.
pub(crate) fn settled(store: &Store, c: &stead::Container<Pages<'static>>) -> Result<()> {
    for round in 0..3000 {
        c.exclusive(|root, tx| -> Result<()> {
            let at = round * 7919 % root.pages.len();
            root.pages.get_mut(tx, at).expect("below the length")[7] += 1;
            Ok(())
        })?;
        store.stabilise()?;
        if round % 100 == 99 && !matches!(store.stat().written_pages, WrittenPages::Scan) {
            break;
        }
    }
    println!("written pages are found by {}", store.stat().written_pages);
    Ok(())
}

pub(crate) fn measure(
    dir: &Path,
    resident_mib: u64,
    dirty: &[usize],
    rounds: Option<u32>,
) -> Result<std::vec::Vec<Row>, Box<dyn std::error::Error>> {
    let store = Store::open_with(dir.join("stabilise"), &Options::new().interval(None))?;
    let c = filled(&store, resident_mib)?;
    settled(&store, &c)?;
    let mut raw = RawDisk::new(&dir.join("raw"), 256 << 20, 42 << 20)?;
    let mut rows = std::vec::Vec::new();
    let mut chance = fastrand::Rng::with_seed(3);
    for &dirty in dirty {
        let rounds = rounds.unwrap_or(if dirty < 1000 { 200 } else { 15 });
        let mut times = (std::vec::Vec::new(), std::vec::Vec::new(), std::vec::Vec::new());
        let (mut rest, mut pauses) = (std::vec::Vec::new(), std::vec::Vec::new());
        let mut changes = std::vec::Vec::new();
        let before = store.counters();
        for _ in 0..rounds {
            times.0.push(raw.write_and_flush(dirty * PAGE)?);
            let count = c.read(|root, _| root.pages.len())?;
            let mut picked = std::collections::BTreeSet::new();
            while picked.len() < dirty {
                picked.insert(chance.usize(..count));
            }
            let began = Instant::now();
            c.exclusive(|root, tx| -> Result<()> {
                for &i in &picked {
                    let page = root.pages.get_mut(tx, i).expect("picked below the length");
                    page[7] += 1;
                }
                Ok(())
            })?;
            changes.push(began.elapsed().as_secs_f64() * 1e6);
            let began = Instant::now();
            store.stabilise()?;
            let us = began.elapsed().as_secs_f64() * 1e6;
            let counters = store.counters();
            times.1.push(us);
            times.2.push(counters.scan_us_last as f64);
            rest.push(us - counters.scan_us_last as f64);
            pauses.push(counters.pause_us_last as f64);
        }
        let after = store.counters();
        let pages = after.pages_stabilised - before.pages_stabilised;
        let bytes = after.bytes_written - before.bytes_written;
        let flushes = (after.flushes - before.flushes) as f64 / f64::from(rounds);
        let limit = median(times.0);
        let name = format!("stabilise {dirty} of {} pages", resident_mib * 256);
        let note = format!(
            "{:.3}x the dirty bytes, {:.1} pages, {flushes:.1} flushes, gates closed {:.0} us",
            bytes as f64 / (f64::from(rounds) * (dirty * PAGE) as f64),
            pages as f64 / f64::from(rounds),
            median(pauses)
        );
        rows.push(Row::new(format!("{name}: all"), median(times.1), "us").against("raw", limit));
        rows.push(Row::new(format!("{name}: the change before"), median(changes), "us"));
        rows.push(Row::new(format!("{name}: search"), median(times.2), "us"));
        rows.push(
            Row::new(format!("{name}: the rest"), median(rest), "us")
                .against("raw write + flush", limit)
                .note(note),
        );
    }
    Ok(rows)
}
