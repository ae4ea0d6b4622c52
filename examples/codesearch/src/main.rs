//! The command line of `codesearch`: what the arguments mean, where the store lies, the progress
//! bar, the statistics and the exit code. Read [`run`] first.

#![forbid(unsafe_code)]

use std::env;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use codesearch::index::Tree;
use codesearch::output::{self, Complaints, Output};
use codesearch::pattern::Pattern;
use codesearch::search::{Search, SearchError};
use codesearch::update::{self, Progress, Tally};
use indicatif::{ProgressBar, ProgressStyle};
use stead::{Options, Store};

mod statistics;
use statistics::Statistics;

/// How often the index becomes stable while it grows, if that is quickly done: indexing often takes no
/// more than a few seconds, and a run that is killed should lose little of them.
const STABLE_EVERY: Duration = Duration::from_millis(250);
/// Stabilising takes no more than one part in so many of the time: almost every page of a large index
/// changes with every batch, and has to be written each time.
const STABLE_SHARE: u32 = 10;

/// Search source trees by regular expression, from an index that lives in persistent memory.
///
/// Prints path:line:text for every line that matches. Exits 0 if there was one, 1 if there was
/// none, 2 if something went wrong on the way.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where the index lives [default: codesearch in $XDG_CACHE_HOME or ~/.cache]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Look for new, changed and gone files before answering
    #[arg(long)]
    refresh: bool,
    /// Say on standard error what was found, done and how long it took
    #[arg(long)]
    stats: bool,
    /// What to look for: extended regular expression, as for grep -E
    #[arg(value_name = "PATTERN")]
    pattern: String,
    /// Directories to search, and files [default: registry/src in $CARGO_HOME or ~/.cargo]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let started = Instant::now();
    let args = Args::parse();
    let mut output = Output::default();
    let mut complaints = Complaints::default();
    run(&args, started, &mut output, &mut complaints);
    if complaints.any() {
        ExitCode::from(2)
    } else if output.first_line_at().is_some() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

/// Does what the arguments ask for, complaining about what fails.
fn run(args: &Args, started: Instant, output: &mut Output, complaints: &mut Complaints) {
    let pattern = match Pattern::new(&args.pattern) {
        Ok(pattern) => pattern,
        Err(error) => return complaints.general(&error),
    };
    let default = match args.paths.is_empty().then(cargo_sources).transpose() {
        Ok(default) => default,
        Err(problem) => return complaints.general(&problem),
    };
    let paths = default.as_ref().map_or(args.paths.as_slice(), std::slice::from_ref);

    let statistics = Statistics::new(started);
    let (store, changed) = (None, false);
    let mut run = Run { args, pattern: &pattern, store, changed, statistics, output, complaints };
    match run.search(paths) {
        Ok(()) => {}
        // Whoever was reading has seen enough.
        Err(RunError::Search(SearchError::Output(error)))
            if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => run.complaints.general(&error),
    }
    run.keep();
    if args.stats {
        let store = run.store.as_ref().map(|open| &open.store);
        run.statistics.say(store, run.output.first_line_at());
    }
}

/// A search of all paths, under way.
struct Run<'a> {
    args: &'a Args,
    pattern: &'a Pattern,
    /// Open from the first directory on.
    store: Option<OpenStore>,
    /// Whether an index may have been changed.
    changed: bool,
    statistics: Statistics,
    output: &'a mut Output,
    complaints: &'a mut Complaints,
}

/// Why a run ended before its time.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Search(#[from] SearchError),
    #[error(transparent)]
    Index(#[from] stead::Error),
    #[error("{0}")]
    Store(String),
}

impl Run<'_> {
    /// Searches one path after the other.
    fn search(&mut self, paths: &[PathBuf]) -> Result<(), RunError> {
        for path in paths {
            let found = fs::metadata(path).and_then(|kind| Ok((kind, path.canonicalize()?)));
            match found {
                Ok((kind, canonical)) if kind.is_dir() => self.directory(path, &canonical)?,
                Ok(_) => {
                    let mut search = Search::new(self.pattern, self.output, self.complaints);
                    search.file(path, paths.len() > 1).map_err(SearchError::from)?;
                    self.statistics.searched(search.tally());
                }
                Err(error) => {
                    self.complaints.about(path.as_os_str().as_bytes(), &output::words(&error));
                }
            }
        }
        self.output.finish().map_err(SearchError::from)?;
        Ok(())
    }

    fn directory(&mut self, spelled: &Path, canonical: &Path) -> Result<(), RunError> {
        let open = match self.store.take() {
            Some(open) => open,
            None => open_store(self.args.store.as_deref()).map_err(RunError::Store)?,
        };
        self.statistics.opened();
        let open = self.store.insert(open);
        let tree = Tree::open(&open.store, canonical)?;
        let mut tally = None;
        if self.args.refresh || !tree.is_complete()? {
            self.changed = true;
            tally = Some(bring_up_to_date(&tree, open)?);
        }
        self.statistics.indexed(tree.size()?, tally);
        let mut search = Search::new(self.pattern, self.output, self.complaints);
        let result = search.tree(&tree, spelled);
        self.statistics.searched(search.tally());
        Ok(result?)
    }

    /// Makes the index stable. That would happen by itself when the store is closed; but if the disk
    /// is full, say, the user should know why the next run begins anew.
    fn keep(&mut self) {
        if self.changed
            && let Some(open) = &self.store
            && let Err(error) = open.store.stabilise()
        {
            self.complaints.general(&format_args!("the index cannot be kept: {error}"));
        }
    }
}

/// The sources that cargo downloaded.
fn cargo_sources() -> Result<PathBuf, &'static str> {
    let cargo = match env::var_os("CARGO_HOME") {
        Some(cargo) if !cargo.is_empty() => PathBuf::from(cargo),
        _ => env::home_dir()
            .ok_or("no PATH given, and neither CARGO_HOME nor HOME says where cargo's sources are")?
            .join(".cargo"),
    };
    Ok(cargo.join("registry").join("src"))
}

/// A store, open in this process alone.
#[derive(Debug)]
struct OpenStore {
    store: Store,
    /// Its canonical path.
    path: PathBuf,
    /// Locked as long as the store is open, so that several runs take turns; closed last.
    _turn: File,
}

/// Opens the store, making its directory if need be.
fn open_store(asked: Option<&Path>) -> Result<OpenStore, String> {
    let path = match asked {
        Some(path) => path.to_owned(),
        None => cache_home()
            .ok_or("neither XDG_CACHE_HOME nor HOME says where the index may live; use --store")?
            .join("codesearch"),
    };
    let within = |error: io::Error| format!("{}: {}", path.display(), output::words(&error));
    fs::create_dir_all(&path).map_err(within)?;
    let path = path.canonicalize().map_err(within)?;
    let turn = File::open(&path).map_err(within)?;
    wait_for_turn(&turn, &path).map_err(within)?;
    let store = Store::open_with(&path, &Options::new().interval(None))
        .map_err(|error| error.to_string())?;
    Ok(OpenStore { store, path, _turn: turn })
}

/// Waits until no other codesearch uses the store.
fn wait_for_turn(turn: &File, path: &Path) -> io::Result<()> {
    for _ in 0..50 {
        match turn.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    let path = path.display();
    // If this cannot be said, waiting is right all the same.
    let _ = writeln!(io::stderr(), "codesearch: waiting for another codesearch that uses {path}");
    turn.lock()
}

fn cache_home() -> Option<PathBuf> {
    match env::var_os("XDG_CACHE_HOME").map(PathBuf::from) {
        // The XDG specification wants relative ones ignored.
        Some(path) if path.is_absolute() => Some(path),
        _ => Some(env::home_dir()?.join(".cache")),
    }
}

/// Updates an index, showing progress, and making it stable now and then.
fn bring_up_to_date(tree: &Tree, open: &OpenStore) -> stead::Result<Tally> {
    let bar = Bar::default();
    thread::scope(|scope| {
        let (working, done) = mpsc::channel();
        scope.spawn(move || stabilise_until(&open.store, &done));
        let tally = update::update(tree, Some(&open.path), |step| bar.show(step));
        drop(working);
        tally
    })
}

/// Makes a store stable again and again until the other end of `done` is dropped.
fn stabilise_until(store: &Store, done: &Receiver<()>) {
    let mut pause = STABLE_EVERY;
    while done.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let from = Instant::now();
        if store.stabilise().is_err() {
            // The last attempt, when all is done, will tell.
            return;
        }
        pause = STABLE_EVERY.max(from.elapsed() * STABLE_SHARE);
    }
}

/// The progress bar; it hides itself where standard error is no terminal.
#[derive(Debug)]
struct Bar(ProgressBar);

impl Default for Bar {
    fn default() -> Bar {
        Bar(ProgressBar::new_spinner())
    }
}

impl Bar {
    fn show(&self, progress: Progress) {
        let style = |template: &str| {
            ProgressStyle::with_template(template).expect("the template is a constant")
        };
        match progress {
            Progress::Walking(files) if files % 512 == 1 => {
                self.0.set_style(style("{spinner} looking for files: {pos}"));
                self.0.set_position(files);
            }
            Progress::Walking(_) => {}
            Progress::Reading { files, bytes } => {
                self.0.set_style(style(
                    "indexing {msg} files {wide_bar} {bytes}/{total_bytes}, {eta} left",
                ));
                self.0.set_message(files.to_string());
                self.0.set_length(bytes);
                self.0.set_position(0);
            }
            Progress::Read { bytes } => self.0.inc(bytes),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
