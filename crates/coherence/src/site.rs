//! The machine at one site: its state, the one entry, and what every part of the protocol uses. The
//! parts themselves stand in `pages`, `taking` and `locks`; `membership` and `leaving`; `domain`, `lead`, `round` and
//! `going_back`. Read [`Site`] first.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::config::{ClusterConfig, Config, Manager, Policy};
use crate::domain::{Domain, Phase};
use crate::effect::{Effect, Effects, Event};
use crate::ids::{Access, DomainId, Micros, Number, PageKey, RoundId, SiteId, Version};
use crate::leaving::Departure;
use crate::membership::Rebuild;
use crate::message::{Grant, Message, Request};
use crate::site_set::SiteSet;
use crate::sorted_map::SortedMap;
use crate::table::{Page, Table};
use crate::view::View;

/// One site's part of the protocol. It never waits: each call of [`Site::handle`] ends at once,
/// whatever programs at the site are doing (I10).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Site {
    pub(crate) me: SiteId,
    pub(crate) config: Arc<Config>,
    pub(crate) view: Arc<View>,
    pub(crate) rebuild: Rebuild,
    pub(crate) table: Table,
    /// Pages of which something is unfinished.
    pub(crate) busy: SortedMap<PageKey, Busy>,
    pub(crate) last_number: Number,
    /// Pages marked as held, with the time when that ends, in order of it.
    pub(crate) holds: VecDeque<(Micros, PageKey)>,
    pub(crate) domains: SortedMap<DomainId, Domain>,
    pub(crate) departure: Departure,
}

/// What is unfinished about a page.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub(crate) struct Busy {
    /// What this site asked for, or waits to be able to do as owner.
    pub(crate) want: Option<Want>,
    /// Requests that wait here, in order.
    pub(crate) queue: Vec<Request>,
    /// Sites whose copies must be gone before this owner may write.
    pub(crate) acks: SiteSet,
    pub(crate) acks_due: Micros,
    /// The access to give when they are.
    pub(crate) install: Access,
    /// Answers that came before the grant they belong to.
    pub(crate) early: SiteSet,
    pub(crate) early_version: Version,
    /// The page was given away and its arrival is not known.
    pub(crate) leaving: Option<Leaving>,
    /// Threads here that wait for this lock behind the one that `want` is for.
    pub(crate) lock_waiters: u32,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Want {
    pub(crate) number: Number,
    pub(crate) write: bool,
    pub(crate) run: u64,
    pub(crate) with: Option<PageKey>,
    pub(crate) due: Micros,
    /// Nobody waits: it was asked for in a run.
    pub(crate) optional: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Leaving {
    pub(crate) to: SiteId,
    /// What was sent, as it would be sent again: with body, without waiting requests.
    pub(crate) grant: Grant,
    /// Version of the contents in the frame that is kept.
    pub(crate) kept_version: Version,
    /// A frame is kept.
    pub(crate) frame: bool,
    pub(crate) due: Micros,
    /// The receiver died, or was another member of the same number.
    pub(crate) stranded: bool,
    /// A site died since: the receiver may have taken the page, and its changes be gone (I21).
    pub(crate) bereft: bool,
    /// The frame is to be captured for the round under way.
    pub(crate) capture: bool,
    /// The contents were captured for the round under way before they were given (R3).
    pub(crate) captured: bool,
}

impl Busy {
    fn is_idle(&self) -> bool {
        self.want.is_none()
            && self.queue.is_empty()
            && self.acks.is_empty()
            && self.install == Access::None
            && self.early.is_empty()
            && self.leaving.is_none()
            && self.lock_waiters == 0
    }
}

/// The time and the effects of one event.
pub(crate) struct Turn<'a> {
    pub(crate) now: Micros,
    pub(crate) out: &'a mut Effects,
}

/// What a site says of a page when asked, for tests and reports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageState {
    /// What programs at the site may do.
    pub access: Access,
    /// Whether the site owns the page.
    pub owner: bool,
    /// The version it has or knows of.
    pub version: Version,
    /// The owner it knows of.
    pub probable_owner: Option<SiteId>,
    /// Whether the contents differ from the stable ones.
    pub modified: bool,
    /// Whether a thread at the site has this lock.
    pub locked: bool,
}

impl Site {
    /// The machine of site `me`, which has nothing yet, in `view`. In the first view of all nothing
    /// is anywhere, so it is ready; otherwise it takes part in the rebuild, to which
    /// [`Event::View`] with the same view brings everyone else.
    #[must_use]
    pub fn new(me: SiteId, config: Arc<Config>, view: Arc<View>) -> Site {
        let rebuild = Rebuild::new(view.number() > 1);
        Site {
            me,
            config,
            view,
            rebuild,
            table: Table::default(),
            busy: SortedMap::default(),
            last_number: 0,
            holds: VecDeque::new(),
            domains: SortedMap::default(),
            departure: Departure::Stays,
        }
    }

    /// Takes one event and appends what is to be done to `effects`. `now` never runs backwards.
    pub fn handle(&mut self, now: Micros, event: Event, effects: &mut Effects) {
        let turn = &mut Turn { now, out: effects };
        match event {
            Event::Fault { page, run, write } => self.fault(page, run, write, turn),
            Event::Message { from, view, message } => {
                if self.hears(from, view) {
                    self.message(from, message, turn);
                }
            }
            Event::Tick => self.tick(turn),
            Event::View(view) => self.change_view(view, turn),
            Event::Lock { lock, with } => self.lock(lock, with, turn),
            Event::Unlock { lock } => self.unlock(lock, turn),
            Event::Captured { page, version, round } => self.captured(page, version, round, turn),
            Event::Stabilise { domain } => self.stabilise(domain, turn),
            Event::Drained { domain } => self.drained(domain, turn),
            Event::Persisted { round, domain } => self.persisted(round, domain, turn),
            Event::Committed { round, domain } => self.committed(round, domain, turn),
            Event::Fate { round, domain, committed } => self.fate(round, domain, committed, turn),
            Event::Leave => self.leave(turn),
            Event::GiveUp { domain } => self.give_up(domain, turn),
            Event::GoBack { domain, because } => {
                self.go_back(domain, because, turn);
                self.start_wished(domain, turn);
            }
        }
        self.hear_itself(turn);
        if self.departure != Departure::Stays {
            self.leave_on(turn);
            self.hear_itself(turn);
        }
    }

    fn hear_itself(&mut self, turn: &mut Turn) {
        while let Some(message) = turn.out.to_self.pop_front() {
            self.message(self.me, message, turn);
        }
    }

    /// The earliest time at which [`Event::Tick`] has something to do.
    #[must_use]
    pub fn next_tick(&self) -> Option<Micros> {
        // During a rebuild pages wait for its end, not for their own times.
        let over = self.rebuild.is_over();
        let pages = self.busy.iter().filter(|_| over).flat_map(|(_, busy)| {
            let want = busy.want.as_ref().map(|w| w.due);
            let acks = (!busy.acks.is_empty()).then_some(busy.acks_due);
            [want, acks, busy.leaving.as_ref().map(|l| l.due)].into_iter().flatten()
        });
        let held = self.holds.front().map(|(until, _)| *until);
        let domains = self.domains.iter().filter_map(|(_, domain)| domain.next_tick());
        let leaving = match self.departure {
            Departure::Leaving { due } if over => Some(due),
            _ => None,
        };
        pages.chain(held).chain(self.rebuild.next_tick()).chain(domains).chain(leaving).min()
    }

    /// This site's number.
    #[must_use]
    pub fn id(&self) -> SiteId {
        self.me
    }

    /// The view it is in.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Whether the homes of the present view are rebuilt, as far as this site knows.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.rebuild.is_over()
    }

    /// What it knows of a page.
    #[must_use]
    pub fn page(&self, key: PageKey) -> PageState {
        let page = self.load(key);
        PageState {
            access: page.access,
            owner: page.own,
            version: page.version,
            probable_owner: (page.owner != SiteId::NONE).then_some(page.owner),
            modified: page.modified,
            locked: page.locked,
        }
    }

    /// Sites that may have a copy of a page owned here.
    #[must_use]
    pub fn readers(&self, key: PageKey) -> SiteSet {
        self.table.readers(key, &self.table.get(key))
    }

    /// The page's home in the present view.
    #[must_use]
    pub fn home(&self, key: PageKey) -> Option<SiteId> {
        self.config.cluster(key.cluster).map(|cluster| self.home_of(key, cluster))
    }

    /// The page's home in another view, such as [`Effect::LostHome`] names.
    #[must_use]
    pub fn home_in(&self, view: &View, key: PageKey) -> Option<SiteId> {
        self.config.cluster(key.cluster).map(|cluster| home_in(view, key, cluster))
    }

    /// The round of stabilisation that the site is in, as a member, and whether only its coordinator
    /// can end that.
    #[must_use]
    pub fn round(&self, domain: DomainId) -> Option<(RoundId, bool)> {
        let phase = &self.domains.get(domain)?.phase;
        Some((phase.round()?, !matches!(phase, Phase::Closing { .. })))
    }

    /// Every page that the site has a word about, in order.
    pub fn pages(&self) -> impl Iterator<Item = PageKey> {
        self.table.iter().map(|(key, _)| key)
    }

    /// Requests that wait at this site for a page, in order, by site.
    pub fn waiting(&self, key: PageKey) -> impl Iterator<Item = SiteId> {
        self.busy.get(key).into_iter().flat_map(|busy| busy.queue.iter().map(|r| r.from))
    }

    /// Pages of which something is unfinished.
    #[must_use]
    pub fn busy_count(&self) -> usize {
        self.busy.len()
    }

    /// Pages with a copyset that does not fit into the page's own entry.
    #[must_use]
    pub fn spilled_count(&self) -> usize {
        self.table.copysets_spilled()
    }

    /// Bytes of memory that the site's state takes, the view apart, which sites in one process share.
    #[must_use]
    pub fn state_bytes(&self) -> usize {
        let holds = self.holds.capacity() * size_of::<(Micros, PageKey)>();
        size_of::<Site>() + self.table.bytes() + self.busy.bytes() + self.domains.bytes() + holds
    }

    fn hears(&self, from: SiteId, view: u32) -> bool {
        if self.planted_no_fence() {
            return true;
        }
        // I8: whoever is in another view may take a dead site for alive, or have been taken for
        // dead. What is lost by not listening is sent again.
        view == self.view.number() && self.view.contains(from)
    }

    fn message(&mut self, from: SiteId, message: Message, turn: &mut Turn) {
        if !self.rebuild.is_over() && !message.belongs_to_rebuild() {
            // Nothing moves between a site's report and the word to go on (I8).
            return;
        }
        match message {
            Message::Request(request) => self.request(request, turn),
            Message::Copies { number, first, more } => {
                self.copies(from, number, first, more, turn);
            }
            Message::Grants { first, more } => self.grants(from, first, more, turn),
            Message::Invalidate { page, version, owner } => {
                self.invalidate(page, version, owner, turn);
            }
            Message::Invalidated { page, version } => self.invalidated(from, page, version, turn),
            Message::Took { pages } => {
                for (page, version) in pages.iter() {
                    self.took(*page, *version, turn);
                }
            }
            Message::Refused { page, version, waiting } => {
                self.refused(from, page, version, waiting, turn);
            }
            Message::Owner { pages, owner } => {
                for (page, version) in pages.iter() {
                    self.learn_owner(*page, *version, owner, turn);
                }
            }
            Message::Report { pages } => self.report(from, pages, turn),
            Message::Reported => self.reported(from, turn),
            Message::Ready => self.ready(from, turn),
            Message::Resume => self.resume(turn),
            Message::Stranded { page, version } => self.stranded(from, page, version, turn),
            Message::Settle { page, version, keep, copies, untaken } => {
                self.settle(page, version, keep, &copies, untaken, turn);
            }
            Message::NotHere { page, version } => self.not_here(from, page, version, turn),
            Message::GoBack { domain, because, colour } => {
                self.told_to_go_back(from, domain, because, colour, turn);
            }
            Message::WentBack { domain, colour } => {
                self.heard_to_go_back(from, domain, colour, turn);
            }
            Message::Round { round, domain, word } => {
                self.round_word(from, round, domain, word, turn);
            }
        }
    }

    fn tick(&mut self, turn: &mut Turn) {
        while let Some((until, key)) = self.holds.front().copied()
            && until <= turn.now
        {
            self.holds.pop_front();
            let mut page = self.load(key);
            if page.held {
                page.held = false;
                self.table.set(key, &page);
                self.pump(key, turn);
            }
        }
        if self.rebuild.is_over() {
            let mut next = self.busy.key_at(0);
            while let Some(key) = next {
                self.page_tick(key, turn);
                next = self.busy.key_after(key);
            }
        }
        self.rebuild_tick(turn);
        self.rounds_tick(turn);
    }

    // What all parts use.

    pub(crate) fn send(&self, to: SiteId, message: Message, turn: &mut Turn) {
        if to == self.me {
            turn.out.to_self.push_back(message);
        } else {
            turn.out.push(Effect::Send { to, view: self.view.number(), message });
        }
    }

    pub(crate) fn home_of(&self, key: PageKey, cluster: &ClusterConfig) -> SiteId {
        home_in(&self.view, key, cluster)
    }

    pub(crate) fn policy(&self, key: PageKey) -> Option<Policy> {
        self.config.cluster(key.cluster).map(|c| c.policy)
    }

    /// The page as this site knows it. What nobody has asked for in this view is with its home, in
    /// the stable store.
    pub(crate) fn load(&self, key: PageKey) -> Page {
        let page = self.table.get(key);
        let unknown = page.owner == SiteId::NONE && !page.own;
        if unknown && self.rebuild.is_over() && self.home(key) == Some(self.me) {
            return Page {
                version: Version::first_of(self.view.number()),
                owner: self.me,
                own: true,
                stored: true,
                ..page
            };
        }
        page
    }

    pub(crate) fn next_number(&mut self) -> Number {
        self.last_number = self.last_number.wrapping_add(1);
        self.last_number
    }

    pub(crate) fn forget_if_idle(&mut self, key: PageKey) {
        if self.busy.get(key).is_some_and(Busy::is_idle) {
            self.busy.remove(key);
        }
    }

    #[cfg(feature = "planted")]
    pub(crate) fn planted(&self, bug: crate::planted::Bug) -> bool {
        self.config.planted == Some(bug)
    }

    fn planted_no_fence(&self) -> bool {
        planted!(self, NoFence)
    }
}

fn home_in(view: &View, key: PageKey, cluster: &ClusterConfig) -> SiteId {
    match cluster.manager {
        Manager::Central(site) if view.contains(site) => site,
        Manager::Central(_) => view.first_site(),
        Manager::Fixed | Manager::Dynamic => view.hashed_home(key.chunk()),
    }
}
