//! `stead salvage`: goes on, with consent, from the newest state that can be proven whole in a store that is too damaged to be
//! opened (B12). Read [`Salvage`] first.

use std::path::PathBuf;

use serde::Serialize;
use stead::SalvageError;

use crate::output::{Failure, Outcome, Report};
use crate::units::ago;

/// Which store, and whether to do it.
#[derive(clap::Args)]
pub(crate) struct Salvage {
    /// Directory of the store
    dir: PathBuf,
    /// Go on from the newest state that can be proven whole, and give up what was stabilised behind it
    #[arg(long)]
    give_up: bool,
}

/// What was found, and done.
#[derive(Serialize)]
pub(crate) struct Found {
    #[serde(serialize_with = "crate::output::path")]
    dir: PathBuf,
    /// What keeps the store from being opened.
    damages: Vec<Damage>,
    /// The state from which it can go on, or goes on.
    last_sequence: u64,
    last_unix_ns: u64,
    /// Up to which stabilisation they are known to have been acknowledged.
    acknowledged_sequence: u64,
    /// Stabilisations that are given up and of which something can be read still.
    given_up: Vec<GivenUp>,
    /// Null if nothing was done.
    #[serde(serialize_with = "crate::output::maybe_path")]
    damaged_log: Option<PathBuf>,
}

#[derive(Serialize)]
struct Damage {
    offset: u64,
    what: String,
}

#[derive(Serialize)]
struct GivenUp {
    sequence: u64,
    unix_ns: u64,
}

impl Salvage {
    pub(crate) fn run(self) -> Outcome<Found> {
        let Salvage { dir, give_up } = self;
        let found = stead::salvage(&dir, give_up)?;
        let damages = found.damages.into_iter();
        Ok(Found {
            dir,
            damages: damages.map(|d| Damage { offset: d.offset, what: d.what }).collect(),
            last_sequence: found.last_sequence,
            last_unix_ns: found.last_time,
            acknowledged_sequence: found.acknowledged,
            given_up: found
                .given_up
                .into_iter()
                .map(|(sequence, unix_ns)| GivenUp { sequence, unix_ns })
                .collect(),
            damaged_log: found.damaged_log,
        })
    }
}

impl From<SalvageError> for Failure {
    fn from(error: SalvageError) -> Failure {
        let failure = Failure::of_kind(stead::salvage_word(&error), &error);
        match error {
            SalvageError::Open(stead::StoreOpenError::Damaged { .. }) => {
                failure.advised("nothing can be proven whole: restore the store from a backup")
            }
            _ => failure,
        }
    }
}

impl Report for Found {
    fn is_well(&self) -> bool {
        self.damages.is_empty() || self.damaged_log.is_some()
    }

    fn print(&self) {
        let (dir, last) = (self.dir.display(), self.last_sequence);
        if self.damages.is_empty() {
            crate::say!(
                "{dir} opens as it is, at stabilisation {last}: there is nothing to give up"
            );
            return;
        }
        for Damage { offset, what } in &self.damages {
            crate::say!("DAMAGED: log, offset {offset:#x}: {what}");
        }
        match last {
            0 => crate::say!("the newest state that can be proven whole is that of an empty store"),
            _ => crate::say!(
                "the newest state that can be proven whole is that of stabilisation {last}, {}",
                ago(self.last_unix_ns)
            ),
        }
        let done = self.damaged_log.is_some();
        let verb = if done { "have been given up" } else { "would be given up" };
        let (first, acknowledged) = (last + 1, self.acknowledged_sequence);
        crate::say!("stabilisations {first} to {acknowledged}, which were acknowledged, {verb}");
        for GivenUp { sequence, unix_ns } in &self.given_up {
            let perhaps =
                if *sequence > acknowledged { ", perhaps never acknowledged" } else { "" };
            crate::say!("  {sequence}, {}{perhaps}", ago(*unix_ns));
        }
        match &self.damaged_log {
            Some(kept) => crate::say!(
                "the store goes on from there; the damaged log is kept as {}: remove it when nothing of it is wanted any more",
                kept.display()
            ),
            None => crate::say!(
                "nothing has been changed: with --give-up the store goes on from there; a backup may have more"
            ),
        }
    }
}
