//! A store's directory: the file `lock`, which one process at a time holds, and the file `log`, which is
//! the store. Read [`Store::create`] and [`Store::open`] first.
//!
//! The lock is an fcntl lock, which a forked child does not inherit, together with a list of what this very
//! process holds, because fcntl locks do not exclude the process that has them. Who only reads takes no lock here:
//! see `pin` and `reader`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use stead_model::WINDOW_COUNT;

use crate::aligned::AlignedBuf;
use crate::error::{CreateError, Held, OpenError, is_no_space};
use crate::file::FileMedium;
use crate::format::{
    BLOCK, FORMAT_VERSION, HEADER_BLOCKS, LogPosition, Place, ROOTS, Root, SUPERBLOCKS, Superblock,
};
use crate::medium::Medium;
use crate::pin;
use crate::recover::{Hold, OpenReport, open_at};
use crate::settings::{SEGMENTS_LEAST, SPACE_PERCENTS};
use crate::space::{Layout, SEGMENT_BLOCKS};
use crate::store::Store;

const LOCK: &str = "lock";
pub(crate) const LOG: &str = "log";
/// The log while it is being made.
const LOG_NEW: &str = "log.new";

/// Blocks of a segment, if nobody says otherwise.
const SEGMENT_USUAL: u32 = 1024;

/// Segments of a new store.
const FIRST_SEGMENTS: usize = 4;

/// What a new store is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CreateOptions {
    /// The window from which its containers take addresses; by chance if `None`, so that two stores fit into one
    /// process.
    pub base_window: Option<u32>,
    /// Blocks of 4096 bytes in a segment of the log; 1024 (4 MiB) if `None`. Small ones are for tests.
    pub segment_blocks: Option<u32>,
    /// What tells it from other stores; by chance if `None`.
    pub store_id: Option<u128>,
    /// When it was created, in seconds since 1970; now if `None`.
    pub created: Option<u64>,
    /// How many bytes its file may have, as for [`Store::set_quota`]; as many as the disk gives if `None`.
    pub quota: Option<u64>,
    /// How large its file may become, in hundredths of what is live, as for [`Store::set_space_percent`]; 200 if `None`.
    pub space_percent: Option<u32>,
}

impl Store {
    /// Makes a new, empty store in `dir`, which must be empty or not there yet, and opens it.
    ///
    /// # Errors
    /// If there is something already, or the directory cannot be written.
    pub fn create(dir: &Path, options: &CreateOptions) -> Result<Store, CreateError> {
        let io_error = |path: &Path, action| {
            let path = path.to_path_buf();
            move |source: io::Error| match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    CreateError::NotWritable { path, source }
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    CreateError::NoSpace { path, source }
                }
                _ => CreateError::Io { path, action, source },
            }
        };
        match fs::create_dir(dir) {
            Ok(()) => {
                if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
                    sync_dir(parent).map_err(io_error(parent, "flushing"))?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_empty(dir)?,
            Err(error) => return Err(io_error(dir, "creating")(error)),
        }
        let lock = DirectoryLock::take(dir).map_err(|error| match error {
            LockError::Held(held) => CreateError::Held(held),
            LockError::Io(source) => io_error(&dir.join(LOCK), "locking")(source),
        })?;
        // Another may have been quicker before the lock was ours.
        check_empty(dir)?;
        let (new, log) = (dir.join(LOG_NEW), dir.join(LOG));
        let made = (|| {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let medium = FileMedium::create(&new)?;
            let superblock = superblock(options)?;
            format_medium(&medium, &superblock, options)?;
            fs::rename(&new, &log)?;
            sync_dir(dir)?;
            Ok(medium)
        })();
        let medium = match made {
            Ok(medium) => medium,
            Err(error) => {
                // Nothing of it is of use; what cannot be removed now goes when a store is made here.
                let _ = fs::remove_file(&new);
                return Err(match bad_options(options) {
                    Some(why) => CreateError::BadOptions(why),
                    None => io_error(&log, "creating")(error),
                });
            }
        };
        // Nobody else has had time to.
        let lock = lock.with_log(dir).map_err(|error| match error {
            LockError::Held(held) => CreateError::Held(held),
            LockError::Io(source) => io_error(&log, "locking")(source),
        })?;
        let (store, _) = open_at(Arc::new(medium), &log, Hold::Owner(lock))
            .map_err(|error| io_error(&log, "opening anew")(io::Error::other(error.to_string())))?;
        Ok(store)
    }

    /// Whether [`Store::create`] would make a store here: the directory is missing, or there is nothing in it
    /// but what a creation that was cut short left behind.
    #[must_use]
    pub fn is_vacant(dir: &Path) -> bool {
        match fs::symlink_metadata(dir) {
            Ok(_) => check_empty(dir).is_ok(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// What says that this very process has the store in `dir` open for writing, if it has.
    #[must_use]
    pub fn held_here(dir: &Path) -> Option<Held> {
        let key = Key::of(dir).ok()?;
        let is_held = held().iter().any(|held| held.key == key);
        is_held.then(|| Held { dir: dir.into(), pid: Some(std::process::id()), this_process: true })
    }

    /// Makes a new, empty store on any medium that is empty, and opens it.
    ///
    /// # Errors
    /// If the medium refuses, or the options ask for what cannot be.
    pub fn create_on(
        medium: Arc<dyn Medium>,
        options: &CreateOptions,
    ) -> Result<Store, CreateError> {
        let path = PathBuf::from(LOG);
        if let Some(why) = bad_options(options) {
            return Err(CreateError::BadOptions(why));
        }
        let made = superblock(options)
            .and_then(|superblock| format_medium(&*medium, &superblock, options));
        made.map_err(|source| CreateError::Io { path: path.clone(), action: "creating", source })?;
        let (store, _) = open_at(medium, &path, Hold::Alone).map_err(|error| CreateError::Io {
            path: path.clone(),
            action: "opening anew",
            source: io::Error::other(error.to_string()),
        })?;
        Ok(store)
    }

    /// Opens the store in `dir` (catalogue B10): nothing is read that is not needed for finding the newest whole
    /// state.
    ///
    /// # Errors
    /// One for each way in which that may not be possible; nothing has been changed then.
    pub fn open(dir: &Path) -> Result<(Store, OpenReport), OpenError> {
        let (lock, log) = own(dir)?;
        let medium = FileMedium::open(&log).map_err(io_error(&log, "opening"))?;
        // Behind the last opening of the log here that may fail: closing a descriptor lets go of the lock.
        let lock = lock.with_log(dir).map_err(|error| error.of_opening(&log))?;
        open_at(Arc::new(medium), &log, Hold::Owner(lock))
    }
}

/// Takes the lock of a store's directory; and where its log is.
pub(crate) fn own(dir: &Path) -> Result<(DirectoryLock, PathBuf), OpenError> {
    find_log(dir)?;
    let lock = DirectoryLock::take(dir).map_err(|error| error.of_opening(&dir.join(LOCK)))?;
    Ok((lock, dir.join(LOG)))
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> OpenError + use<> {
    let path = path.to_path_buf();
    move |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            OpenError::NotWritable { path, source }
        }
        _ => OpenError::Io { path, action, source },
    }
}

/// Says with words why a directory is no store.
pub(crate) fn find_log(dir: &Path) -> Result<(), OpenError> {
    let io_error = |path: &Path| {
        let path = path.to_path_buf();
        move |source| OpenError::Io { path, action: "opening", source }
    };
    match fs::metadata(dir) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(OpenError::NotADirectory { dir: dir.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Missing { dir: dir.into() });
        }
        Err(error) => return Err(io_error(dir)(error)),
    }
    let log = dir.join(LOG);
    match fs::metadata(&log) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => {
            let why = "its `log` is not a file".into();
            Err(OpenError::NotAStore { path: dir.into(), why })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let why = "it has no file `log`".into();
            Err(OpenError::NotAStore { path: dir.into(), why })
        }
        Err(error) => Err(io_error(&log)(error)),
    }
}

/// Something there, but no store: an error; nothing, or traces of making a store that was cut short: fine.
fn check_empty(dir: &Path) -> Result<(), CreateError> {
    let io_error = |source| CreateError::Io { path: dir.into(), action: "listing", source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(CreateError::NotADirectory { dir: dir.into() });
        }
        Err(error) => return Err(io_error(error)),
    };
    let mut other = false;
    for entry in entries {
        let name = entry.map_err(io_error)?.file_name();
        if name == LOG {
            return Err(CreateError::Exists { dir: dir.into() });
        }
        other |= name != LOCK && name != LOG_NEW;
    }
    if other { Err(CreateError::NotEmpty { dir: dir.into() }) } else { Ok(()) }
}

fn bad_options(options: &CreateOptions) -> Option<&'static str> {
    if options.segment_blocks.is_some_and(|blocks| !SEGMENT_BLOCKS.contains(&blocks)) {
        return Some("a segment must have from 8 to 65536 blocks");
    }
    let layout =
        Layout { segment_blocks: u64::from(options.segment_blocks.unwrap_or(SEGMENT_USUAL)) };
    if options.quota.is_some_and(|bytes| bytes < layout.file_bytes(SEGMENTS_LEAST)) {
        return Some(
            "the quota is too small for a store, which needs eight segments and 65536 bytes at the least: \
             33619968 bytes if segments have the usual size",
        );
    }
    if options.space_percent.is_some_and(|percent| !SPACE_PERCENTS.contains(&percent)) {
        return Some("the file can be held to 150 to 10000 hundredths of what is live in it");
    }
    if options.base_window.is_some_and(|window| window >= WINDOW_COUNT) {
        return Some("the base window lies outside the address range");
    }
    None
}

fn superblock(options: &CreateOptions) -> io::Result<Superblock> {
    if let Some(why) = bad_options(options) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let mut chance = [0; 20];
    File::open("/dev/urandom")?.read_exact_at(&mut chance, 0)?;
    let id = u128::from_le_bytes(chance[..16].try_into().expect("sixteen bytes"));
    let window = u32::from_le_bytes(chance[16..].try_into().expect("four bytes"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Superblock {
        format_version: FORMAT_VERSION,
        segment_blocks: options.segment_blocks.unwrap_or(SEGMENT_USUAL),
        store_id: options.store_id.unwrap_or(id),
        base_window: options.base_window.unwrap_or(window % WINDOW_COUNT),
        created: options.created.unwrap_or(now.as_secs()),
    })
}

/// Writes the header of an empty store.
fn format_medium(
    medium: &dyn Medium,
    superblock: &Superblock,
    options: &CreateOptions,
) -> io::Result<()> {
    let layout = Layout { segment_blocks: u64::from(superblock.segment_blocks) };
    medium.set_len(layout.file_bytes(FIRST_SEGMENTS))?;
    let mut header = vec![0; HEADER_BLOCKS as usize * BLOCK];
    let mut put = |block: u64, bytes: &[u8]| {
        header[block as usize * BLOCK..][..BLOCK].copy_from_slice(bytes);
    };
    for block in SUPERBLOCKS {
        put(block, &superblock.encode());
    }
    for (slot, block) in ROOTS.into_iter().enumerate() {
        let root = Root {
            generation: slot as u64 + 1,
            position: LogPosition {
                epoch: 1,
                place: layout.start(0),
                next_segment: Place::NONE,
                sequence: 0,
                serial: 0,
                chain: 0,
                time: 0,
            },
            quota: options.quota.unwrap_or_default(),
            space_percent: options.space_percent.unwrap_or_default(),
            twins: true,
            ..Root::default()
        };
        put(block, &root.encode(superblock.store_id, slot));
    }
    // What is taken from the file system but never written costs its first stabilisations a change of metadata
    // each.
    let zeros = AlignedBuf::zeroed(1 << 20);
    let end = layout.file_bytes(FIRST_SEGMENTS);
    let mut at = header.len() as u64;
    while at < end {
        let bytes = (end - at).min(zeros.len() as u64);
        medium.write(at, &[io::IoSlice::new(&zeros.as_slice()[..bytes as usize])])?;
        at += bytes;
    }
    medium.write(0, &[io::IoSlice::new(&header)])?;
    medium.sync()
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Directories held by this process.
static HELD: Mutex<Vec<HeldHere>> = Mutex::new(Vec::new());

fn held() -> MutexGuard<'static, Vec<HeldHere>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory held by this process.
#[derive(Debug)]
struct HeldHere {
    key: Key,
    /// Descriptors of its log that readers of this process are done with: closing one would let go of the lock.
    to_close: Vec<File>,
}

/// A directory's device and inode, and the process that took it (a forked child finds its parent's in the list,
/// and does not hold them).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key(u64, u64, u32);

impl Key {
    pub(crate) fn of(dir: &Path) -> io::Result<Self> {
        let found = fs::metadata(dir)?;
        Ok(Key(found.dev(), found.ino(), std::process::id()))
    }
}

/// A descriptor of a log for reading. If this process has the store's lock, it is closed only after that, because
/// closing any descriptor of a file lets go of the process's fcntl locks on it.
#[derive(Debug)]
pub(crate) struct LogFile {
    file: Option<File>,
    key: Key,
}

impl LogFile {
    pub(crate) fn new(file: File, key: Key) -> Self {
        LogFile { file: Some(file), key }
    }

    /// Whether this very process has the store's lock.
    pub(crate) fn is_held_here(&self) -> bool {
        held().iter().any(|held| held.key == self.key)
    }

    pub(crate) fn file(&self) -> &File {
        self.file.as_ref().expect("there until dropped")
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        let mut held = held();
        if let Some(held) = held.iter_mut().find(|held| held.key == self.key) {
            held.to_close.extend(self.file.take());
        }
    }
}

/// The right to use a directory, until dropped.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    key: Key,
    /// The locks go when these are closed.
    _file: File,
    log: Option<File>,
}

pub(crate) enum LockError {
    Held(Held),
    Io(io::Error),
}

impl LockError {
    pub(crate) fn of_opening(self, path: &Path) -> OpenError {
        match self {
            LockError::Held(held) => OpenError::Held(held),
            LockError::Io(source) => io_error(path, "locking")(source),
        }
    }
}

impl DirectoryLock {
    fn take(dir: &Path) -> Result<Self, LockError> {
        let key = Key::of(dir).map_err(LockError::Io)?;
        let pid = std::process::id();
        // Asked before the file is opened: closing any descriptor of it would let go of the lock.
        let mut held = held();
        if held.iter().any(|held| held.key == key) {
            let (dir, pid) = (dir.into(), Some(pid));
            return Err(LockError::Held(Held { dir, pid, this_process: true }));
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join(LOCK))
            .map_err(LockError::Io)?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => {
                let (dir, pid) = (dir.into(), pin::owner(&file));
                return Err(LockError::Held(Held { dir, pid, this_process: false }));
            }
            Err(error) => return Err(LockError::Io(error.into())),
        }
        // For people who look; what counts is the lock, and on a full disk there may be no room to say it.
        let said = format!("{pid}\n");
        match file.write_all(said.as_bytes()).and_then(|()| file.set_len(said.len() as u64)) {
            Err(error) if !is_no_space(&error) => return Err(LockError::Io(error)),
            _ => {}
        }
        held.push(HeldHere { key, to_close: Vec::new() });
        Ok(DirectoryLock { key, _file: file, log: None })
    }

    /// Locks the log as well: the file `lock` looks as if it could be deleted.
    pub(crate) fn with_log(mut self, dir: &Path) -> Result<Self, LockError> {
        let log = OpenOptions::new().read(true).write(true).open(dir.join(LOG));
        let log = log.map_err(LockError::Io)?;
        if !pin::own(&log).map_err(LockError::Io)? {
            let (dir, pid) = (dir.into(), pin::owner(&log));
            return Err(LockError::Held(Held { dir, pid, this_process: false }));
        }
        self.log = Some(log);
        Ok(self)
    }

    /// The oldest generation that somebody reads.
    pub(crate) fn oldest_pin(&self) -> u64 {
        self.log.as_ref().map_or(u64::MAX, pin::oldest)
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        held().retain(|held| held.key != self.key);
    }
}
