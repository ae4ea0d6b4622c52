//! Stores on a cruel disk, a life for each seed, on several threads: `simulator store`. What a life is and what is
//! held against it lives in `stead_store::sim`; here is the counting and the printing. Read [`run`] first.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use stead_store::sim::torture::{Lived, life};

/// What the command line says.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Lives to live, one for each seed.
    #[arg(long, default_value_t = 1000)]
    pub seeds: u64,
    /// Live this seed's life alone.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Crashes in a life.
    #[arg(long, default_value_t = 8)]
    pub crashes: u64,
    /// The first seed; by chance if it is not given.
    #[arg(long)]
    pub from: Option<u64>,
    /// Print a JSON object instead of words.
    #[arg(long)]
    pub json: bool,
}

/// Lives, and prints what happened, or the seed that shows a broken promise.
#[must_use]
pub fn run(options: &Options) -> ExitCode {
    let started = Instant::now();
    let first = options.seed.or(options.from).unwrap_or_else(|| fastrand::u64(..) >> 16);
    let lives = if options.seed.is_some() { 1 } else { options.seeds };
    let lived = live(first, lives, options.crashes);
    let seconds = started.elapsed().as_secs_f64();
    match lived {
        Ok(lived) => {
            if options.json {
                println!("{}", report(&lived, first, lives, seconds));
            } else {
                println!("{lives} seeds from {first} on, {seconds:.1} s: nothing wrong\n{lived}");
            }
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

/// Lives the lives of `lives` seeds from `first` on, on all processors.
///
/// # Errors
/// The first seed found that shows a broken promise, and which.
pub fn live(first: u64, lives: u64, crashes: u64) -> Result<Lived, (u64, String)> {
    let style = "{bar:40} {pos}/{len} lives, {elapsed} passed, {eta} to go";
    let bar = ProgressBar::new(lives);
    bar.set_style(ProgressStyle::with_template(style).expect("the template is well formed"));
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let outcome: Mutex<Result<Lived, (u64, String)>> = Mutex::new(Ok(Lived::default()));
    let lock = || outcome.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut all = Lived::default();
                while !stop.load(Ordering::Relaxed) {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= lives {
                        break;
                    }
                    let seed = first.wrapping_add(i);
                    // The store's own assertions are promises as well.
                    let lived = std::panic::catch_unwind(|| life(seed, crashes))
                        .unwrap_or_else(|_| Err("an assertion of the store's own failed".into()));
                    match lived {
                        Ok(lived) => all.add(lived),
                        Err(what) => {
                            stop.store(true, Ordering::Relaxed);
                            *lock() = Err((seed, what));
                        }
                    }
                    bar.inc(1);
                }
                if let Ok(sum) = &mut *lock() {
                    sum.add(all);
                }
            });
        }
    });
    bar.finish_and_clear();
    outcome.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn report(lived: &Lived, first: u64, lives: u64, seconds: f64) -> serde_json::Value {
    let counts: serde_json::Map<_, _> = lived
        .counts()
        .into_iter()
        .map(|(what, count)| (what.replace(' ', "_"), json!(count)))
        .collect();
    json!({ "first_seed": first, "seeds": lives, "seconds": seconds, "counts": counts })
}
