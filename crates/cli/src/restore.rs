//! `stead restore`: a store from backups (B11). Read [`Restore`] first.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read};
use std::path::PathBuf;

use serde::Serialize;

use crate::output::{Failure, Outcome, Report, byte_bar};
use crate::units::bytes;

/// Where to, and of what.
#[derive(clap::Args)]
pub(crate) struct Restore {
    /// Directory of the new store: missing or empty
    dir: PathBuf,
    /// A backup; first a whole one, then what was new since that, and so on; standard input if none is named
    #[arg(short, long, value_name = "FILE")]
    input: Vec<PathBuf>,
}

/// What was restored.
#[derive(Serialize)]
pub(crate) struct Made {
    #[serde(serialize_with = "crate::output::path")]
    dir: PathBuf,
    /// The snapshot that it was; null if it was none.
    snapshot: Option<String>,
    last_sequence: u64,
    images: u64,
    backup_bytes: u64,
}

impl Restore {
    pub(crate) fn run(self) -> Outcome<Made> {
        let Restore { dir, input } = self;
        if input.is_empty() && io::stdin().is_terminal() {
            let what =
                "a backup is read from standard input: name a file with -i, or give one by a pipe";
            return Err(Failure::usage(what));
        }
        let bar = byte_bar();
        let mut restore = stead::Restore::begin(&dir)?;
        let mut apply = |input: &mut dyn Read, before: u64| {
            restore.apply(input, &mut |read| bar.set_position(before + read))
        };
        if input.is_empty() {
            apply(&mut BufReader::new(io::stdin().lock()), 0)?;
        }
        let mut opened = Vec::new();
        for path in &input {
            let open = || {
                let file = File::open(path)?;
                let length = file.metadata()?.len();
                Ok::<_, io::Error>((file, length))
            };
            let file = open().map_err(|e| Failure::with_file(path, &e))?;
            opened.push((path, file));
        }
        bar.set_length(opened.iter().map(|(_, (_, length))| length).sum());
        let mut before = 0;
        for (path, (file, length)) in opened {
            apply(&mut BufReader::new(file), before)
                .map_err(|e| Failure::from(e).at(&path.display()))?;
            before += length;
        }
        bar.set_message("(reading it again)");
        let done = restore.finish(&mut |progress| {
            bar.set_length(progress.total * stead::PAGE_SIZE as u64);
            bar.set_position(progress.done * stead::PAGE_SIZE as u64);
        })?;
        bar.finish_and_clear();
        Ok(Made {
            dir,
            snapshot: (done.state.snapshot != 0).then_some(done.state.name),
            last_sequence: done.state.sequence,
            images: done.images,
            backup_bytes: done.bytes,
        })
    }
}

impl Report for Made {
    fn is_well(&self) -> bool {
        true
    }

    fn print(&self) {
        let what = match &self.snapshot {
            Some(name) => format!("snapshot {name:?}"),
            None => format!("the state after stabilisation {}", self.last_sequence),
        };
        crate::say!(
            "{} is {what}, restored of {} with {} pages",
            self.dir.display(),
            bytes(self.backup_bytes),
            self.images
        );
    }
}
