//! `stead stat`: what a store holds. Read [`run`] first.

use std::collections::BTreeMap;
use std::path::Path;

use crate::Outcome;
use crate::units::{ago, bytes};

/// What is seen of a container only when it is open.
struct Seen {
    live_bytes: u64,
    root: String,
    clusters: Vec<(u16, Vec<u32>)>,
}

pub(crate) fn run(dir: &Path) -> Outcome {
    let mut store = crate::open(dir)?;
    let mut seen = BTreeMap::new();
    // Touching a damaged page ends the process, so a damaged store is not walked.
    let is_sound = store.site().verify_store(&mut |_| {})?.is_clean();
    let names = if is_sound { store.names() } else { Vec::new() };
    for names in names.chunks(crate::AT_A_TIME) {
        for name in names {
            let opened = store.site().existing(name)?;
            let live_bytes = store.site().verify_container(&opened)?.live_bytes;
            let root = opened.root_type().map_or("(no root)".to_owned(), |t| t.name);
            seen.insert(opened.id(), Seen { live_bytes, root, clusters: opened.clusters() });
        }
        drop(store);
        store = crate::open(dir)?;
    }
    let stat = store.stat();
    let s = &stat.store;
    crate::say!("store {}", stat.dir.display());
    match s.last_sequence {
        0 => crate::say!("  last stabilisation   none yet"),
        n => crate::say!("  last stabilisation   number {n}, {}", ago(s.last_time)),
    }
    crate::say!(
        "  log                  {}, of which {} live, {} of {} segments free",
        bytes(s.file_bytes),
        bytes(s.live_bytes),
        s.free_segments,
        s.segments
    );
    crate::say!("  containers           {}", stat.containers.len() - 1);
    for c in &stat.containers {
        crate::say!("{} {}", c.id, c.name);
        crate::say!("  address              {} ({} of addresses)", c.base, bytes(c.address_bytes));
        crate::say!("  stored               {}", bytes(c.stored_bytes));
        if let Some(Seen { live_bytes, root, clusters }) = seen.get(&c.id) {
            crate::say!("  live                 {}", bytes(*live_bytes));
            crate::say!("  root                 {root}");
            for (cluster, windows) in clusters {
                crate::say!("  cluster {cluster:<12} windows {windows:?}");
            }
        }
    }
    if !is_sound {
        crate::say!("this store is DAMAGED: `stead verify {}` says more", dir.display());
    }
    Ok(is_sound)
}
