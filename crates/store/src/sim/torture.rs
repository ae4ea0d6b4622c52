//! A store tortured on a [`CrashMedium`]: random stabilisations, upkeep, failures, crashes (in recovery too), rot,
//! against a model that is a map of numbers. The oracle: after each crash exactly the last acknowledged state,
//! or the one under way. Read [`life`] first.

use std::collections::BTreeMap;
use std::sync::Arc;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};

use super::{CrashMedium, Fault, SECTOR, SplitMix};
use crate::batch::Batch;
use crate::directory::CreateOptions;
use crate::error::{OpenError, ReadError};
use crate::format::{BLOCK, ROOTS};
use crate::medium::Medium;
use crate::read::Stored;
use crate::recover::OpenReport;
use crate::store::Store;

/// What a store must hold: each page's number, from which its image follows.
type Model = BTreeMap<PageId, u64>;

/// What happened in a life that went well.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lived {
    /// Crashes, each followed by a recovery that was checked.
    pub crashes: u64,
    /// Crashes in the middle of a recovery.
    pub crashes_in_recovery: u64,
    /// Stabilisations that were acknowledged.
    pub committed: u64,
    /// Stabilisations that failed while the machine went on.
    pub failed: u64,
    /// Blocks moved by cleaning.
    pub moved: u64,
    /// Recoveries that brought the state under way instead of the acknowledged one.
    pub under_way: u64,
    /// Recoveries from the older root.
    pub fell_back: u64,
    /// Openings of a copy with rot in it.
    pub rotten: u64,
    /// Of those, how many were refused or had pages withheld.
    pub rot_noticed: u64,
}

impl Lived {
    /// Adds another life's counts.
    pub fn add(&mut self, other: Lived) {
        self.crashes += other.crashes;
        self.crashes_in_recovery += other.crashes_in_recovery;
        self.committed += other.committed;
        self.failed += other.failed;
        self.moved += other.moved;
        self.under_way += other.under_way;
        self.fell_back += other.fell_back;
        self.rotten += other.rotten;
        self.rot_noticed += other.rot_noticed;
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
    };
    let store = Store::create_on(Arc::new(medium.clone()), &options)
        .map_err(|error| format!("creating: {error}"))?;
    let mut life = Life {
        random,
        medium,
        store: Some(store),
        acknowledged: Model::new(),
        before: Model::new(),
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
    /// What was acknowledged before that.
    before: Model,
    /// What attempts that failed since would have made of it.
    admitted: Vec<Model>,
    next_number: u64,
    /// Whether the last thing that happened to the disk was an acknowledged stabilisation.
    fresh: bool,
    lived: Lived,
}

impl Life {
    fn store(&self) -> &Store {
        self.store.as_ref().expect("the store is open")
    }

    /// Works until the machine stops, which it does soon.
    fn until_crash(&mut self) -> Result<(), String> {
        let calls = 1 + self.random.below(120);
        let failing = self.random.below(3) == 0;
        if failing {
            let fault =
                [Fault::Eio, Fault::LosingFlush, Fault::NoSpace][self.random.below(3) as usize];
            self.medium.fail_at(calls, fault);
        } else {
            self.medium.fail_at(calls, Fault::Crash);
        }
        let mut left = u64::MAX;
        let mut batch = self.store().batch();
        loop {
            match self.random.below(22) {
                0..12 => self.commit(&mut batch)?,
                // A failure may have left one root torn.
                12..15 => self.fresh &= self.store().checkpoint().is_ok(),
                15 | 16 => self.fresh &= self.store().maintain().is_ok(),
                17 => self.check_pages()?,
                20 | 21 => self.clean(),
                18 => self.check_rot()?,
                _ => self.check_lost_root()?,
            }
            if self.medium.is_crashed() || left == 0 {
                return Ok(());
            }
            // After a failure life goes on for a while before the crash.
            if failing && left == u64::MAX && self.random.below(4) == 0 {
                left = 0;
                self.medium.fail_at(1 + self.random.below(60), Fault::Crash);
                left += 1 + self.random.below(12);
            }
            left = left.saturating_sub(u64::from(left != u64::MAX));
        }
    }

    /// Commits a random batch and notes what may be found from now on.
    fn commit(&mut self, batch: &mut Batch) -> Result<(), String> {
        // A batch that failed is tried again as it is, with more in it, or given up.
        if self.random.below(3) == 0 {
            batch.clear();
        }
        let mut model = if batch.is_empty() {
            self.acknowledged.clone()
        } else {
            self.admitted.last().unwrap_or(&self.acknowledged).clone()
        };
        let pages = match self.random.below(4) {
            0 => 1,
            1 => 1 + self.random.below(5),
            2 => 1 + self.random.below(20),
            _ => 1 + self.random.below(60),
        };
        if self.random.below(25) == 0 {
            let container = ContainerId(self.random.below(3) as u32);
            batch.drop_container(container);
            model.retain(|id, _| id.container != container);
        }
        for _ in 0..pages {
            let page = match self.random.below(8) {
                0 => self.random.below(1000) * 777,
                _ => self.random.below(40),
            };
            let id =
                PageId { container: ContainerId(self.random.below(3) as u32), page: PageNo(page) };
            if self.random.below(8) == 0 {
                batch.zero(id);
                model.remove(&id);
            } else {
                let number = self.next_number;
                self.next_number += 1;
                batch.push(id, |bytes| image(number, bytes));
                model.insert(id, number);
            }
        }
        match self.store().commit(batch) {
            Ok(committed) => {
                if committed.bytes_written > 0 {
                    self.lived.committed += 1;
                    self.before = std::mem::replace(&mut self.acknowledged, model);
                } else if model != self.acknowledged {
                    return Err("a stabilisation that changes something wrote nothing".into());
                }
                self.admitted.clear();
                self.fresh |= committed.bytes_written > 0;
            }
            Err(_) => {
                self.lived.failed += u64::from(!self.medium.is_crashed());
                self.admitted.push(model);
                self.fresh = false;
            }
        }
        Ok(())
    }

    /// Moves pages although there is room enough: on so small a disk there is little need of it.
    fn clean(&mut self) {
        let wanted = 1 + self.random.below(4) as usize;
        let store = self.store.as_ref().expect("the store is open");
        let cleaned = store.clean(&mut store.keeper(), wanted);
        match cleaned {
            Ok(moved) => self.lived.moved += moved,
            Err(_) => self.fresh = false,
        }
    }

    /// What can be read must be what was acknowledged, whatever has failed meanwhile.
    fn check_pages(&mut self) -> Result<(), String> {
        let mut page = [0; PAGE_SIZE];
        for _ in 0..10 {
            let id = PageId {
                container: ContainerId(self.random.below(3) as u32),
                page: PageNo(self.random.below(40)),
            };
            let want = self.acknowledged.get(&id).copied();
            match self.store().read_page(id, &mut page) {
                Ok(stored) if number_of(stored, &page) == Some(want) => {}
                // The disk may fail at this very call.
                Err(ReadError::Io { .. }) => {}
                found => return Err(format!("{id}: {found:?} instead of {want:?}, while running")),
            }
        }
        Ok(())
    }

    /// Starts the machine again, crashing it in recovery now and then, and checks the state it comes to.
    fn recover(&mut self) -> Result<(), String> {
        self.store = None;
        self.medium.restart();
        self.lived.crashes += 1;
        let (store, report) = loop {
            if self.random.below(4) == 0 {
                self.medium.fail_at(1 + self.random.below(12), Fault::Crash);
            }
            let opened = Store::open_on(Arc::new(self.medium.clone()));
            if self.medium.is_crashed() {
                drop(opened);
                self.medium.restart();
                self.lived.crashes_in_recovery += 1;
                continue;
            }
            self.medium.no_fault();
            break opened.map_err(|error| format!("recovery refused: {error}"))?;
        };
        let found = contents(&store).map_err(|error| format!("after recovery: {error}"))?;
        if found != self.acknowledged {
            if !self.admitted.contains(&found) {
                return Err(self.describe(&found, &report));
            }
            self.lived.under_way += 1;
        }
        self.lived.fell_back += u64::from(report.fell_back);
        let verified = store.verify(&mut |_| {}).map_err(|error| format!("verifying: {error}"))?;
        // A root that was being written at the crash is torn; nothing else may be.
        let roots = ROOTS.map(|root| root * BLOCK as u64);
        let torn = verified.damages.iter().filter(|d| roots.contains(&d.offset)).count();
        if torn > 1 || verified.damages.len() > torn || !verified.miscounted.is_empty() {
            return Err(format!("after recovery: {verified:?}"));
        }
        let b = verified.blocks;
        if b.whole != b.header + b.free + b.pending + b.images + b.map + b.pinned + b.other
            || b.images != found.len() as u64
        {
            return Err(format!("blocks do not add up: {b:?}"));
        }
        // What has been shown must stay.
        self.acknowledged = found;
        self.admitted.clear();
        self.fresh = false;
        self.store = Some(store);
        Ok(())
    }

    fn describe(&self, found: &Model, report: &OpenReport) -> String {
        let differing: Vec<_> = found
            .keys()
            .chain(self.acknowledged.keys())
            .filter(|id| found.get(id) != self.acknowledged.get(id))
            .take(5)
            .map(|id| (*id, found.get(id), self.acknowledged.get(id)))
            .collect();
        format!(
            "found neither the acknowledged state nor one of {} under way; it {}; {} pages found, \
             {} acknowledged; page, found, acknowledged: {differing:?}; {report:?}",
            self.admitted.len(),
            if *found == self.before { "is the one before" } else { "was never acknowledged" },
            found.len(),
            self.acknowledged.len(),
        )
    }

    /// Behind an acknowledged stabilisation either root leads to it.
    fn check_lost_root(&mut self) -> Result<(), String> {
        if !self.fresh || self.medium.is_crashed() {
            return Ok(());
        }
        let copy = self.medium.copy(self.random.next_u64());
        let root = ROOTS[self.random.below(2) as usize];
        copy.rot(root * BLOCK as u64, |sector| sector[40] ^= 1);
        let (store, report) = Store::open_on(Arc::new(copy))
            .map_err(|error| format!("one root of two is damaged: {error}"))?;
        let found = contents(&store)?;
        if !report.fell_back || found != self.acknowledged {
            return Err(format!("from the other root: {}", self.describe(&found, &report)));
        }
        Ok(())
    }

    /// Rot anywhere: the right bytes, or an error; nothing missing without a word.
    fn check_rot(&mut self) -> Result<(), String> {
        if !self.fresh || self.medium.is_crashed() {
            return Ok(());
        }
        let copy = self.medium.copy(self.random.next_u64());
        let sectors = copy.len().map_err(|error| error.to_string())? / SECTOR as u64;
        // Headers of chunks are few among so many sectors: look for them half of the time.
        let mut sector = self.random.below(sectors);
        if self.random.below(2) == 0 {
            let blocks = sectors / 8;
            let from = self.random.below(blocks);
            let is_header = |block: &u64| {
                let mut magic = [0; 8];
                copy.read(block * BLOCK as u64, &mut magic).is_ok() && &magic == b"STEADCHK"
            };
            let header = (from..blocks).chain(0..from).find(is_header);
            sector = header.unwrap_or(from) * 8;
        }
        let byte = self.random.below(SECTOR as u64) as usize;
        let astray = self.random.below(3) == 0;
        if astray {
            // A block that was meant for another place, or an old one where a new one should be.
            let other = self.random.below(sectors / 8) * BLOCK as u64;
            let to = sector / 8 * BLOCK as u64;
            for at in (0..BLOCK as u64).step_by(SECTOR) {
                let mut astray = [0; SECTOR];
                copy.read(other + at, &mut astray).map_err(|error| error.to_string())?;
                copy.rot(to + at, |bytes| *bytes = astray);
            }
        } else {
            copy.rot(sector * SECTOR as u64, |bytes| bytes[byte] ^= 0x40);
        }
        self.lived.rotten += 1;
        let where_ = format!("rot at offset {:#x}", sector * SECTOR as u64 + byte as u64);
        let (store, report) = match Store::open_on(Arc::new(copy)) {
            Ok(opened) => opened,
            Err(OpenError::Damaged { .. }) => {
                self.lived.rot_noticed += 1;
                return Ok(());
            }
            Err(error) => return Err(format!("{where_}: {error}")),
        };
        // The end of the log, cut short by rot, looks as if cut short by a crash; it is told, unless
        // nothing at all is left of its last header.
        let states: &[&Model] = if astray || report.unfinished.is_some() {
            &[&self.acknowledged, &self.before]
        } else {
            &[&self.acknowledged]
        };
        let mut noticed = false;
        let mut wrong = Vec::new();
        for want in states {
            match agrees_but_for_damage(&store, want) {
                Ok(withheld) => {
                    noticed |= withheld;
                    self.lived.rot_noticed += u64::from(noticed || report.unfinished.is_some());
                    return Ok(());
                }
                Err(error) => wrong.push(error),
            }
        }
        Err(format!("{where_}: {} ({report:?})", wrong.join("; ")))
    }
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
    let whole = page
        .chunks_exact(8)
        .enumerate()
        .all(|(i, word)| *word == number.wrapping_mul(2 * i as u64 + 1).to_le_bytes());
    whole.then_some(Some(number))
}

/// Everything that the store holds.
fn contents(store: &Store) -> Result<Model, String> {
    let mut found = Model::new();
    let mut page = [0; PAGE_SIZE];
    for container in store.containers() {
        for range in store.stored_pages(container).map_err(|error| error.to_string())? {
            for page_no in range.pages() {
                let id = PageId { container, page: page_no };
                let stored = store.read_page(id, &mut page).map_err(|error| error.to_string())?;
                match number_of(stored, &page) {
                    Some(Some(number)) => drop(found.insert(id, number)),
                    _ => return Err(format!("{id} has wrong bytes")),
                }
            }
        }
    }
    Ok(found)
}

/// Whether something is withheld; an error if something is wrong.
fn agrees_but_for_damage(store: &Store, want: &Model) -> Result<bool, String> {
    let mut withheld = false;
    let mut page = [0; PAGE_SIZE];
    let mut ids: Vec<PageId> = want.keys().copied().collect();
    for container in store.containers() {
        match store.stored_pages(container) {
            Ok(ranges) => ids.extend(
                ranges.iter().flat_map(|r| r.pages()).map(|page| PageId { container, page }),
            ),
            Err(ReadError::Damaged(_)) => withheld = true,
            Err(error) => return Err(error.to_string()),
        }
    }
    for id in ids {
        match store.read_page(id, &mut page) {
            Ok(stored) => {
                if number_of(stored, &page) != Some(want.get(&id).copied()) {
                    return Err(format!("{id} is wrong"));
                }
            }
            Err(ReadError::Damaged(damage)) if damage.page.is_none_or(|page| page == id) => {
                withheld = true;
            }
            Err(error) => return Err(format!("{id}: {error}")),
        }
    }
    Ok(withheld)
}
