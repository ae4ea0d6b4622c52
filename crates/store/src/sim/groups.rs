//! Several associations that share flushes, tortured on a [`CrashMedium`]. The oracle: after each crash every
//! association is exactly at its last acknowledged stabilisation or at one under way, and of a group that was
//! being written the first ones are there and the rest is not. Read [`life`] first.

use std::collections::BTreeMap;
use std::sync::Arc;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};

use super::audit::audit;
use super::{CrashMedium, Fault, SplitMix};
use crate::batch::Batch;
use crate::commit::{Committed, Meanwhile};
use crate::directory::CreateOptions;
use crate::error::CommitError;
use crate::read::Stored;
use crate::store::Store;

/// How many associations there are; each has a container of its own.
const ASSOCIATIONS: usize = 4;

/// What an association must hold: the number of each page, from which its image follows.
type Model = BTreeMap<u64, u64>;

/// What happened in a life that went well.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lived {
    /// Crashes, each followed by a recovery that was checked.
    pub crashes: u64,
    /// Groups of more than one stabilisation that were acknowledged.
    pub groups: u64,
    /// Stabilisations that were acknowledged.
    pub committed: u64,
    /// Groups that failed while the machine went on.
    pub failed: u64,
    /// Recoveries that brought all of a group under way.
    pub whole: u64,
    /// Recoveries that brought a part of one.
    pub part: u64,
}

impl Lived {
    /// Adds another life's counts.
    pub fn add(&mut self, other: Lived) {
        self.crashes += other.crashes;
        self.groups += other.groups;
        self.committed += other.committed;
        self.failed += other.failed;
        self.whole += other.whole;
        self.part += other.part;
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
        store_id: Some(u128::from(seed) << 64 | 0x6809),
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
        acknowledged: Default::default(),
        admitted: Vec::new(),
        next_number: 1,
        lived: Lived::default(),
    };
    for _ in 0..crashes {
        life.until_crash()?;
        life.recover()?;
    }
    Ok(life.lived)
}

/// Commits these batches as one group, as if several threads had asked for it at the same moment.
pub fn commit_as_group(
    store: &Store,
    batches: &mut [&mut Batch],
) -> Vec<Result<Committed, CommitError>> {
    store.commit_together(&mut store.writer(), batches, &mut Meanwhile::none())
}

/// What one association would hold after a stabilisation.
type Step = (usize, Model);

struct Life {
    random: SplitMix,
    medium: CrashMedium,
    /// Absent between a crash and the end of recovery.
    store: Option<Store>,
    acknowledged: [Model; ASSOCIATIONS],
    /// Groups that failed since, or were under way at the crash: each step by step.
    admitted: Vec<Vec<Step>>,
    next_number: u64,
    lived: Lived,
}

impl Life {
    fn store(&self) -> &Store {
        self.store.as_ref().expect("the store is open")
    }

    /// Works until the machine stops, which it does soon.
    fn until_crash(&mut self) -> Result<(), String> {
        let calls = 1 + self.random.below(60);
        let failing = self.random.below(3) == 0;
        let fault = if failing {
            [Fault::Eio, Fault::LosingFlush, Fault::NoSpace][self.random.below(3) as usize]
        } else {
            Fault::Crash
        };
        self.medium.fail_at(calls, fault);
        let mut steps = 0;
        while !self.medium.is_crashed() {
            match self.random.below(13) {
                0 => drop(self.store().checkpoint()),
                1 => drop(self.store().maintain()),
                2 => drop(self.store().clean_step(&mut self.store().keeper())),
                _ => self.commit()?,
            }
            steps += 1;
            // After a failure life goes on for a while before the crash.
            if failing && steps == 20 {
                self.medium.fail_at(1 + self.random.below(20), Fault::Crash);
            }
        }
        Ok(())
    }

    /// Commits a group of random batches, and notes what may be found from now on.
    fn commit(&mut self) -> Result<(), String> {
        let count = 1 + self.random.below(5);
        let mut models = self.acknowledged.clone();
        let mut batches: Vec<Batch> = Vec::new();
        let mut steps: Vec<Step> = Vec::new();
        for i in 0..count {
            let association = self.random.below(ASSOCIATIONS as u64) as usize;
            let container = ContainerId(association as u32);
            let model = &mut models[association];
            let mut batch = self.store.as_ref().expect("the store is open").batch();
            batch.set_association(association as u32);
            let drops = self.random.below(12) == 0;
            if drops {
                batch.drop_container(container);
                model.clear();
            }
            // Only the last of a group may be a heavy one, which begins with three entries where segments are smallest.
            let most = if i + 1 == count { 40 } else { 2 - u64::from(drops) };
            for _ in 0..self.random.below(most) + 1 {
                let page = self.random.below(12);
                let id = PageId { container, page: PageNo(page) };
                if self.random.below(5) == 0 {
                    batch.zero(id);
                    model.remove(&page);
                } else {
                    let number = self.next_number;
                    self.next_number += 1;
                    batch.push(id, |bytes| image(number, bytes));
                    model.insert(page, number);
                }
            }
            steps.push((association, model.clone()));
            batches.push(batch);
        }
        let mut group: Vec<&mut Batch> = batches.iter_mut().collect();
        let store = self.store.as_ref().expect("the store is open");
        let outcomes = commit_as_group(store, &mut group);
        let told = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        if told == 0 {
            self.lived.failed += u64::from(!self.medium.is_crashed());
            self.admitted.push(steps);
            return Ok(());
        }
        for ((association, model), outcome) in steps.iter().zip(&outcomes) {
            if outcome.is_ok() {
                self.acknowledged[*association] = model.clone();
            }
        }
        self.admitted.clear();
        if told == outcomes.len() {
            self.lived.committed += told as u64;
            self.lived.groups += u64::from(told > 1);
        } else {
            // Only for want of room is one told something else than the others.
            let each_alone = outcomes
                .iter()
                .filter_map(|outcome| outcome.as_ref().err())
                .any(|error| matches!(error, CommitError::NoSpace { .. }));
            if !each_alone && !self.medium.is_crashed() {
                return Err(format!("a group that failed was acknowledged in part: {outcomes:?}"));
            }
            let untold = steps.into_iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_err());
            self.admitted.push(untold.map(|(step, _)| step).collect());
        }
        Ok(())
    }

    /// Starts the machine again and checks the state it comes to.
    fn recover(&mut self) -> Result<(), String> {
        self.store = None;
        self.medium.restart();
        self.lived.crashes += 1;
        let (store, report) = Store::open_on(Arc::new(self.medium.clone()))
            .map_err(|error| format!("recovery refused: {error}"))?;
        let found = contents(&store)?;
        if found != self.acknowledged {
            // Some steps of one of the groups under way, from its first on.
            let prefixes = self.admitted.iter().flat_map(|steps| {
                (1..=steps.len()).map(|count| {
                    let mut models = self.acknowledged.clone();
                    for (association, model) in &steps[..count] {
                        models[*association] = model.clone();
                    }
                    (models, count == steps.len())
                })
            });
            let mut under_way = prefixes.filter(|(models, _)| *models == found);
            match under_way.next() {
                Some((_, true)) => self.lived.whole += 1,
                Some((_, false)) => self.lived.part += 1,
                None => {
                    let wrong = (0..ASSOCIATIONS).filter(|&a| found[a] != self.acknowledged[a]);
                    return Err(format!(
                        "associations {:?} are neither as acknowledged nor as one of {} groups \
                         under way; {report:?}",
                        wrong.collect::<Vec<_>>(),
                        self.admitted.len()
                    ));
                }
            }
        }
        audit(&store, &self.medium).map_err(|error| format!("after recovery: {error}"))?;
        let verified = store.verify(&mut |_| {}).map_err(|error| format!("verifying: {error}"))?;
        if verified.damages.len() > 1 || !verified.miscounted.is_empty() {
            return Err(format!("after recovery: {verified:?}"));
        }
        self.acknowledged = found;
        self.admitted.clear();
        self.store = Some(store);
        Ok(())
    }
}

/// The image of a page with this number.
fn image(number: u64, bytes: &mut [u8]) {
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&number.wrapping_mul(2 * i as u64 + 1).to_le_bytes());
    }
}

/// Everything that the store holds.
fn contents(store: &Store) -> Result<[Model; ASSOCIATIONS], String> {
    let mut found: [Model; ASSOCIATIONS] = Default::default();
    let (mut page, mut want) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
    for container in store.containers() {
        for range in store.stored_pages(container).map_err(|error| error.to_string())? {
            for page_no in range.pages() {
                let id = PageId { container, page: page_no };
                let stored = store.read_page(id, &mut page).map_err(|error| error.to_string())?;
                let number = u64::from_le_bytes(*page.first_chunk().expect("a page has bytes"));
                image(number, &mut want);
                if stored != Stored::Image || page != want {
                    return Err(format!("{id} has wrong bytes"));
                }
                found[container.0 as usize].insert(page_no.0, number);
            }
        }
    }
    Ok(found)
}
