//! `stead scrub`: reads everything that a store refers to, from the disk itself, and names what is damaged (B12).
//! Read [`run`] first.

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
    Ok(Scrubbed {
        dir: dir.to_owned(),
        read_bytes: found.read_bytes,
        images: found.images,
        time_ms: began.elapsed().as_millis(),
        damages: found.damages.into_iter().map(Damage::from).collect(),
    })
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
        match self.damages.len() {
            0 => crate::say!("nothing is damaged"),
            1 => crate::say!("1 part is damaged; what it held is lost unless there is a backup"),
            n => crate::say!(
                "{n} parts are damaged; what they held is lost unless there is a backup"
            ),
        }
    }
}
