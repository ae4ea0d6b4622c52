//! A small world for the model checker: sites of the shipped type, their frames, and a network that
//! loses, doubles and reorders. What may happen next is enumerated, never drawn. Read [`World`] and
//! [`Step`] first.

use std::collections::BTreeMap;
use std::sync::Arc;

use stead_coherence::planted::Bug;
use stead_coherence::{
    Access, ClusterConfig, ClusterId, Config, Effect, Effects, Event, Manager, Message, PageKey,
    Policy, Site, SiteId, Source, View,
};

use crate::happened::{Happened, Sight};
use crate::interned::Interned;

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
    /// Sites that leave in order.
    pub(crate) leaves: u8,
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
            leaves: 0,
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
    pub(crate) bodies: Vec<(PageKey, u8)>,
}

/// Memory of one page at one site.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Frame {
    pub(crate) access: Access,
    pub(crate) body: Option<u8>,
}

/// A state. What is large in it is shared with other states; what only says that something has been
/// seen is not in it, but in [`Happened`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct World {
    pub(crate) sites: Vec<Option<Interned<Site>>>,
    /// Memory: a frame for each page at each site, site by site.
    frames: Vec<Frame>,
    /// Faults that programs wait on: a bit for each site, page and kind.
    waiting: u32,
    /// Under way, in order.
    pub(crate) letters: Vec<Interned<Letter>>,
    /// What the authority last issued.
    pub(crate) view: Interned<Arc<View>>,
    pages: Vec<PageTruth>,
    pub(crate) left: Left,
    /// Who is to leave, and the view in which it said that it may.
    leaving: Option<(usize, u32)>,
    /// Someone has died.
    died: bool,
    /// A frame was mapped without a body, or sent without one.
    pub(crate) broken: Option<&'static str>,
    /// Messages that each request took, where they are counted.
    passed_on: BTreeMap<(SiteId, u32), u8>,
}

/// What is true of a page, whoever knows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct PageTruth {
    key: PageKey,
    /// The value that was stored last. Each store to the page stores a higher one.
    latest: u8,
    stored: u8,
    /// A death took the page: once it may be found to be what it was in the store, or at its giver.
    lost: bool,
    /// Someone has found it so.
    found_lost: bool,
    /// Sites that lived then and have not been told, a bit for each (I21).
    untold: u8,
    /// Sites that were told of it by its name: it is theirs to tell the others.
    named_at: u8,
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
    pub(crate) leaves: u8,
    /// Not a number: whether ways of requests are counted.
    counting: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Step {
    Fault { site: usize, page: u64, write: bool },
    Deliver(Interned<Letter>),
    Lose(Interned<Letter>),
    Double(Interned<Letter>),
    Tick(usize),
    Crash(usize),
    Rejoin(usize),
    Leave(usize),
    Depart(usize),
    LearnView(usize),
}

impl World {
    pub(crate) fn new(bounds: &Bounds) -> World {
        let view = Arc::new(View::first(bounds.sites));
        let config = Arc::new(bounds.config());
        let site = |i| Some(Interned::new(Site::new(SiteId::new(i), config.clone(), view.clone())));
        let page = |at| PageTruth {
            key: page_key(bounds, at),
            latest: 0,
            stored: 0,
            lost: false,
            found_lost: false,
            untold: 0,
            named_at: 0,
        };
        World {
            sites: (0..bounds.sites).map(site).collect(),
            frames: vec![Frame::default(); usize::from(bounds.sites) * bounds.pages as usize],
            waiting: 0,
            letters: Vec::new(),
            view: Interned::new(view),
            pages: (0..bounds.pages).map(page).collect(),
            left: Left {
                faults: bounds.faults,
                stores: bounds.stores,
                losses: bounds.losses,
                doubles: bounds.doubles,
                early_ticks: bounds.early_ticks,
                crashes: bounds.crashes,
                rejoins: bounds.rejoins,
                leaves: bounds.leaves,
                counting: bounds.count_hops,
            },
            leaving: None,
            died: false,
            broken: None,
            passed_on: BTreeMap::new(),
        }
    }

    fn frame(&mut self, site: usize, page: usize) -> &mut Frame {
        let at = site * self.pages.len() + page;
        &mut self.frames[at]
    }

    pub(crate) fn frames_of(&self, page: usize) -> impl Iterator<Item = &Frame> {
        self.frames.iter().skip(page).step_by(self.pages.len())
    }

    fn place(&self, key: PageKey) -> usize {
        self.pages.iter().position(|p| p.key == key).expect("a page of this world")
    }

    fn wait_bit(&self, site: usize, page: usize, write: bool) -> u32 {
        1 << (2 * (site * self.pages.len() + page) + usize::from(write))
    }

    pub(crate) fn nobody_waits(&self) -> bool {
        self.waiting == 0
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
            if let Some((leaver, view)) = self.leaving
                && leaver == i
            {
                if view == self.view.number() {
                    steps.push(Step::Depart(i));
                }
                continue;
            }
            let bits = |at| self.wait_bit(i, at, false) | self.wait_bit(i, at, true);
            let waits = (0..self.pages.len()).any(|at| self.waiting & bits(at) != 0);
            let others = self.sites.iter().flatten().count() > 1;
            if self.left.leaves > 0 && self.leaving.is_none() && !waits && others {
                steps.push(Step::Leave(i));
            }
            if self.left.faults == 0 {
                continue;
            }
            for page in 0..bounds.pages {
                let at = page as usize;
                let access = self.frames[i * self.pages.len() + at].access;
                let bits = self.wait_bit(i, at, false) | self.wait_bit(i, at, true);
                if self.waiting & bits != 0 {
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

    pub(crate) fn take(&mut self, bounds: &Bounds, step: Step, happened: &Happened) {
        match step {
            Step::Fault { site, page, write } => {
                self.left.faults -= 1;
                self.left.stores -= u8::from(write);
                self.waiting |= self.wait_bit(site, page as usize, write);
                self.fault(bounds, site, page, write, happened);
            }
            Step::Deliver(letter) => {
                self.letters.retain(|l| *l != letter);
                self.deliver(&letter, happened);
            }
            Step::Double(letter) => {
                self.left.doubles -= 1;
                self.deliver(&letter, happened);
            }
            Step::Lose(letter) => {
                self.left.losses -= 1;
                self.letters.retain(|l| *l != letter);
            }
            Step::Tick(site) => {
                if !self.letters.is_empty() {
                    self.left.early_ticks -= 1;
                }
                self.handle(site, Event::Tick, &[], happened);
            }
            Step::Crash(i) => self.crash(i),
            Step::Leave(i) => {
                self.left.leaves -= 1;
                self.leaving = Some((i, 0));
                self.handle(i, Event::Leave, &[], happened);
            }
            Step::Depart(i) => {
                // Of what was lost it has told the others before it leaves.
                let told = self.pages.iter_mut().filter(|page| page.named_at >> i & 1 == 1);
                told.for_each(|page| page.untold = 0);
                self.remove(i);
                happened.note(Sight::LeftInOrder);
                self.view = Interned::new(Arc::new(self.view.left_by(SiteId::new(i as u16))));
            }
            Step::Rejoin(i) => {
                self.left.rejoins -= 1;
                let view = Arc::new(self.view.with(SiteId::new(i as u16)));
                let config = Arc::new(bounds.config());
                let site = Site::new(SiteId::new(i as u16), config, view.clone());
                self.sites[i] = Some(Interned::new(site));
                self.view = Interned::new(view.clone());
                self.handle(i, Event::View(view), &[], happened);
            }
            Step::LearnView(site) => {
                if bounds.bug != Some(Bug::NoFence) {
                    // They would not be heard, so they need not be explored.
                    let number = self.view.number();
                    self.letters.retain(|l| l.to != site || l.view >= number);
                }
                self.handle(site, Event::View(self.view.value()), &[], happened);
            }
        }
    }

    fn fault(&mut self, bounds: &Bounds, site: usize, page: u64, write: bool, happened: &Happened) {
        let run = if bounds.runs { u64::MAX >> (64 - bounds.pages + page) } else { 0 };
        let page = self.pages[page as usize].key;
        self.handle(site, Event::Fault { page, run, write }, &[], happened);
    }

    fn crash(&mut self, i: usize) {
        self.left.crashes -= 1;
        let Some(site) = self.sites[i].take() else { return };
        let alive = self.sites.iter().rev().fold(0, |bits, s| bits << 1 | u8::from(s.is_some()));
        for at in 0..self.pages.len() {
            // What it owned dies with it; so does what it gave and nobody has taken.
            let key = self.pages[at].key;
            let owned_elsewhere = self.sites.iter().flatten().any(|s| s.page(key).owner);
            let frame = *self.frame(i, at);
            let gave = frame.body.is_some() && frame.access == Access::None && !owned_elsewhere;
            let page = &mut self.pages[at];
            // What nobody has found lost yet cannot be lost once more.
            if (site.page(key).owner || gave) && !page.lost {
                page.lost = true;
                page.found_lost = false;
                page.untold = alive;
                page.named_at = 0;
            }
        }
        self.died = true;
        self.remove(i);
        self.view = Interned::new(Arc::new(self.view.without(SiteId::new(i as u16))));
    }

    fn remove(&mut self, i: usize) {
        self.sites[i] = None;
        for at in 0..self.pages.len() {
            let page = &mut self.pages[at];
            page.untold &= !(1 << i);
            page.named_at &= !(1 << i);
            let bits = self.wait_bit(i, at, false) | self.wait_bit(i, at, true);
            self.waiting &= !bits;
            *self.frame(i, at) = Frame::default();
        }
        self.letters.retain(|l| l.to != i);
        self.leaving = self.leaving.filter(|(leaver, _)| *leaver != i);
    }

    fn deliver(&mut self, letter: &Letter, happened: &Happened) {
        let event = Event::Message {
            from: letter.from,
            view: letter.view,
            message: letter.message.clone(),
        };
        self.handle(letter.to, event, &letter.bodies, happened);
    }

    fn handle(&mut self, i: usize, event: Event, bodies: &[(PageKey, u8)], happened: &Happened) {
        let Some(site) = &self.sites[i] else { return };
        let mut site = site.value();
        let mut effects = Effects::new();
        let copies = matches!(&event, Event::Message { message: Message::Copies { .. }, .. });
        site.handle(0, event, &mut effects);
        if self.pages.iter().any(|p| site.waiting(p.key).next().is_some()) {
            happened.note(Sight::WaitsInLine);
        }
        self.sites[i] = Some(Interned::new(site));
        let asks = |e: &Effect| matches!(e, Effect::Send { message: Message::Request(_), .. });
        if copies && effects.as_slice().iter().any(asks) {
            happened.note(Sight::CopyTooLate);
        }
        let mut again = Vec::new();
        for effect in effects.drain() {
            self.perform(i, effect, bodies, &mut again, happened);
        }
        for page in again {
            // What came was not enough: the thread stores again and faults again.
            self.handle(i, Event::Fault { page, run: 0, write: true }, &[], happened);
        }
    }

    fn perform(
        &mut self,
        i: usize,
        effect: Effect,
        bodies: &[(PageKey, u8)],
        again: &mut Vec<PageKey>,
        happened: &Happened,
    ) {
        match effect {
            Effect::Send { to, view, message } => self.post(i, to, view, message, happened),
            Effect::Fill { page, source } => {
                let body = match source {
                    Source::Store => Some(0),
                    Source::Message => bodies.iter().find(|(p, _)| *p == page).map(|(_, b)| *b),
                };
                if body.is_none() {
                    self.broken = Some("filled from a message without body");
                }
                let at = self.place(page);
                self.frame(i, at).body = body;
            }
            Effect::Map { page, access } => self.map(i, page, access, again),
            Effect::Protect { page } => {
                let at = self.place(page);
                self.frame(i, at).access = Access::Read;
            }
            Effect::Revoke { page, keep } => {
                let at = self.place(page);
                let frame = self.frame(i, at);
                frame.access = Access::None;
                if !keep {
                    frame.body = None;
                }
            }
            Effect::Release { page } => {
                let at = self.place(page);
                self.frame(i, at).body = None;
            }
            Effect::Lost { page, .. } => {
                let at = self.place(page);
                self.pages[at].named_at |= 1 << i;
                if !self.died {
                    self.broken = Some("lost although nobody died");
                }
                happened.note(Sight::Lost);
            }
            Effect::LostHome { site: dead, view } => {
                let Some(site) = self.sites[i].clone() else { return };
                if !self.died {
                    self.broken = Some("a home is lost although nobody died");
                }
                for page in &mut self.pages {
                    if site.home_in(&view, page.key) == Some(dead) {
                        page.untold &= !(1 << i);
                    }
                }
            }
            Effect::MayLeave { view } => self.leaving = Some((i, view)),
            Effect::Rebuilt { view } => {
                if view == self.view.number() {
                    (0..self.pages.len()).for_each(|at| self.expect_told(i, at));
                }
            }
            other => panic!("no such effect in this world: {other:?}"),
        }
    }

    fn map(&mut self, i: usize, key: PageKey, access: Access, again: &mut Vec<PageKey>) {
        let at = self.place(key);
        let frame = self.frame(i, at);
        frame.access = access;
        let Some(body) = frame.body else {
            self.broken = Some("mapped a frame without body");
            return;
        };
        let view = self.sites[i].as_ref().map_or(0, |s| s.view().number());
        let page = &mut self.pages[at];
        if page.latest != body && std::mem::take(&mut page.lost) {
            page.latest = body;
            page.found_lost = true;
        } else if view == self.view.number() {
            // It was not lost: whoever gave it has it again.
            page.lost = false;
        }
        if page.latest != body {
            self.broken = Some("mapped an old body");
        }
        if view == self.view.number() {
            self.expect_told(i, at);
        }
        self.waiting &= !self.wait_bit(i, at, false);
        let stores = self.wait_bit(i, at, true);
        if self.waiting & stores == 0 {
            return;
        }
        if access == Access::Write {
            self.waiting &= !stores;
            let page = &mut self.pages[at];
            page.stored += 1;
            // Whoever reads something else from now on reads what is past.
            page.latest = page.stored;
            page.lost = false;
            let body = Some(page.stored);
            self.frame(i, at).body = body;
        } else {
            again.push(key);
        }
    }

    /// I21: whoever lived when a page was lost is told before it finds out; or, if those who knew have
    /// died since, when homes are whole again.
    fn expect_told(&mut self, i: usize, at: usize) {
        let page = &self.pages[at];
        if page.found_lost && page.untold >> i & 1 == 1 && page.named_at == 0 {
            self.broken = Some("lost and not named");
        }
    }

    fn post(&mut self, from: usize, to: SiteId, view: u32, message: Message, happened: &Happened) {
        if let (Message::Request(request), true) = (&message, self.left.counting) {
            let count = self.passed_on.entry((request.from, request.number)).or_default();
            *count = count.saturating_add(1);
        }
        if matches!(&message, Message::Grants { first, .. } if !first.body) {
            happened.note(Sight::UpgradeWithoutBody);
        }
        let body = |page: PageKey| {
            // A page without frame is read from the store, which nobody moves in this world.
            let at = self.place(page);
            (page, self.frame(from, at).body.unwrap_or(0))
        };
        let bodies = message.bodies().map(body).collect();
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

    /// I11: one site may write, or many may read.
    pub(crate) fn single_writer(&self) -> bool {
        (0..self.pages.len()).all(|page| {
            let count = |a| self.frames_of(page).filter(|f| f.access == a).count();
            count(Access::Write) == 0 || count(Access::Write) == 1 && count(Access::Read) == 0
        })
    }

    /// I12: whoever may read, reads what was written last. A site that the authority counts as dead
    /// does not exist in this world.
    pub(crate) fn last_write_read(&self) -> bool {
        self.pages.iter().enumerate().all(|(at, page)| {
            let mut read = self.frames_of(at).filter(|f| f.access != Access::None);
            read.all(|f| f.body == Some(page.latest))
        })
    }

    /// I13: at most one site owns a page.
    pub(crate) fn one_owner(&self) -> bool {
        self.pages.iter().all(|page| {
            let owns = |s: &&Interned<Site>| s.page(page.key).owner;
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
        // What would be seen on the way does not happen.
        let happened = &Happened::default();
        for _ in 0..40 {
            for i in 0..world.sites.len() {
                if world.sites[i].as_ref().is_some_and(|s| s.view().number() < world.view.number())
                {
                    world.take(bounds, Step::LearnView(i), happened);
                }
            }
            for _ in 0..1000 {
                let Some(letter) = world.letters.pop() else { break };
                world.deliver(&letter, happened);
            }
            let idle = world.sites.iter().flatten().all(|s| s.busy_count() == 0 && s.is_ready());
            let left = world.leaving.is_none_or(|(_, view)| view == world.view.number());
            if world.waiting == 0 && idle && left && world.letters.is_empty() {
                return true;
            }
            for i in 0..world.sites.len() {
                world.handle(i, Event::Tick, &[], happened);
            }
        }
        false
    }
}
