//! `stead stat`: what a store holds. Read [`run`] first.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::output::{Outcome, Report, shown};
use crate::quota::may_have;
use crate::units::{ago, bytes};

/// What there is.
#[derive(Serialize)]
pub(crate) struct Found {
    #[serde(serialize_with = "crate::output::path")]
    dir: PathBuf,
    /// The number of the last stabilisation; 0 if there was none.
    last_sequence: u64,
    last_unix_ns: u64,
    file_bytes: u64,
    live_bytes: u64,
    /// What only snapshots hold.
    pinned_bytes: u64,
    snapshots: usize,
    /// What the file may have; null if as much as the disk gives.
    quota_bytes: Option<u64>,
    /// What it may have in hundredths of what is live.
    space_percent: u32,
    segments: usize,
    free_segments: usize,
    written: Written,
    /// How the log is read and written.
    medium: String,
    /// How a process that opens it finds written pages.
    written_pages: String,
    is_sound: bool,
    containers: Vec<Container>,
}

/// Blocks of 4096 bytes written over the life of the store, by what for.
#[derive(Serialize)]
struct Written {
    /// The stabilisation behind which counting began; 0: everything is counted.
    since_sequence: u64,
    /// Pages that were made stable.
    pages: u64,
    record_blocks: u64,
    map_blocks: u64,
    cleaning_blocks: u64,
    tidying_blocks: u64,
    ahead_blocks: u64,
    /// All blocks for each page; null as long as there was none.
    amplification: Option<f64>,
}

impl From<stead::Written> for Written {
    fn from(written: stead::Written) -> Self {
        Written {
            since_sequence: written.since,
            pages: written.pages,
            record_blocks: written.record_blocks,
            map_blocks: written.map_blocks,
            cleaning_blocks: written.cleaning_blocks,
            tidying_blocks: written.tidying_blocks,
            ahead_blocks: written.ahead_blocks,
            amplification: written.amplification(),
        }
    }
}

impl Written {
    fn print(&self) {
        let Some(amplification) = self.amplification else { return };
        let since = match self.since_sequence {
            0 => String::new(),
            since => format!(" since stabilisation {since}"),
        };
        crate::say!(
            "  write amplification  {amplification:.2}: for each of {} pages made stable{since}, blocks written for",
            self.pages
        );
        let part = |blocks: u64| format!("{:.2}", blocks as f64 / self.pages as f64);
        crate::say!(
            "                       records {}, map {}, cleaning {}, tidying {}, zeros ahead {}",
            part(self.record_blocks),
            part(self.map_blocks),
            part(self.cleaning_blocks),
            part(self.tidying_blocks),
            part(self.ahead_blocks)
        );
    }
}

#[derive(Serialize)]
struct Container {
    id: u32,
    name: String,
    address: String,
    address_bytes: u64,
    stored_bytes: u64,
    /// What it may hold; null if nobody has said.
    quota_bytes: Option<u64>,
    /// Null where the container is damaged, and for the system container.
    live_bytes: Option<u64>,
    root: Option<String>,
    clusters: Vec<Cluster>,
}

#[derive(Serialize)]
struct Cluster {
    number: u16,
    windows: Vec<u32>,
}

pub(crate) fn run(dir: &Path) -> Outcome<Found> {
    let store = crate::open(dir)?;
    let mut is_sound = true;
    let stat = store.stat();
    let mut containers: Vec<Container> = stat
        .containers
        .iter()
        .map(|c| Container {
            id: c.id.0,
            name: c.name.clone(),
            address: c.base.to_string(),
            address_bytes: c.address_bytes,
            stored_bytes: c.stored_bytes,
            quota_bytes: c.quota_bytes,
            live_bytes: None,
            root: None,
            clusters: Vec::new(),
        })
        .collect();
    for name in &store.names() {
        let opened = match store.site().existing(name) {
            Err(error) if error.is_damage() => {
                is_sound = false;
                continue;
            }
            opened => opened?,
        };
        if let Some(seen) = containers.iter_mut().find(|c| c.id == opened.id().0) {
            // Touching a damaged page would end the process.
            if opened.check_all().is_ok() {
                seen.live_bytes = Some(store.site().verify_container(&opened)?.live_bytes);
            } else {
                is_sound = false;
            }
            seen.root = opened.root_type().map(|t| t.name);
            let clusters = opened.clusters().into_iter();
            seen.clusters = clusters.map(|(number, windows)| Cluster { number, windows }).collect();
        }
        // A branch of it is at the same addresses.
        store.site().close(opened);
    }
    let s = &stat.store;
    Ok(Found {
        dir: stat.dir,
        last_sequence: s.last_sequence,
        last_unix_ns: s.last_time,
        file_bytes: s.file_bytes,
        live_bytes: s.live_bytes,
        pinned_bytes: s.pinned_bytes,
        snapshots: s.snapshots,
        quota_bytes: s.quota_bytes,
        space_percent: s.space_percent,
        segments: s.segments,
        free_segments: s.free_segments,
        written: s.written.into(),
        medium: stat.medium,
        written_pages: stat.written_pages.to_string(),
        is_sound,
        containers,
    })
}

impl Report for Found {
    fn is_well(&self) -> bool {
        self.is_sound
    }

    fn print(&self) {
        crate::say!("store {}", self.dir.display());
        match self.last_sequence {
            0 => crate::say!("  last stabilisation   none yet"),
            n => crate::say!("  last stabilisation   number {n}, {}", ago(self.last_unix_ns)),
        }
        crate::say!(
            "  log                  {}, of which {} live, {} of {} segments free",
            bytes(self.file_bytes),
            bytes(self.live_bytes),
            self.free_segments,
            self.segments
        );
        crate::say!("  may have             {}", may_have(self.space_percent));
        if let Some(quota) = self.quota_bytes {
            crate::say!("  quota                {}", bytes(quota));
        }
        if self.snapshots > 0 {
            let pinned = bytes(self.pinned_bytes);
            crate::say!("  snapshots            {}, which alone hold {pinned}", self.snapshots);
        }
        self.written.print();
        crate::say!("  written              {}", self.medium);
        crate::say!("  written pages        found by {}", self.written_pages);
        crate::say!("  containers           {}", self.containers.len() - 1);
        for c in &self.containers {
            crate::say!("container {} {}", c.id, shown(&c.name));
            crate::say!(
                "  address              {} ({} of addresses)",
                c.address,
                bytes(c.address_bytes)
            );
            crate::say!("  stored               {}", bytes(c.stored_bytes));
            if let Some(quota) = c.quota_bytes {
                crate::say!("  quota                {}", bytes(quota));
            }
            if let Some(live_bytes) = c.live_bytes {
                crate::say!("  live                 {}", bytes(live_bytes));
            }
            if !c.clusters.is_empty() {
                crate::say!("  root                 {}", c.root.as_deref().unwrap_or("(no root)"));
            }
            for Cluster { number, windows } in &c.clusters {
                crate::say!("  cluster {number:<12} windows {windows:?}");
            }
        }
        if !self.is_sound {
            crate::say!("this store is DAMAGED: `stead verify {}` says more", self.dir.display());
        }
    }
}
