//! A store tortured on a [`CrashMedium`]: random stabilisations, upkeep, failures, crashes (in recovery too), rot,
//! against a model that is a map of numbers. The oracle: after each crash exactly the last acknowledged state,
//! or the one under way. Read [`life`] first; [`cleaning_life`] is mostly about what happens between the steps of cleaning.

use std::fmt;
use std::sync::Arc;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};

use super::audit::audit;
use super::model::{Model, agrees_but_for_damage, contents, image, number_of};
use super::{CrashMedium, Fault, SECTOR, SplitMix};
use crate::batch::Batch;
use crate::directory::CreateOptions;
use crate::error::{CommitError, OpenError, ReadError};
use crate::format::{BLOCK, ROOTS};
use crate::medium::Medium;
use crate::recover::OpenReport;
use crate::settings::{Setting, Settings};
use crate::shrink::Shrunk;
use crate::store::Store;
use crate::stream::Ahead;

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
    /// Stabilisations of which much was written ahead.
    pub streams: u64,
    /// Of those, how many a quota refused, as it had to.
    pub refused: u64,
    /// Quotas and bounds that were laid down or lifted.
    pub laid_down: u64,
    /// Blocks moved by cleaning.
    pub moved: u64,
    /// Pages that were put in order.
    pub tidied: u64,
    /// How often the file was made shorter.
    pub cut: u64,
    /// Recoveries that brought the state under way instead of the acknowledged one.
    pub under_way: u64,
    /// Recoveries from the older root.
    pub fell_back: u64,
    /// Openings of a copy with rot in it.
    pub rotten: u64,
    /// Of those, how many were refused or had pages withheld.
    pub rot_noticed: u64,
    /// Copies on which a read or write did something else than it said.
    pub silent: u64,
    /// Of those, how many were refused or had pages withheld.
    pub silent_noticed: u64,
}

impl Lived {
    /// All counts, with what they count.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, u64); 16] {
        [
            ("crashes", self.crashes),
            ("crashes in recovery", self.crashes_in_recovery),
            ("stabilisations", self.committed),
            ("failed stabilisations", self.failed),
            ("of these refused by a quota", self.refused),
            ("of all these written ahead", self.streams),
            ("changes of quotas", self.laid_down),
            ("blocks moved by cleaning", self.moved),
            ("pages put in order", self.tidied),
            ("times the file was made shorter", self.cut),
            ("recoveries to the state under way", self.under_way),
            ("recoveries from the older root", self.fell_back),
            ("copies with rot", self.rotten),
            ("of these noticed", self.rot_noticed),
            ("copies with silent faults", self.silent),
            ("of those noticed", self.silent_noticed),
        ]
    }

    /// Adds another life's counts.
    pub fn add(&mut self, other: Lived) {
        self.crashes += other.crashes;
        self.crashes_in_recovery += other.crashes_in_recovery;
        self.committed += other.committed;
        self.failed += other.failed;
        self.streams += other.streams;
        self.refused += other.refused;
        self.laid_down += other.laid_down;
        self.moved += other.moved;
        self.tidied += other.tidied;
        self.cut += other.cut;
        self.under_way += other.under_way;
        self.fell_back += other.fell_back;
        self.rotten += other.rotten;
        self.rot_noticed += other.rot_noticed;
        self.silent += other.silent;
        self.silent_noticed += other.silent_noticed;
    }
}

impl fmt::Display for Lived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (what, count)) in self.counts().into_iter().enumerate() {
            write!(f, "{}{count} {what}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Lives one store's life of `crashes` crashes, as `seed` has it: the same each time.
///
/// # Errors
/// The promise that was broken, in words.
pub fn life(seed: u64, crashes: u64) -> Result<Lived, String> {
    live(Life::new(seed)?, crashes)
}

/// The same with few pages that often become zero, and single steps of cleaning in between: what one step has found
/// is soon no longer so.
///
/// # Errors
/// As for [`life`].
pub fn cleaning_life(seed: u64, crashes: u64) -> Result<Lived, String> {
    live(Life::of_cleaning(seed)?, crashes)
}

fn live(mut life: Life, crashes: u64) -> Result<Lived, String> {
    for _ in 0..crashes {
        life.until_crash()?;
        life.recover()?;
    }
    Ok(life.lived)
}

/// How many pages of a container there are.
fn held(model: &Model, container: ContainerId) -> u64 {
    model.keys().filter(|id| id.container == container).count() as u64
}

/// How long a file may become that has this quota now.
fn longest_with(quota: Option<u64>, medium: &CrashMedium) -> u64 {
    // One that is longer already stays so.
    quota.map_or(u64::MAX, |bytes| bytes.max(medium.len().unwrap_or(u64::MAX)))
}

/// A store, its disk, and what it must hold.
pub(super) struct Life {
    random: SplitMix,
    pub(super) medium: CrashMedium,
    /// Absent between a crash and the end of recovery.
    store: Option<Store>,
    batch: Batch,
    acknowledged: Model,
    /// What was acknowledged before that.
    before: Model,
    before_that: Model,
    /// What attempts that failed since would have made of it.
    admitted: Vec<Model>,
    /// What it holds with all that the batch has; `None` if that is empty.
    tried: Option<Model>,
    /// What has been laid down, and what may be after attempts that failed since.
    settings: Settings,
    settings_admitted: Vec<Settings>,
    /// How long the file may become.
    longest: u64,
    /// Whether reading may have failed, so that not everything has to be known.
    unsure: bool,
    /// Whether quotas are laid down: they hold up much else.
    with_quotas: bool,
    next_number: u64,
    /// Whether the last thing that happened to the disk was an acknowledged stabilisation.
    fresh: bool,
    /// Whether the last recovery could use one root only.
    one_root: bool,
    /// Whether it is mostly about cleaning.
    cleaning: bool,
    /// Whether nothing of the maps is kept in memory.
    forgetful: bool,
    pub(super) lived: Lived,
}

impl Life {
    pub(super) fn new(seed: u64) -> Result<Self, String> {
        let mut random = SplitMix(seed);
        let medium = CrashMedium::new(random.next_u64());
        let segment_blocks = [8, 12, 16, 32][random.below(4) as usize];
        Life::with(seed, random, medium, segment_blocks)
    }

    pub(super) fn of_cleaning(seed: u64) -> Result<Self, String> {
        let mut random = SplitMix(seed);
        let medium = CrashMedium::new(random.next_u64());
        let segment_blocks = [8, 12][random.below(2) as usize];
        Ok(Life { cleaning: true, ..Life::with(seed, random, medium, segment_blocks)? })
    }

    fn with(
        seed: u64,
        random: SplitMix,
        medium: CrashMedium,
        segment_blocks: u32,
    ) -> Result<Self, String> {
        let options = CreateOptions {
            segment_blocks: Some(segment_blocks),
            store_id: Some(u128::from(seed) << 64 | 0x57EAD),
            base_window: Some(0),
            created: Some(0),
            quota: None,
            space_percent: None,
        };
        let store = Store::create_on(Arc::new(medium.clone()), &options)
            .map_err(|error| format!("creating: {error}"))?;
        Ok(Life {
            random,
            medium,
            batch: store.batch(),
            store: Some(store),
            acknowledged: Model::new(),
            before: Model::new(),
            before_that: Model::new(),
            admitted: Vec::new(),
            tried: None,
            settings: Settings::default(),
            settings_admitted: Vec::new(),
            longest: u64::MAX,
            unsure: false,
            with_quotas: seed.is_multiple_of(3),
            next_number: 1,
            fresh: false,
            one_root: false,
            cleaning: false,
            forgetful: seed.is_multiple_of(5),
            lived: Lived::default(),
        })
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("the store is open")
    }

    /// Lets go of the store, as a machine that stops does.
    pub(super) fn power_off(&mut self) {
        self.store = None;
    }

    /// Works until the machine stops, which it does soon.
    fn until_crash(&mut self) -> Result<(), String> {
        // Behind a recovery from one root alone the next crash comes soon.
        let most = if self.cleaning { 500 } else { 120 };
        let calls = 1 + self.random.below(if self.one_root { 30 } else { most });
        let failing = self.random.below(3) == 0;
        if failing {
            let fault =
                [Fault::Eio, Fault::LosingFlush, Fault::NoSpace][self.random.below(3) as usize];
            self.unsure |= fault == Fault::Eio;
            self.medium.fail_at(calls, fault);
        } else {
            self.medium.fail_at(calls, Fault::Crash);
        }
        let mut left = u64::MAX;
        loop {
            self.step()?;
            if self.medium.is_crashed() || left == 0 {
                return Ok(());
            }
            // After a failure life goes on for a while before the crash.
            if failing && left == u64::MAX && self.random.below(4) == 0 {
                self.medium.fail_at(1 + self.random.below(60), Fault::Crash);
                left = 1 + self.random.below(12);
            }
            left = left.saturating_sub(u64::from(left != u64::MAX));
        }
    }

    /// Does one thing.
    pub(super) fn step(&mut self) -> Result<(), String> {
        match self.random.below(22) {
            17 => self.check_pages(),
            18 => self.check_rot(),
            19 => match self.random.below(2) {
                0 => self.check_lost_root(),
                _ => self.check_silent(),
            },
            _ => self.work(),
        }
    }

    /// Does one thing that changes the disk.
    pub(super) fn work(&mut self) -> Result<(), String> {
        if self.cleaning {
            match self.random.below(24) {
                0..12 => self.commit()?,
                12..20 => self.fresh &= self.store().checkpoint().is_ok(),
                20 => self.tidy(),
                21 => self.clean(),
                _ => self.clean_a_step(),
            }
            return Ok(());
        }
        match self.random.below(25) {
            0..12 => self.commit()?,
            // A failure may have left one root torn.
            12..14 => self.fresh &= self.store().checkpoint().is_ok(),
            14 => self.fresh &= self.store().maintain().is_ok(),
            17 | 18 => self.shrink(),
            19 => self.tidy(),
            20 if self.with_quotas => self.lay_down(),
            20.. => self.clean_a_step(),
            _ => self.clean(),
        }
        match self.medium.len() {
            Ok(len) if len > self.longest => {
                Err(format!("the file has {len} bytes, {} are its quota", self.longest))
            }
            _ => Ok(()),
        }
    }

    /// Lays down a quota, or lifts one: such as are met soon; or how large the file may be for what is live.
    fn lay_down(&mut self) {
        let store = self.store.as_ref().expect("the store is open");
        let layout = store.layout();
        let mut settings = self.settings.clone();
        let stuck = settings.quota.is_some();
        let lift = stuck || self.random.below(3) == 0;
        let set = if stuck || self.random.below(20) == 0 {
            let len = layout.file_bytes(10 + self.random.below(24) as usize);
            settings.quota = (!lift).then_some(len + self.random.below(4096));
            store.set_quota(settings.quota)
        } else if self.random.below(8) == 0 {
            settings.space_percent = (!lift).then(|| 150 + self.random.below(200) as u32);
            store.set_space_percent(settings.space_percent)
        } else {
            let container = ContainerId(self.random.below(3) as u32);
            let held = held(&self.acknowledged, container) + self.random.below(12);
            let quota = (!lift).then_some(held * PAGE_SIZE as u64 + self.random.below(100));
            settings.set(Setting::ContainerQuota(container, quota));
            store.set_container_quota(container, quota)
        };
        if set.is_err() {
            self.settings_admitted.push(settings);
            self.fresh = false;
            return;
        }
        self.lived.laid_down += 1;
        self.longest = longest_with(settings.quota, &self.medium);
        self.settings = settings;
        self.settings_admitted.clear();
    }

    /// Commits a random batch and notes what may be found from now on.
    fn commit(&mut self) -> Result<(), String> {
        let batch = &mut self.batch;
        // A batch that failed is tried again as it is, with more in it, or given up.
        if self.random.below(3) == 0 {
            batch.clear();
            self.tried = None;
        }
        let mut model = self.tried.take().unwrap_or_else(|| self.acknowledged.clone());
        let pages = match self.random.below(4) {
            _ if self.cleaning => 1 + self.random.below(5),
            0 => 1,
            1 => 1 + self.random.below(5),
            2 => 1 + self.random.below(20),
            _ => 1 + self.random.below(60),
        };
        let store = self.store.as_ref().expect("the store is open");
        let mut drop_at = match self.random.below(25) {
            0 => Some(0),
            1 => Some(self.random.below(pages)),
            _ => None,
        };
        let mut stream = None;
        let mut aheads = Vec::new();
        for i in 0..pages {
            if drop_at.take_if(|at| *at == i).is_some() {
                let container = ContainerId(self.random.below(3) as u32);
                batch.drop_container(container);
                model.retain(|id, _| id.container != container);
            }
            if i == 0 && self.random.below(2) == 0 {
                stream = store.stream(batch, batch.pages() as u64 + pages);
                self.lived.streams += u64::from(stream.is_some());
            }
            let page = match self.random.below(8) {
                _ if self.cleaning => self.random.below(6),
                0 => self.random.below(1000) * 777,
                _ => self.random.below(40),
            };
            let id =
                PageId { container: ContainerId(self.random.below(3) as u32), page: PageNo(page) };
            if self.random.below(if self.cleaning { 3 } else { 8 }) == 0 {
                batch.zero(id);
                model.remove(&id);
            } else {
                let number = self.next_number;
                self.next_number += 1;
                batch.push(id, |bytes| image(number, bytes));
                model.insert(id, number);
            }
            if let Some(stream) = &mut stream
                && self.random.below(4) == 0
            {
                aheads.extend(stream.give(batch));
            }
            if self.random.below(4) == 0 {
                // Neither all at once nor in their order.
                let at = self.random.below(aheads.len() as u64 + 1) as usize;
                Ahead::run(&mut aheads.split_off(at));
            }
        }
        // Some are never run.
        if self.random.below(16) > 0 {
            Ahead::run(&mut aheads);
        }
        drop(aheads);
        if self.random.below(8) == 0
            && let Some(stream) = stream.take()
        {
            stream.give_up(batch);
        }
        let mut settings = self.settings.clone();
        batch.dropped().for_each(|container| settings.forget(container));
        let over = settings.containers.iter().any(|(&container, &quota)| {
            let (before, now) = (held(&self.acknowledged, container), held(&model, container));
            now > before && now * PAGE_SIZE as u64 > quota
        });
        let committed = match stream {
            Some(stream) => stream.commit(batch),
            None => {
                let mut called = 0;
                let committed = store.commit_while(batch, || called += 1);
                assert_eq!(called, 1, "what is done meanwhile is done once");
                committed
            }
        };
        match committed {
            Ok(_) if over && !self.unsure => {
                return Err("a container was given more than its quota".into());
            }
            Err(CommitError::ContainerFull { .. }) if over => {
                self.lived.failed += 1;
                self.lived.refused += 1;
                // Some of it may have been written ahead.
                self.fresh = false;
                if self.random.below(2) == 0 {
                    batch.clear();
                } else {
                    self.tried = Some(model);
                }
            }
            Err(error @ CommitError::ContainerFull { .. }) if !self.unsure => {
                return Err(format!("though there is room: {error}"));
            }
            Ok(committed) => {
                self.settings = settings;
                if committed.bytes_written > 0 {
                    self.settings_admitted.clear();
                    self.lived.committed += 1;
                    let before = std::mem::replace(&mut self.acknowledged, model);
                    self.before_that = std::mem::replace(&mut self.before, before);
                } else if model != self.acknowledged {
                    return Err("a stabilisation that changes something wrote nothing".into());
                }
                self.admitted.clear();
                self.fresh |= committed.bytes_written > 0;
            }
            Err(_) => {
                self.lived.failed += u64::from(!self.medium.is_crashed());
                self.tried = Some(model.clone());
                self.admitted.push(model);
                self.settings_admitted.push(settings);
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

    /// One step of cleaning, which may read a segment and leave what it found there for later.
    fn clean_a_step(&mut self) {
        let store = self.store.as_ref().expect("the store is open");
        let cleaned = store.clean_step(&mut store.keeper());
        match cleaned {
            Ok(moved) => self.lived.moved += moved.unwrap_or_default(),
            Err(_) => self.fresh = false,
        }
    }

    /// Makes the file shorter, if what lies at its end can be moved.
    fn shrink(&mut self) {
        let few = 1 + self.random.below(6) as usize;
        let store = self.store.as_ref().expect("the store is open");
        let before = store.stat().segments;
        let target = before.saturating_sub(few).max(6);
        let mut done = Ok(());
        for _ in 0..30 {
            let step = store.shrink_step(&mut store.keeper(), target);
            done = match step {
                Ok(Shrunk::Step(_)) => continue,
                Ok(Shrunk::ChainInTheWay) => store.move_chain(),
                Ok(Shrunk::Cut | Shrunk::Blocked) => break,
                Err(error) => Err(error),
            };
            if done.is_err() {
                break;
            }
        }
        self.fresh &= done.is_ok();
        self.lived.cut += u64::from(store.stat().segments < before);
    }

    /// Puts pages in order.
    fn tidy(&mut self) {
        let store = self.store.as_ref().expect("the store is open");
        for _ in 0..4 {
            match store.tidy_step(&mut store.keeper()) {
                Ok(pages) => self.lived.tidied += pages,
                Err(_) => {
                    self.fresh = false;
                    return;
                }
            }
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
    pub(super) fn recover(&mut self) -> Result<(), String> {
        self.store = None;
        self.medium.restart();
        self.lived.crashes += 1;
        let (store, report) = loop {
            match self.random.below(8) {
                0 | 1 => self.medium.fail_at(1 + self.random.below(12), Fault::Crash),
                // Most often when the table of the newest root is read.
                2 => self.medium.fail_at(2 + self.random.below(2), Fault::Eio),
                3 => self.medium.fail_at(1 + self.random.below(12), Fault::Eio),
                _ => {}
            }
            let opened = Store::open_on(Arc::new(self.medium.clone()));
            if self.medium.is_crashed() {
                drop(opened);
                self.medium.restart();
                self.lived.crashes_in_recovery += 1;
                continue;
            }
            self.medium.no_fault();
            match opened {
                // The disk refused once.
                Err(OpenError::Io { .. }) => {}
                opened => break opened.map_err(|error| format!("recovery refused: {error}"))?,
            }
        };
        if self.forgetful {
            store.set_map_bytes_max(0);
        }
        self.check_recovered(store, &report)
    }

    fn check_recovered(&mut self, store: Store, report: &OpenReport) -> Result<(), String> {
        let found = contents(&store).map_err(|error| format!("after recovery: {error}"))?;
        if found != self.acknowledged {
            if !self.admitted.contains(&found) {
                return Err(self.describe(&found, report));
            }
            self.lived.under_way += 1;
        }
        self.lived.fell_back += u64::from(report.fell_back);
        self.one_root = report.fell_back;
        audit(&store, &self.medium).map_err(|error| format!("after recovery: {error}"))?;
        // The walk above has looked at everything; the store's own looks at the same, now and then at all of it.
        let verified = match self.random.below(8) {
            0 => store.verify(&mut |_| {}),
            _ => store.verify_map(),
        };
        let verified = verified.map_err(|error| format!("verifying: {error}"))?;
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
        let settings = store.state().settings.clone();
        if settings != self.settings && !self.settings_admitted.contains(&settings) {
            let known = &self.settings;
            return Err(format!("found {settings:?}, {known:?} was laid down; {report:?}"));
        }
        // What has been shown must stay.
        self.longest = longest_with(settings.quota, &self.medium);
        if settings != self.settings {
            // Until something is written, another recovery may have to go by the older root.
            let before = std::mem::replace(&mut self.settings, settings);
            self.settings_admitted.push(before);
        }
        self.unsure = false;
        self.tried = None;
        self.acknowledged = found;
        self.admitted.clear();
        self.batch.clear();
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
        let settings = &store.state().settings;
        if *settings != self.settings {
            return Err(format!("from the other root: {settings:?}, not {:?}", self.settings));
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
        let block = sector / 8;
        let replacement = match self.random.below(6) {
            // A block that was meant for another place.
            0 => {
                let mut astray = [0; BLOCK];
                let other = self.random.below(sectors / 8) * BLOCK as u64;
                copy.read(other, &mut astray).map_err(|error| error.to_string())?;
                Some(astray)
            }
            // An old one where a new one should be.
            1 => Some(copy.older_block(block)),
            2 => Some([0; BLOCK]),
            _ => None,
        };
        match &replacement {
            Some(bytes) => {
                for (i, new) in bytes.chunks(SECTOR).enumerate() {
                    let offset = block * BLOCK as u64 + (i * SECTOR) as u64;
                    copy.rot(offset, |bytes| bytes.copy_from_slice(new));
                }
            }
            None => copy.rot(sector * SECTOR as u64, |bytes| bytes[byte] ^= 0x40),
        }
        self.lived.rotten += 1;
        let where_ = format!("rot at offset {:#x}", sector * SECTOR as u64 + byte as u64);
        let (store, report) = match Store::open_on(Arc::new(copy)) {
            Ok(opened) => opened,
            // One damaged block holds up nothing but what is in it.
            Err(error) => return Err(format!("{where_}: {error}")),
        };
        // The end of the log, cut short by rot, looks as if cut short by a crash; it is told, unless
        // nothing at all is left of its last header.
        let states: &[&Model] = if replacement.is_some() || report.unfinished.is_some() {
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

    /// A read or a write that does something else than it says: right bytes or an error from then on, and a state
    /// that was acknowledged; the last write of all, if it left nothing where it belongs, may be missing without a word,
    /// and the one before it, if that was written over by it.
    fn check_silent(&mut self) -> Result<(), String> {
        if !self.fresh || self.medium.is_crashed() {
            return Ok(());
        }
        let copy = self.medium.copy(self.random.next_u64());
        let fault =
            [Fault::StaleRead, Fault::Astray, Fault::LostWrite][self.random.below(3) as usize];
        let at_opening = fault == Fault::StaleRead && self.random.below(2) == 0;
        if at_opening {
            copy.fail_at(1 + self.random.below(8), fault);
        }
        self.lived.silent += 1;
        let mut noticed = false;
        let mut life = match Store::open_on(Arc::new(copy.clone())) {
            Ok((store, _)) => Life {
                random: SplitMix(self.random.next_u64()),
                medium: copy,
                batch: store.batch(),
                store: Some(store),
                acknowledged: self.acknowledged.clone(),
                before: self.before.clone(),
                before_that: self.before_that.clone(),
                admitted: Vec::new(),
                tried: None,
                settings: self.settings.clone(),
                settings_admitted: Vec::new(),
                longest: u64::MAX,
                unsure: true,
                with_quotas: false,
                next_number: self.next_number,
                fresh: false,
                one_root: false,
                cleaning: self.cleaning,
                forgetful: self.forgetful,
                lived: Lived::default(),
            },
            Err(OpenError::Damaged { .. } | OpenError::NotAStore { .. }) if at_opening => {
                self.lived.silent_noticed += 1;
                return Ok(());
            }
            Err(error) => return Err(format!("{fault:?}: {error}")),
        };
        if !at_opening {
            life.medium.fail_at(1 + self.random.below(30), fault);
            for _ in 0..1 + self.random.below(6) {
                life.work().map_err(|error| format!("{fault:?}: {error}"))?;
            }
            noticed |= !life.admitted.is_empty();
            life.medium.no_fault();
            drop(life.store.take());
            life.medium.restart();
            match Store::open_on(Arc::new(life.medium.clone())) {
                Ok((store, _)) => life.store = Some(store),
                Err(OpenError::Damaged { .. } | OpenError::NotAStore { .. }) => {
                    self.lived.silent_noticed += 1;
                    return Ok(());
                }
                Err(error) => return Err(format!("{fault:?}: {error}")),
            }
        }
        let mut wrong = Vec::new();
        // The last record of all may have been put over the one before it.
        let two = (fault == Fault::Astray).then_some(&life.before_that);
        let states = [&life.acknowledged, &life.before].into_iter().chain(two);
        for want in states.chain(&life.admitted) {
            match agrees_but_for_damage(life.store(), want) {
                Ok(withheld) => {
                    self.lived.silent_noticed += u64::from(noticed || withheld);
                    return Ok(());
                }
                Err(error) => wrong.push(error),
            }
        }
        Err(format!("{fault:?}: {}", wrong.join("; ")))
    }
}
