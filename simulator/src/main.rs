//! The command: whole clusters simulated from one seed. Nothing is simulated in this file; it reads
//! the command line. Read [`Command`] first.

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Simulates whole clusters from one seed")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The coherence protocol under latency, loss, partition, crash and restart.
    Protocol {
        /// Seeds to run.
        #[arg(long, default_value_t = 100)]
        seeds: u64,
        /// Run this seed alone.
        #[arg(long)]
        seed: Option<u64>,
    },
}

fn main() {
    match Arguments::parse().command {
        Command::Protocol { seeds, seed } => println!("{} seeds", seed.map_or(seeds, |_| 1)),
    }
}
