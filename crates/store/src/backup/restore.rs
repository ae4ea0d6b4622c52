//! Making a store of streams. It is made beside its place, read again from the disk, and only then given its name:
//! there is a whole store, or none. Read [`Restore`] first.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, StatxAttributes, StatxFlags, flock, statx};
use rustix::io::Errno;
use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};

use super::stream::{Frame, FrameReader, Head, Totals};
use super::{RestoreError, StateId};
use crate::batch::Batch;
use crate::directory::CreateOptions;
use crate::settings::{SEGMENTS_LEAST, Settings};
use crate::space::Layout;
use crate::store::Store;
use crate::verify::VerifyProgress;

/// Images gathered for one stabilisation.
const BATCH_PAGES: usize = 4096;

/// Zero pages gathered for one stabilisation.
const BATCH_ZEROS: u64 = 1 << 18;

/// Steps of upkeep at the most for the sake of a quota.
const UPKEEP_MOST: u32 = 10_000;

/// Files that an attempt may have left.
const FILES: [&str; 3] = ["lock", "log", "log.new"];

/// What is in the directory beside while a store is restored. No store has such a thing.
const INSIDE: &str = "store";

/// A store that is being restored. Dropped before [`Restore::finish`], it leaves nothing; killed, it leaves a directory
/// beside, named `*.restoring`, which the next attempt removes.
#[derive(Debug)]
pub struct Restore {
    dir: PathBuf,
    made: Option<Made>,
    finished: bool,
    /// Last, so that it is given up after the store in it.
    beside: Beside,
}

/// The directory beside, in which the store is made. One attempt at a time has it.
#[derive(Debug)]
struct Beside {
    path: PathBuf,
    /// Locked until it is closed.
    _lock: File,
}

/// What has been made so far.
#[derive(Debug)]
struct Made {
    store: Store,
    batch: Batch,
    /// What is to be laid down in the end: meanwhile it would be in the way.
    settings: Settings,
    zeros: u64,
    state: StateId,
    images: u64,
    bytes: u64,
}

/// A store that has been restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// The state that it is in.
    pub state: StateId,
    /// Images stored in it.
    pub images: u64,
    /// Bytes of backups read.
    pub bytes: u64,
}

impl Restore {
    /// Prepares to restore a store to `dir`, which must be missing or empty.
    ///
    /// # Errors
    /// If there is something, or another attempt is under way.
    pub fn begin(dir: &Path) -> Result<Restore, RestoreError> {
        let dir = &place_of(dir)?;
        let Some(name) = dir.file_name() else {
            // The root of the file system is there, and cannot be given a name.
            return Err(RestoreError::Exists { dir: dir.into() });
        };
        if is_mount_point(dir) {
            return Err(RestoreError::MountPoint { dir: dir.into() });
        }
        let mut beside_name = name.to_owned();
        beside_name.push(".restoring");
        let beside = Beside::take(dir.with_file_name(beside_name))?;
        // Looked at with the lock held: an attempt that was quicker may have ended just now.
        if let Err(error) = check_vacant(dir) {
            beside.give_up();
            return Err(error);
        }
        Ok(Restore { dir: dir.into(), made: None, finished: false, beside })
    }

    /// Restores all backups that `input` holds, one behind the other: first a whole state, then what changed since
    /// that, and so on. May be called again with further ones. Each piece is checked before any of it is used.
    ///
    /// # Errors
    /// If the input is not one or more whole backups, if they do not follow from each other, or if the store cannot be
    /// written. Then nothing can come of this attempt any more.
    pub fn apply(
        &mut self,
        input: &mut dyn Read,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), RestoreError> {
        let mut offset = 0;
        loop {
            let mut frames = match FrameReader::begin(input, offset) {
                Ok(Some(frames)) => frames,
                Ok(None) => break,
                Err(RestoreError::NotABackup) if offset > 0 => {
                    let what = "what follows the end of the backup is not another one";
                    return Err(RestoreError::Damaged { offset, what });
                }
                Err(error) => return Err(error),
            };
            self.apply_one(&mut frames, progress)?;
            offset = frames.offset();
        }
        if offset == 0 {
            return Err(RestoreError::Nothing);
        }
        if let Some(made) = &mut self.made {
            made.bytes += offset;
        }
        Ok(())
    }

    fn apply_one(
        &mut self,
        frames: &mut FrameReader<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), RestoreError> {
        let Frame::Head(head) = frames.next()? else {
            return Err(frames.damaged("it does not say first what it is"));
        };
        let blocks = u64::from(head.segment_blocks);
        let made = self.made_for(head)?;
        if frames.has_settings() {
            let Frame::Settings(settings) = frames.next()? else {
                return Err(frames.damaged("it does not say what has been laid down"));
            };
            let least = Layout { segment_blocks: blocks }.file_bytes(SEGMENTS_LEAST);
            if settings.quota.is_some_and(|bytes| bytes < least) {
                return Err(frames.damaged("it gives the store less room than any can do with"));
            }
            made.settings = settings;
        }
        let mut seen = Totals::default();
        let mut container: Option<ContainerId> = None;
        // The lowest page that may come next.
        let mut next = 0;
        loop {
            let frame = frames.next()?;
            match frame {
                Frame::Head(_) => return Err(frames.damaged("it says twice what it is")),
                Frame::Settings(more) => {
                    if !frames.has_settings() || seen != Totals::default() {
                        return Err(frames.damaged("its pieces are not in order"));
                    }
                    made.settings.containers.extend(more.containers);
                }
                Frame::Gone(id) => {
                    if container.is_some() {
                        return Err(frames.damaged("its pieces are not in order"));
                    }
                    made.batch.drop_container(id);
                    seen.containers += 1;
                }
                Frame::Container(id) => {
                    if container.is_some_and(|before| before >= id) {
                        return Err(frames.damaged("its containers are not in order"));
                    }
                    container = Some(id);
                    next = 0;
                    seen.containers += 1;
                }
                Frame::Images(first, images) => {
                    let Some(container) = container.filter(|_| first.0 >= next) else {
                        return Err(frames.damaged("its pages are not in order"));
                    };
                    for (page, image) in (first.0..).zip(images.chunks(PAGE_SIZE)) {
                        let id = PageId { container, page: PageNo(page) };
                        made.batch.push(id, |bytes| bytes.copy_from_slice(image));
                    }
                    let pages = (images.len() / PAGE_SIZE) as u64;
                    next = first.0 + pages;
                    seen.images += pages;
                    made.images += pages;
                }
                Frame::Zeros(first, count) => {
                    let Some(container) = container.filter(|_| first.0 >= next) else {
                        return Err(frames.damaged("its pages are not in order"));
                    };
                    for page in first.0..first.0 + count {
                        made.batch.zero(PageId { container, page: PageNo(page) });
                    }
                    next = first.0 + count;
                    seen.zeros += count;
                    made.zeros += count;
                }
                Frame::End(totals) => {
                    if totals != seen {
                        return Err(frames.damaged("it does not hold as much as it says"));
                    }
                    made.store_batch()?;
                    progress(frames.offset());
                    return Ok(());
                }
            }
            if made.batch.pages() >= BATCH_PAGES || made.zeros >= BATCH_ZEROS {
                made.store_batch()?;
                progress(frames.offset());
            }
        }
    }

    /// The store that the stream with this head continues, made if it is the first.
    fn made_for(&mut self, head: Head) -> Result<&mut Made, RestoreError> {
        let Head { state, base, created, base_window, segment_blocks } = head;
        let have = self.made.as_ref().map(|made| &made.state);
        match (base, have) {
            (None, None) => {
                let options = CreateOptions {
                    base_window: Some(base_window),
                    segment_blocks: Some(segment_blocks),
                    store_id: None,
                    created: Some(created),
                    quota: None,
                    space_percent: None,
                };
                let store = Store::create(&self.beside.path.join(INSIDE), &options)?;
                let batch = store.batch();
                let settings = Settings::default();
                self.made =
                    Some(Made { store, batch, settings, zeros: 0, state, images: 0, bytes: 0 });
            }
            (None, Some(_)) => return Err(RestoreError::NotFirst { found: Box::new(state) }),
            (Some(base), Some(have)) if base == *have => {
                self.made.as_mut().expect("it has a state").state = state;
            }
            (Some(base), have) => {
                let have = have.cloned().map(Box::new);
                return Err(RestoreError::WrongBase { needs: Box::new(base), have });
            }
        }
        Ok(self.made.as_mut().expect("made or found just now"))
    }

    /// Reads everything again from the disk, and gives the store its place. When this returns, it is there for good.
    ///
    /// # Errors
    /// If nothing was restored, if what was written is not what is read, or if the system refuses.
    pub fn finish(
        mut self,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<Restored, RestoreError> {
        let Some(mut made) = self.made.take() else { return Err(RestoreError::Nothing) };
        made.lay_down()?;
        made.store.checkpoint()?;
        let verified = made
            .store
            .verify(progress)
            .map_err(|error| RestoreError::Unsound(error.to_string()))?;
        if !verified.is_clean() {
            let damages = verified.damages.iter().map(ToString::to_string);
            let all: Vec<String> = damages.chain(verified.miscounted.clone()).collect();
            return Err(RestoreError::Unsound(all.join("; ")));
        }
        // An empty directory gives way; anything else does not.
        fs::rename(self.beside.path.join(INSIDE), &self.dir).map_err(|source| {
            match source.kind() {
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => {
                    RestoreError::Exists { dir: self.dir.clone() }
                }
                _ => {
                    let (path, action) = (self.dir.clone(), "giving the restored store its place,");
                    RestoreError::Io { path, action, source }
                }
            }
        })?;
        self.finished = true;
        // Empty now; nobody minds if it stays.
        let _ = fs::remove_dir(&self.beside.path);
        let parent = self.dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(|source| {
            RestoreError::Io { path: parent.into(), action: "flushing", source }
        })?;
        let Made { state, images, bytes, .. } = made;
        Ok(Restored { state, images, bytes })
    }
}

impl Made {
    /// Lays down what the store had that was backed up, and makes the file as short as that asks for, if it can be.
    fn lay_down(&mut self) -> Result<(), RestoreError> {
        if self.settings == Settings::default() {
            return Ok(());
        }
        let mut settings = std::mem::take(&mut self.settings);
        let here: BTreeSet<ContainerId> = self.store.containers().into_iter().collect();
        settings.containers.retain(|container, _| here.contains(container));
        self.store.set(&settings.each())?;
        for _ in 0..UPKEEP_MOST {
            let stat = self.store.stat();
            let is_long = stat.quota_bytes.is_some_and(|quota| stat.file_bytes > quota);
            if !is_long || !self.store.maintain()?.more {
                break;
            }
        }
        Ok(())
    }

    fn store_batch(&mut self) -> Result<(), RestoreError> {
        self.zeros = 0;
        while self.store.commit(&mut self.batch)?.maintain_soon && self.store.maintain()?.more {}
        Ok(())
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        if !self.finished {
            // The store is closed before its files go.
            self.made = None;
            self.beside.give_up();
        }
    }
}

impl Beside {
    /// Makes the directory, or takes over what an attempt that was killed has left.
    fn take(path: PathBuf) -> Result<Beside, RestoreError> {
        let io_error = |action| {
            let path = path.clone();
            move |source| RestoreError::Io { path, action, source }
        };
        loop {
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(io_error("creating"))?,
            }
            match fs::symlink_metadata(&path) {
                Ok(there) if !there.is_dir() => return Err(RestoreError::Exists { dir: path }),
                _ => {}
            }
            let lock = match File::open(&path) {
                // The attempt that had it has just ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(io_error("opening"))?,
            };
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(RestoreError::UnderWay { beside: path }),
                Err(errno) => return Err(io_error("locking")(errno.into())),
            }
            let locked = lock.metadata().map_err(io_error("looking at"))?;
            let there = fs::symlink_metadata(&path);
            if !there.is_ok_and(|there| (there.dev(), there.ino()) == (locked.dev(), locked.ino()))
            {
                // It was removed before the lock was ours; if there is one now, it is another's.
                continue;
            }
            for entry in fs::read_dir(&path).map_err(io_error("listing"))? {
                if entry.map_err(io_error("listing"))?.file_name() != INSIDE {
                    return Err(RestoreError::Exists { dir: path });
                }
            }
            // Whatever state it is in, nobody goes on with it.
            clear(&path).map_err(io_error("removing what was left in"))?;
            return Ok(Beside { path, _lock: lock });
        }
    }

    /// Removes it with all that is in it.
    fn give_up(&self) {
        // What cannot be removed now goes with the next attempt.
        let _ = clear(&self.path).and_then(|()| fs::remove_dir(&self.path));
    }
}

/// The directory with a name of its own at the end, however it is written.
fn place_of(dir: &Path) -> Result<PathBuf, RestoreError> {
    // Without `/` and `/.` at the end.
    let dir: PathBuf = dir.components().collect();
    let action = match fs::symlink_metadata(&dir) {
        // A link stays one, to a directory that is replaced.
        Ok(found) if found.is_symlink() => "following the link",
        // `.` and the like.
        _ if dir.file_name().is_none() => "asking for the name of",
        _ => return Ok(dir),
    };
    fs::canonicalize(&dir).map_err(|source| RestoreError::Io { path: dir, action, source })
}

/// Whether another file system, or a part of one, is mounted here: then no directory can take its place.
fn is_mount_point(dir: &Path) -> bool {
    // Where the kernel does not say, the last step will.
    statx(CWD, dir, AtFlags::NO_AUTOMOUNT, StatxFlags::empty())
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Whether a store may be put here: there is nothing, or an empty directory.
fn check_vacant(dir: &Path) -> Result<(), RestoreError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(RestoreError::Exists { dir: dir.into() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(RestoreError::Exists { dir: dir.into() })
        }
        Err(source) => Err(RestoreError::Io { path: dir.into(), action: "listing", source }),
    }
}

/// Removes what an attempt leaves in the directory beside, and nothing else.
fn clear(beside: &Path) -> io::Result<()> {
    let inside = beside.join(INSIDE);
    let gone = |removed: io::Result<()>| match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    for name in FILES {
        gone(fs::remove_file(inside.join(name)))?;
    }
    gone(fs::remove_dir(inside))
}
