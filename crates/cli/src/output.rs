//! The one way in which commands answer: words for people, or with `--json` one JSON object for programs;
//! exit codes; progress. No command prints by itself but through its [`Report`]. Read [`Report`] first,
//! then [`Failure`].
//!
//! On standard output stands the answer and nothing else. Progress and errors in words go to standard
//! error. `docs/command.md` lists the keys of every object.

use std::fmt;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Serialize, Serializer};
use stead::{
    BackupError, ContainerError, OpenError, OpenErrorKind, QuotaError, RestoreError, SnapshotError,
    word_of,
};

/// What `stead --help` says about exit codes.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  all is well
  1  something is wrong with the store, the backup or the system: damage, a check that failed
  2  the command line is not understood
  3  the store, or the snapshot or container named, cannot be opened: missing, in use, no right, no store
  4  the command could not be carried out to its end";

/// Raised when a key changes its meaning or goes away; new keys leave it as it is.
const JSON_VERSION: u32 = 1;

pub(crate) const FINE: u8 = 0;
pub(crate) const WRONG: u8 = 1;
const NOT_UNDERSTOOD: u8 = 2;
const NOT_OPENED: u8 = 3;
const NOT_DONE: u8 = 4;

/// What a command found out. Its fields, as serde writes them, are the keys of the JSON object: bytes end
/// in `_bytes`, moments in `_unix_ns` or `_unix_s`; addresses are strings like `"0x4000000000"`; what is not
/// known is null.
pub(crate) trait Report: Serialize {
    /// Whether nothing is wrong. Decides between exit codes 0 and 1.
    fn is_well(&self) -> bool;

    /// The exit code, where it says more than that.
    fn exit_code(&self) -> u8 {
        if self.is_well() { FINE } else { WRONG }
    }

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
    /// Null where the command line is not understood.
    command: Option<&'a str>,
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
            let exit_code = report.exit_code();
            if json {
                print_json(command, exit_code, &report);
            } else {
                report.print();
            }
            exit_code
        }
        Err(failure) => {
            say_aside(format_args!("stead: {failure}"));
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
    let command = Some(command).filter(|_| exit_code != NOT_UNDERSTOOD);
    let answer = Answer { json_version: JSON_VERSION, command, exit_code, report };
    let text = serde_json::to_string(&answer).expect("reports are plain numbers and text");
    print_line(format_args!("{text}"));
}

/// Answers a command line that clap did not understand, or a question for help.
pub(crate) fn answer_usage(error: &clap::Error) -> ExitCode {
    // Nobody is left to be told if it cannot be printed.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::from(FINE);
    }
    if std::env::args_os().any(|arg| arg == "--json") {
        let message = error.to_string();
        let error = Words { kind: "usage", message: message.trim() };
        print_json("", NOT_UNDERSTOOD, Failed { error });
    }
    ExitCode::from(NOT_UNDERSTOOD)
}

/// A path in JSON, which has no others than UTF-8: bytes that are none are replaced.
pub(crate) fn path<S: Serializer>(path: impl AsRef<Path>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.as_ref().display())
}

/// As [`path`], where there may be none.
pub(crate) fn maybe_path<S: Serializer>(
    path: &Option<impl AsRef<Path>>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => to.collect_str(&path.as_ref().display()),
        None => to.serialize_none(),
    }
}

/// A name as it can stand in a line: as it is, or in quotes with all that cannot be seen written out.
pub(crate) fn shown(name: &str) -> String {
    let mut before = ' ';
    let is_plain = |c: char| {
        let before = std::mem::replace(&mut before, c);
        let is_marked = is_mark(c) && (before.is_alphabetic() || is_mark(before));
        is_marked || matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
    };
    if !name.is_empty() && name.trim() == name && name.chars().all(is_plain) {
        name.to_owned()
    } else {
        format!("{name:?}")
    }
}

/// Whether a character is a mark that is seen on the letter before it.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{34e}' | '\u{350}'..='\u{36f}')
}

/// Prints a line. Ends the process where that cannot be: quietly when nobody reads any more.
pub(crate) fn print_line(line: fmt::Arguments<'_>) {
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => end_unread(),
        Err(error) => {
            say_aside(format_args!("stead: the answer cannot be written: {error}"));
            std::process::exit(NOT_DONE.into());
        }
    }
}

/// Ends the process because nobody reads standard output any more: as one that the signal of a closed pipe ends.
pub(crate) fn end_unread() -> ! {
    std::process::exit(141)
}

/// Prints a line beside the answer. Nobody is left to be told if it cannot be.
pub(crate) fn say_aside(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// A bar on standard error, if that is a terminal, that counts bytes.
pub(crate) fn byte_bar() -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left {msg}",
    );
    ProgressBar::new(0).with_style(style.expect("a template that is right"))
}

impl Failure {
    /// One word for it: see `docs/command.md`.
    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    /// What the process ends with.
    pub(crate) fn exit_code(&self) -> u8 {
        self.exit_code
    }

    /// Says where it happened, too.
    pub(crate) fn at(mut self, place: &dyn fmt::Display) -> Failure {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// Says what to do, too.
    pub(crate) fn advised(mut self, advice: &str) -> Failure {
        self.message = format!("{}; {advice}", self.message);
        self
    }

    /// The store was opened, but something on the way failed.
    pub(crate) fn not_done(why: impl fmt::Display) -> Failure {
        Failure { kind: "system", exit_code: NOT_DONE, message: why.to_string() }
    }

    /// The same for something that the system refused to do with a file.
    pub(crate) fn with_file(file: &Path, error: &io::Error) -> Failure {
        let message = format!("{}: {error}", file.display());
        Failure { kind: word_of(error), exit_code: NOT_DONE, message }
    }

    /// A failure of a kind that decides the exit code.
    pub(crate) fn of_kind(kind: &'static str, why: &dyn fmt::Display) -> Failure {
        Failure { kind, exit_code: exit_code_of(kind), message: why.to_string() }
    }

    /// The command line asks for what cannot be.
    pub(crate) fn usage(why: &str) -> Failure {
        Failure { kind: "usage", exit_code: NOT_UNDERSTOOD, message: why.to_owned() }
    }
}

/// The exit code of an error of this kind, whichever command meets it.
fn exit_code_of(kind: &str) -> u8 {
    match kind {
        "damaged" | "bad_backup" => WRONG,
        "missing" | "not_a_store" | "in_use" | "not_permitted" | "newer" | "addresses_taken"
        | "no_addresses" | "unsupported" | "no_container" | "no_snapshot" => NOT_OPENED,
        _ => NOT_DONE,
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Failure {
        Failure::of_kind(error.word(), &error)
    }
}

impl From<QuotaError> for Failure {
    fn from(error: QuotaError) -> Failure {
        Failure::of_kind(error.word(), &error)
    }
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Failure {
        match error {
            BackupError::Open(error) => OpenError::from(error).into(),
            error @ BackupError::Copy(_) if !error.is_damage() => {
                // It was opened.
                let (kind, message) = (error.word(), error.to_string());
                Failure { kind, exit_code: NOT_DONE, message }
            }
            error => Failure::of_kind(error.word(), &error),
        }
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Failure {
        Failure::of_kind(stead::restore_word(&error), &error)
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
        let mut message = error.to_string();
        // Where the error itself does not say what to do.
        let advice = match kind {
            OpenErrorKind::NotAStore => "give the directory that a program opened with stead",
            OpenErrorKind::Damaged => {
                "what is damaged is not used; restore the store from a backup, go back to a copy of its \
                 file `log`, or see with `stead salvage` which state can be had still"
            }
            OpenErrorKind::AddressesTaken => {
                "try again: where the system puts libraries differs each time"
            }
            OpenErrorKind::NotPermitted if !message.contains("permissions") => {
                "run as its owner or change its permissions"
            }
            OpenErrorKind::System => "look at what the system says, and try again",
            _ => "",
        };
        if !advice.is_empty() {
            message = format!("{message}; {advice}");
        }
        let exit_code = if kind == OpenErrorKind::Damaged { WRONG } else { NOT_OPENED };
        Failure { kind: kind.word(), exit_code, message }
    }
}

impl From<ContainerError> for Failure {
    fn from(error: ContainerError) -> Failure {
        Failure::of_kind(error.word(), &error)
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

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure { kind: word_of(&error), exit_code: NOT_DONE, message: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn names_are_shown_so_that_one_sees_what_is_in_them() {
        for plain in ["bank", "größe \"x\" it's a\\b", "日本", "gro\u{308}\u{323}ße"] {
            assert_eq!(shown(plain), plain);
        }
        assert_eq!(shown("a\u{202e}b"), "\"a\\u{202e}b\"");
        // On nothing, a mark is seen badly; this one never.
        assert_eq!(shown("\u{308}a"), "\"\\u{308}a\"");
        assert_eq!(shown("a\u{200b}\u{308}"), "\"a\\u{200b}\\u{308}\"");
        assert_eq!(shown("\u{200b}"), "\"\\u{200b}\"");
        assert_eq!((shown(" "), shown("")), ("\" \"".to_owned(), "\"\"".to_owned()));
    }
}
