//! `stead stat`: what a store holds. Read [`run`] first.

use std::path::Path;

use stead::{Options, Store};

use crate::Outcome;
use crate::units::{ago, bytes};

pub(crate) fn run(dir: &Path) -> Outcome {
    let options = Options::new().create(false).interval(None);
    let store = Store::open_with(dir, &options)?;
    let mut live = Vec::new();
    for name in store.names() {
        let opened = store.site().existing(&name)?;
        let report = store.site().verify_container(&opened)?;
        let root = opened.root_type().map_or("(no root)".to_owned(), |t| t.name);
        live.push((opened.id(), report.live_bytes, root));
    }
    let stat = store.stat();
    let s = &stat.store;
    println!("store {}", stat.dir.display());
    match s.last_sequence {
        0 => println!("  last stabilisation   none yet"),
        n => println!("  last stabilisation   number {n}, {}", ago(s.last_time)),
    }
    println!(
        "  log                  {}, of which {} live, {} of {} segments free",
        bytes(s.file_bytes),
        bytes(s.live_bytes),
        s.free_segments,
        s.segments
    );
    println!("  containers           {}", stat.containers.len() - 1);
    for c in &stat.containers {
        println!("{} {}", c.id, c.name);
        println!("  address              {} ({} of addresses)", c.base, bytes(c.address_bytes));
        println!("  stored               {}", bytes(c.stored_bytes));
        if let Some((_, live_bytes, root)) = live.iter().find(|(id, ..)| *id == c.id) {
            println!("  live                 {}", bytes(*live_bytes));
            println!("  root                 {root}");
        }
        for (cluster, windows) in &c.clusters {
            println!("  cluster {cluster:<12} windows {windows:?}");
        }
    }
    Ok(true)
}
