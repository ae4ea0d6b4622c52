//! Writing a state as a stream. Read [`View::backup`] first.

use std::collections::BTreeSet;
use std::io::Write;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo, PageRange};

use super::stream::{Frame, FrameWriter, Head, IMAGES_MOST, QUOTAS_MOST, Totals, ZEROS_MOST};
use super::{BackupError, StateId};
use crate::aligned::AlignedBuf;
use crate::read::Stored;
use crate::settings::Settings;
use crate::view::View;

/// How far a backup has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackupProgress {
    /// Pages looked at.
    pub done: u64,
    /// Pages to look at in all.
    pub total: u64,
}

/// A backup that has been written to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackedUp {
    /// The state that it brings back.
    pub state: StateId,
    /// The state on top of which it has to be restored; `None` if it stands alone.
    pub base: Option<StateId>,
    /// Containers named in it.
    pub containers: u64,
    /// Images in it.
    pub images: u64,
    /// Pages that it says are zero.
    pub zeros: u64,
    /// Its length, in bytes.
    pub bytes: u64,
}

impl View<'_> {
    /// Which state this is.
    #[must_use]
    pub fn state_id(&self) -> StateId {
        let store_id = self.store.header().store_id;
        match self.snapshot() {
            Some(info) => StateId {
                store_id,
                snapshot: info.number,
                sequence: info.sequence,
                time: info.time,
                name: info.name.clone(),
            },
            None => {
                let stat = self.store.stat();
                StateId {
                    store_id,
                    snapshot: 0,
                    sequence: stat.last_sequence,
                    time: stat.last_time,
                    name: String::new(),
                }
            }
        }
    }

    /// Writes this state to `out` (catalogue B11), to be brought back by [`Restore`](super::Restore): all of it, or
    /// what is other in it than in `since`, a view of the same store. Every image is checked on the way. The last
    /// bytes say that the backup is whole; `out` is not flushed.
    ///
    /// # Errors
    /// If this is the live state of a store that is open for writing, if something in it cannot be read, or if `out`
    /// refuses.
    ///
    /// # Panics
    /// If `since` is a view of another store.
    pub fn backup(
        &self,
        since: Option<&View<'_>>,
        out: &mut dyn Write,
        progress: &mut dyn FnMut(BackupProgress),
    ) -> Result<BackedUp, BackupError> {
        let moves = |view: &View<'_>| view.snapshot().is_none() && !view.store.is_read_only();
        if moves(self) || since.is_some_and(moves) {
            return Err(BackupError::Moving);
        }
        let header = self.store.header();
        let (state, base) = (self.state_id(), since.map(View::state_id));
        let head = Head {
            state: state.clone(),
            base: base.clone(),
            created: header.created,
            base_window: header.base_window,
            segment_blocks: header.segment_blocks,
        };
        let (parts, gone) = self.parts(since)?;
        let total = parts.iter().flat_map(|(_, ranges)| ranges).map(|r| r.page_count()).sum();

        let mut frames = FrameWriter::begin(out).map_err(BackupError::Write)?;
        frames.write(&Frame::Head(head)).map_err(BackupError::Write)?;
        for settings in self.settings() {
            frames.write(&Frame::Settings(settings)).map_err(BackupError::Write)?;
        }
        let mut totals = Totals::default();
        for id in gone {
            totals.containers += 1;
            frames.write(&Frame::Gone(id)).map_err(BackupError::Write)?;
        }
        let mut images = AlignedBuf::zeroed(IMAGES_MOST * PAGE_SIZE);
        let mut done = 0;
        for (container, ranges) in parts {
            totals.containers += 1;
            frames.write(&Frame::Container(container)).map_err(BackupError::Write)?;
            for range in ranges {
                let mut at = range.start;
                while at < range.end {
                    progress(BackupProgress { done, total });
                    let first = PageId { container, page: PageNo(at) };
                    let most = (range.end - at).min(IMAGES_MOST as u64) as usize;
                    let into = &mut images.as_mut_slice()[..most * PAGE_SIZE];
                    let run = self.read_run(first, into)?;
                    let pages = run.pages as u64;
                    let frame = match run.stored {
                        Stored::Image => {
                            totals.images += pages;
                            Frame::Images(first.page, &into[..run.pages * PAGE_SIZE])
                        }
                        Stored::Never => {
                            totals.zeros += pages;
                            Frame::Zeros(first.page, pages)
                        }
                    };
                    frames.write(&frame).map_err(BackupError::Write)?;
                    at += pages;
                    done += pages;
                }
            }
        }
        frames.write(&Frame::End(totals)).map_err(BackupError::Write)?;
        progress(BackupProgress { done: total, total });
        let Totals { containers, images, zeros } = totals;
        Ok(BackedUp { state, base, containers, images, zeros, bytes: frames.bytes })
    }

    /// What has been laid down for the store, and for the containers that there are in this state, whichever that is: in
    /// parts that have room in a frame, one at the least.
    fn settings(&self) -> Vec<Settings> {
        let Settings { quota, space_percent, containers } = self.store.state().settings.clone();
        let here: BTreeSet<ContainerId> = self.containers().into_iter().collect();
        let quotas: Vec<_> = containers.into_iter().filter(|(id, _)| here.contains(id)).collect();
        let part = |quotas: &[(ContainerId, u64)]| Settings {
            quota,
            space_percent,
            containers: quotas.iter().copied().collect(),
        };
        let (first, rest) = quotas.split_at(quotas.len().min(QUOTAS_MOST));
        std::iter::once(part(first)).chain(rest.chunks(QUOTAS_MOST).map(part)).collect()
    }

    /// What is to be written: pages by container, and containers that are no more.
    fn parts(&self, since: Option<&View<'_>>) -> Result<Parts, BackupError> {
        let here: BTreeSet<ContainerId> = self.containers().into_iter().collect();
        let mut parts = Vec::new();
        let mut gone = Vec::new();
        if let Some(since) = since {
            gone = since.containers().into_iter().filter(|id| !here.contains(id)).collect();
        }
        for id in here {
            let ranges = match since {
                Some(since) => self.changed_pages(since, id)?,
                None => self.stored_pages(id)?,
            };
            if !ranges.is_empty() {
                parts.push((id, ranges));
            }
        }
        Ok((parts, gone))
    }
}

type Parts = (Vec<(ContainerId, Vec<PageRange>)>, Vec<ContainerId>);

const _: () = assert!(IMAGES_MOST as u64 <= ZEROS_MOST, "a run of either kind fits into a frame");
