//! Snapshots as a site offers them (B11, B15): taken with everything that was done before; gone back to; and branched
//! from, under a name of its own. Nothing of it is decided here but the order of steps. Read [`Site::snapshot`]
//! first.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use stead_model::windows::WindowRun;
use stead_model::{ContainerId, ContainerName, PAGE_SIZE, PAGES_PER_WINDOW, PageId, PageNo};
use stead_store::{
    BackedUp, BackupError as CopyError, BackupProgress, CommitError, ReadError, SnapshotInfo,
    Store, Stored, View,
};

use crate::directory::{Directory, Entry};
use crate::driver::spare;
use crate::error::{BackupError, ContainerError, SnapshotError, StabiliseError};
use crate::join::Typed;
use crate::quota::give_quota;
use crate::site::{Site, open_system, taken_windows};

impl Site {
    /// Names the state of the whole store (B11), with everything that sections have done before this call.
    ///
    /// # Errors
    /// If the name is none or taken, or if this cannot be made stable now.
    pub fn snapshot(&self, name: &str, gate: Duration) -> Result<SnapshotInfo, SnapshotError> {
        self.stabilise(gate)?;
        Ok(self.shared.store.take_snapshot(name)?)
    }

    /// The snapshots, in the order in which they were taken.
    #[must_use]
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.shared.store.snapshots()
    }

    /// The snapshot that this site shows; `None` if it shows the live state.
    #[must_use]
    pub fn shown_snapshot(&self) -> Option<SnapshotInfo> {
        self.shared.view().snapshot().cloned()
    }

    /// Lets go of a snapshot. What only it holds becomes free.
    ///
    /// # Errors
    /// If there is none of this name, or the disk refuses.
    pub fn drop_snapshot(&self, name: &str) -> Result<(), SnapshotError> {
        if self.is_forked() {
            return Err(StabiliseError::Forked.into());
        }
        Ok(self.shared.store.drop_snapshot(name)?)
    }

    /// Takes the whole store back to a snapshot (B15), which stays. What came after it is gone, unless another snapshot
    /// has it.
    ///
    /// # Errors
    /// If a container is in use, if there is no such snapshot, or the disk refuses. The store is then as it was, and
    /// everything done before is stable.
    pub fn go_back(&mut self, name: &str, gate: Duration) -> Result<SnapshotInfo, SnapshotError> {
        if stead_memory::in_section() {
            return Err(StabiliseError::InSection.into());
        }
        if self.is_forked() {
            return Err(StabiliseError::Forked.into());
        }
        let run = self.system_run();
        let shared = Arc::clone(&self.shared);
        let store = &shared.store;
        // Whatever is damaged in it shall show before anything is given up for it.
        read_all(&store.view_snapshot(name)?, ContainerId::SYSTEM)?;
        let gone = shared.rounds.stabilise_and(&shared, gate, || {
            // No round is under way, and none can begin: nothing of what is in memory now becomes stable later.
            self.unmap_all()?;
            let info = store.go_back(name)?;
            let mut opened = shared.opened();
            opened.clear();
            drop(opened);
            self.system = None;
            let system = open_system(&shared, run.first)?;
            keep_numbers(store, &system);
            let windows = taken_windows(&system, run.first);
            *self.windows.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner) =
                windows.map_err(|_| ContainerError::NoDirectory)?;
            self.system = Some(system);
            Ok(info)
        });
        // Its state may be one that an earlier version stored.
        self.shared.rounds.doubt_spare();
        gone?
    }

    /// Unmaps all containers but the system container, if nobody but the site holds one.
    fn unmap_all(&self) -> Result<(), SnapshotError> {
        let mut opened = self.shared.opened();
        let is_held = |id: ContainerId, count| id != ContainerId::SYSTEM && count > 1;
        if let Some(held) =
            opened.iter().find(|(id, container)| is_held(**id, Arc::strong_count(container)))
        {
            let what = format!("container {:?} is open", held.1.name());
            return Err(SnapshotError::InUse { what });
        }
        opened.retain(|&id, _| id == ContainerId::SYSTEM);
        Ok(())
    }

    /// Makes a container of what a snapshot has of another (B11), under a name of its own and at the same addresses;
    /// nothing is copied. `origin` is the name that the other has now, or `#` and its number: so also of one that has
    /// been removed since.
    ///
    /// # Errors
    /// If there is no such snapshot or container, if the name is taken, or if this cannot be made stable now.
    pub fn branch(
        &self,
        snapshot: &str,
        origin: &str,
        name: &str,
        gate: Duration,
    ) -> Result<(), SnapshotError> {
        if stead_memory::in_section() {
            return Err(ContainerError::InSection.into());
        }
        if self.is_forked() {
            return Err(StabiliseError::Forked.into());
        }
        let name = ContainerName::new(name).map_err(ContainerError::from)?.as_str();
        // Held so that a name, and a number, is given once.
        let mut windows = self.windows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let entries = self.entries()?;
        if entries.iter().any(|(other, _)| other == name) {
            return Err(SnapshotError::Taken { name: name.to_owned() });
        }
        let store = &self.shared.store;
        let (origin, run) = find_origin(&store.view_snapshot(snapshot)?, &entries, origin)?;
        let overlaps = |entry: &Entry| entry.run().is_some_and(|r| r != run && r.overlaps(run));
        if let Some((other, _)) = entries.iter().find(|(_, entry)| overlaps(entry)) {
            let (base, other) = (run.base(), other.clone());
            return Err(SnapshotError::AddressesTaken { base, other });
        }
        let id = self.next_id(name)?;
        // Killed between here and the end of the round, this leaves a container that says it is another: see
        // `clear_unfinished`.
        give_quota(store, id, None).map_err(|why| ContainerError::Quota {
            name: name.to_owned(),
            source: Box::new(why),
        })?;
        store.branch(snapshot, origin, id)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let stable = self.shared.rounds.stabilise_edit(&self.shared, gate, |batch| {
            let entered = renumbered(store, id).and_then(|pages| {
                let entered = self
                    .system()?
                    .exclusive(|directory, tx| directory.add(tx, name, id, run, now))
                    .map_err(|_| ContainerError::InSection)?;
                entered.map_err(ContainerError::Directory)?;
                Ok(pages)
            });
            match entered {
                Ok(pages) => {
                    for (page, bytes) in pages {
                        batch.push(page, |into| into.copy_from_slice(&bytes[..]));
                    }
                    Ok(())
                }
                Err(error) => {
                    // With the next round it has never been.
                    batch.drop_container(id);
                    Err(SnapshotError::from(error))
                }
            }
        })?;
        // The origin's, if that is still there.
        windows.take(run);
        stable.map(drop).map_err(|source| SnapshotError::NotStable {
            name: name.to_owned(),
            source: Box::new(source),
        })
    }
}

/// Which container is meant, and which windows it has.
fn find_origin(
    view: &View<'_>,
    entries: &[(String, Entry)],
    origin: &str,
) -> Result<(ContainerId, WindowRun), SnapshotError> {
    let missing = || ContainerError::Missing { name: origin.to_owned() };
    let named = entries.iter().find(|(name, _)| name == origin).map(|(_, entry)| entry.id());
    let numbered = || origin.strip_prefix('#').and_then(|n| n.parse().ok()).map(ContainerId);
    let id = named.or_else(numbered).filter(|&id| id != ContainerId::SYSTEM).ok_or_else(missing)?;
    let mut page = [0; PAGE_SIZE];
    let first = PageId { container: id, page: PageNo(0) };
    let read = |source| ContainerError::Read { name: origin.to_owned(), source };
    if id >= ContainerId::SPARE || view.read_page(first, &mut page).map_err(read)? == Stored::Never
    {
        let snapshot = view.snapshot().map_or_else(String::new, |info| info.name.clone());
        return Err(stead_store::SnapshotError::NoContainer { snapshot, container: id }.into());
    }
    let header = |source| ContainerError::Header { name: origin.to_owned(), source };
    let found = stead_heap::directory(&page).map_err(header)?;
    let run = WindowRun::at(found.base, found.window_count).ok_or_else(missing)?;
    Ok((id, run))
}

/// Pages, and what is to be on them.
type Pages = Vec<(PageId, Box<[u8; PAGE_SIZE]>)>;

/// The pages of a branch that say whose they are, saying that they are its own.
fn renumbered(store: &Store, id: ContainerId) -> Result<Pages, ContainerError> {
    let name = || format!("#{}", id.0);
    let header = |source| ContainerError::Header { name: name(), source };
    let mut pages = Vec::new();
    let mut windows = 1;
    let mut window = 0;
    while window < windows {
        let at = PageId { container: id, page: PageNo(window * PAGES_PER_WINDOW) };
        let mut page = Box::new([0; PAGE_SIZE]);
        let read = |source| ContainerError::Read { name: name(), source };
        if store.read_page(at, &mut page).map_err(read)? == Stored::Image {
            if window == 0 {
                windows = u64::from(stead_heap::directory(&page).map_err(header)?.window_count);
            }
            stead_heap::renumber(&mut page, id).map_err(header)?;
            pages.push((at, page));
        }
        window += 1;
    }
    Ok(pages)
}

/// Removes what branches that were cut short have left: containers that the directory does not name and whose first
/// page says they are others.
pub(crate) fn clear_unfinished(
    store: &Store,
    system: &Typed<Directory<'static>>,
) -> Result<(), CommitError> {
    let known: Vec<ContainerId> = system
        .read(|directory, _| directory.iter().map(|(_, entry)| entry.id()).collect())
        .expect("a site reads its directory outside of sections");
    let mut batch = store.batch();
    for id in store.containers() {
        if id == ContainerId::SYSTEM || id == ContainerId::SPARE || known.contains(&id) {
            continue;
        }
        let mut page = [0; PAGE_SIZE];
        let first = PageId { container: id, page: PageNo(0) };
        let is_other = store.read_page(first, &mut page).is_ok()
            && stead_heap::directory(&page).is_ok_and(|found| found.container != id);
        if is_other {
            batch.drop_container(id);
        }
    }
    if !batch.is_empty() {
        store.commit(&mut batch)?;
    }
    Ok(())
}

/// Sees to it that no number is given again that a container of some snapshot has: the directory may be older than that.
pub(crate) fn keep_numbers(store: &Store, system: &Typed<Directory<'static>>) {
    let snapshots = store.snapshots();
    let views = snapshots.iter().filter_map(|info| store.view_snapshot(&info.name).ok());
    let of_programs =
        views.flat_map(|view| view.containers()).filter(|&id| id != ContainerId::SPARE);
    let Some(highest) = of_programs.max() else {
        return;
    };
    let outside = "a site changes its directory outside of sections";
    let next = system.read(|directory, _| directory.next_id()).expect(outside);
    if next.is_some_and(|next| next <= highest) {
        let raised = system.exclusive(|directory, _| {
            directory.number_behind(highest);
            Ok::<_, std::convert::Infallible>(())
        });
        raised.expect(outside).unwrap_or_else(|never| match never {});
    }
}

fn read_all(view: &View<'_>, container: ContainerId) -> Result<(), ReadError> {
    let mut page = [0; PAGE_SIZE];
    for range in spare::stored_pages(view, container)? {
        for page_no in range.pages() {
            spare::read_run(view, PageId { container, page: page_no }, &mut page)?;
        }
    }
    Ok(())
}

/// Writes a state of the store in `dir` to `out` (B11): the last stabilisation's or a snapshot's, whole or as what is
/// other in it than in the snapshot `since`. The store may be in use meanwhile, in this process too.
///
/// # Errors
/// If the store cannot be opened, if there is no such snapshot, if something is damaged, or if `out` refuses.
pub fn backup(
    dir: &Path,
    snapshot: Option<&str>,
    since: Option<&str>,
    out: &mut dyn std::io::Write,
    progress: &mut dyn FnMut(BackupProgress),
) -> Result<BackedUp, BackupError> {
    let (store, _) = Store::open_read_only(dir)?;
    let view = snapshot.map_or_else(|| Ok(store.view()), |name| store.view_snapshot(name))?;
    let since = since.map(|name| store.view_snapshot(name)).transpose()?;
    view.backup(since.as_ref(), out, progress).map_err(|error| match error {
        CopyError::Read(ReadError::Damaged(damage)) => {
            let holders = store.holders(&damage);
            let names = holders.snapshot_names();
            let (damage, live) = (Box::new(damage), !holders.live.is_empty());
            BackupError::Damaged { damage, live, snapshots: names }
        }
        error => error.into(),
    })
}
