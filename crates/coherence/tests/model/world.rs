//! A small world for the model checker: sites of the shipped type, their frames, and a network that
//! loses, doubles and reorders. What may happen next is enumerated, never drawn. Read [`World`] and
//! [`Step`] first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stead_coherence::planted::Bug;
use stead_coherence::{
    Access, ClusterConfig, ClusterId, Config, Effect, Effects, Event, Manager, Message, PageKey,
    Policy, Site, SiteId, Source, View,
};

/// What a run explores: how many of each thing may happen.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) manager: Manager,
    pub(crate) policy: Policy,
    pub(crate) sites: u16,
    pub(crate) pages: u64,
    /// Faults that programs take, over all sites.
    pub(crate) faults: u8,
    /// Of these, stores.
    pub(crate) stores: u8,
    pub(crate) losses: u8,
    pub(crate) doubles: u8,
    /// Timers that fire before everything under way has arrived.
    pub(crate) early_ticks: u8,
    pub(crate) crashes: u8,
    pub(crate) rejoins: u8,
    /// Count how often each request is passed on; only where nothing is lost or said again.
    pub(crate) count_hops: bool,
    /// Each fault asks for all pages.
    pub(crate) runs: bool,
    pub(crate) bug: Option<Bug>,
}

impl Bounds {
    pub(crate) fn new(manager: Manager) -> Bounds {
        Bounds {
            manager,
            policy: Policy::Invalidate,
            sites: 3,
            pages: 2,
            faults: 3,
            stores: 2,
            losses: 0,
            doubles: 0,
            early_ticks: 0,
            crashes: 0,
            rejoins: 0,
            count_hops: false,
            runs: false,
            bug: None,
        }
    }

    pub(crate) fn config(&self) -> Config {
        let cluster = ClusterConfig {
            id: ClusterId(1),
            manager: self.manager,
            policy: self.policy,
            domain: None,
        };
        let mut config = Config::new(vec![cluster]);
        // Without spans of time every timer is due whenever the checker lets it fire.
        config.retry_us = 0;
        config.hold_us = 0;
        config.gate_us = 0;
        config.planted = self.bug;
        config
    }
}

/// A message under way, with the bodies that go with it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Letter {
    pub(crate) to: usize,
    pub(crate) from: SiteId,
    pub(crate) view: u32,
    pub(crate) message: Message,
    pub(crate) bodies: Vec<(PageKey, u64)>,
}

/// Memory of one page at one site.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Frame {
    pub(crate) access: Access,
    pub(crate) body: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct World {
    pub(crate) sites: Vec<Option<Site>>,
    /// The pages, by place.
    pub(crate) keys: Vec<PageKey>,
    pub(crate) frames: Vec<Vec<Frame>>,
    /// Faults that programs wait on: at a site, of a page, to store.
    pub(crate) waiting: BTreeSet<(usize, u64, bool)>,
    pub(crate) letters: BTreeSet<Letter>,
    /// What the authority last issued.
    pub(crate) view: Arc<View>,
    /// The value that was stored last.
    pub(crate) latest: Vec<u64>,
    /// A death took the page: once it may be found to be what it was in the store.
    pub(crate) lost: Vec<bool>,
    pub(crate) stored: u64,
    pub(crate) left: Left,
    /// A frame was mapped without a body, or sent without one.
    pub(crate) broken: Option<&'static str>,
    pub(crate) seen: Seen,
    counting: bool,
    /// Messages that each request took.
    passed_on: BTreeMap<(SiteId, u32), u8>,
}

/// The page that stands for place `at` in this world: its home in the first view is site `at + 1`,
/// so that owner, asker and home are different sites as often as they can be. With runs, pages are
/// neighbours and have one home.
pub(crate) fn page_key(bounds: &Bounds, at: u64) -> PageKey {
    if bounds.runs {
        return PageKey::new(1, at);
    }
    // Found with three sites; with others any pages will do.
    PageKey::new(1, [5 * 64, 64, 0][at as usize % 3])
}

/// What may still happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Left {
    pub(crate) faults: u8,
    pub(crate) stores: u8,
    pub(crate) losses: u8,
    pub(crate) doubles: u8,
    pub(crate) early_ticks: u8,
    pub(crate) crashes: u8,
    pub(crate) rejoins: u8,
}

/// Things that ought to happen sometimes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) upgrade_without_body: bool,
    pub(crate) copy_refused: bool,
    pub(crate) lost: bool,
    pub(crate) waited: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Step {
    Fault { site: usize, page: u64, write: bool },
    Deliver(Letter),
    Lose(Letter),
    Double(Letter),
    Tick(usize),
    Crash(usize),
    Rejoin(usize),
    LearnView(usize),
}

impl World {
    pub(crate) fn new(bounds: &Bounds) -> World {
        let view = Arc::new(View::first(bounds.sites));
        let config = Arc::new(bounds.config());
        let site = |i| Some(Site::new(SiteId::new(i), config.clone(), view.clone()));
        let pages = bounds.pages as usize;
        World {
            sites: (0..bounds.sites).map(site).collect(),
            keys: (0..bounds.pages).map(|at| page_key(bounds, at)).collect(),
            frames: vec![vec![Frame::default(); pages]; bounds.sites as usize],
            waiting: BTreeSet::new(),
            letters: BTreeSet::new(),
            view,
            latest: vec![0; pages],
            lost: vec![false; pages],
            stored: 0,
            left: Left {
                faults: bounds.faults,
                stores: bounds.stores,
                losses: bounds.losses,
                doubles: bounds.doubles,
                early_ticks: bounds.early_ticks,
                crashes: bounds.crashes,
                rejoins: bounds.rejoins,
            },
            broken: None,
            seen: Seen::default(),
            counting: bounds.count_hops,
            passed_on: BTreeMap::new(),
        }
    }

    pub(crate) fn steps(&self, bounds: &Bounds, steps: &mut Vec<Step>) {
        for letter in &self.letters {
            steps.push(Step::Deliver(letter.clone()));
            if self.left.losses > 0 {
                steps.push(Step::Lose(letter.clone()));
            }
            if self.left.doubles > 0 {
                steps.push(Step::Double(letter.clone()));
            }
        }
        for (i, site) in self.sites.iter().enumerate() {
            let Some(site) = site else {
                if self.left.rejoins > 0 && !self.view.contains(SiteId::new(i as u16)) {
                    steps.push(Step::Rejoin(i));
                }
                continue;
            };
            if site.view().number() < self.view.number() {
                steps.push(Step::LearnView(i));
            }
            if self.left.early_ticks > 0 || self.letters.is_empty() {
                steps.push(Step::Tick(i));
            }
            if self.left.crashes > 0 {
                steps.push(Step::Crash(i));
            }
            if self.left.faults == 0 {
                continue;
            }
            for page in 0..bounds.pages {
                let access = self.frames[i][page as usize].access;
                if self.waiting.iter().any(|(s, p, _)| (*s, *p) == (i, page)) {
                    continue;
                }
                if access == Access::None {
                    steps.push(Step::Fault { site: i, page, write: false });
                }
                if access < Access::Write && self.left.stores > 0 {
                    steps.push(Step::Fault { site: i, page, write: true });
                }
            }
        }
    }

    pub(crate) fn take(&mut self, bounds: &Bounds, step: Step) {
        match step {
            Step::Fault { site, page, write } => {
                self.left.faults -= 1;
                self.left.stores -= u8::from(write);
                self.waiting.insert((site, page, write));
                self.fault(bounds, site, page, write);
            }
            Step::Deliver(letter) => {
                self.letters.remove(&letter);
                self.deliver(&letter);
            }
            Step::Double(letter) => {
                self.left.doubles -= 1;
                self.deliver(&letter);
            }
            Step::Lose(letter) => {
                self.left.losses -= 1;
                self.letters.remove(&letter);
            }
            Step::Tick(site) => {
                if !self.letters.is_empty() {
                    self.left.early_ticks -= 1;
                }
                self.handle(site, Event::Tick, &[]);
            }
            Step::Crash(i) => self.crash(i),
            Step::Rejoin(i) => {
                self.left.rejoins -= 1;
                self.view = Arc::new(self.view.with(SiteId::new(i as u16)));
                let config = Arc::new(bounds.config());
                self.sites[i] = Some(Site::new(SiteId::new(i as u16), config, self.view.clone()));
                self.handle(i, Event::View(self.view.clone()), &[]);
            }
            Step::LearnView(site) => {
                if bounds.bug != Some(Bug::NoFence) {
                    // They would not be heard, so they need not be explored.
                    self.letters.retain(|l| l.to != site || l.view >= self.view.number());
                }
                self.handle(site, Event::View(self.view.clone()), &[]);
            }
        }
    }

    fn fault(&mut self, bounds: &Bounds, site: usize, page: u64, write: bool) {
        let run = if bounds.runs { u64::MAX >> (64 - bounds.pages + page) } else { 0 };
        let page = self.keys[page as usize];
        self.handle(site, Event::Fault { page, run, write }, &[]);
    }

    fn crash(&mut self, i: usize) {
        self.left.crashes -= 1;
        let Some(site) = self.sites[i].take() else { return };
        for (page, key) in self.keys.iter().enumerate() {
            // What it owned dies with it; so does what it gave and nobody has taken.
            let owned_elsewhere = self.sites.iter().flatten().any(|s| s.page(*key).owner);
            let frame = self.frames[i][page];
            let gave = frame.body.is_some() && frame.access == Access::None && !owned_elsewhere;
            if site.page(*key).owner || gave {
                self.lost[page] = true;
            }
        }
        self.frames[i].fill(Frame::default());
        self.waiting.retain(|(s, ..)| *s != i);
        self.letters.retain(|l| l.to != i);
        self.view = Arc::new(self.view.without(SiteId::new(i as u16)));
    }

    fn deliver(&mut self, letter: &Letter) {
        let event = Event::Message {
            from: letter.from,
            view: letter.view,
            message: letter.message.clone(),
        };
        self.handle(letter.to, event, &letter.bodies);
    }

    fn handle(&mut self, i: usize, event: Event, bodies: &[(PageKey, u64)]) {
        let Some(mut site) = self.sites[i].take() else { return };
        let mut effects = Effects::new();
        let copies = matches!(&event, Event::Message { message: Message::Copies { .. }, .. });
        site.handle(0, event, &mut effects);
        self.sites[i] = Some(site);
        let effects: Vec<Effect> = effects.drain().collect();
        self.seen.copy_refused |= copies
            && effects
                .iter()
                .any(|e| matches!(e, Effect::Send { message: Message::Request(_), .. }));
        let mut again = Vec::new();
        for effect in effects {
            self.perform(i, effect, bodies, &mut again);
        }
        for page in again {
            // What came was not enough: the thread stores again and faults again.
            self.handle(i, Event::Fault { page, run: 0, write: true }, &[]);
        }
        let site = self.sites[i].as_ref();
        self.seen.waited |=
            self.keys.iter().any(|p| site.is_some_and(|s| s.waiting(*p).next().is_some()));
    }

    fn perform(
        &mut self,
        i: usize,
        effect: Effect,
        bodies: &[(PageKey, u64)],
        again: &mut Vec<PageKey>,
    ) {
        let keys = self.keys.clone();
        let at = |page: PageKey| keys.iter().position(|k| *k == page).unwrap();
        match effect {
            Effect::Send { to, view, message } => self.post(i, to, view, message),
            Effect::Fill { page, source } => {
                let body = match source {
                    Source::Store => Some(0),
                    Source::Message => bodies.iter().find(|(p, _)| *p == page).map(|(_, b)| *b),
                };
                if body.is_none() {
                    self.broken = Some("filled from a message without body");
                }
                self.frames[i][at(page)].body = body;
            }
            Effect::Map { page, access } => {
                let frame = &mut self.frames[i][at(page)];
                frame.access = access;
                let Some(body) = frame.body else {
                    self.broken = Some("mapped a frame without body");
                    return;
                };
                if self.latest[at(page)] != body && std::mem::take(&mut self.lost[at(page)]) {
                    self.latest[at(page)] = body;
                }
                if self.latest[at(page)] != body {
                    self.broken = Some("mapped an old body");
                }
                let page_no = at(page) as u64;
                self.waiting.remove(&(i, page_no, false));
                if access == Access::Write && self.waiting.remove(&(i, page_no, true)) {
                    self.stored += 1;
                    self.frames[i][at(page)].body = Some(self.stored);
                    // Whoever reads something else from now on reads what is past.
                    self.latest[at(page)] = self.stored;
                    self.lost[at(page)] = false;
                } else if self.waiting.contains(&(i, page_no, true)) {
                    again.push(page);
                }
            }
            Effect::Protect { page } => self.frames[i][at(page)].access = Access::Read,
            Effect::Revoke { page, keep } => {
                let frame = &mut self.frames[i][at(page)];
                frame.access = Access::None;
                if !keep {
                    frame.body = None;
                }
            }
            Effect::Release { page } => self.frames[i][at(page)].body = None,
            Effect::Lost { .. } => self.seen.lost = true,
            Effect::Rebuilt { .. } => {}
            other => panic!("no such effect in this world: {other:?}"),
        }
    }

    fn post(&mut self, from: usize, to: SiteId, view: u32, message: Message) {
        if let (Message::Request(request), true) = (&message, self.counting) {
            let count = self.passed_on.entry((request.from, request.number)).or_default();
            *count = count.saturating_add(1);
        }
        let body = |page: PageKey| {
            // A page without frame is read from the store, which nobody moves in this world.
            let at = self.keys.iter().position(|k| *k == page).unwrap();
            (page, self.frames[from][at].body.unwrap_or(0))
        };
        let bodies: Vec<(PageKey, u64)> = match &message {
            Message::Copies { first, more, .. } => {
                std::iter::once(first).chain(more).map(|c| body(c.page)).collect()
            }
            Message::Grants { first, more } => {
                self.seen.upgrade_without_body |= !first.body;
                std::iter::once(first)
                    .chain(more)
                    .filter(|g| g.body)
                    .map(|g| body(g.page))
                    .collect()
            }
            _ => Vec::new(),
        };
        let to = usize::from(to.get());
        if self.sites[to].is_some() {
            let from = SiteId::new(from as u16);
            self.letters.insert(Letter { to, from, view, message, bodies });
        }
    }

    // What must hold.

    /// I11: one site may write, or many may read.
    pub(crate) fn single_writer(&self) -> bool {
        (0..self.latest.len()).all(|page| {
            let access = |s: &Vec<Frame>| s[page].access;
            let writers = self.frames.iter().filter(|s| access(s) == Access::Write).count();
            let readers = self.frames.iter().filter(|s| access(s) == Access::Read).count();
            writers == 0 || writers == 1 && readers == 0
        })
    }

    /// I12: whoever may read, reads what was written last. A site that the authority counts as dead
    /// does not exist in this world.
    pub(crate) fn last_write_read(&self) -> bool {
        (0..self.latest.len()).all(|page| {
            let mut read = self.frames.iter().map(|s| s[page]).filter(|f| f.access != Access::None);
            read.all(|f| f.body == Some(self.latest[page]))
        })
    }

    /// I13: at most one site owns a page.
    pub(crate) fn one_owner(&self) -> bool {
        self.keys.iter().all(|key| {
            let owns = |s: &&Site| s.page(*key).owner;
            self.sites.iter().flatten().filter(owns).count() <= 1
        })
    }

    /// I1, I7: a request reaches the owner, or where the page is about to arrive, in few steps.
    pub(crate) fn forwarding_is_bounded(&self, bounds: &Bounds) -> bool {
        // To the home, along stale hints, to the home by the limit, and once for each change of
        // owner while it travels.
        let messages_max = 1 + bounds.config().hops_max + 1 + 1 + bounds.stores;
        self.passed_on.values().all(|count| *count <= messages_max)
    }

    /// Whether everything ends well if from now on nothing is lost and time passes: nobody waits for
    /// ever.
    pub(crate) fn completes(&self, bounds: &Bounds) -> bool {
        let mut world = self.clone();
        for _ in 0..40 {
            for i in 0..world.sites.len() {
                if world.sites[i].as_ref().is_some_and(|s| s.view().number() < world.view.number())
                {
                    world.take(bounds, Step::LearnView(i));
                }
            }
            for _ in 0..1000 {
                let Some(letter) = world.letters.pop_first() else { break };
                world.deliver(&letter);
            }
            let idle = world.sites.iter().flatten().all(|s| s.busy_count() == 0 && s.is_ready());
            if world.waiting.is_empty() && idle && world.letters.is_empty() {
                return true;
            }
            for i in 0..world.sites.len() {
                world.handle(i, Event::Tick, &[]);
            }
        }
        false
    }
}
