//! How fast the index in persistent memory is beside the same one in ordinary memory, in one run:
//! both are built of the same files by turns. Then how long `codesearch` takes from its start to
//! its first line. Figures go to standard output; nothing is asserted. Read [`main`] first.

#![forbid(unsafe_code)]

use std::env;
use std::error::Error;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use codesearch::index::Tree;
use codesearch::ordinary;
use codesearch::pipeline;
use codesearch::walk::{Entry, walk};

/// Compare the persistent index with one in ordinary memory.
#[derive(Debug, Parser)]
struct Args {
    /// How often each index is built
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// What the runs of codesearch look for
    #[arg(long, default_value = "unsafe fn [a-z_]+")]
    pattern: String,
    /// Where stores are made for a while [default: the directory for temporary files]
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// What to index
    path: PathBuf,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let root = args.path.canonicalize()?;
    let scratch = args.scratch.unwrap_or_else(env::temp_dir);
    let scratch = scratch.join(format!("codesearch-bench-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    let result = measure(&root, &scratch, args.rounds.max(1), &args.pattern);
    fs::remove_dir_all(&scratch)?;
    result
}

fn measure(root: &Path, scratch: &Path, rounds: u32, pattern: &str) -> Result<(), Box<dyn Error>> {
    let entries = walk(root, root, None, |_| {});
    // The first reading brings the files into the system's cache, for both alike.
    let mut text_bytes = 0;
    pipeline::run(root, &entries, |batch| {
        text_bytes += batch.text_bytes();
        Ok::<(), stead::Error>(())
    })?;
    let mib = text_bytes as f64 / f64::from(1 << 20);
    println!("{}: {} files, {mib:.1} MiB of text; {rounds} rounds", root.display(), entries.len());

    let mut ordinary = Vec::new();
    let mut persistent = Vec::new();
    let mut stabilising = Vec::new();
    for round in 0..rounds {
        ordinary.push(in_ordinary_memory(root, &entries));
        let (built, stable) = in_a_container(root, &entries, &scratch.join(round.to_string()))?;
        persistent.push(built);
        stabilising.push(stable);
    }
    let [ordinary, persistent] = [ordinary, persistent].map(|runs: Vec<Build>| Build {
        total: median(runs.iter().map(|run| run.total).collect()),
        adding: median(runs.iter().map(|run| run.adding).collect()),
    });
    println!("{:<30}{:>10}{:>12}{:>18}", "index, median", "ms", "MiB/s", "of which adding");
    for (name, build) in [("ordinary memory", &ordinary), ("container", &persistent)] {
        println!(
            "{name:<30}{:>10.0}{:>12.0}{:>18.0}",
            ms(build.total),
            mib / build.total.as_secs_f64(),
            ms(build.adding)
        );
    }
    println!("{:<30}{:>10.0}", "stabilise() after it", ms(median(stabilising)));
    println!(
        "{:<30}{:>10.2}{:>12}{:>18.2}",
        "container / ordinary",
        persistent.total.as_secs_f64() / ordinary.total.as_secs_f64(),
        "",
        persistent.adding.as_secs_f64() / ordinary.adding.as_secs_f64()
    );
    first_lines(root, &scratch.join("search"), pattern)
}

/// Times of one build.
#[derive(Clone, Copy, Debug)]
struct Build {
    /// From the first file to the last.
    total: Duration,
    /// Spent in adding batches to the index; the rest is waiting for files to be read.
    adding: Duration,
}

fn in_ordinary_memory(root: &Path, entries: &[Entry]) -> Build {
    let started = Instant::now();
    let mut adding = Duration::ZERO;
    let mut index = ordinary::Index::default();
    let Ok(()) = pipeline::run(root, entries, |batch| {
        let from = Instant::now();
        index.add(&batch);
        adding += from.elapsed();
        Ok::<(), std::convert::Infallible>(())
    });
    Build { total: started.elapsed(), adding }
}

/// Also returns how long stabilising took thereafter.
fn in_a_container(
    root: &Path,
    entries: &[Entry],
    dir: &Path,
) -> Result<(Build, Duration), stead::Error> {
    let store = stead::open(dir)?;
    let tree = Tree::open(&store, root)?;
    let started = Instant::now();
    let mut adding = Duration::ZERO;
    tree.begin(&[])?;
    pipeline::run(root, entries, |batch| {
        let from = Instant::now();
        let added = tree.add(&batch);
        adding += from.elapsed();
        added
    })?;
    tree.finish()?;
    let total = started.elapsed();
    let from = Instant::now();
    store.stabilise()?;
    Ok((Build { total, adding }, from.elapsed()))
}

/// Runs the program itself, which has to lie beside this one.
fn first_lines(root: &Path, store: &Path, pattern: &str) -> Result<(), Box<dyn Error>> {
    let program = env::current_exe()?.with_file_name("codesearch");
    if !program.exists() {
        println!("NOT RUN: {} is not built, so its first line was not timed", program.display());
        return Ok(());
    }
    let mut times = Vec::new();
    for run in 0..21 {
        let started = Instant::now();
        let mut child = Command::new(&program)
            .arg("--store")
            .args([store.as_os_str(), "--".as_ref(), pattern.as_ref(), root.as_os_str()])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut output = child.stdout.take().ok_or("no pipe")?;
        let read = output.read(&mut [0])?;
        let first = started.elapsed();
        output.read_to_end(&mut Vec::new())?;
        child.wait()?;
        if read == 0 {
            println!("NOT RUN: no line matches {pattern:?}, so none was timed");
            return Ok(());
        }
        // The first run builds the index.
        if run > 0 {
            times.push(first);
        }
    }
    let slowest = times.iter().max().copied().unwrap_or_default();
    println!(
        "first line of {pattern:?}: median {:.1} ms, slowest of {} runs {:.1} ms",
        ms(median(times.clone())),
        times.len(),
        ms(slowest)
    );
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
