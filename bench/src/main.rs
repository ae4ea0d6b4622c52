//! Measures Stead side by side, in one run, with what it is to be held against: the ordinary heap and the
//! raw disk. Ratios count; absolute times drift with the machine. Not a test: nothing here asserts a time.
//!
//! `cargo run --release -p stead-bench` prints a table; `--json FILE` writes it too. Read [`Row`] first.
#![deny(unsafe_code)]

mod aging;
mod disk;
mod maps;
mod open;
mod pauses;
#[cfg(feature = "peers")]
mod peers;
mod sections;
mod stabilise;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde::Serialize;

/// Measure Stead side by side with the ordinary heap and the raw disk.
#[derive(Parser)]
struct Args {
    /// What to measure (default: all)
    #[arg(value_enum)]
    what: Vec<What>,
    /// Where stores are made; on the disk to be measured
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Write the rows to a file as JSON too
    #[arg(long)]
    json: Option<PathBuf>,
    /// Pairs in the map
    #[arg(long, default_value_t = 5_000_000)]
    pairs: u64,
    /// Memory that is resident while stabilising, in MiB
    #[arg(long, default_value_t = 1024)]
    resident_mib: u64,
    /// Dirty pages of one stabilisation (default: 1, 100 and 10,000)
    #[arg(long)]
    dirty: Vec<usize>,
    /// Rounds for each number of dirty pages (default: 200, and 15 of 10,000)
    #[arg(long)]
    rounds: Option<u32>,
    /// Live data of the store that ages, in MiB
    #[arg(long, default_value_t = 1024)]
    live_mib: u64,
    /// How many times its live data is written at random
    #[arg(long, default_value_t = 20)]
    overwrites: u64,
    /// Pages of one stabilisation while it ages
    #[arg(long, default_value_t = 100)]
    commit_pages: u64,
    /// How quickly it is written while it ages, in MiB a second; 0: as quickly as possible
    #[arg(long, default_value_t = 64)]
    mib_per_second: u64,
    /// Which pages are written while it ages (default: both)
    #[arg(long, value_enum)]
    pattern: Vec<aging::Pattern>,
    /// Be the process that is killed
    #[arg(long, hide = true)]
    fill: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Sections,
    Maps,
    Stabilise,
    Open,
    /// A store written at random for as long as an hour; minutes, only by name
    Aging,
    /// How long threads wait for a stabilisation, and what it slows them down; only by name
    Pauses,
    /// Databases beside it; only by name, and with `--features peers`
    Peers,
}

/// One line of the table: a median of several rounds, and what it is held against.
#[derive(Serialize)]
struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    /// The limit or peer of the same run.
    against: f64,
    against_what: String,
    ratio: f64,
    note: String,
}

impl Row {
    fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Row {
        let (against, ratio) = (f64::NAN, f64::NAN);
        Row {
            what: what.into(),
            value,
            unit,
            against,
            against_what: String::new(),
            ratio,
            note: String::new(),
        }
    }

    fn against(mut self, what: impl Into<String>, value: f64) -> Row {
        self.against = value;
        self.against_what = what.into();
        self.ratio = self.value / value;
        self
    }

    fn note(mut self, note: impl Into<String>) -> Row {
        self.note = note.into();
        self
    }

    fn print(&self) {
        let against = if self.against.is_nan() {
            String::new()
        } else {
            format!("{} {:.2} {}", self.against_what, self.against, self.unit)
        };
        let ratio = if self.ratio.is_nan() { String::new() } else { format!("{:.2}x", self.ratio) };
        println!(
            "{:<46} {:>12.2} {:<3} | {:<38} | {:>7} | {}",
            self.what, self.value, self.unit, against, ratio, self.note
        );
    }
}

/// The middle of several measurements.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    if let Some(dir) = &args.fill {
        return open::fill(dir, args.resident_mib);
    }
    let all = [What::Sections, What::Maps, What::Stabilise, What::Open];
    let what = if args.what.is_empty() { all.to_vec() } else { args.what.clone() };
    std::fs::create_dir_all(&args.dir)?;
    let temp = tempfile::tempdir_in(&args.dir)?;
    let mut rows = Vec::new();
    for what in what {
        let new = match what {
            What::Sections => sections::measure(temp.path())?,
            What::Maps => maps::measure(temp.path(), args.pairs)?,
            What::Stabilise => {
                let dirty =
                    if args.dirty.is_empty() { vec![1, 100, 10_000] } else { args.dirty.clone() };
                stabilise::measure(temp.path(), args.resident_mib, &dirty, args.rounds)?
            }
            What::Pauses => pauses::measure(temp.path(), args.resident_mib)?,
            #[cfg(feature = "peers")]
            What::Peers => peers::measure(temp.path(), args.resident_mib)?,
            #[cfg(not(feature = "peers"))]
            What::Peers => {
                let again = "cargo run --release -p stead-bench --features peers -- peers";
                return Err(format!("built without the databases: {again}").into());
            }
            What::Open => open::measure(temp.path(), args.resident_mib)?,
            What::Aging => {
                let (live_mib, overwrites) = (args.live_mib, args.overwrites);
                let (commit_pages, mib_per_second) = (args.commit_pages, args.mib_per_second);
                let size = aging::Size { live_mib, overwrites, commit_pages, mib_per_second };
                let both = [aging::Pattern::Uniform, aging::Pattern::Zipf];
                let patterns = if args.pattern.is_empty() { &both } else { &args.pattern[..] };
                aging::measure(temp.path(), size, patterns)?
            }
        };
        new.iter().for_each(Row::print);
        rows.extend(new);
    }
    if let Some(file) = args.json {
        std::fs::write(file, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(())
}
