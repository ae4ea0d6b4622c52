//! A store with snapshots tortured on a [`CrashMedium`]: stabilisations, snapshots taken and dropped, branches, going
//! back, upkeep and cleaning in any order, cut off anywhere. The oracle knows what every version holds: after each
//! crash all of them are as last acknowledged, or as the change under way would have them, and every block is
//! accounted for. Read [`life`] first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};

use super::audit::audit;
use super::{CrashMedium, Fault, SplitMix};
use crate::directory::CreateOptions;
use crate::format::{BLOCK, ROOTS};
use crate::read::Stored;
use crate::snapshot::SnapshotError;
use crate::store::Store;
use crate::view::View;

/// What a version must hold: each page's number, from which its image follows. No number is used twice.
type Pages = BTreeMap<PageId, u64>;

/// What a store must hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Model {
    live: Pages,
    /// In the order in which they were taken.
    snapshots: Vec<(String, Pages)>,
}

/// What happened in a life that went well.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lived {
    /// Crashes, each followed by a recovery that was checked.
    pub crashes: u64,
    /// Stabilisations that were acknowledged.
    pub committed: u64,
    /// Snapshots taken.
    pub taken: u64,
    /// Snapshots dropped.
    pub dropped: u64,
    /// Times that the store went back to one.
    pub gone_back: u64,
    /// Containers branched.
    pub branched: u64,
    /// Blocks moved by cleaning while there were snapshots.
    pub moved: u64,
    /// Recoveries that brought the change under way instead of the acknowledged state.
    pub under_way: u64,
    /// Openings by one root, the other one being damaged.
    pub one_root: u64,
    /// Blocks that were found to be held by snapshots alone, over all recoveries.
    pub pinned: u64,
}

impl Lived {
    /// Adds another life's counts.
    pub fn add(&mut self, other: Lived) {
        self.crashes += other.crashes;
        self.committed += other.committed;
        self.taken += other.taken;
        self.dropped += other.dropped;
        self.gone_back += other.gone_back;
        self.branched += other.branched;
        self.moved += other.moved;
        self.under_way += other.under_way;
        self.one_root += other.one_root;
        self.pinned += other.pinned;
    }
}

/// Lives one store's life of `crashes` crashes, as `seed` has it: the same each time.
///
/// # Errors
/// The promise that was broken, in words.
pub fn life(seed: u64, crashes: u64) -> Result<Lived, String> {
    let mut random = SplitMix(seed);
    let medium = CrashMedium::new(random.next_u64());
    let options = CreateOptions {
        segment_blocks: Some([8, 12, 16, 32][random.below(4) as usize]),
        store_id: Some(u128::from(seed) << 64 | 0x57EAD),
        base_window: Some(0),
        created: Some(0),
        quota: None,
        space_percent: None,
    };
    let store = Store::create_on(Arc::new(medium.clone()), &options)
        .map_err(|error| format!("creating: {error}"))?;
    let mut life = Life {
        random,
        medium,
        store: Some(store),
        acknowledged: Model::default(),
        admitted: Vec::new(),
        next_number: 1,
        fresh: false,
        lived: Lived::default(),
    };
    for _ in 0..crashes {
        life.until_crash()?;
        life.recover()?;
    }
    Ok(life.lived)
}

struct Life {
    random: SplitMix,
    medium: CrashMedium,
    /// Absent between a crash and the end of recovery.
    store: Option<Store>,
    acknowledged: Model,
    /// What attempts that failed since would have made of it.
    admitted: Vec<Model>,
    next_number: u64,
    /// Whether the last thing that happened to the disk was acknowledged.
    fresh: bool,
    lived: Lived,
}

impl Life {
    fn store(&self) -> &Store {
        self.store.as_ref().expect("the store is open")
    }

    /// Works until the machine stops, which it does soon; now and then something else fails before.
    fn until_crash(&mut self) -> Result<(), String> {
        let calls = 1 + self.random.below(150);
        let fault = match self.random.below(8) {
            0 => Fault::Eio,
            1 => Fault::LosingFlush,
            2 => Fault::NoSpace,
            _ => Fault::Crash,
        };
        self.medium.fail_at(calls, fault);
        for step in 0.. {
            match self.random.below(24) {
                0..8 => self.commit()?,
                8..11 => self.take()?,
                11 | 12 => self.drop_one()?,
                13 => self.go_back()?,
                14 => self.branch()?,
                15 => self.fresh &= self.store().checkpoint().is_ok(),
                16 => self.fresh &= self.store().maintain().is_ok(),
                17..20 => self.clean(),
                20 => self.check_while_running()?,
                _ => self.check_lost_root()?,
            }
            if self.medium.is_crashed() || fault != Fault::Crash && step > 20 {
                break;
            }
        }
        Ok(())
    }

    /// Takes note of how a change went that would lead to `model`.
    fn outcome<E>(&mut self, model: Model, result: Result<(), E>) -> bool {
        match result {
            Ok(()) => {
                self.acknowledged = model;
                self.admitted.clear();
                self.fresh = true;
                true
            }
            Err(_) => {
                self.admitted.push(model);
                self.fresh = false;
                false
            }
        }
    }

    fn commit(&mut self) -> Result<(), String> {
        let mut model = self.acknowledged.clone();
        let mut batch = self.store().batch();
        let containers = self.containers();
        let any = containers[self.random.below(containers.len() as u64) as usize];
        if self.random.below(20) == 0 {
            batch.drop_container(any);
            model.live.retain(|id, _| id.container != any);
        }
        let pages = match self.random.below(3) {
            0 => 1 + self.random.below(3),
            1 => 1 + self.random.below(12),
            _ => 1 + self.random.below(40),
        };
        for _ in 0..pages {
            let page = match self.random.below(10) {
                0 => self.random.below(600) * 777,
                _ => self.random.below(40),
            };
            let container = containers[self.random.below(containers.len() as u64) as usize];
            let id = PageId { container, page: PageNo(page) };
            if self.random.below(10) == 0 {
                batch.zero(id);
                model.live.remove(&id);
            } else {
                let number = self.next_number;
                self.next_number += 1;
                batch.push(id, |bytes| image(number, bytes));
                model.live.insert(id, number);
            }
        }
        let committed = self.store().commit(&mut batch);
        self.lived.committed += u64::from(committed.is_ok());
        // What changes nothing writes nothing, and leaves a torn root torn.
        let fresh = self.fresh || committed.as_ref().is_ok_and(|done| done.bytes_written > 0);
        self.outcome(model, committed.map(drop));
        self.fresh &= fresh;
        Ok(())
    }

    /// Three containers, and those that are branches.
    fn containers(&self) -> Vec<ContainerId> {
        let held = self.acknowledged.live.keys().map(|id| id.container);
        let all: BTreeSet<ContainerId> = held.chain((0..3).map(ContainerId)).collect();
        all.into_iter().collect()
    }

    fn take(&mut self) -> Result<(), String> {
        let mut model = self.acknowledged.clone();
        let name = format!("snapshot {}", self.random.below(12));
        let known = model.snapshots.iter().any(|(known, _)| *known == name);
        let taken = self.store().take_snapshot(&name);
        if known != matches!(taken, Err(SnapshotError::Exists { .. }))
            && !self.medium.is_crashed()
            && !matches!(taken, Err(SnapshotError::Failed(_)))
        {
            return Err(format!("taking {name:?}, known: {known}: {taken:?}"));
        }
        if !known {
            let live = model.live.clone();
            model.snapshots.push((name, live));
            self.lived.taken += u64::from(self.outcome(model, taken.map(drop)));
        }
        Ok(())
    }

    /// One of the snapshots.
    fn any(&mut self) -> Option<usize> {
        let count = self.acknowledged.snapshots.len() as u64;
        (count > 0).then(|| self.random.below(count) as usize)
    }

    fn drop_one(&mut self) -> Result<(), String> {
        let Some(which) = self.any() else { return Ok(()) };
        let mut model = self.acknowledged.clone();
        let (name, _) = model.snapshots.remove(which);
        if self.random.below(4) == 0 {
            let view = self.store().view_snapshot(&name).map_err(|error| error.to_string())?;
            let dropped = self.store().drop_snapshot(&name);
            drop(view);
            return match dropped {
                Err(SnapshotError::InUse { .. } | SnapshotError::Failed(_)) => Ok(()),
                dropped => Err(format!("dropping {name:?}, which is being read: {dropped:?}")),
            };
        }
        let dropped = self.store().drop_snapshot(&name);
        self.lived.dropped += u64::from(self.outcome(model, dropped));
        Ok(())
    }

    fn go_back(&mut self) -> Result<(), String> {
        let Some(which) = self.any() else { return Ok(()) };
        let mut model = self.acknowledged.clone();
        let (name, pages) = model.snapshots[which].clone();
        model.live = pages;
        let gone = self.store().go_back(&name).map(drop);
        self.lived.gone_back += u64::from(self.outcome(model, gone));
        Ok(())
    }

    fn branch(&mut self) -> Result<(), String> {
        let Some(which) = self.any() else { return Ok(()) };
        let mut model = self.acknowledged.clone();
        let (name, pages) = model.snapshots[which].clone();
        let containers: BTreeSet<ContainerId> = pages.keys().map(|id| id.container).collect();
        let Some(&origin) = containers.iter().nth(self.random.below(4) as usize) else {
            return Ok(());
        };
        let new = ContainerId(10 + self.random.below(4) as u32);
        let in_use = model.live.keys().any(|id| id.container == new);
        let branched = self.store().branch(&name, origin, new);
        if in_use {
            return match branched {
                Err(SnapshotError::ContainerInUse { .. } | SnapshotError::Failed(_)) => Ok(()),
                branched => Err(format!("branching over container {new}: {branched:?}")),
            };
        }
        let its = pages.iter().filter(|(id, _)| id.container == origin);
        model.live.extend(its.map(|(id, &number)| (PageId { container: new, ..*id }, number)));
        self.lived.branched += u64::from(self.outcome(model, branched));
        Ok(())
    }

    fn clean(&mut self) {
        let wanted = self.random.below(5) as usize;
        let store = self.store.as_ref().expect("the store is open");
        let mut keeper = store.keeper();
        let cleaned = match wanted {
            0 => store.clean_step(&mut keeper).map(Option::unwrap_or_default),
            _ => store.clean(&mut keeper, wanted),
        };
        drop(keeper);
        match cleaned {
            Ok(moved) if !self.acknowledged.snapshots.is_empty() => self.lived.moved += moved,
            Ok(_) => {}
            Err(_) => self.fresh = false,
        }
    }

    /// What can be read must be what was acknowledged, in any version, whatever has failed meanwhile.
    fn check_while_running(&mut self) -> Result<(), String> {
        let mut page = [0; PAGE_SIZE];
        for _ in 0..12 {
            let which = self.any().filter(|_| self.random.below(4) > 0);
            let containers = self.containers();
            let container = containers[self.random.below(containers.len() as u64) as usize];
            let id = PageId { container, page: PageNo(self.random.below(40)) };
            let (view, pages) = self.version(which)?;
            let want = pages.get(&id).copied();
            match view.read_page(id, &mut page) {
                Ok(stored) if number_of(stored, &page) == Some(want) => {}
                // The disk may fail at this very call.
                Err(crate::error::ReadError::Io { .. }) => {}
                found => return Err(format!("{id} in {which:?}: {found:?}, not {want:?}")),
            }
        }
        let (one, other) = (self.any(), self.any());
        self.check_changes(one, other)
    }

    fn version(&self, which: Option<usize>) -> Result<(View<'_>, &Pages), String> {
        let Some(which) = which else { return Ok((self.store().view(), &self.acknowledged.live)) };
        let (name, pages) = &self.acknowledged.snapshots[which];
        Ok((self.store().view_snapshot(name).map_err(|error| error.to_string())?, pages))
    }

    /// The pages by which two versions differ are told, and of two snapshots no others.
    fn check_changes(&self, one: Option<usize>, other: Option<usize>) -> Result<(), String> {
        let ((view, pages), (base, base_pages)) = (self.version(one)?, self.version(other)?);
        for container in self.containers() {
            let changed = match view.changed_pages(&base, container) {
                Ok(changed) => changed,
                Err(crate::error::ReadError::Io { .. }) => continue,
                Err(error) => return Err(error.to_string()),
            };
            let told: BTreeSet<PageId> = changed
                .iter()
                .flat_map(|range| range.pages())
                .map(|page| PageId { container, page })
                .collect();
            let all = pages.keys().chain(base_pages.keys());
            let want: BTreeSet<PageId> = all
                .filter(|id| id.container == container && pages.get(id) != base_pages.get(id))
                .copied()
                .collect();
            let right = match (one, other) {
                (Some(_), Some(_)) => told == want,
                _ => told.is_superset(&want),
            };
            if !right {
                return Err(format!(
                    "between {one:?} and {other:?} {told:?} is told, not {want:?}"
                ));
            }
        }
        Ok(())
    }

    /// Starts the machine again and checks the state that the store comes to.
    fn recover(&mut self) -> Result<(), String> {
        self.store = None;
        self.medium.restart();
        self.lived.crashes += 1;
        let (store, _) = Store::open_on(Arc::new(self.medium.clone()))
            .map_err(|error| format!("recovery refused: {error}"))?;
        let found = contents(&store).map_err(|error| format!("after recovery: {error}"))?;
        if found != self.acknowledged {
            if !self.admitted.contains(&found) {
                return Err(self.describe(&found));
            }
            self.lived.under_way += 1;
        }
        audit(&store, &self.medium).map_err(|error| format!("after recovery: {error}"))?;
        let pinned = check_blocks(&store, &found)?;
        self.lived.pinned += pinned;
        // What has been shown must stay.
        self.acknowledged = found;
        self.admitted.clear();
        self.fresh = false;
        self.store = Some(store);
        Ok(())
    }

    fn describe(&self, found: &Model) -> String {
        let names = |model: &Model| -> Vec<String> {
            model
                .snapshots
                .iter()
                .map(|(name, pages)| format!("{name} ({})", pages.len()))
                .collect()
        };
        let want = &self.acknowledged;
        let differing: Vec<PageId> = found
            .live
            .keys()
            .chain(want.live.keys())
            .filter(|id| found.live.get(id) != want.live.get(id))
            .take(5)
            .copied()
            .collect();
        format!(
            "found neither the acknowledged state nor one of {} under way: snapshots {:?} instead of {:?}, \
             live pages that differ: {differing:?}",
            self.admitted.len(),
            names(found),
            names(want)
        )
    }

    /// Behind what has been acknowledged either root leads to it.
    fn check_lost_root(&mut self) -> Result<(), String> {
        if !self.fresh || self.medium.is_crashed() {
            return Ok(());
        }
        let copy = self.medium.copy(self.random.next_u64());
        let root = ROOTS[self.random.below(2) as usize];
        copy.rot(root * BLOCK as u64, |sector| sector[40] ^= 1);
        let (store, _) = Store::open_on(Arc::new(copy))
            .map_err(|error| format!("one root of two is damaged: {error}"))?;
        let found = contents(&store)?;
        if found != self.acknowledged {
            return Err(format!("from the other root: {}", self.describe(&found)));
        }
        self.lived.one_root += 1;
        Ok(())
    }
}

/// Every block is where it is counted; how many only snapshots hold.
fn check_blocks(store: &Store, model: &Model) -> Result<u64, String> {
    let verified = store.verify(&mut |_| {}).map_err(|error| format!("verifying: {error}"))?;
    // A root that was being written at the crash is torn; nothing else may be.
    let roots = ROOTS.map(|root| root * BLOCK as u64);
    let torn = verified.damages.iter().filter(|damage| roots.contains(&damage.offset)).count();
    if torn > 1 || verified.damages.len() > torn || !verified.miscounted.is_empty() {
        return Err(format!("{verified:?}"));
    }
    let b = verified.blocks;
    // Branches have pages in common with their origins.
    let numbers: BTreeSet<u64> = model.live.values().copied().collect();
    let whole = b.header + b.free + b.pending + b.images + b.map + b.pinned + b.other;
    if b.whole != whole || b.images != numbers.len() as u64 {
        return Err(format!("blocks do not add up: {b:?}, {} live images", numbers.len()));
    }
    if b.pinned * BLOCK as u64 != store.stat().pinned_bytes {
        return Err(format!("{b:?}, but {:?}", store.stat()));
    }
    Ok(b.pinned)
}

/// Everything that the store holds.
fn contents(store: &Store) -> Result<Model, String> {
    let live = pages(&store.view())?;
    let mut snapshots = Vec::new();
    for info in store.snapshots() {
        let view = store.view_snapshot(&info.name).map_err(|error| error.to_string())?;
        let pages = pages(&view)?;
        if info.pages != pages.len() as u64 || view.snapshot() != Some(&info) {
            return Err(format!("{info:?} has {} pages", pages.len()));
        }
        snapshots.push((info.name, pages));
    }
    Ok(Model { live, snapshots })
}

fn pages(view: &View<'_>) -> Result<Pages, String> {
    let mut found = Pages::new();
    let mut page = [0; PAGE_SIZE];
    for container in view.containers() {
        for range in view.stored_pages(container).map_err(|error| error.to_string())? {
            for page_no in range.pages() {
                let id = PageId { container, page: page_no };
                let stored = view.read_page(id, &mut page).map_err(|error| error.to_string())?;
                match number_of(stored, &page) {
                    Some(Some(number)) => drop(found.insert(id, number)),
                    _ => return Err(format!("{id} has wrong bytes")),
                }
            }
        }
    }
    Ok(found)
}

/// The image of a page with this number.
fn image(number: u64, bytes: &mut [u8]) {
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&number.wrapping_mul(2 * i as u64 + 1).to_le_bytes());
    }
}

/// The number that a page was stored with; `Some(None)` if it was not stored, `None` if it is no image.
fn number_of(stored: Stored, page: &[u8; PAGE_SIZE]) -> Option<Option<u64>> {
    if stored == Stored::Never {
        return Some(None);
    }
    let number = u64::from_le_bytes(*page.first_chunk().expect("a page has eight bytes"));
    let mut want = [0; PAGE_SIZE];
    image(number, &mut want);
    (*page == want).then_some(Some(number))
}
