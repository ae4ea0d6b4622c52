//! The `stead` command: shows that it holds (`demo`), looks at a store (`stat`, `verify`), and says what
//! this system allows (`doctor`). No persistence happens here. Read [`Command`] first.
#![forbid(unsafe_code)]

/// Prints a line, and ends the process quietly when nobody reads any more.
#[macro_export]
macro_rules! say {
    ($($line:tt)*) => { $crate::print_line(format_args!($($line)*)) };
}

mod demo;
mod doctor;
mod stat;
mod units;
mod verify;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stead::{OpenError, Options, Store};

/// Memory that stays: plain pointers into persistent containers.
///
/// Exit codes: 0 all is well; 1 something is wrong with the store or the system (damage, a promise
/// broken, a need missing); 2 the command could not be carried out.
#[derive(Parser)]
#[command(name = "stead", version, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Threads move money between accounts; their process is killed again and again, and the sum checked
    ///
    /// Starts a process whose threads move money between accounts in a container and call stabilise() now and
    /// then, kills it with SIGKILL at a random moment, opens the store again, and checks that no
    /// money was lost, that every section happened whole or not at all, and that nothing acknowledged by
    /// stabilise() is gone.
    Demo(demo::Demo),
    /// Containers, addresses, live and stored bytes, the last stabilisation
    Stat {
        /// Directory of the store
        dir: PathBuf,
    },
    /// Check every block, every page and every pointer of a store
    ///
    /// Reads the whole store: checksums of all that is stored, and an account of every block. Then
    /// opens each container and follows each pointer.
    Verify {
        /// Directory of the store
        dir: PathBuf,
        /// Also list objects that no pointer reaches
        #[arg(long)]
        leaks: bool,
    },
    /// What this kernel, user and container allow, and what to do about what is missing
    Doctor {
        /// A store to look at too: does it open, does its file system take direct writes
        dir: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Demo(demo) => demo.run(),
        Command::Stat { dir } => stat::run(&dir),
        Command::Verify { dir, leaks } => verify::run(&dir, leaks),
        Command::Doctor { dir } => doctor::run(dir.as_deref()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("stead: {error}");
            ExitCode::from(2)
        }
    }
}

fn print_line(line: std::fmt::Arguments<'_>) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        // As a program that the signal of a closed pipe ends.
        std::process::exit(141);
    }
}

/// Containers that are looked at with the store opened once. A process has addresses for some hundred.
const AT_A_TIME: usize = 64;

/// Opens a store to look at it: it must be there, and stabilises nothing by itself.
fn open(dir: &Path) -> Result<Store, OpenError> {
    Store::open_with(dir, &Options::new().create(false).interval(None))
}

/// Whether all was well, or why the command could not be carried out.
type Outcome = Result<bool, Box<dyn std::error::Error>>;
