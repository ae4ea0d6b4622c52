//! Views: what a new one takes away, and how homes learn again who owns what. Whether a site is dead
//! is not decided here. Read [`Site::change_view`] first.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::config::Policy;
use crate::effect::Effect;
use crate::ids::{Access, Micros, PageKey, SiteId, Version};
use crate::message::{Held, Message, Role};
use crate::site::{Leaving, Site, Turn};
use crate::site_set::SiteSet;
use crate::sorted_map::SortedMap;
use crate::table::Page;
use crate::view::View;

/// The state of a rebuild: everyone reports to the homes what it has of their pages; when all reports
/// have arrived, the first site gives the word, and each home reads what it was told.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Rebuild {
    over: bool,
    begun: bool,
    due: Micros,
    /// Sites that left since homes were last whole.
    gone: SiteSet,
    /// Of these, those that did not leave in order.
    dead: SiteSet,
    /// The last view in which homes were whole as far as this site knows; its hints are of that view.
    whole: Option<Arc<View>>,
    /// Views in which homes may have been whole, each with the members that have left since.
    past: Vec<(Arc<View>, SiteSet)>,
    /// What each home has still to hear from here.
    unheard: SortedMap<SiteId, Vec<Held>>,
    /// What this site was told as a home.
    told: Vec<(SiteId, Held)>,
    told_by: SiteSet,
    /// At a home: pages that go back to whoever gave them to a site that is gone.
    strays: SortedMap<PageKey, Stray>,
    /// At the first site: who is ready.
    ready: SiteSet,
}

/// A page that goes back to its giver.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Stray {
    /// Who has copies.
    copies: SiteSet,
    /// Nobody has taken it ([`Role::Untaken`]).
    untaken: bool,
}

impl Rebuild {
    pub(crate) fn new(needed: bool) -> Rebuild {
        Rebuild {
            over: !needed,
            begun: !needed,
            due: 0,
            gone: SiteSet::new(),
            dead: SiteSet::new(),
            whole: None,
            past: Vec::new(),
            unheard: SortedMap::default(),
            told: Vec::new(),
            told_by: SiteSet::new(),
            strays: SortedMap::default(),
            ready: SiteSet::new(),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// Sites that left since homes were last whole.
    pub(crate) fn gone(&self) -> &SiteSet {
        &self.gone
    }

    pub(crate) fn next_tick(&self) -> Option<Micros> {
        (!self.over && self.begun).then_some(self.due)
    }
}

impl Site {
    pub(crate) fn change_view(&mut self, view: Arc<View>, turn: &mut Turn) {
        let again = view.number() == self.view.number() && !self.rebuild.begun;
        if view.number() <= self.view.number() && !again {
            return;
        }
        let mut gone: SiteSet = self
            .view
            .members()
            .iter()
            .filter(|m| view.find(m.site) != Some(**m))
            .map(|m| m.site)
            .collect();
        // Whoever left in order has taken nothing along.
        let mut dead: SiteSet = gone
            .iter()
            .filter(|s| self.view.find(*s).is_none_or(|member| !view.has_left(&member)))
            .collect();
        let mut past = core::mem::take(&mut self.rebuild.past);
        for (earlier, lacking) in &mut past {
            lacking.extend(&gone.iter().filter(|s| earlier.contains(*s)).collect());
        }
        past.push((self.view.clone(), gone.clone()));
        gone.extend(&self.rebuild.gone);
        dead.extend(&self.rebuild.dead);
        let whole = match self.rebuild.over {
            true => Some(self.view.clone()),
            false => self.rebuild.whole.take(),
        };
        let told = core::mem::take(&mut self.rebuild.told);
        self.view = view;
        self.rebuild = Rebuild { whole, past, ..Rebuild::new(true) };
        self.leave_again(turn);
        self.forget_gone(&gone, &dead);
        self.rounds_in_new_view(&gone, turn);
        let reports = self.reports(&gone, &dead, told);
        self.rebuild.gone = gone;
        self.rebuild.dead = dead;
        self.rebuild.unheard = reports;
        self.rebuild.begun = true;
        self.rebuild_say(turn);
    }

    /// Takes the dead out of everything that waits for them.
    fn forget_gone(&mut self, gone: &SiteSet, dead: &SiteSet) {
        for key in self.pages().collect::<Vec<_>>() {
            let mut page = self.table.get(key);
            if page.own && !gone.is_empty() {
                let readers = self.table.take_readers(key, &mut page);
                for reader in readers.iter().filter(|s| !gone.contains(*s)) {
                    self.table.add_reader(key, &mut page, reader);
                }
                self.table.set(key, &page);
            }
        }
        let me = self.me;
        self.busy.retain(|_, busy| {
            if busy.want.as_ref().is_some_and(|w| w.optional) {
                busy.want = None;
            }
            if let Some(want) = &mut busy.want {
                want.run = 0;
            }
            // Whoever waits asks again. Threads here that wait for a lock keep their place.
            busy.queue.retain(|r| r.from == me);
            busy.acks.retain(|s| !gone.contains(s));
            busy.early = SiteSet::new();
            busy.early_version = Version::ZERO;
            if let Some(leaving) = &mut busy.leaving {
                leaving.stranded |= gone.contains(leaving.to);
                leaving.bereft |= !dead.is_empty();
                leaving.grant.copies.retain(|s| !gone.contains(s));
            }
            true
        });
    }

    /// What this site has to say to each home; `told` is what it was told itself as a home of the view
    /// before, if that one's homes were not whole yet.
    fn reports(
        &mut self,
        gone: &SiteSet,
        dead: &SiteSet,
        told: Vec<(SiteId, Held)>,
    ) -> SortedMap<SiteId, Vec<Held>> {
        let mut held = Vec::new();
        let (busy, config) = (&self.busy, &self.config);
        let mut dropped = Vec::new();
        for (key, page) in self.table.iter() {
            if page.own {
                let lock = config.cluster(key.cluster).is_some_and(|c| c.policy == Policy::Lock);
                let unused = busy.get(key).is_none() && self.table.readers(key, &page).is_empty();
                if page.stored && unused && !lock {
                    // Nobody has it: the new home starts from the store, as this site did.
                    dropped.push((key, page.version));
                } else {
                    held.push(Held { page: key, version: page.version, role: Role::Owner });
                }
            } else if let Some(leaving) = busy.get(key).and_then(|b| b.leaving.as_ref()) {
                let role = match leaving.stranded {
                    // Also if the view that a death was told in is over here: its home may not have
                    // heard of it before the next view came.
                    true if planted!(self, ForgetDeath) && dead.is_empty() => {
                        Role::Untaken(leaving.to)
                    }
                    true if !leaving.bereft => Role::Untaken(leaving.to),
                    true => Role::Stranded(leaving.to),
                    false => Role::Giving(leaving.to),
                };
                held.push(Held { page: key, version: leaving.grant.version, role });
            }
            if !page.own && page.access != Access::None {
                // Also if nobody has died: the home may never have read the report of a death, if
                // this view came before that one's homes were whole (I16).
                held.push(Held { page: key, version: page.version, role: Role::Reader });
            }
            let copy = page.access != Access::None && planted!(self, ForgetReaders);
            let knew = gone.contains(page.owner) || self.was_home_of(key, &page);
            if !page.own && knew && !copy {
                // The home also where the owner lives: it may have been named before it took the
                // page, and the giver be dead (I21). Whoever has a copy too: an earlier giver may
                // not know that the page was taken and given on.
                let role = Role::Missing(page.owner);
                held.push(Held { page: key, version: page.version_seen(), role });
            }
        }
        for (key, version) in dropped {
            held.push(Held { page: key, version, role: Role::Stored });
            // The version stays here too (I13).
            self.table.set(key, &Page { version, ..Page::default() });
        }
        if planted!(self, ForgetMissing) {
            self.forget_hints();
        } else {
            // Whoever told this may know it no longer (I21).
            held.extend(told.into_iter().filter_map(|(site, held)| match held.role {
                Role::Owner | Role::Giving(_) | Role::Stranded(_) | Role::Untaken(_) => {
                    Some(Held { role: Role::Missing(site), ..held })
                }
                Role::Missing(_) | Role::Stored => Some(held),
                Role::Reader => None,
            }));
        }
        let mut reports: SortedMap<SiteId, Vec<Held>> = SortedMap::default();
        for held in held {
            if let Some(home) = self.home(held.page) {
                reports.entry(home).push(held);
            }
        }
        reports
    }

    /// Whether this site was the page's home when homes were last whole, and knew an owner.
    fn was_home_of(&self, key: PageKey, page: &Page) -> bool {
        let home = self.rebuild.whole.as_ref().and_then(|view| self.home_in(view, key));
        page.owner != SiteId::NONE && home == Some(self.me)
    }

    /// Each leads through its home once more, as the home may have moved. Not before homes are whole:
    /// if the next view comes first, what the home was told is gone with it, and is told anew (I21).
    fn forget_hints(&mut self) {
        let me = self.me;
        self.table.for_each(|_, page| {
            if !page.own {
                // The version stays: a grant that was taken must not be taken again (I13). One that
                // is still expected must.
                if page.owner == me {
                    page.version = page.version.before();
                }
                page.owner = SiteId::NONE;
            }
        });
    }

    fn rebuild_say(&mut self, turn: &mut Turn) {
        self.rebuild.due = turn.now + self.config.retry_us;
        let mut next = self.rebuild.unheard.key_at(0);
        // What a round has captured and not made stable yet would be missing from what a home reads
        // from the store (I20).
        let settled = self.rounds_are_settled() || planted!(self, ReadBeforeCommit);
        if next.is_none() && settled {
            self.send(self.view.first_site(), Message::Ready, turn);
        }
        while let Some(home) = next {
            let pages = self.rebuild.unheard.get(home).cloned().unwrap_or_default();
            self.send(home, Message::Report { pages }, turn);
            next = self.rebuild.unheard.key_after(home);
        }
    }

    /// A round has ended, for which this site may have waited.
    pub(crate) fn rebuild_goes_on(&mut self, turn: &mut Turn) {
        if !self.rebuild.over && self.rebuild.begun && self.rebuild.unheard.len() == 0 {
            self.rebuild_say(turn);
        }
    }

    pub(crate) fn rebuild_tick(&mut self, turn: &mut Turn) {
        if !self.rebuild.over && self.rebuild.begun && self.rebuild.due <= turn.now {
            self.rebuild_say(turn);
        }
    }

    pub(crate) fn report(&mut self, from: SiteId, pages: Vec<Held>, turn: &mut Turn) {
        if !self.rebuild.over && self.rebuild.told_by.insert(from) {
            self.rebuild.told.extend(pages.into_iter().map(|held| (from, held)));
        }
        self.send(from, Message::Reported, turn);
    }

    pub(crate) fn reported(&mut self, from: SiteId, turn: &mut Turn) {
        if self.rebuild.unheard.remove(from).is_some() && self.rebuild.unheard.len() == 0 {
            self.rebuild_say(turn);
        }
    }

    pub(crate) fn ready(&mut self, from: SiteId, turn: &mut Turn) {
        if self.rebuild.over {
            self.send(from, Message::Resume, turn);
            return;
        }
        self.rebuild.ready.insert(from);
        if self.rebuild.ready.len() == self.view.members().len() {
            for site in self.view.clone().sites() {
                self.send(site, Message::Resume, turn);
            }
        }
    }

    pub(crate) fn resume(&mut self, turn: &mut Turn) {
        if self.rebuild.over || !self.rebuild.begun {
            return;
        }
        self.rebuild.over = true;
        self.rebuild.whole = None;
        let mut told = core::mem::take(&mut self.rebuild.told);
        self.rebuild.told_by = SiteSet::new();
        self.rebuild.ready = SiteSet::new();
        let gone = core::mem::take(&mut self.rebuild.gone);
        let dead = core::mem::take(&mut self.rebuild.dead);
        self.forget_hints();
        told.sort_unstable_by_key(|(site, held)| (held.page, *site, held.role));
        for of_page in told.chunk_by(|a, b| a.1.page == b.1.page) {
            self.restore_home(of_page, &gone, turn);
        }
        let past = core::mem::take(&mut self.rebuild.past);
        // I21: what a home owned itself, nobody else may know of; and a home that left in order was
        // perhaps the only one to know what the dead had. If nobody died, nothing is lost (I22).
        let named = !dead.is_empty() && !planted!(self, HomeUnnamed);
        for (view, gone) in past.into_iter().filter(|_| named) {
            for site in gone.iter() {
                turn.out.push(Effect::LostHome { site, view: view.clone() });
            }
        }
        turn.out.push(Effect::Rebuilt { view: self.view.number() });
        self.doom_partners_of(&dead, &gone, turn);
        self.all_rounds_are_over();
        // Everything unfinished goes on as if its time had come.
        let mut next = self.busy.key_at(0);
        while let Some(key) = next {
            if let Some(busy) = self.busy.get_mut(key) {
                if let Some(want) = &mut busy.want {
                    want.due = turn.now;
                }
                busy.acks_due = turn.now;
                if let Some(leaving) = &mut busy.leaving {
                    leaving.due = turn.now;
                }
                let install = busy.install;
                if busy.acks.is_empty() && install != Access::None {
                    self.install(key, install, turn);
                }
            }
            self.page_tick(key, turn);
            self.pump(key, turn);
            next = self.busy.key_after(key);
        }
        self.rounds_resume(turn);
    }

    /// What the home makes of all that was reported of one page: the highest version wins; what only
    /// a dead site had is again what it was in the stable state (C10).
    fn restore_home(&mut self, told: &[(SiteId, Held)], gone: &SiteSet, turn: &mut Turn) {
        let key = told[0].1.page;
        let fresh = Version::first_of(self.view.number());
        let rank = |role: Role| match role {
            Role::Owner | Role::Giving(_) => Some(1),
            Role::Stranded(_) | Role::Untaken(_) => Some(0),
            Role::Reader | Role::Missing(_) | Role::Stored => None,
        };
        let held = told
            .iter()
            .filter_map(|(site, held)| Some((held.version, rank(held.role)?, site, held.role)));
        let best = held.max_by_key(|(version, rank, ..)| (*version, *rank));
        let missing = told
            .iter()
            .filter_map(|(_, held)| match held.role {
                Role::Missing(site) => Some((held.version, site)),
                _ => None,
            })
            .max();
        // The receiver of a page under way may have taken it and given it on to a site that is gone,
        // and the giver not know.
        let best = best.filter(|(version, _, _, role)| {
            !matches!(role, Role::Giving(_)) || missing.is_none_or(|(seen, _)| seen <= *version)
        });
        let missing = missing.map(|(_, site)| site).filter(|site| gone.contains(*site));
        // Whatever else is said of it is older (I14), and nothing is lost.
        let is_stored = |held: &Held| held.role == Role::Stored;
        let stored = told.iter().filter(|(_, held)| is_stored(held)).map(|(_, h)| h.version).max();
        let is_latest = |stored: Version| {
            let older = |held: &Held| held.version <= stored && held.role != Role::Owner;
            told.iter().all(|(_, held)| older(held) || held.version < stored)
        };
        // What this site had and gave up in an earlier view it does not say again.
        let had = self.table.get(key).version_seen();
        let is_past = best.is_some_and(|(version, _, _, role)| {
            matches!(role, Role::Giving(to) if to == self.me) && had > version
        });
        // Planted, `ForgetReaders` is to be found here and not made good here.
        let taken = planted!(self, TakeOldGrant) || planted!(self, ForgetReaders);
        if is_past && !taken {
            return;
        }
        if stored.is_some_and(is_latest) && !planted!(self, TakeBackDropped) {
            return;
        }
        // I16: a copy that the owner does not count must go before the owner writes.
        let copies: SiteSet = told
            .iter()
            .filter(|(_, held)| held.role == Role::Reader)
            .map(|(site, _)| *site)
            .collect();
        match best {
            Some((_, _, site, Role::Owner)) if *site == self.me => {}
            Some((version, _, site, Role::Owner)) => {
                self.learn_home_entry(key, *site, version, turn);
            }
            Some((version, _, _, Role::Giving(to))) => {
                self.learn_home_entry(key, to, version, turn);
                self.rebuild.strays.insert(key, Stray { copies, untaken: false });
            }
            Some((_, _, site, role @ (Role::Stranded(to) | Role::Untaken(to)))) => {
                let untaken = role == Role::Untaken(to);
                if !untaken {
                    turn.out.push(Effect::Lost { page: key, with: Some(to) });
                }
                self.learn_home_entry(key, *site, fresh, turn);
                self.rebuild.strays.insert(key, Stray { copies, untaken });
            }
            Some((_, _, _, Role::Reader | Role::Missing(_) | Role::Stored)) | None => {
                self.adopt(key, missing, copies, turn);
            }
        }
    }

    /// The home of a page that nobody has any more takes it, with its stable contents.
    fn adopt(&mut self, key: PageKey, with: Option<SiteId>, mut copies: SiteSet, turn: &mut Turn) {
        let version = Version::first_of(self.view.number());
        turn.out.push(Effect::Lost { page: key, with });
        self.learn_home_entry(key, self.me, version, turn);
        if let Some(leaving) = self.busy.get_mut(key).and_then(|b| b.leaving.take()) {
            // Given, taken, and gone since. What is given from now on is read from the store, and not
            // from the frame that was kept.
            if leaving.frame {
                turn.out.push(Effect::Release { page: key });
            }
            if leaving.capture {
                self.one_less_to_capture(key, turn);
            }
        }
        copies.remove(self.me);
        let owner = self.me;
        let page = Page { version, owner, own: true, stored: true, ..Page::default() };
        self.table.set(key, &page);
        for reader in copies.iter() {
            self.send(reader, Message::Invalidate { page: key, version, owner }, turn);
        }
        self.await_acks(key, copies, Access::None, turn);
    }

    pub(crate) fn not_here(
        &mut self,
        from: SiteId,
        key: PageKey,
        version: Version,
        turn: &mut Turn,
    ) {
        let page = self.load(key);
        if !page.own && page.owner == from && page.version == version {
            let Stray { copies, .. } = self.rebuild.strays.get(key).cloned().unwrap_or_default();
            self.adopt(key, None, copies, turn);
        }
    }

    fn learn_home_entry(&mut self, key: PageKey, owner: SiteId, version: Version, turn: &mut Turn) {
        let mut page = self.table.get(key);
        if page.access != Access::None && page.version < version {
            // The copy here is older than what the owner may write already.
            turn.out.push(Effect::Revoke { page: key, keep: false });
            page.access = Access::None;
        }
        page.owner = owner;
        page.version = version;
        page.refused = false;
        self.table.set(key, &page);
    }

    pub(crate) fn stranded(
        &mut self,
        from: SiteId,
        key: PageKey,
        version: Version,
        turn: &mut Turn,
    ) {
        let page = self.load(key);
        let here = page.owner == from && page.version == Version::first_of(self.view.number());
        let keep = (here && !page.own).then_some(page.version);
        let stray = self.rebuild.strays.get(key).cloned().unwrap_or_default();
        let Stray { copies, untaken } = stray;
        self.send(from, Message::Settle { page: key, version, keep, copies, untaken }, turn);
    }

    pub(crate) fn settle(
        &mut self,
        key: PageKey,
        version: Version,
        keep: Option<Version>,
        strays: &SiteSet,
        untaken: bool,
        turn: &mut Turn,
    ) {
        let mut page = self.load(key);
        let Some(policy) = self.policy(key) else { return };
        let Some(busy) = self.busy.get_mut(key) else { return };
        let asked = |l: &Leaving| l.stranded && l.grant.version == version && !l.capture;
        if !busy.leaving.as_ref().is_some_and(asked) {
            // Also if the frame is still to be captured: the question is repeated.
            return;
        }
        let Some(leaving) = busy.leaving.take() else { return };
        match keep {
            // Here again as its home, with its stable contents.
            _ if page.own && leaving.frame && page.stored => {
                turn.out.push(Effect::Release { page: key });
            }
            _ if page.own => {}
            None if leaving.frame && page.access == Access::None => {
                turn.out.push(Effect::Release { page: key });
            }
            None => {}
            Some(version) => {
                // The dead site may have taken the page and its changes may have become stable, so
                // that the frame kept here is older than the store (I20). It counts only for what
                // does not persist.
                let frame = leaving.frame && (untaken || self.domain_of(key).is_none());
                if leaving.frame && !frame {
                    turn.out.push(Effect::Release { page: key });
                }
                let access = if frame { Access::Read } else { Access::None };
                let stored = !frame && policy != Policy::Lock;
                page = Page {
                    version,
                    owner: self.me,
                    own: true,
                    stored,
                    modified: frame && leaving.grant.modified,
                    captured: frame && leaving.captured,
                    ..Page::default()
                };
                self.table.set(key, &page);
                if leaving.grant.modified && !frame {
                    self.doom(key, leaving.to, turn);
                }
                // Copies must go before this frame is read (I16): the dead site may have given them
                // with later contents, or not have seen them go.
                let view = self.view.clone();
                let mut copies = leaving.grant.copies;
                copies.extend(strays);
                copies.retain(|s| view.contains(s));
                copies.remove(self.me);
                for reader in copies.iter() {
                    let owner = self.me;
                    self.send(reader, Message::Invalidate { page: key, version, owner }, turn);
                }
                self.await_acks(key, copies, access, turn);
            }
        }
        self.pump(key, turn);
        self.forget_if_idle(key);
    }
}
