//! The one command for everything a change must pass: `cargo xtask check`.
//!
//! No logic of Stead itself is here. Read [`check::STEPS`] first: it lists what runs, in order.
#![forbid(unsafe_code)]

mod check;
mod rooms;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask check    everything a change must pass: format, rooms, lints, tests, doc tests,
                     compile-fail tests, crash injection, planted bugs (under 15 minutes on 2 cores)
cargo xtask rooms    only: does each crate depend on what rooms.toml allows, and is unsafe where
                     it says
cargo xtask written-pages   the tests of memory and of the whole with written pages found in each way:
                     by scans, by the fault log, by both checked against each other (some minutes)
cargo xtask asan     the heap's tests under AddressSanitizer (a few minutes; not part of check)
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let outcome = match (args.next().as_deref(), args.next()) {
        (Some("check"), None) => check::check(),
        (Some("rooms"), None) => rooms::check(&check::root()),
        (Some("written-pages"), None) => check::written_pages(),
        (Some("asan"), None) => check::asan(),
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
