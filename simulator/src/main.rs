//! The command: whole clusters, and stores on a cruel disk, simulated from one seed. Nothing is simulated in this
//! file; it reads the command line and prints. Read [`Command`] first.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use simulator::cluster::RoundsSeen;
use simulator::{counts, growth, protocol, store};

#[derive(Parser)]
#[command(about = "Simulates whole clusters, and stores on a cruel disk, from one seed")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The coherence protocol under latency, loss, doubling, partition, crash and restart.
    Protocol {
        /// Seeds to run.
        #[arg(long, default_value_t = 100)]
        seeds: u64,
        /// The first of them.
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// Run this seed alone.
        #[arg(long, conflicts_with = "first")]
        seed: Option<u64>,
        /// Print all that happens in it.
        #[arg(long, requires = "seed")]
        trace: bool,
    },
    /// A store under crashes, failing and lying disks: a life for each seed.
    Store(store::Options),
    /// Counts the messages of each kind of fault with each manager.
    Counts,
    /// Measures how faults grow dearer with the number of sites, and writes table and plot.
    Growth {
        /// Where `coherence-growth.md` and its plot go.
        #[arg(long, default_value = "docs")]
        to: PathBuf,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Protocol { seeds, first, seed, trace } => {
            let seeds = seed.map_or(first..first.saturating_add(seeds), |seed| seed..seed + 1);
            run_protocol(seeds, trace)
        }
        Command::Store(options) => store::run(&options),
        Command::Counts => {
            let head = ["manager", "fault", "expected", "counted", "after", "bodies"];
            let [manager, fault, expected, counted, after, bodies] = head;
            println!("{manager:8} {fault:44} {expected:8} {counted:8} {after:6} {bodies:6}");
            for row in counts::table() {
                println!("{row}");
            }
            ExitCode::SUCCESS
        }
        Command::Growth { to } => {
            let (page, plot) = growth::report(&growth::SITES);
            print!("{page}");
            let files = [("coherence-growth.md", page), ("coherence-growth.svg", plot)];
            for (name, text) in files {
                let path = to.join(name);
                if let Err(error) = std::fs::write(&path, text) {
                    eprintln!("cannot write {}: {error}", path.display());
                    return ExitCode::FAILURE;
                }
            }
            ExitCode::SUCCESS
        }
    }
}

fn run_protocol(seeds: std::ops::Range<u64>, trace: bool) -> ExitCode {
    let (mut count, mut steps, mut messages) = (0u64, 0u64, 0u64);
    let (mut crashes, mut departures) = (0u64, 0u64);
    let mut rounds = RoundsSeen::default();
    for seed in seeds {
        let run = if trace { protocol::trace } else { protocol::run };
        match run(seed) {
            Ok(report) => {
                count += 1;
                steps += report.steps;
                messages += report.messages;
                crashes += u64::from(report.crashes);
                departures += u64::from(report.departures);
                rounds += report.rounds;
            }
            Err(what) => {
                eprintln!("seed {seed}: {what}");
                eprintln!(
                    "again with: cargo run --release -p simulator -- protocol --seed {seed} --trace"
                );
                return ExitCode::FAILURE;
            }
        }
    }
    println!(
        "{count} seeds, {steps} steps, {messages} messages, {crashes} crashes, {departures} left: nothing wrong"
    );
    println!("{rounds}");
    ExitCode::SUCCESS
}
