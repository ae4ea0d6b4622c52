//! `stead verify`: every block accounted for (B9), every page checked (B12), every pointer followed
//! (A3). Read [`run`] first.

use std::path::Path;

use indicatif::ProgressBar;
use stead::{CheckReport, Options, Store};

use crate::Outcome;
use crate::units::bytes;

pub(crate) fn run(dir: &Path, leaks: bool) -> Outcome {
    let options = Options::new().create(false).interval(None);
    let store = Store::open_with(dir, &options)?;
    let mut all_well = blocks(&store)?;
    // A container that has damaged pages is not walked: touching such a page ends the process.
    let damaged = !all_well;
    let system = store.site().verify_system()?;
    all_well &= pointers("(system)", &system, leaks);
    for name in store.names() {
        if damaged {
            println!("container {name:?}: pointers not followed, since the store is damaged");
            continue;
        }
        match store.site().existing(&name) {
            Ok(opened) => {
                let report = store.site().verify_container(&opened)?;
                all_well &= pointers(&name, &report, leaks);
            }
            Err(error) => {
                all_well = false;
                println!("{error}");
            }
        }
    }
    println!("{}", if all_well { "all is well" } else { "NOT all is well" });
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
    println!(
        "blocks of 4 KiB: {} = {} images + {} map + {} free + {} soon free + {} headers and replaced",
        b.whole,
        b.images,
        b.map,
        b.free,
        b.pending,
        b.header + b.other
    );
    for damage in &verified.damages {
        println!("DAMAGED: {damage}");
    }
    for lost in &verified.miscounted {
        println!("MISCOUNTED: {lost}");
    }
    Ok(verified.is_clean())
}

/// Prints what a walk through a container found. Whether it is sound.
fn pointers(name: &str, report: &CheckReport, leaks: bool) -> bool {
    println!(
        "container {name:?}: {} allocations, {} pointers, {} live, {} free, {} lost",
        report.live_allocations,
        report.pointers,
        bytes(report.live_bytes),
        bytes(report.free_bytes),
        bytes(report.lost_bytes)
    );
    if report.leaked_allocations > 0 {
        println!(
            "  {} allocations ({}) that no pointer reaches",
            report.leaked_allocations,
            bytes(report.leaked_bytes)
        );
    }
    if leaks {
        for leak in &report.leaks {
            println!("  {} at {}: {} bytes", leak.ty, leak.address, leak.bytes);
        }
    }
    if let Some(bad) = &report.first_bad {
        println!("  BROKEN: {bad}");
    }
    report.is_clean()
}
