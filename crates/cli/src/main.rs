//! The `stead` command: shows that it holds (`demo`), looks at a store (`ls`, `stat`, `verify`), copies it (`backup`,
//! `restore`), and says what this system allows (`doctor`). No persistence happens here. Read [`Command`] first, then `output`,
//! which says how commands answer.
#![forbid(unsafe_code)]

/// Prints a line, and ends the process quietly when nobody reads any more.
#[macro_export]
macro_rules! say {
    ($($line:tt)*) => { $crate::output::print_line(format_args!($($line)*)) };
}

mod backup;
mod demo;
mod doctor;
mod ls;
mod output;
mod quota;
mod restore;
mod salvage;
mod scrub;
mod snapshot;
mod stat;
mod units;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stead::{OpenError, ReadStore};

use crate::output::{EXIT_CODES, answer};

/// Memory that stays: plain pointers into persistent containers.
#[derive(Parser)]
#[command(name = "stead", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Args {
    /// Answer with one JSON object on standard output, whose keys stay the same
    #[arg(long, global = true)]
    json: bool,
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
    /// The containers of a store: names, types of their roots, addresses, pages, bytes
    Ls {
        /// Directory of the store
        dir: PathBuf,
    },
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
    /// Read everything that a store refers to, and name what is damaged
    ///
    /// Reads superblocks, roots, maps and all pages, those of snapshots too, from the disk itself past the page cache, and checks
    /// their checksums. A store in use stays usable meanwhile. Repairs nothing.
    Scrub {
        /// Directory of the store
        dir: PathBuf,
        /// Read at most so much in a second, like 100MiB/s
        #[arg(long, value_parser = units::rate)]
        rate: Option<u64>,
    },
    /// What a store may take of the disk, and what its containers may hold; lay down other limits
    ///
    /// Without an option it shows what is laid down. At its quota a store is like one on a full disk; in a container at its
    /// quota allocations fail. Nothing that is stable is lost, and removing something makes room.
    Quota(quota::Quota),
    /// Name states of a store, read, use and forget them
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    /// Write a state of a store, in use or not, to a file or a pipe
    ///
    /// Every page is checked on the way. With --since only what is other than in a snapshot is written, to be restored
    /// on top of a backup of that snapshot.
    Backup(backup::Backup),
    /// Make a store of backups: a whole one, and then what was new since
    ///
    /// Every piece is checked before it is used, and the new store is read again from the disk before it gets its name:
    /// there is a whole store, or none. It has the quotas of the store that was backed up: `stead quota` lays down others.
    Restore(restore::Restore),
    /// Go on, with consent, from the newest whole state of a store that is too damaged to be opened
    ///
    /// Where several blocks of what was stabilised last are damaged, a store is refused, because acknowledged stabilisations
    /// cannot be had any more. This tells which, by number and time. With --give-up the store goes on from the state before
    /// them; the damaged log is kept. It takes as much room again as the store has.
    Salvage(salvage::Salvage),
    /// What this kernel, user and container allow, and what to do about what is missing
    Doctor {
        /// A store to look at too: does it open, does its file system take direct writes
        dir: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let Args { json, command } = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return output::answer_usage(&error),
    };
    match command {
        Command::Demo(demo) => answer(json, "demo", demo.run()),
        Command::Ls { dir } => answer(json, "ls", ls::run(&dir)),
        Command::Stat { dir } => answer(json, "stat", stat::run(&dir)),
        Command::Verify { dir, leaks } => answer(json, "verify", verify::run(&dir, leaks)),
        Command::Scrub { dir, rate } => answer(json, "scrub", scrub::run(&dir, rate)),
        Command::Quota(quota) => answer(json, "quota", quota.run()),
        Command::Snapshot(what) => answer(json, "snapshot", what.run()),
        Command::Backup(backup) => answer(json, "backup", backup.run(json)),
        Command::Restore(restore) => answer(json, "restore", restore.run()),
        Command::Salvage(salvage) => answer(json, "salvage", salvage.run()),
        Command::Doctor { dir } => answer(json, "doctor", doctor::run(dir.as_deref())),
    }
}

/// Opens a store to look at it, whether or not a program has it open.
fn open(dir: &Path) -> Result<ReadStore, OpenError> {
    stead::open_read_only(dir)
}
