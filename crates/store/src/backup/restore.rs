//! Making a store of streams. It is made beside its place, read again from the disk, and only then given its name:
//! there is a whole store, or none. Read [`Restore`] first.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};

use super::stream::{Frame, FrameReader, Head, Totals};
use super::{RestoreError, StateId};
use crate::batch::Batch;
use crate::directory::CreateOptions;
use crate::error::{CreateError, OpenError};
use crate::store::Store;
use crate::verify::VerifyProgress;

/// Images gathered for one stabilisation.
const BATCH_PAGES: usize = 4096;

/// Zero pages gathered for one stabilisation.
const BATCH_ZEROS: u64 = 1 << 18;

/// Files that an attempt may have left.
const FILES: [&str; 3] = ["lock", "log", "log.new"];

/// What is in the directory beside while a store is restored. No store has such a thing.
const INSIDE: &str = "store";

/// A store that is being restored. Dropped before [`Restore::finish`], it leaves nothing; killed, it leaves a directory
/// beside, named `*.restoring`, which the next attempt removes.
#[derive(Debug)]
pub struct Restore {
    dir: PathBuf,
    /// The directory beside, in which the store is made.
    beside: PathBuf,
    made: Option<Made>,
    started: bool,
    finished: bool,
}

/// What has been made so far.
#[derive(Debug)]
struct Made {
    store: Store,
    batch: Batch,
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
        let io_error = |path: &Path, action| {
            let path = path.to_path_buf();
            move |source| RestoreError::Io { path, action, source }
        };
        match fs::read_dir(dir) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(RestoreError::Exists { dir: dir.into() });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(RestoreError::Exists { dir: dir.into() });
            }
            Err(error) => return Err(io_error(dir, "listing")(error)),
        }
        let Some(name) = dir.file_name() else {
            // `.` and `/` are there, and cannot be given a name.
            return Err(RestoreError::Exists { dir: dir.into() });
        };
        let mut beside_name = name.to_owned();
        beside_name.push(".restoring");
        let beside = dir.with_file_name(beside_name);
        match fs::read_dir(&beside) {
            Ok(entries) => {
                for entry in entries {
                    if entry.map_err(io_error(&beside, "listing"))?.file_name() != INSIDE {
                        return Err(RestoreError::Exists { dir: beside });
                    }
                }
                // Whatever state it is in, it is what an attempt that was killed has left.
                if let Err(OpenError::Held(held)) = Store::open(&beside.join(INSIDE)) {
                    return Err(RestoreError::UnderWay(held));
                }
                clear(&beside).map_err(io_error(&beside, "removing what was left in"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return Err(RestoreError::Exists { dir: beside }),
        }
        Ok(Restore { dir: dir.into(), beside, made: None, started: false, finished: false })
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
        while let Some(mut frames) = FrameReader::begin(input, offset)? {
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
        let made = self.made_for(head)?;
        let mut seen = Totals::default();
        let mut container: Option<ContainerId> = None;
        // The lowest page that may come next.
        let mut next = 0;
        loop {
            let frame = frames.next()?;
            match frame {
                Frame::Head(_) => return Err(frames.damaged("it says twice what it is")),
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
                };
                self.started = true;
                match fs::create_dir(&self.beside) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        let (path, action) = (self.beside.clone(), "creating");
                        return Err(RestoreError::Io { path, action, source: error });
                    }
                    _ => {}
                }
                let inside = self.beside.join(INSIDE);
                let store = Store::create(&inside, &options).map_err(|error| match error {
                    CreateError::Held(held) => {
                        // It is that other attempt's.
                        self.started = false;
                        RestoreError::UnderWay(held)
                    }
                    error => RestoreError::Create(error),
                })?;
                let batch = store.batch();
                self.made = Some(Made { store, batch, zeros: 0, state, images: 0, bytes: 0 });
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
        let Some(made) = self.made.take() else { return Err(RestoreError::Nothing) };
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
        fs::rename(self.beside.join(INSIDE), &self.dir).map_err(|source| match source.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => {
                RestoreError::Exists { dir: self.dir.clone() }
            }
            _ => {
                let (path, action) = (self.dir.clone(), "giving the restored store its place,");
                RestoreError::Io { path, action, source }
            }
        })?;
        self.finished = true;
        // Empty now; nobody minds if it stays.
        let _ = fs::remove_dir(&self.beside);
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
    fn store_batch(&mut self) -> Result<(), RestoreError> {
        self.zeros = 0;
        while self.store.commit(&mut self.batch)?.maintain_soon && self.store.maintain()?.more {}
        Ok(())
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        // The store is closed before its files go.
        if !self.finished && self.started {
            self.made = None;
            // What cannot be removed now goes with the next attempt.
            let _ = clear(&self.beside);
        }
    }
}

/// Removes the directory beside with what an attempt leaves there, and nothing else.
fn clear(beside: &Path) -> io::Result<()> {
    let inside = beside.join(INSIDE);
    let gone = |removed: io::Result<()>| match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    for name in FILES {
        gone(fs::remove_file(inside.join(name)))?;
    }
    gone(fs::remove_dir(inside))?;
    fs::remove_dir(beside)
}
