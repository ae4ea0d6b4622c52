//! `stead verify`: every block accounted for (B9), every page checked (B12), every pointer followed
//! (A3). Read [`run`] first.

use std::path::Path;

use serde::Serialize;
use stead::{CheckReport, FoundDamage, ReadStore};

use crate::output::{Failure, Outcome, Report, byte_bar};
use crate::units::bytes;

/// What was found.
#[derive(Serialize)]
pub(crate) struct Verdict {
    is_well: bool,
    /// The number of a stabilisation that was begun and not finished when the store was last open.
    unfinished: Option<u64>,
    blocks: Blocks,
    damages: Vec<String>,
    #[serde(skip)]
    found: Vec<FoundDamage>,
    miscounted: Vec<String>,
    containers: Vec<Container>,
    #[serde(skip)]
    shows_leaks: bool,
}

/// Where all blocks of 4096 bytes of the log are.
#[derive(Serialize)]
struct Blocks {
    whole: u64,
    images: u64,
    map: u64,
    free: u64,
    pending: u64,
    header: u64,
    other: u64,
}

#[derive(Serialize)]
struct Container {
    name: String,
    /// Why its pointers were not followed; null if they were.
    not_followed: Option<String>,
    #[serde(flatten)]
    walk: Option<Walk>,
}

#[derive(Serialize)]
struct Walk {
    allocations: u64,
    pointers: u64,
    live_bytes: u64,
    free_bytes: u64,
    lost_bytes: u64,
    leaked_allocations: u64,
    leaked_bytes: u64,
    leaks: Vec<Leak>,
    /// The first pointer or descriptor that is wrong.
    broken: Option<String>,
}

#[derive(Serialize)]
struct Leak {
    ty: String,
    address: String,
    bytes: u64,
}

pub(crate) fn run(dir: &Path, leaks: bool) -> Outcome<Verdict> {
    let store = crate::open(dir)?;
    let unfinished = store.site().report().unfinished;
    let mut verdict = blocks(&store)?;
    verdict.unfinished = unfinished;
    verdict.shows_leaks = leaks;
    let system = store.site().verify_system()?;
    verdict.walked("(system)", &system, leaks);
    for name in &store.names() {
        match store.site().existing(name) {
            Ok(opened) => {
                // Touching a damaged page would end the process.
                match opened.check_all() {
                    Ok(()) => {
                        let report = store.site().verify_container(&opened)?;
                        verdict.walked(name, &report, leaks);
                    }
                    Err(damaged) => {
                        verdict.is_well = false;
                        verdict.not_walked(name, damaged.to_string());
                    }
                }
                // A branch of it is at the same addresses.
                store.site().close(opened);
            }
            Err(error) => {
                verdict.is_well = false;
                verdict.not_walked(name, error.to_string());
            }
        }
    }
    // A snapshot has the addresses of the live state.
    drop(store);
    crate::scrub::name_as_then(dir, &mut verdict.found);
    verdict.damages = verdict.found.iter().map(ToString::to_string).collect();
    Ok(verdict)
}

/// Checks all that is stored, with a bar on standard error.
fn blocks(store: &ReadStore) -> Outcome<Verdict> {
    let bar = byte_bar();
    let verified = store
        .site()
        .verify_store(&mut |progress| {
            bar.set_length(progress.total * stead::PAGE_SIZE as u64);
            bar.set_position(progress.done * stead::PAGE_SIZE as u64);
        })
        .map_err(Failure::not_done)?;
    bar.finish_and_clear();
    let b = &verified.blocks;
    Ok(Verdict {
        is_well: verified.is_clean(),
        unfinished: None,
        blocks: Blocks {
            whole: b.whole,
            images: b.images,
            map: b.map,
            free: b.free,
            pending: b.pending,
            header: b.header,
            other: b.other,
        },
        damages: Vec::new(),
        found: store.site().named(verified.damages),
        miscounted: verified.miscounted,
        containers: Vec::new(),
        shows_leaks: false,
    })
}

impl Verdict {
    fn walked(&mut self, name: &str, report: &CheckReport, leaks: bool) {
        self.is_well &= report.is_clean();
        let shown = if leaks { &report.leaks[..] } else { &[] };
        let shown = shown.iter().map(|leak| Leak {
            ty: leak.ty.clone(),
            address: leak.address.to_string(),
            bytes: leak.bytes,
        });
        let walk = Walk {
            allocations: report.live_allocations,
            pointers: report.pointers,
            live_bytes: report.live_bytes,
            free_bytes: report.free_bytes,
            lost_bytes: report.lost_bytes,
            leaked_allocations: report.leaked_allocations,
            leaked_bytes: report.leaked_bytes,
            leaks: shown.collect(),
            broken: report.first_bad.as_ref().map(ToString::to_string),
        };
        self.containers.push(Container {
            name: name.to_owned(),
            not_followed: None,
            walk: Some(walk),
        });
    }

    fn not_walked(&mut self, name: &str, why: String) {
        let name = name.to_owned();
        self.containers.push(Container { name, not_followed: Some(why), walk: None });
    }
}

impl Report for Verdict {
    fn is_well(&self) -> bool {
        self.is_well
    }

    fn print(&self) {
        if let Some(number) = self.unfinished {
            crate::say!(
                "stabilisation {number} was begun and not finished when the store was last open: it is not in it"
            );
        }
        let b = &self.blocks;
        crate::say!(
            "blocks of 4 KiB: {} = {} images + {} map + {} free + {} soon free + {} headers and replaced",
            b.whole,
            b.images,
            b.map,
            b.free,
            b.pending,
            b.header + b.other
        );
        for damage in &self.damages {
            crate::say!("DAMAGED: {damage}");
        }
        for lost in &self.miscounted {
            crate::say!("MISCOUNTED: {lost}");
        }
        for Container { name, not_followed, walk } in &self.containers {
            if let Some(why) = not_followed {
                crate::say!("container {name:?}: pointers not followed: {why}");
            }
            let Some(w) = walk else { continue };
            crate::say!(
                "container {name:?}: {} allocations, {} pointers, {} live, {} free, {} lost",
                w.allocations,
                w.pointers,
                bytes(w.live_bytes),
                bytes(w.free_bytes),
                bytes(w.lost_bytes)
            );
            if w.leaked_allocations > 0 {
                crate::say!(
                    "  {} allocations ({}) that no pointer reaches",
                    w.leaked_allocations,
                    bytes(w.leaked_bytes)
                );
            }
            for leak in w.leaks.iter().filter(|_| self.shows_leaks) {
                crate::say!("  {} at {}: {} bytes", leak.ty, leak.address, leak.bytes);
            }
            if let Some(bad) = &w.broken {
                crate::say!("  BROKEN: {bad}");
            }
        }
        crate::say!("{}", if self.is_well { "all is well" } else { "NOT all is well" });
    }
}
