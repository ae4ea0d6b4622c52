//! `stead backup`: a state of a store to a file or a pipe, while the store is in use (B11). Read [`Backup`] first.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};
use serde::Serialize;
use stead::{BackedUp, BackupProgress};

use crate::output::{Failure, Outcome, Report, byte_bar, end_unread, say_aside};
use crate::units::bytes;

/// Which state, and where to.
#[derive(clap::Args)]
pub(crate) struct Backup {
    /// Directory of the store
    dir: PathBuf,
    /// The snapshot to write; the last stabilisation if none is named
    #[arg(long, value_name = "NAME")]
    snapshot: Option<String>,
    /// Write only what is other than in this snapshot: to be restored on top of a backup of that one
    #[arg(long, value_name = "NAME")]
    since: Option<String>,
    /// The file to write, which is there only when it is whole; standard output if none is named
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What was written.
#[derive(Serialize)]
pub(crate) struct Written {
    #[serde(serialize_with = "crate::output::path")]
    dir: PathBuf,
    #[serde(serialize_with = "crate::output::maybe_path")]
    file: Option<PathBuf>,
    /// The snapshot that it is; null for the last stabilisation.
    snapshot: Option<String>,
    last_sequence: u64,
    /// The snapshot on top of which it has to be restored; null if it stands alone.
    since: Option<String>,
    containers: u64,
    images: u64,
    zeros: u64,
    backup_bytes: u64,
}

impl Backup {
    pub(crate) fn run(self, json: bool) -> Outcome<Written> {
        let Backup { dir, snapshot, since, output } = self;
        if output.is_none() && (json || io::stdout().is_terminal()) {
            // Whoever reads there is told what to do instead.
            let what = "the backup itself goes to standard output: name a file with -o, or read it by a pipe without --json";
            return Err(Failure::usage(what));
        }
        let bar = byte_bar();
        let mut progress = |progress: BackupProgress| {
            bar.set_length(progress.total * stead::PAGE_SIZE as u64);
            bar.set_position(progress.done * stead::PAGE_SIZE as u64);
        };
        let mut write = |out: &mut File| {
            stead::backup(&dir, snapshot.as_deref(), since.as_deref(), out, &mut progress)
        };
        let written = match &output {
            Some(file) if is_inside(file, &dir) => {
                let why = "this is inside the store itself: name a file elsewhere";
                return Err(Failure::not_done(format!("{}: {why}", file.display())));
            }
            Some(file) => whole_file(file, |out| write(out).map_err(Failure::from))?,
            None if leads_nowhere(io::stdout())? => {
                let why = "standard output is closed, or thrown away: name a file with -o, or read it by a pipe";
                return Err(Failure::not_done(why));
            }
            None => match write(&mut io::stdout().as_fd().try_clone_to_owned()?.into()) {
                Err(error) if error.is_unread() => end_unread(),
                written => written?,
            },
        };
        bar.finish_and_clear();
        let BackedUp { state, base, containers, images, zeros, bytes: backup_bytes } = written;
        Ok(Written {
            dir,
            file: output,
            snapshot: (state.snapshot != 0).then_some(state.name),
            last_sequence: state.sequence,
            since: base.map(|base| base.name),
            containers,
            images,
            zeros,
            backup_bytes,
        })
    }
}

/// Whether a descriptor was closed when this process began: then the runtime has opened `/dev/null` in its place, for reading
/// too. Some programs open it so themselves to throw away what a command says: no backup would come of that either.
fn leads_nowhere(fd: impl AsFd) -> io::Result<bool> {
    let found = rustix::fs::fstat(&fd)?;
    let is_null = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice
        && found.st_rdev == fs::metadata("/dev/null").map_or(0, |null| null.rdev());
    Ok(is_null && rustix::fs::fcntl_getfl(&fd)?.contains(OFlags::RDWR))
}

/// Whether a file is, or would be, in this directory.
fn is_inside(file: &Path, dir: &Path) -> bool {
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_path_buf());
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = fs::canonicalize(parent.unwrap_or(Path::new(".")));
    matches!((parent, fs::canonicalize(dir)), (Ok(parent), Ok(dir)) if parent == dir)
}

/// Writes beside the file, and gives it its name when all of it is on the disk.
fn whole_file<T>(
    file: &Path,
    write: impl FnOnce(&mut File) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let at = |path: &Path, error: io::Error| Failure::with_file(path, &error);
    // A link stays a link, to a file that is replaced; a pipe or a device is written as it is.
    let file = &match fs::metadata(file) {
        Ok(found) if found.is_file() => fs::canonicalize(file).map_err(|error| at(file, error))?,
        Ok(_) => {
            let out = File::options().write(true).open(file);
            return write(&mut out.map_err(|error| at(file, error))?);
        }
        Err(_) if file.is_symlink() => {
            let why = "this is a link to nothing: make what it leads to, or name another file";
            return Err(Failure::not_done(format!("{}: {why}", file.display())));
        }
        Err(_) => file.to_path_buf(),
    };
    let mut beside = file.as_os_str().to_owned();
    // Its own, so that two at once do not write the same one.
    beside.push(format!(".{}.part", std::process::id()));
    let beside = PathBuf::from(beside);
    let mut out = File::create_new(&beside).map_err(|error| at(&beside, error))?;
    let written = write(&mut out).and_then(|written| {
        out.sync_all().map_err(|error| at(&beside, error))?;
        fs::rename(&beside, file).map_err(|error| at(file, error))?;
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(|error| at(parent, error))?;
        Ok(written)
    });
    if written.is_err() {
        // It is no backup.
        let _ = fs::remove_file(&beside);
    }
    written
}

impl Report for Written {
    fn is_well(&self) -> bool {
        true
    }

    fn print(&self) {
        let what = match &self.snapshot {
            Some(name) => format!("snapshot {name:?}"),
            None => format!("the state after stabilisation {}", self.last_sequence),
        };
        let since = self
            .since
            .as_ref()
            .map_or(String::new(), |name| format!(", what is new since {name:?}"));
        let line = format!("{what}{since}: {} in {} pages", bytes(self.backup_bytes), self.images);
        match &self.file {
            Some(_) => crate::say!("{line}"),
            // Standard output is the backup.
            None => say_aside(format_args!("{line}")),
        }
    }
}
