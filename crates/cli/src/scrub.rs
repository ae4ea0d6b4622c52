//! `stead scrub`: reads everything that a store refers to, from the disk itself, and names what is damaged (B12).
//! Read [`run`] first.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use stead::{FoundDamage, ScrubOptions};

use crate::output::{Outcome, Report, byte_bar};
use crate::units::bytes;

/// What was found.
#[derive(Serialize)]
pub(crate) struct Scrubbed {
    #[serde(serialize_with = "crate::output::path")]
    dir: PathBuf,
    read_bytes: u64,
    /// Images of pages among what was read.
    images: u64,
    time_ms: u128,
    damages: Vec<Damage>,
}

#[derive(Serialize)]
struct Damage {
    /// Null where no page is lost: the store keeps such a part twice, or writes it anew.
    container: Option<String>,
    page: Option<u64>,
    /// From that page on; more than one where a part of a map is damaged.
    page_count: Option<u64>,
    address: Option<String>,
    /// What the page is used for.
    holds: Option<&'static str>,
    /// The type of the objects or elements on it.
    ty: Option<String>,
    /// Whether the live state has it.
    live: Option<bool>,
    /// The snapshots that have it.
    snapshots: Option<Vec<String>>,
    offset: u64,
    what: String,
    #[serde(skip)]
    words: String,
}

impl From<FoundDamage> for Damage {
    fn from(found: FoundDamage) -> Damage {
        let words = found.to_string();
        let lost = found.lost;
        let holds = lost.as_ref().and_then(|lost| lost.holds.clone());
        Damage {
            container: lost.as_ref().map(|lost| lost.container.clone()),
            page: lost.as_ref().map(|lost| lost.page.0),
            page_count: lost.as_ref().map(|lost| lost.page_count),
            live: lost.as_ref().map(|lost| lost.is_live),
            snapshots: lost.as_ref().map(|lost| lost.snapshots.clone()),
            address: lost.and_then(|lost| lost.address).map(|address| address.to_string()),
            holds: holds.as_ref().map(|holds| holds.kind.word()),
            ty: holds.and_then(|holds| holds.ty),
            offset: found.offset,
            what: found.what,
            words,
        }
    }
}

pub(crate) fn run(dir: &Path, rate: Option<u64>) -> Outcome<Scrubbed> {
    let store = crate::open(dir)?;
    let began = Instant::now();
    let bar = byte_bar();
    let options = ScrubOptions::new().bytes_per_second(rate.unwrap_or(0));
    let found = store.scrub(&options, |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
        if progress.damages > 0 {
            bar.set_message(format!("{} DAMAGED", progress.damages));
        }
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    let time_ms = began.elapsed().as_millis();
    let mut damages = found.damages;
    // A snapshot has the addresses of the live state.
    drop(store);
    name_as_then(dir, &mut damages);
    Ok(Scrubbed {
        dir: dir.to_owned(),
        read_bytes: found.read_bytes,
        images: found.images,
        time_ms,
        damages: damages.into_iter().map(Damage::from).collect(),
    })
}

/// Names containers that have been removed since as a snapshot names them that has what is damaged.
pub(crate) fn name_as_then(dir: &Path, damages: &mut [FoundDamage]) {
    let mut names: HashMap<String, HashMap<u32, String>> = HashMap::new();
    for lost in damages.iter_mut().filter_map(|damage| damage.lost.as_mut()) {
        let Some(snapshot) = lost.snapshots.first().filter(|_| !lost.is_live) else { continue };
        let names = names.entry(snapshot.clone()).or_insert_with(|| names_in(dir, snapshot));
        if let Some(name) = names.get(&lost.number) {
            lost.container = name.clone();
        }
    }
}

/// The containers of a snapshot by their numbers; none where its directory of containers is what is damaged.
fn names_in(dir: &Path, snapshot: &str) -> HashMap<u32, String> {
    let Ok(store) = stead::open_snapshot(dir, snapshot) else { return HashMap::new() };
    store.stat().containers.into_iter().map(|c| (c.id.0, c.name)).collect()
}

impl Report for Scrubbed {
    fn is_well(&self) -> bool {
        self.damages.is_empty()
    }

    fn print(&self) {
        for damage in &self.damages {
            crate::say!("DAMAGED: {}", damage.words);
        }
        let (read, seconds) = (bytes(self.read_bytes), self.time_ms as f64 / 1000.0);
        crate::say!("{read} read in {seconds:.1} s, {} pages among them", self.images);
        if self.damages.is_empty() {
            crate::say!("nothing is damaged");
        }
        let count = |wanted: fn(&Damage) -> bool| self.damages.iter().filter(|d| wanted(d)).count();
        let live = count(|damage| damage.live == Some(true));
        let snapshots = count(|damage| damage.live == Some(false));
        let others = self.damages.len() - live - snapshots;
        let parts =
            |n: usize| if n == 1 { "1 part is".to_owned() } else { format!("{n} parts are") };
        if live > 0 {
            crate::say!(
                "{} damaged whose pages are lost: restore the store from a backup, or store the pages anew",
                parts(live)
            );
        }
        if snapshots > 0 {
            crate::say!(
                "{} damaged that only snapshots have: drop those, or restore the store from a backup",
                parts(snapshots)
            );
        }
        if others > 0 {
            crate::say!("{} damaged with which nothing is lost", parts(others));
        }
    }
}
