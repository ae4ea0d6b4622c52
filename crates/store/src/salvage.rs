//! A store that is too damaged to be opened, with consent: it goes on from the newest state that can be proven whole, and
//! what was stabilised behind that is given up, by number. The damaged log is kept. Read [`salvage`] first.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::directory::{own, sync_dir};
use crate::error::{CommitError, Damage, OpenError};
use crate::file::FileMedium;
use crate::format::{BLOCK, Chunk, ChunkKind, HEADER_BLOCKS};
use crate::medium::Medium;
use crate::planted::{self, Bug};
use crate::recover::{Hold, Left, open_giving_up};
use crate::store::Store;

/// The log that takes the damaged one's place, until it has.
const LOG_SALVAGE: &str = "log.salvage";

/// The damaged log afterwards.
const LOG_DAMAGED: &str = "log.damaged";

/// Blocks read at once when the file is looked through.
const READ_BLOCKS: usize = 256;

/// What a salvage found, and what became of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Salvaged {
    /// What keeps the store from being opened; empty if nothing does, and then nothing is given up.
    pub damages: Vec<Damage>,
    /// The last stabilisation of the newest state that can be proven whole: 0 for none.
    pub last_sequence: u64,
    /// When that was, in nanoseconds since 1970.
    pub last_time: u64,
    /// The last stabilisation that is known to have been acknowledged: those behind `last_sequence`, up to this one, are
    /// given up.
    pub acknowledged: u64,
    /// Of the stabilisations that are given up, those of which something can be read still, with their times: among the
    /// last may be one that was never acknowledged.
    pub given_up: Vec<(u64, u64)>,
    /// Where the damaged log is now; `None` if nothing has been done.
    pub damaged_log: Option<PathBuf>,
}

/// Why nothing was salvaged. The store is as it was.
#[derive(Debug, Error)]
pub enum SalvageError {
    /// The store cannot be opened for another reason, or nothing can be proven: both roots, or their tables, are damaged.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An earlier salvage has left the log that was damaged then.
    #[error("{} is what an earlier salvage has left: move it elsewhere, or remove it, first", path.display())]
    InTheWay {
        /// The file.
        path: PathBuf,
    },
    /// The new log could not be written.
    #[error("the log that is to take the damaged one's place could not be written: {0}")]
    Write(#[from] CommitError),
    /// The system refused: there must be as much room again as the store has.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done to it.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Looks for the newest state of the store in `dir` that can be proven whole, where damage beyond what stands twice
/// keeps it from being opened (catalogue B12). With `consent`, the store goes on from there: what was stabilised behind
/// it is given up, though it was acknowledged. A copy of the log is made to do so, opened, and only then given the
/// log's name; the damaged log is kept beside it, as `log.damaged`.
///
/// Without `consent`, and where nothing has to be given up, nothing is changed. Whole is the state as such: of a
/// single page in it that is damaged reading tells, as ever.
///
/// # Errors
/// If the store cannot be opened for other reasons than damage, if both roots are lost, or if the system refuses.
pub fn salvage(dir: &Path, consent: bool) -> Result<Salvaged, SalvageError> {
    let (lock, log) = own(dir)?;
    // The lock of the log itself goes when any descriptor of it is closed; the directory's stays.
    let _lock = lock.with_log(dir).map_err(|error| error.of_opening(&log))?;
    let medium: Arc<dyn Medium> =
        Arc::new(FileMedium::open(&log).map_err(io_error(&log, "opening"))?);
    let (store, left) = open_giving_up(Arc::clone(&medium), &log, Hold::Alone)?;
    let mut salvaged = Salvaged {
        last_sequence: store.stat().last_sequence,
        last_time: store.stat().last_time,
        ..Salvaged::default()
    };
    salvaged.look_through(&store, &left, &*medium).map_err(io_error(&log, "reading"))?;
    let id = store.header().store_id;
    drop(store);
    salvaged.damages = left.damages;
    if salvaged.damages.is_empty() || !consent {
        return Ok(salvaged);
    }

    let (new, kept) = (dir.join(LOG_SALVAGE), dir.join(LOG_DAMAGED));
    // One that was cut short may have given the log its second name already.
    let is_kept = match fs::symlink_metadata(&kept) {
        Ok(found) => {
            let known = fs::metadata(&log).map_err(io_error(&log, "looking at"))?;
            if (found.dev(), found.ino()) != (known.dev(), known.ino()) {
                return Err(SalvageError::InTheWay { path: kept });
            }
            true
        }
        Err(_) => false,
    };
    let made = salvaged.make(&log, &new, id).and_then(|()| {
        // There is a whole log under the name at any time.
        if !is_kept {
            fs::hard_link(&log, &kept).map_err(io_error(&kept, "keeping the damaged log as"))?;
        }
        fs::rename(&new, &log).map_err(io_error(&new, "renaming"))?;
        sync_dir(dir).map_err(io_error(dir, "flushing"))
    });
    if made.is_err() {
        // Nothing of it is of use; what cannot be removed now is written over by the next attempt.
        let _ = fs::remove_file(&new);
    }
    made?;
    salvaged.damaged_log = Some(kept);
    Ok(salvaged)
}

impl Salvaged {
    /// Looks for chunks of what is given up, all over the file.
    fn look_through(&mut self, store: &Store, left: &Left, medium: &dyn Medium) -> io::Result<()> {
        let (epoch, id) = (left.epoch, store.header().store_id);
        self.acknowledged = left.acknowledged;
        if planted::is(Bug::GivenUpUntold) {
            return Ok(());
        }
        if left.damages.is_empty() {
            self.acknowledged = self.last_sequence;
            return Ok(());
        }
        let mut found = BTreeMap::new();
        let mut bytes = vec![0; READ_BLOCKS * BLOCK];
        let end = medium.len()? / BLOCK as u64;
        for first in (HEADER_BLOCKS..end).step_by(READ_BLOCKS) {
            let blocks = (end - first).min(READ_BLOCKS as u64) as usize;
            let bytes = &mut bytes[..blocks * BLOCK];
            medium.read(first * BLOCK as u64, bytes)?;
            for block in bytes.chunks(BLOCK) {
                let chunk = Chunk::decode(block, id).or_else(|| Chunk::decode_twin(block, id));
                let Some((chunk, _)) = chunk else { continue };
                let behind = chunk.kind != ChunkKind::Cold
                    && chunk.epoch >= epoch
                    && chunk.sequence > self.last_sequence;
                if behind {
                    // Its own group may have been under way.
                    let before = chunk.sequence.saturating_sub(1 + u64::from(chunk.group));
                    self.acknowledged = self.acknowledged.max(before);
                    found.insert(chunk.sequence, chunk.time);
                }
            }
        }
        self.given_up = found.into_iter().collect();
        Ok(())
    }

    /// Makes the log that goes on from the state, and opens it as any other.
    fn make(&self, log: &Path, new: &Path, id: u128) -> Result<(), SalvageError> {
        fs::copy(log, new).map_err(io_error(new, "copying the log to"))?;
        let open = || FileMedium::open(new).map_err(io_error(new, "opening"));
        let (store, _) = open_giving_up(Arc::new(open()?), new, Hold::Alone)?;
        // Two new roots, of an epoch of their own in a segment of its own: what lies behind the state is no part of its chain
        // any more.
        store.move_chain()?;
        drop(store);
        let copied = File::open(new).and_then(|file| file.sync_all());
        copied.map_err(io_error(new, "flushing"))?;
        let (store, report) = Store::open_on(Arc::new(open()?))?;
        if (store.header().store_id, report.last_sequence) != (id, self.last_sequence) {
            let source = io::Error::other("what was written is not what is read");
            return Err(io_error(new, "reading again")(source));
        }
        Ok(())
    }
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> SalvageError + use<> {
    let path = path.to_path_buf();
    move |source| SalvageError::Io { path, action, source }
}
