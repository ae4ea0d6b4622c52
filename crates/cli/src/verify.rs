//! `stead verify`: every block accounted for (B9), every page checked (B12), every pointer followed
//! (A3). Read [`run`] first.

use std::path::Path;

use indicatif::ProgressBar;
use stead::{CheckReport, Store};

use crate::Outcome;
use crate::units::bytes;

pub(crate) fn run(dir: &Path, leaks: bool) -> Outcome {
    let mut store = crate::open(dir)?;
    let mut all_well = blocks(&store)?;
    // A container that has damaged pages is not walked: touching such a page ends the process.
    let damaged = !all_well;
    let system = store.site().verify_system()?;
    all_well &= pointers("(system)", &system, leaks);
    for names in store.names().chunks(crate::AT_A_TIME) {
        if damaged {
            crate::say!("containers {names:?}: pointers not followed, since the store is damaged");
            continue;
        }
        for name in names {
            match store.site().existing(name) {
                Ok(opened) => {
                    let report = store.site().verify_container(&opened)?;
                    all_well &= pointers(name, &report, leaks);
                }
                Err(error) => {
                    all_well = false;
                    crate::say!("{error}");
                }
            }
        }
        drop(store);
        store = crate::open(dir)?;
    }
    crate::say!("{}", if all_well { "all is well" } else { "NOT all is well" });
    Ok(all_well)
}

/// Checks all that is stored, with a bar on standard error. Whether it is sound.
fn blocks(store: &Store) -> Result<bool, Box<dyn std::error::Error>> {
    let bar = ProgressBar::new(0);
    let verified = store.site().verify_store(&mut |progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    })?;
    bar.finish_and_clear();
    let b = &verified.blocks;
    crate::say!(
        "blocks of 4 KiB: {} = {} images + {} map + {} free + {} soon free + {} headers and replaced",
        b.whole,
        b.images,
        b.map,
        b.free,
        b.pending,
        b.header + b.other
    );
    for damage in &verified.damages {
        crate::say!("DAMAGED: {damage}");
    }
    for lost in &verified.miscounted {
        crate::say!("MISCOUNTED: {lost}");
    }
    Ok(verified.is_clean())
}

/// Prints what a walk through a container found. Whether it is sound.
fn pointers(name: &str, report: &CheckReport, leaks: bool) -> bool {
    crate::say!(
        "container {name:?}: {} allocations, {} pointers, {} live, {} free, {} lost",
        report.live_allocations,
        report.pointers,
        bytes(report.live_bytes),
        bytes(report.free_bytes),
        bytes(report.lost_bytes)
    );
    if report.leaked_allocations > 0 {
        crate::say!(
            "  {} allocations ({}) that no pointer reaches",
            report.leaked_allocations,
            bytes(report.leaked_bytes)
        );
    }
    if leaks {
        for leak in &report.leaks {
            crate::say!("  {} at {}: {} bytes", leak.ty, leak.address, leak.bytes);
        }
    }
    if let Some(bad) = &report.first_bad {
        crate::say!("  BROKEN: {bad}");
    }
    report.is_clean()
}
