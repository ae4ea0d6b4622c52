//! Stores on a cruel disk, lives for each seed, on all processors: `simulator store`. What a life is and what is held
//! against it lives in `stead_store::sim`; here is the counting and the printing. Read [`run`] first.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use stead_store::sim::{groups, snapshots, sweep, torture};

/// What the command line says.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Seeds: each has a life of a store alone, one mostly of cleaning, one with snapshots and one with groups of
    /// stabilisations.
    #[arg(long, default_value_t = 500)]
    pub seeds: u64,
    /// Live this seed's lives alone.
    #[arg(long)]
    pub seed: Option<u64>,
    /// The first seed; by chance if it is not given.
    #[arg(long)]
    pub from: Option<u64>,
    /// Crashes in a life.
    #[arg(long, default_value_t = 8)]
    pub crashes: u64,
    /// Stabilisations and the like in a life that is lived once for each call, with a fault there; only every
    /// hundredth seed has one, since it is some hundred lives. 0 for none.
    #[arg(long, default_value_t = 9)]
    pub sweep: u64,
    /// Print a JSON object instead of words.
    #[arg(long)]
    pub json: bool,
}

/// What happened in many lives, by what it is called.
pub type Counts = BTreeMap<&'static str, u64>;

/// Lives, and prints what happened, or the seed that shows a broken promise.
#[must_use]
pub fn run(options: &Options) -> ExitCode {
    let started = Instant::now();
    let first = options.seed.or(options.from).unwrap_or_else(|| fastrand::u64(..) >> 16);
    let seeds = if options.seed.is_some() { 1 } else { options.seeds };
    let lived = live(first, seeds, options);
    let seconds = started.elapsed().as_secs_f64();
    match lived {
        Ok(counts) if options.json => {
            let report = json!({ "first_seed": first, "seeds": seeds, "seconds": seconds, "counts": counts });
            println!("{report}");
            ExitCode::SUCCESS
        }
        Ok(counts) => {
            println!("{seeds} seeds from {first} on, {seconds:.1} s: nothing wrong");
            counts.iter().for_each(|(what, count)| println!("{count:>12} {what}"));
            ExitCode::SUCCESS
        }
        Err((seed, what)) => {
            let crashes = options.crashes;
            let again = format!(
                "cargo run --release -p simulator -- store --seed {seed} --crashes {crashes}"
            );
            if options.json {
                println!("{}", json!({ "failed": { "seed": seed, "what": what, "again": again } }));
            }
            eprintln!("seed {seed}: {what}\nagain with: {again}");
            ExitCode::FAILURE
        }
    }
}

/// Lives the lives of `seeds` seeds from `first` on, on all processors.
///
/// # Errors
/// A seed that shows a broken promise, and which.
pub fn live(first: u64, seeds: u64, options: &Options) -> Result<Counts, (u64, String)> {
    let style = "{bar:40} {pos}/{len} seeds, {elapsed} passed, {eta} to go";
    let bar = ProgressBar::new(seeds);
    bar.set_style(ProgressStyle::with_template(style).expect("the template is well formed"));
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let outcome: Mutex<Result<Counts, (u64, String)>> = Mutex::new(Ok(Counts::new()));
    let lock = || outcome.lock().unwrap_or_else(PoisonError::into_inner);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= seeds {
                        break;
                    }
                    let seed = first.wrapping_add(i);
                    let sweeps = options.sweep > 0 && i.is_multiple_of(100);
                    let steps = if sweeps { options.sweep } else { 0 };
                    // The store's own assertions are promises as well.
                    let lived = std::panic::catch_unwind(|| lives(seed, options.crashes, steps))
                        .unwrap_or_else(|_| Err("an assertion of the store's own failed".into()));
                    match (lived, &mut *lock()) {
                        (Ok(counts), Ok(sum)) => {
                            counts
                                .into_iter()
                                .for_each(|(what, n)| *sum.entry(what).or_default() += n);
                        }
                        (Ok(_), Err(_)) => {}
                        (Err(what), sum) => {
                            stop.store(true, Ordering::Relaxed);
                            *sum = Err((seed, what));
                        }
                    }
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// One seed's lives of each kind.
fn lives(seed: u64, crashes: u64, sweep_steps: u64) -> Result<Counts, String> {
    let mut counts = Counts::new();
    let mut add = |what, n: u64| *counts.entry(what).or_default() += n;
    torture::life(seed, crashes)?.counts().into_iter().for_each(|(what, n)| add(what, n));
    let cleaned = torture::cleaning_life(seed, crashes);
    let cleaned = cleaned.map_err(|what| format!("between the steps of cleaning: {what}"))?;
    cleaned.counts().into_iter().for_each(|(what, n)| add(what, n));
    let with = snapshots::life(seed, crashes).map_err(|what| format!("with snapshots: {what}"))?;
    add("crashes", with.crashes);
    add("stabilisations", with.committed);
    add("snapshots taken", with.taken);
    add("snapshots dropped", with.dropped);
    add("times gone back to a snapshot", with.gone_back);
    add("containers branched", with.branched);
    add("recoveries to the state under way", with.under_way);
    let with = groups::life(seed, crashes).map_err(|what| format!("in groups: {what}"))?;
    add("crashes", with.crashes);
    add("stabilisations", with.committed);
    add("groups of stabilisations", with.groups);
    add("recoveries to a part of a group under way", with.part);
    if sweep_steps > 0 {
        let swept = sweep::sweep(seed, sweep_steps).map_err(|what| format!("sweep: {what}"))?;
        add("faults, each at its call", swept.faults);
        add("crashes behind crashes, each at its call", swept.crashes_again);
        let swept = sweep::sweep_cleaning(seed, 5 * sweep_steps)
            .map_err(|what| format!("sweep of cleaning: {what}"))?;
        add("faults, each at its call", swept.faults);
    }
    Ok(counts)
}
