//! Pages as they arrive and go: copies and grants taken, once each; pages refused and given back;
//! copies invalidated. Read [`Site::grants`] and [`Site::invalidate`] first.

use alloc::vec::Vec;

use crate::config::Policy;
use crate::effect::{Effect, Source};
use crate::ids::{Access, Number, PageKey, SiteId, Version};
use crate::leaving::Departure;
use crate::message::{Copy, Grant, Message, Request, Vec1};
use crate::pages::{add_request, neighbour};
use crate::site::{Busy, Leaving, Site, Turn, Want};
use crate::site_set::SiteSet;
use crate::table::{Page, bits};

/// Whether a grant was taken.
#[derive(PartialEq, Eq)]
enum Taken {
    /// Now.
    Now,
    /// Before: this is a repetition.
    Before,
    /// Not now; the giver will send it again.
    Refused,
}

impl Site {
    pub(crate) fn copies(
        &mut self,
        from: SiteId,
        number: Number,
        first: Copy,
        more: Vec<Copy>,
        turn: &mut Turn,
    ) {
        let key = first.page;
        let answers = |busy: &Busy| busy.want.as_ref().is_some_and(|w| w.number == number);
        // I5: a copy counts once, for the request that it answers.
        if !self.busy.get(key).is_some_and(answers) {
            return;
        }
        let run = self.busy.get(key).and_then(|b| b.want.as_ref()).map_or(0, |w| w.run);
        for copy in core::iter::once(&first).chain(&more) {
            if self.busy.get(copy.page).is_some_and(answers) {
                self.copy(from, copy, turn);
            }
        }
        self.end_run(key, number, run, turn);
    }

    /// What was asked for besides and did not come, will not come.
    fn end_run(&mut self, key: PageKey, number: Number, run: u64, turn: &mut Turn) {
        for at in bits(run) {
            let next = neighbour(key, at);
            let Some(busy) = self.busy.get_mut(next) else { continue };
            match &busy.want {
                Some(want) if want.number == number && want.optional => {
                    busy.want = None;
                    self.forget_if_idle(next);
                }
                Some(want) if want.number == number => self.ask_anew(next, turn),
                _ => {}
            }
        }
    }

    fn copy(&mut self, from: SiteId, copy: &Copy, turn: &mut Turn) {
        let key = copy.page;
        let mut page = self.load(key);
        if page.own {
            return;
        }
        if self.leaving_is_due(key) || copy.modified && self.is_void(key, from, copy.colour) {
            // Asked for again when the frame is captured, or the giver has gone back.
            return;
        }
        // I2: an invalidation raised the version that is known; an older copy is worthless.
        if copy.version < page.version && !planted!(self, InstallStale) {
            self.ask_anew(key, turn);
            return;
        }
        page.version = copy.version;
        page.owner = from;
        page.access = Access::Read;
        page.modified = copy.modified;
        page.refused = false;
        self.table.set(key, &page);
        turn.out.push(Effect::Fill { page: key, source: Source::Message });
        turn.out.push(Effect::Map { page: key, access: Access::Read });
        if copy.modified {
            self.note_took(key, from, copy.colour, false);
        }
        let busy = self.busy.entry(key);
        busy.want = None;
        if busy.leaving.as_ref().is_some_and(|l| l.grant.version <= copy.version) {
            // Whoever gives copies of it has taken it.
            busy.leaving = None;
        }
        self.pass_queue_on(key, turn);
        self.forget_if_idle(key);
    }

    fn ask_anew(&mut self, key: PageKey, turn: &mut Turn) {
        let number = self.next_number();
        let due = turn.now + self.config.retry_us;
        if let Some(want) = self.busy.get_mut(key).and_then(|b| b.want.as_mut()) {
            *want = Want { number, due, run: 0, optional: false, ..*want };
            self.ask(key, false, turn);
        }
    }

    pub(crate) fn grants(&mut self, from: SiteId, first: Grant, more: Vec<Grant>, turn: &mut Turn) {
        let key = first.page;
        let Some(home) = self.home(key) else { return };
        let want = self.busy.get(key).and_then(|b| b.want.as_ref());
        let (number, run) = want.map_or((0, 0), |w| (w.number, w.run));
        let mut took: Option<Vec1<(PageKey, Version)>> = None;
        let mut fresh = false;
        for grant in core::iter::once(first).chain(more) {
            let item = (grant.page, grant.version);
            let taken = self.take(from, grant, turn);
            fresh |= taken == Taken::Now;
            if taken != Taken::Refused {
                match &mut took {
                    None => took = Some(Vec1::one(item)),
                    Some(took) => took.more.push(item),
                }
            }
        }
        let Some(took) = took else { return };
        if fresh && home != self.me && home != from {
            let pages = took.clone();
            self.send(home, Message::Owner { pages, owner: self.me }, turn);
        }
        self.send(from, Message::Took { pages: took }, turn);
        self.end_run(key, number, run, turn);
    }

    fn take(&mut self, from: SiteId, grant: Grant, turn: &mut Turn) -> Taken {
        let key = grant.page;
        let Some(policy) = self.policy(key) else { return Taken::Refused };
        let page = self.load(key);
        let expected = page.owner == self.me && page.version == grant.version;
        // I5, I13: what was granted once is taken once.
        if !page.own && page.refused && page.version == grant.version.next() {
            self.refuse(from, grant, turn);
            return Taken::Refused;
        }
        let seen = page.own || page.version >= grant.version && !expected;
        if seen && !planted!(self, TakeTwice) {
            return Taken::Before;
        }
        if self.departure == Departure::Left {
            // Whoever asked for it is gone, and the next view must not find it here.
            self.refuse(from, grant, turn);
            return Taken::Refused;
        }
        if self.leaving_is_due(key) || grant.modified && self.is_void(key, from, grant.colour) {
            return Taken::Refused;
        }
        if grant.modified && !self.may_take_modified(key, from, grant.cut, turn) {
            self.refuse(from, grant, turn);
            return Taken::Refused;
        }
        if self.leaving_is_due(key) && !planted!(self, ForgetLeavingCapture) {
            // The grant told of the cut, and the cut wants the frame that was kept here.
            return Taken::Refused;
        }
        let mut access = self.load(key).access;
        let has_body = grant.body || grant.stable || policy == Policy::Lock;
        let copy_is_current = access == Access::Read && page.version.next() == grant.version;
        if !has_body && !copy_is_current && !planted!(self, TrustCopy) {
            // The copy that the giver counted on is gone; it sends a body the next time.
            return Taken::Refused;
        }
        if grant.body || grant.stable {
            if access != Access::None {
                turn.out.push(Effect::Revoke { page: key, keep: false });
                access = Access::None;
            }
            if grant.body {
                turn.out.push(Effect::Fill { page: key, source: Source::Message });
            }
        }
        let page = Page {
            version: grant.version,
            owner: self.me,
            own: true,
            access,
            modified: grant.modified,
            stored: grant.stable,
            ..Page::default()
        };
        self.table.set(key, &page);
        if grant.modified {
            self.note_took(key, from, grant.colour, true);
        }
        let me = self.me;
        let busy = self.busy.entry(key);
        busy.leaving = None;
        let mut acks = grant.copies;
        if busy.early_version == grant.version {
            acks.retain(|s| !busy.early.contains(s));
        }
        acks.remove(me);
        busy.early = SiteSet::new();
        busy.early_version = Version::ZERO;
        let queue = core::mem::take(&mut busy.queue);
        for request in grant.waiting.into_iter().chain(queue) {
            if request.from != me {
                add_request(&mut busy.queue, request);
            }
        }
        let want = busy.want.take();
        if policy == Policy::Lock {
            let waiters = core::mem::take(&mut busy.lock_waiters);
            if want.is_some() {
                self.have_lock(key, turn);
            }
            for _ in 0..waiters {
                self.wait_for_own_lock(key, None);
            }
            self.pump(key, turn);
            return Taken::Now;
        }
        let wants_write = want.as_ref().is_some_and(|w| w.write);
        let install = if self.is_unread(key, &page) {
            Access::None
        } else if wants_write {
            Access::Write
        } else if page.stored {
            Access::None
        } else {
            Access::Read
        };
        if install == Access::None && want.is_some() {
            self.own_fault(key, wants_write, turn);
        }
        self.finish_take(key, acks, install, turn);
        Taken::Now
    }

    /// Gives a page back unseen. Waiting for a better time to take it could be for ever: a section at
    /// the giver may wait for this very page, and the round for that section (I19).
    fn refuse(&mut self, from: SiteId, grant: Grant, turn: &mut Turn) {
        let Grant { page: key, version, waiting, .. } = grant;
        let page = self.load(key);
        let version_back = version.next();
        let refused = Page { version: version_back, owner: from, refused: true, ..page };
        self.table.set(key, &refused);
        let keeps = planted!(self, KeepEarly);
        if let Some(busy) = self.busy.get_mut(key)
            && busy.early_version <= version
            && !keeps
        {
            // Answers that overtook this grant are to no later one: the giver counts the copies again.
            busy.early = SiteSet::new();
            busy.early_version = Version::ZERO;
        }
        self.send(from, Message::Refused { page: key, version, waiting }, turn);
        self.pass_queue_on(key, turn);
        self.forget_if_idle(key);
    }

    pub(crate) fn refused(
        &mut self,
        from: SiteId,
        key: PageKey,
        version: Version,
        waiting: Vec<Request>,
        turn: &mut Turn,
    ) {
        if self.load(key).own {
            return;
        }
        let Some(busy) = self.busy.get_mut(key) else { return };
        let this = |l: &mut Leaving| l.grant.version == version && l.to == from;
        let Some(leaving) = busy.leaving.take_if(this) else { return };
        for request in waiting {
            add_request(&mut busy.queue, request);
        }
        let mut page = Page {
            version: version.next(),
            owner: self.me,
            own: true,
            access: if leaving.frame { Access::Read } else { Access::None },
            stored: !leaving.frame,
            modified: leaving.grant.modified,
            due: leaving.capture,
            captured: leaving.captured,
            ..Page::default()
        };
        // Told to go, but perhaps not gone.
        for reader in leaving.grant.copies.iter().chain([from]) {
            self.table.add_reader(key, &mut page, reader);
        }
        self.table.set(key, &page);
        if leaving.frame {
            turn.out.push(Effect::Map { page: key, access: Access::Read });
        }
        if page.due {
            // What is asked for names the version that was kept.
            self.capture(key, turn);
        }
        self.pump(key, turn);
    }

    fn finish_take(&mut self, key: PageKey, acks: SiteSet, install: Access, turn: &mut Turn) {
        if install == Access::Write {
            let mut page = self.load(key);
            if page.stored {
                turn.out.push(Effect::Fill { page: key, source: Source::Store });
                page.stored = false;
                self.table.set(key, &page);
            }
        }
        self.await_acks(key, acks, install, turn);
    }

    pub(crate) fn took(&mut self, key: PageKey, version: Version, turn: &mut Turn) {
        let Some(busy) = self.busy.get_mut(key) else { return };
        let Some(leaving) = &busy.leaving else { return };
        if leaving.grant.version > version || leaving.capture {
            // What is to be captured stays; the grant is repeated and so is the answer.
            return;
        }
        let release = leaving.frame;
        busy.leaving = None;
        if release && self.load(key).access == Access::None && !self.load(key).own {
            turn.out.push(Effect::Release { page: key });
        }
        self.forget_if_idle(key);
    }

    pub(crate) fn learn_owner(
        &mut self,
        key: PageKey,
        version: Version,
        owner: SiteId,
        turn: &mut Turn,
    ) {
        let mut page = self.load(key);
        if self.policy(key).is_none() || page.own || page.version >= version {
            return;
        }
        if page.access != Access::None {
            // The new owner waits for this copy to go; its word for that is on the way.
            turn.out.push(Effect::Revoke { page: key, keep: false });
        }
        page = Page { version, owner, ..Page::default() };
        self.table.set(key, &page);
        self.pass_queue_on(key, turn);
        self.forget_if_idle(key);
    }

    // Invalidation.

    /// I3: answered at once, whatever this site waits for itself.
    pub(crate) fn invalidate(
        &mut self,
        key: PageKey,
        version: Version,
        owner: SiteId,
        turn: &mut Turn,
    ) {
        let waits = self.busy.get(key).is_some_and(|b| b.want.is_some());
        if self.policy(key).is_none() || planted!(self, WaitForFault) && waits {
            return;
        }
        self.learn_owner(key, version, owner, turn);
        self.send(owner, Message::Invalidated { page: key, version }, turn);
    }

    pub(crate) fn invalidated(
        &mut self,
        from: SiteId,
        key: PageKey,
        version: Version,
        turn: &mut Turn,
    ) {
        if self.policy(key).is_none() {
            return;
        }
        let page = self.load(key);
        if page.own && page.version == version {
            let Some(busy) = self.busy.get_mut(key) else { return };
            if busy.acks.remove(from) && busy.acks.is_empty() {
                let install = busy.install;
                self.install(key, install, turn);
            }
        } else if !page.own && version > page.version {
            // It overtook the grant.
            let busy = self.busy.entry(key);
            if version > busy.early_version {
                busy.early_version = version;
                busy.early = SiteSet::new();
            }
            if version == busy.early_version {
                busy.early.insert(from);
            }
        }
    }
}
