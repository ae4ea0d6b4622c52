//! A small world with sections, a lock and rounds of stabilisation: programs follow scripts, what is
//! captured becomes the stable state at the commit, and no section may be in it by half. Read
//! [`Script`] and [`World`] first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stead_coherence::planted::Bug;
use stead_coherence::{
    Access, ClusterConfig, ClusterId, Config, DomainId, Effect, Effects, Event, Manager, Message,
    Outcome, PageKey, Policy, RoundId, Site, SiteId, Source, Version, View,
};

use crate::happened::{Happened, Sight};
use crate::interned::Interned;

pub(crate) const DOMAIN: DomainId = DomainId(1);
/// Pages whose homes are different sites, and the lock.
pub(crate) const PAGES: [PageKey; 2] = [PageKey::new(1, 5 * 64), PageKey::new(1, 64)];
const LOCK: PageKey = PageKey::new(2, 0);

/// What a section does, in order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Op {
    Lock,
    Unlock,
    Read(usize),
    Write(usize),
}

/// A mutating section at a site. Section `n` leaves bit `n` in every page that it writes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Script {
    pub(crate) site: usize,
    pub(crate) ops: &'static [Op],
}

#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) manager: Manager,
    pub(crate) policy: Policy,
    pub(crate) sites: u16,
    pub(crate) scripts: Vec<Script>,
    /// Sites that ask for a stabilisation, once for each mention.
    pub(crate) rounds: Vec<usize>,
    pub(crate) losses: u8,
    pub(crate) early_ticks: u8,
    pub(crate) give_ups: u8,
    pub(crate) crashes: u8,
    pub(crate) bug: Option<Bug>,
}

impl Bounds {
    pub(crate) fn new(scripts: Vec<Script>, rounds: Vec<usize>) -> Bounds {
        Bounds {
            manager: Manager::Dynamic,
            policy: Policy::Invalidate,
            sites: 3,
            scripts,
            rounds,
            losses: 0,
            early_ticks: 0,
            give_ups: 0,
            crashes: 0,
            bug: None,
        }
    }

    fn config(&self) -> Config {
        let pages = ClusterConfig {
            id: ClusterId(1),
            manager: self.manager,
            policy: self.policy,
            domain: Some(DOMAIN),
        };
        let locks = ClusterConfig { id: ClusterId(2), policy: Policy::Lock, domain: None, ..pages };
        let mut config = Config::new(vec![pages, locks]);
        config.retry_us = 0;
        config.hold_us = 0;
        // Rounds end by `Step::GiveUp` here, when the checker chooses.
        config.gate_us = 1;
        config.planted = self.bug;
        config
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Letter {
    to: usize,
    from: SiteId,
    view: u32,
    message: Message,
    bodies: Vec<(PageKey, u16)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Frame {
    access: Access,
    /// Which sections wrote here.
    body: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Progress {
    Before,
    /// The next operation; whether a fault is being waited for.
    Inside(u8, bool),
    Done,
    /// Its site died, or it was undone.
    Gone,
}

/// Work that a site was asked to do and has not done yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Task {
    Capture(PageKey, Version, RoundId),
    Persist(RoundId),
    Commit(RoundId),
    AskFate(RoundId),
    Undo(SiteId),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Step {
    Go(usize),
    Deliver(Interned<Letter>),
    Lose(Interned<Letter>),
    Tick(usize),
    Drained(usize),
    Do(usize, Task),
    Stabilise(usize),
    GiveUp(usize),
    Crash(usize),
    LearnView(usize),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct World {
    sites: Vec<Option<Interned<Site>>>,
    frames: Vec<[Frame; 2]>,
    progress: Vec<Progress>,
    /// For each section the sections whose writes it has seen.
    seen_by: Vec<u16>,
    gates: Vec<bool>,
    drained: Vec<bool>,
    /// Under way, in order.
    letters: Vec<Interned<Letter>>,
    tasks: Interned<BTreeSet<(usize, Task)>>,
    store: Interned<Store>,
    /// Sections that were over at a site when it asked for a stabilisation.
    promised: Vec<Option<u16>>,
    left: Left,
    view: Interned<Arc<View>>,
    broken: Option<&'static str>,
}

/// What is durable.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Store {
    /// What is captured for rounds that are not committed: by site, round and page.
    kept: BTreeMap<(usize, RoundId, PageKey), (Version, u16)>,
    members: BTreeMap<RoundId, Vec<usize>>,
    stable: [u16; 2],
    stable_version: [Version; 2],
    committed: BTreeSet<RoundId>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Left {
    rounds: Vec<usize>,
    losses: u8,
    early_ticks: u8,
    give_ups: u8,
    crashes: u8,
}

impl Store {
    /// I20: the highest version of a page in the round is its stable state; it is not lower than the
    /// one before, or this fails.
    fn commit(&mut self, round: RoundId) -> Result<(), ()> {
        let mut sound = Ok(());
        for (at, key) in PAGES.iter().enumerate() {
            let of_page = self.kept.iter().filter(|((site, of, page), _)| {
                *of == round && page == key && self.members[&round].contains(site)
            });
            if let Some((_, (version, body))) = of_page.max_by_key(|(_, (v, _))| *v) {
                if *version < self.stable_version[at] {
                    sound = Err(());
                }
                self.stable[at] = *body;
                self.stable_version[at] = *version;
            }
        }
        self.kept.retain(|(_, of, _), _| *of != round);
        self.committed.insert(round);
        sound
    }
}

impl World {
    pub(crate) fn new(bounds: &Bounds) -> World {
        let view = Arc::new(View::first(bounds.sites));
        let config = Arc::new(bounds.config());
        let count = bounds.sites as usize;
        let site = |i| Some(Interned::new(Site::new(SiteId::new(i), config.clone(), view.clone())));
        World {
            sites: (0..bounds.sites).map(site).collect(),
            frames: vec![[Frame::default(); 2]; count],
            progress: vec![Progress::Before; bounds.scripts.len()],
            seen_by: vec![0; bounds.scripts.len()],
            gates: vec![false; count],
            drained: vec![false; count],
            letters: Vec::new(),
            tasks: Interned::new(BTreeSet::new()),
            store: Interned::new(Store::default()),
            promised: vec![None; count],
            left: Left {
                rounds: bounds.rounds.clone(),
                losses: bounds.losses,
                early_ticks: bounds.early_ticks,
                give_ups: bounds.give_ups,
                crashes: bounds.crashes,
            },
            view: Interned::new(view),
            broken: None,
        }
    }

    pub(crate) fn steps(&self, bounds: &Bounds, steps: &mut Vec<Step>) {
        for (section, script) in bounds.scripts.iter().enumerate() {
            if self.can_go(section, script) {
                steps.push(Step::Go(section));
            }
        }
        for letter in &self.letters {
            steps.push(Step::Deliver(letter.clone()));
            if self.left.losses > 0 {
                steps.push(Step::Lose(letter.clone()));
            }
        }
        for (site, task) in self.tasks.iter() {
            steps.push(Step::Do(*site, *task));
        }
        for (i, site) in self.sites.iter().enumerate() {
            let Some(site) = site else { continue };
            if site.view().number() < self.view.number() {
                steps.push(Step::LearnView(i));
            }
            if self.can_drain(bounds, i) {
                steps.push(Step::Drained(i));
            }
            if self.left.early_ticks > 0 || self.letters.is_empty() && self.tasks.is_empty() {
                steps.push(Step::Tick(i));
            }
            if self.left.rounds.contains(&i) && self.promised[i].is_none() {
                steps.push(Step::Stabilise(i));
            }
            if self.left.give_ups > 0 && self.promised[i].is_some() {
                steps.push(Step::GiveUp(i));
            }
            if self.left.crashes > 0 {
                steps.push(Step::Crash(i));
            }
        }
    }

    fn can_go(&self, section: usize, script: &Script) -> bool {
        let alive = self.sites[script.site].is_some();
        let doomed =
            self.tasks.iter().any(|(s, t)| *s == script.site && matches!(t, Task::Undo(_)));
        alive
            && match self.progress[section] {
                Progress::Before => !self.gates[script.site] && !doomed,
                Progress::Inside(_, waits) => !waits && !doomed,
                Progress::Done | Progress::Gone => false,
            }
    }

    fn can_drain(&self, bounds: &Bounds, site: usize) -> bool {
        self.gates[site] && !self.drained[site] && !self.is_inside(bounds, site)
    }

    fn is_inside(&self, bounds: &Bounds, site: usize) -> bool {
        let inside = |p: &Progress| matches!(p, Progress::Inside(..));
        bounds.scripts.iter().zip(&self.progress).any(|(s, p)| s.site == site && inside(p))
    }

    pub(crate) fn take(&mut self, bounds: &Bounds, step: Step, happened: &Happened) {
        match step {
            Step::Go(section) => self.go(bounds, section, happened),
            Step::Deliver(letter) => {
                self.letters.retain(|l| *l != letter);
                self.deliver(bounds, &letter, happened);
            }
            Step::Lose(letter) => {
                self.left.losses -= 1;
                self.letters.retain(|l| *l != letter);
            }
            Step::Tick(site) => {
                if !(self.letters.is_empty() && self.tasks.is_empty()) {
                    self.left.early_ticks -= 1;
                }
                self.handle(bounds, site, Event::Tick, &[], happened);
            }
            Step::Drained(site) => {
                self.drained[site] = true;
                self.handle(bounds, site, Event::Drained { domain: DOMAIN }, &[], happened);
            }
            Step::Do(site, task) => {
                self.change_tasks(|tasks| {
                    tasks.remove(&(site, task));
                });
                self.work(bounds, site, task, happened);
            }
            Step::Stabilise(site) => {
                let at = self.left.rounds.iter().position(|s| *s == site).unwrap();
                self.left.rounds.remove(at);
                let over =
                    |(n, s): (usize, &Script)| s.site == site && self.progress[n] == Progress::Done;
                let scripts = bounds.scripts.iter().enumerate();
                let promised = scripts.filter(|x| over(*x)).fold(0, |m, (n, _)| m | 1 << n);
                self.promised[site] = Some(promised);
                self.handle(bounds, site, Event::Stabilise { domain: DOMAIN }, &[], happened);
            }
            Step::GiveUp(site) => {
                self.left.give_ups -= 1;
                self.handle(bounds, site, Event::GiveUp { domain: DOMAIN }, &[], happened);
            }
            Step::Crash(site) => {
                self.left.crashes -= 1;
                self.crash(bounds, site);
            }
            Step::LearnView(site) => {
                let number = self.view.number();
                self.letters.retain(|l| l.to != site || l.view >= number);
                self.handle(bounds, site, Event::View(self.view.value()), &[], happened);
            }
        }
    }

    fn crash(&mut self, bounds: &Bounds, site: usize) {
        self.sites[site] = None;
        self.frames[site] = [Frame::default(); 2];
        self.letters.retain(|l| l.to != site);
        self.change_tasks(|tasks| tasks.retain(|(s, _)| *s != site));
        self.promised[site] = None;
        self.left.rounds.retain(|s| *s != site);
        for (script, progress) in bounds.scripts.iter().zip(&mut self.progress) {
            if script.site == site {
                *progress = Progress::Gone;
            }
        }
        self.view = Interned::new(Arc::new(self.view.without(SiteId::new(site as u16))));
    }

    /// A section's next operation: done, or a fault.
    fn go(&mut self, bounds: &Bounds, section: usize, happened: &Happened) {
        let script = &bounds.scripts[section];
        let site = script.site;
        let at = match self.progress[section] {
            Progress::Inside(at, _) => at,
            _ => 0,
        };
        self.progress[section] = Progress::Inside(at, false);
        let done = match script.ops[at as usize] {
            Op::Lock => {
                self.progress[section] = Progress::Inside(at, true);
                self.handle(
                    bounds,
                    site,
                    Event::Lock { lock: LOCK, with: Some(PAGES[0]) },
                    &[],
                    happened,
                );
                return;
            }
            Op::Unlock => {
                self.handle(bounds, site, Event::Unlock { lock: LOCK }, &[], happened);
                true
            }
            Op::Read(page) => self.touch(bounds, section, page, false, happened),
            Op::Write(page) => self.touch(bounds, section, page, true, happened),
        };
        if done {
            self.advance(bounds, section);
        }
    }

    fn advance(&mut self, bounds: &Bounds, section: usize) {
        if let Progress::Inside(at, _) = self.progress[section] {
            let last = at as usize + 1 == bounds.scripts[section].ops.len();
            self.progress[section] =
                if last { Progress::Done } else { Progress::Inside(at + 1, false) };
        }
    }

    fn touch(
        &mut self,
        bounds: &Bounds,
        section: usize,
        page: usize,
        write: bool,
        happened: &Happened,
    ) -> bool {
        let site = bounds.scripts[section].site;
        let enough = if write { Access::Write } else { Access::Read };
        let frame = &mut self.frames[site][page];
        if frame.access >= enough {
            let body = frame.body.unwrap_or_default();
            self.seen_by[section] |= body;
            if write {
                frame.body = Some(body | 1 << section);
            }
            return true;
        }
        if let Progress::Inside(at, _) = self.progress[section] {
            self.progress[section] = Progress::Inside(at, true);
        }
        self.handle(bounds, site, Event::Fault { page: PAGES[page], run: 0, write }, &[], happened);
        false
    }

    fn deliver(&mut self, bounds: &Bounds, letter: &Letter, happened: &Happened) {
        let event = Event::Message {
            from: letter.from,
            view: letter.view,
            message: letter.message.clone(),
        };
        self.handle(bounds, letter.to, event, &letter.bodies, happened);
    }

    fn change_tasks(&mut self, change: impl FnOnce(&mut BTreeSet<(usize, Task)>)) {
        let mut tasks = self.tasks.value();
        change(&mut tasks);
        self.tasks = Interned::new(tasks);
    }

    fn work(&mut self, bounds: &Bounds, site: usize, task: Task, happened: &Happened) {
        match task {
            Task::Capture(page, version, round) => {
                let body = self.body_of(site, page);
                let mut store = self.store.value();
                let kept = store.kept.entry((site, round, page)).or_insert((version, body));
                if version >= kept.0 {
                    *kept = (version, body);
                }
                self.store = Interned::new(store);
                let event = Event::Captured { page, version, round };
                self.handle(bounds, site, event, &[], happened);
            }
            Task::Persist(round) => {
                let event = Event::Persisted { round, domain: DOMAIN };
                self.handle(bounds, site, event, &[], happened);
            }
            Task::Commit(round) => {
                let mut store = self.store.value();
                if store.commit(round).is_err() {
                    self.broken = Some("an older version became the stable one");
                }
                if store.members[&round].len() >= 2 {
                    happened.note(Sight::RoundOfTwo);
                }
                self.store = Interned::new(store);
                let event = Event::Committed { round, domain: DOMAIN };
                self.handle(bounds, site, event, &[], happened);
            }
            Task::AskFate(round) => {
                let committed = self.store.committed.contains(&round);
                let event = Event::Fate { round, domain: DOMAIN, committed };
                self.handle(bounds, site, event, &[], happened);
            }
            Task::Undo(because) => {
                // Sections that are over but not stable are gone too: programs are told.
                let stable = self.store.stable[0] | self.store.stable[1];
                for (section, script) in bounds.scripts.iter().enumerate() {
                    let begun = self.progress[section] != Progress::Before;
                    if script.site == site && begun && stable >> section & 1 == 0 {
                        self.progress[section] = Progress::Gone;
                        self.promised[site] = self.promised[site].map(|p| p & !(1 << section));
                    }
                }
                if self.sites[site].as_ref().is_some_and(|s| s.page(LOCK).locked) {
                    self.handle(bounds, site, Event::Unlock { lock: LOCK }, &[], happened);
                }
                let event = Event::GoBack { domain: DOMAIN, because };
                self.handle(bounds, site, event, &[], happened);
                happened.note(Sight::WentBack);
            }
        }
    }

    fn body_of(&self, site: usize, page: PageKey) -> u16 {
        let at = place(page);
        self.frames[site][at].body.unwrap_or(self.store.stable[at])
    }

    fn handle(
        &mut self,
        bounds: &Bounds,
        i: usize,
        event: Event,
        bodies: &[(PageKey, u16)],
        happened: &Happened,
    ) {
        let Some(site) = &self.sites[i] else { return };
        let mut site = site.value();
        let mut effects = Effects::new();
        site.handle(0, event, &mut effects);
        self.sites[i] = Some(Interned::new(site));
        let mut woken = Vec::new();
        for effect in effects.drain() {
            self.perform(bounds, i, effect, bodies, &mut woken, happened);
        }
        // What came was not enough for them.
        for section in woken {
            if matches!(self.progress[section], Progress::Inside(_, false)) {
                self.go(bounds, section, happened);
            }
        }
    }

    fn add_task(&mut self, site: usize, task: Task) {
        self.change_tasks(|tasks| {
            tasks.insert((site, task));
        });
    }

    fn perform(
        &mut self,
        bounds: &Bounds,
        i: usize,
        effect: Effect,
        bodies: &[(PageKey, u16)],
        woken: &mut Vec<usize>,
        happened: &Happened,
    ) {
        match effect {
            Effect::Send { to, view, message } => self.post(i, to, view, message),
            Effect::Fill { page, source } => {
                let body = match source {
                    Source::Store => Some(self.store.stable[place(page)]),
                    Source::Message => bodies.iter().find(|(p, _)| *p == page).map(|(_, b)| *b),
                };
                if body.is_none() {
                    self.broken = Some("filled from a message without body");
                }
                self.frames[i][place(page)].body = body;
            }
            Effect::Map { page, access } => {
                let frame = &mut self.frames[i][place(page)];
                frame.access = access;
                if frame.body.is_none() {
                    self.broken = Some("mapped a frame without body");
                }
                self.wake(bounds, i, page, access, woken, happened);
            }
            Effect::Protect { page } => self.frames[i][place(page)].access = Access::Read,
            Effect::Revoke { page, keep } => {
                let frame = &mut self.frames[i][place(page)];
                frame.access = Access::None;
                if !keep {
                    frame.body = None;
                }
            }
            Effect::Release { page } => self.frames[i][place(page)].body = None,
            Effect::Locked { .. } => {
                let waits = |(n, s): &(usize, &Script)| {
                    let Progress::Inside(at, true) = self.progress[*n] else { return false };
                    s.site == i && s.ops[at as usize] == Op::Lock
                };
                let first = bounds.scripts.iter().enumerate().find(waits);
                if i != 0 {
                    happened.note(Sight::LockMoved);
                }
                match first {
                    Some((section, _)) => self.advance(bounds, section),
                    // The section was undone while it waited.
                    None => self.handle(bounds, i, Event::Unlock { lock: LOCK }, &[], happened),
                }
            }
            Effect::Capture { page, version, round } => {
                if self.gates[i] {
                    happened.note(Sight::CapturedBeforeGiving);
                }
                self.add_task(i, Task::Capture(page, version, round));
            }
            Effect::CloseGate { .. } => {
                self.gates[i] = true;
                self.drained[i] = false;
            }
            Effect::OpenGate { .. } => self.gates[i] = false,
            Effect::Persist { round, .. } => {
                self.add_task(i, Task::Persist(round));
            }
            Effect::Commit { round, members, .. } => {
                let mut store = self.store.value();
                let members = members.iter().map(|s| usize::from(s.get())).collect();
                store.members.insert(round, members);
                self.store = Interned::new(store);
                self.add_task(i, Task::Commit(round));
            }
            Effect::DropCaptures { round, .. } => {
                let mut store = self.store.value();
                store.kept.retain(|(s, r, _), _| (*s, *r) != (i, round));
                self.store = Interned::new(store);
                let of_round = |t: &Task| match t {
                    Task::Capture(_, _, r) | Task::Persist(r) => *r == round,
                    Task::Commit(_) | Task::AskFate(_) | Task::Undo(_) => false,
                };
                self.change_tasks(|tasks| tasks.retain(|(s, t)| *s != i || !of_round(t)));
            }
            Effect::AskFate { round, .. } => {
                // A dead coordinator's commit either has been or never will be.
                self.add_task(i, Task::AskFate(round));
            }
            Effect::RoundEnded { outcome, .. } => match outcome {
                Outcome::Stable { .. } => {
                    let promised = self.promised[i].take().unwrap_or_default();
                    let stable = self.store.stable[0] | self.store.stable[1];
                    if promised & !stable != 0 {
                        self.broken = Some("said to be stable and is not");
                    }
                    if stable == (1 << bounds.scripts.len()) - 1 {
                        happened.note(Sight::AllStable);
                    }
                }
                Outcome::Aborted { .. } => {
                    self.promised[i] = None;
                    happened.note(Sight::Aborted);
                }
            },
            Effect::Doomed { because, .. } => {
                self.add_task(i, Task::Undo(because));
            }
            Effect::Lost { .. }
            | Effect::LostHome { .. }
            | Effect::Rebuilt { .. }
            | Effect::MayLeave { .. }
            | Effect::WentBack { .. } => {}
        }
    }

    /// Threads that wait for the page go on: the instruction that faulted is done before the page
    /// can leave again, which is what the minimum hold is for (I6).
    fn wake(
        &mut self,
        bounds: &Bounds,
        site: usize,
        page: PageKey,
        access: Access,
        woken: &mut Vec<usize>,
        happened: &Happened,
    ) {
        for (section, script) in bounds.scripts.iter().enumerate() {
            let Progress::Inside(at, true) = self.progress[section] else { continue };
            let (place, write) = match script.ops[at as usize] {
                Op::Read(place) => (place, false),
                Op::Write(place) => (place, true),
                Op::Lock | Op::Unlock => continue,
            };
            if script.site != site || PAGES[place] != page {
                continue;
            }
            self.progress[section] = Progress::Inside(at, false);
            if access == Access::Write || !write {
                self.touch(bounds, section, place, write, happened);
                self.advance(bounds, section);
            } else {
                woken.push(section);
            }
        }
    }

    fn post(&mut self, from: usize, to: SiteId, view: u32, message: Message) {
        let bodies = message.bodies().map(|page| (page, self.body_of(from, page))).collect();
        let to = usize::from(to.get());
        if self.sites[to].is_some() {
            let from = SiteId::new(from as u16);
            let letter = Interned::new(Letter { to, from, view, message, bodies });
            if let Err(at) = self.letters.binary_search(&letter) {
                self.letters.insert(at, letter);
            }
        }
    }

    // What must hold.

    /// I11 in this world.
    pub(crate) fn single_writer(&self) -> bool {
        (0..2).all(|page| {
            let count = |a| self.frames.iter().filter(|f| f[page].access == a).count();
            count(Access::Write) == 0 || count(Access::Write) == 1 && count(Access::Read) == 0
        })
    }

    /// I17: one thread has the lock.
    pub(crate) fn one_lock_holder(&self) -> bool {
        self.sites.iter().flatten().filter(|s| s.page(LOCK).locked).count() <= 1
    }

    /// I18: each section whose writes are stable is stable in all that it wrote, and so is each
    /// section that it has seen.
    pub(crate) fn stable_is_whole(&self, bounds: &Bounds) -> bool {
        self.is_whole(bounds, self.store.stable)
    }

    fn is_whole(&self, bounds: &Bounds, pages: [u16; 2]) -> bool {
        let present = pages[0] | pages[1];
        bounds.scripts.iter().enumerate().all(|(section, script)| {
            let bit = 1 << section;
            let writes = |op: &Op| match op {
                Op::Write(page) => pages[*page] & bit != 0,
                _ => true,
            };
            present & bit == 0
                || script.ops.iter().all(writes) && self.seen_by[section] & !present == 0
        })
    }

    pub(crate) fn is_sound(&self) -> bool {
        self.broken.is_none()
    }

    pub(crate) fn nothing_under_way(&self) -> bool {
        self.letters.is_empty() && self.tasks.is_empty()
    }

    pub(crate) fn is_over(&self) -> bool {
        let over = |p: &Progress| matches!(p, Progress::Done | Progress::Gone);
        self.progress.iter().all(over) && self.left.rounds.is_empty() && self.nothing_under_way()
    }

    /// I19: if from now on nothing is lost and time passes, sections end, rounds end, and memory has
    /// no section by half.
    pub(crate) fn completes(&self, bounds: &Bounds) -> bool {
        let mut world = self.clone();
        world.left.rounds.clear();
        // What would be seen on the way does not happen.
        let happened = &Happened::default();
        for _ in 0..60 {
            for _ in 0..1000 {
                let mut steps = Vec::new();
                world.steps(bounds, &mut steps);
                let useful = steps.into_iter().find(|step| match step {
                    Step::Deliver(_) | Step::Do(..) | Step::Drained(_) | Step::LearnView(_) => true,
                    // Nobody need begin a section; whoever is in one goes on.
                    Step::Go(section) => !matches!(world.progress[*section], Progress::Before),
                    _ => false,
                });
                let Some(step) = useful else { break };
                world.take(bounds, step, happened);
            }
            let idle = |s: &Interned<Site>| {
                s.busy_count() == 0 && s.is_ready() && s.round(DOMAIN).is_none()
            };
            let inside = (0..world.sites.len()).any(|s| world.is_inside(bounds, s));
            let gated = world.sites.iter().zip(&world.gates).any(|(s, g)| s.is_some() && *g);
            let rounds = world.promised.iter().any(Option::is_some);
            if !inside
                && !gated
                && !rounds
                && world.nothing_under_way()
                && world.sites.iter().flatten().all(idle)
            {
                return world.single_writer()
                    && world.stable_is_whole(bounds)
                    && world.is_whole(bounds, world.memory());
            }
            for i in 0..world.sites.len() {
                world.handle(bounds, i, Event::Tick, &[], happened);
            }
        }
        false
    }

    /// What a program would read of each page.
    fn memory(&self) -> [u16; 2] {
        let owner = |at: usize| {
            let owns = |(_, s): &(usize, &Option<Interned<Site>>)| {
                s.as_ref().is_some_and(|s| s.page(PAGES[at]).owner)
            };
            self.sites.iter().enumerate().find(owns).map(|(i, _)| i)
        };
        [0, 1].map(|at| owner(at).map_or(self.store.stable[at], |i| self.body_of(i, PAGES[at])))
    }
}

fn place(page: PageKey) -> usize {
    PAGES.iter().position(|p| *p == page).expect("a page of this world")
}
