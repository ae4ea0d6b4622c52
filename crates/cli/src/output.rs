//! The one way in which commands answer: words for people, or with `--json` one JSON object for programs;
//! exit codes; progress. No command prints by itself but through its [`Report`]. Read [`Report`] first,
//! then [`Failure`].
//!
//! On standard output stands the answer and nothing else. Progress and errors in words go to standard
//! error. `docs/command.md` lists the keys of every object.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use stead::{BackupError, ContainerError, OpenError, OpenErrorKind, RestoreError, SnapshotError};

/// What `stead --help` says about exit codes.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  all is well
  1  something is wrong with the store or the system: damage, a check that failed
  2  the command line is not understood
  3  the store cannot be opened: missing, in use, no right, no store
  4  the command could not be carried out to its end";

/// Raised when a key changes its meaning or goes away; new keys leave it as it is.
const JSON_VERSION: u32 = 1;

const FINE: u8 = 0;
const WRONG: u8 = 1;
const NOT_OPENED: u8 = 3;
const NOT_DONE: u8 = 4;

/// What a command found out. Its fields, as serde writes them, are the keys of the JSON object: bytes end
/// in `_bytes`, moments in `_unix_ns` or `_unix_s`; addresses are strings like `"0x4000000000"`; what is not
/// known is null.
pub(crate) trait Report: Serialize {
    /// Whether nothing is wrong. Decides between exit codes 0 and 1.
    fn is_well(&self) -> bool;

    /// Says it to people, line by line with [`say!`](crate::say).
    fn print(&self);
}

/// Why a command has no report.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: &'static str,
    exit_code: u8,
    message: String,
}

/// What a command returns.
pub(crate) type Outcome<R> = Result<R, Failure>;

#[derive(Serialize)]
struct Answer<'a, R> {
    json_version: u32,
    command: &'a str,
    exit_code: u8,
    #[serde(flatten)]
    report: R,
}

#[derive(Serialize)]
struct Failed<'a> {
    error: Words<'a>,
}

#[derive(Serialize)]
struct Words<'a> {
    kind: &'a str,
    message: &'a str,
}

/// Gives the answer of a command.
pub(crate) fn answer<R: Report>(json: bool, command: &str, outcome: Outcome<R>) -> ExitCode {
    let exit_code = match outcome {
        Ok(report) => {
            let exit_code = if report.is_well() { FINE } else { WRONG };
            if json {
                print_json(command, exit_code, &report);
            } else {
                report.print();
            }
            exit_code
        }
        Err(failure) => {
            eprintln!("stead: {failure}");
            if json {
                let error = Words { kind: failure.kind, message: &failure.message };
                print_json(command, failure.exit_code, Failed { error });
            }
            failure.exit_code
        }
    };
    ExitCode::from(exit_code)
}

fn print_json<R: Serialize>(command: &str, exit_code: u8, report: R) {
    let answer = Answer { json_version: JSON_VERSION, command, exit_code, report };
    let text = serde_json::to_string(&answer).expect("reports are plain numbers and text");
    print_line(format_args!("{text}"));
}

/// Prints a line, and ends the process quietly when nobody reads any more.
pub(crate) fn print_line(line: fmt::Arguments<'_>) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        // As a program that the signal of a closed pipe ends.
        std::process::exit(141);
    }
}

/// A bar on standard error, if that is a terminal, that counts bytes.
pub(crate) fn byte_bar() -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left {msg}",
    );
    ProgressBar::new(0).with_style(style.expect("a template that is right"))
}

impl Failure {
    /// Says where it happened, too.
    pub(crate) fn at(mut self, place: &dyn fmt::Display) -> Failure {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// The store was opened, but something on the way failed.
    pub(crate) fn not_done(why: impl fmt::Display) -> Failure {
        Failure { kind: "system", exit_code: NOT_DONE, message: why.to_string() }
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Failure {
        match error {
            SnapshotError::Container(error) => error.into(),
            error if error.is_unknown() => {
                Failure { kind: "no_snapshot", exit_code: NOT_OPENED, message: error.to_string() }
            }
            error => Failure::not_done(error),
        }
    }
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Failure {
        match error {
            BackupError::Open(error) => OpenError::from(error).into(),
            error if error.is_unknown() => {
                Failure { kind: "no_snapshot", exit_code: NOT_OPENED, message: error.to_string() }
            }
            error if error.is_damage() => {
                Failure { kind: "damaged", exit_code: WRONG, message: error.to_string() }
            }
            error => Failure::not_done(error),
        }
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Failure {
        let (kind, exit_code) = match &error {
            RestoreError::UnderWay(_) => ("in_use", NOT_OPENED),
            RestoreError::NotABackup
            | RestoreError::Cut { .. }
            | RestoreError::Damaged { .. }
            | RestoreError::Nothing => ("bad_backup", WRONG),
            RestoreError::Newer { .. } => ("newer", NOT_OPENED),
            _ => ("system", NOT_DONE),
        };
        Failure { kind, exit_code, message: error.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Failure {
        let kind = error.kind();
        let exit_code = if kind == OpenErrorKind::Damaged { WRONG } else { NOT_OPENED };
        let mut message = error.to_string();
        // Where the error itself does not say what to do.
        let advice = match kind {
            OpenErrorKind::NotAStore => "give the directory that a program opened with stead",
            OpenErrorKind::Damaged => {
                "what is damaged is not used; restore the store from a backup, or go back to a \
                 copy of its file `log`"
            }
            OpenErrorKind::AddressesTaken => {
                "try again: where the system puts libraries differs each time"
            }
            OpenErrorKind::System => "look at what the system says, and try again",
            _ => "",
        };
        if !advice.is_empty() {
            message = format!("{message}; {advice}");
        }
        Failure { kind: kind.word(), exit_code, message }
    }
}

impl From<ContainerError> for Failure {
    fn from(error: ContainerError) -> Failure {
        let (kind, exit_code) = match &error {
            error if error.is_damage() => ("damaged", WRONG),
            ContainerError::Missing { .. } => ("no_container", NOT_OPENED),
            ContainerError::Reserve { .. } => ("addresses_taken", NOT_OPENED),
            _ => ("system", NOT_DONE),
        };
        Failure { kind, exit_code, message: error.to_string() }
    }
}

impl From<stead::Error> for Failure {
    fn from(error: stead::Error) -> Failure {
        match error {
            stead::Error::Open(error) => error.into(),
            stead::Error::Container(error) => error.into(),
            error => Failure::not_done(error),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::not_done(error)
    }
}
