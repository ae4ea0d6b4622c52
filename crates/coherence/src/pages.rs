//! Pages as they are asked for and given: faults, requests, queues, copies and grants as their owner
//! makes them, and what is said again when time passes. What a site makes of the answers is in `taking`,
//! what threads make of locks in `locks`; views and rounds are elsewhere. Read [`Site::fault`] and
//! [`Site::request`] first.
use alloc::vec::Vec;

use crate::config::{Manager, Policy};
use crate::effect::{Effect, Source};
use crate::ids::{Access, Number, PageKey, SiteId, Version};
use crate::leaving::Departure;
use crate::message::{Copy, Grant, Message, Request};
use crate::site::{Leaving, Site, Turn, Want};
use crate::site_set::SiteSet;
use crate::table::{Page, bits};

impl Site {
    /// A program needs a page.
    pub(crate) fn fault(&mut self, key: PageKey, run: u64, write: bool, turn: &mut Turn) {
        let Some(policy) = self.policy(key) else { return };
        if policy == Policy::Lock {
            return;
        }
        let page = self.load(key);
        let enough = if write { Access::Write } else { Access::Read };
        if page.access >= enough {
            turn.out.push(Effect::Map { page: key, access: page.access });
            return;
        }
        if page.own {
            self.own_fault(key, write, turn);
            return;
        }
        if let Some(want) = self.busy.get_mut(key).and_then(|b| b.want.as_mut()) {
            // The thread faults again when the page comes, if what comes is not enough for it.
            want.optional = false;
            return;
        }
        let run = self.free_run(key, run, write, policy);
        self.want(key, write, run, None, turn);
    }

    /// Which pages of a run are worth asking for: in the chunk, and not here or under way.
    fn free_run(&self, key: PageKey, run: u64, write: bool, policy: Policy) -> u64 {
        let in_chunk = u64::MAX >> key.slot();
        let enough = if write { Access::Write } else { Access::Read };
        bits(run & in_chunk & !1)
            .filter(|at| {
                let next = neighbour(key, *at);
                let page = self.load(next);
                !page.own && page.access < enough && self.busy.get(next).is_none()
            })
            .fold(0, |run, at| run | 1 << at)
            & if policy == Policy::Lock { 0 } else { u64::MAX }
    }

    pub(crate) fn want(
        &mut self,
        key: PageKey,
        write: bool,
        run: u64,
        with: Option<PageKey>,
        turn: &mut Turn,
    ) {
        let number = self.next_number();
        let due = turn.now + self.config.retry_us;
        let want = Want { number, write, run, with, due, optional: false };
        for at in bits(run) {
            self.busy.entry(neighbour(key, at)).want =
                Some(Want { run: 0, optional: true, ..want.clone() });
        }
        self.busy.entry(key).want = Some(want);
        self.ask(key, false, turn);
    }

    /// Sends the request for what is wanted; `sure` by way of the home.
    pub(crate) fn ask(&mut self, key: PageKey, sure: bool, turn: &mut Turn) {
        if !self.rebuild.is_over() {
            return;
        }
        let Some(cluster) = self.config.cluster(key.cluster) else { return };
        let (home, manager) = (self.home_of(key, cluster), cluster.manager);
        let Some(want) = self.busy.get(key).and_then(|b| b.want.as_ref()) else { return };
        let page = self.load(key);
        let by_hint = manager == Manager::Dynamic
            && !sure
            && page.owner != SiteId::NONE
            && page.owner != self.me;
        let request = Request {
            page: key,
            run: want.run,
            from: self.me,
            number: want.number,
            write: want.write,
            have: if page.access == Access::None { Version::ZERO } else { page.version },
            expect: if by_hint { page.version } else { Version::ZERO },
            hops: 0,
            sure,
            with: want.with,
        };
        let to = if by_hint { page.owner } else { home };
        self.send(to, Message::Request(request), turn);
    }

    /// The owner itself needs more than it has.
    pub(crate) fn own_fault(&mut self, key: PageKey, write: bool, turn: &mut Turn) {
        let mut page = self.load(key);
        let unfinished = self.busy.get(key).is_some_and(|b| !b.acks.is_empty());
        let unread = self.is_unread(key, &page);
        if unfinished || unread || (write && page.due) || !self.rebuild.is_over() {
            // During a rebuild everything stays as it was reported (I8).
            let number = self.next_number();
            let due = turn.now + self.config.retry_us;
            self.busy.entry(key).want =
                Some(Want { number, write, run: 0, with: None, due, optional: false });
            if page.due {
                // A program waits for a capture that was asked for before.
                self.capture(key, turn);
            }
            return;
        }
        if page.stored {
            turn.out.push(Effect::Fill { page: key, source: Source::Store });
            page.stored = false;
        }
        if !write {
            page.access = page.access.max(Access::Read);
            self.table.set(key, &page);
            turn.out.push(Effect::Map { page: key, access: page.access });
            return;
        }
        // A new version, so that no copy of the old one can be taken for this one (I14).
        let readers = self.table.take_readers(key, &mut page);
        page.version = page.version.next();
        self.table.set(key, &page);
        for reader in readers.iter() {
            let message = Message::Invalidate { page: key, version: page.version, owner: self.me };
            self.send(reader, message, turn);
        }
        self.await_acks(key, readers, Access::Write, turn);
    }

    pub(crate) fn await_acks(
        &mut self,
        key: PageKey,
        acks: SiteSet,
        install: Access,
        turn: &mut Turn,
    ) {
        if acks.is_empty() || planted!(self, WriteEarly) {
            self.install(key, install, turn);
            return;
        }
        let due = turn.now + self.config.retry_us;
        let busy = self.busy.entry(key);
        busy.acks = acks;
        busy.acks_due = due;
        busy.install = install;
    }

    /// No other site has a copy any more (I11): gives the owner the access that it waited for.
    pub(crate) fn install(&mut self, key: PageKey, access: Access, turn: &mut Turn) {
        if let Some(busy) = self.busy.get_mut(key) {
            busy.install = Access::None;
        }
        let mut page = self.load(key);
        if access > page.access {
            if access == Access::Write && page.due {
                // Not before it is captured; `captured` comes back here by way of the queue.
                self.own_fault(key, true, turn);
                return;
            }
            page.access = access;
            if access == Access::Write {
                page.modified = true;
                page.captured = false;
                if self.config.hold_us > 0 && !page.held && !planted!(self, Unfair) {
                    page.held = true;
                    self.holds.push_back((turn.now + self.config.hold_us, key));
                }
            }
            self.table.set(key, &page);
            turn.out.push(Effect::Map { page: key, access });
        }
        let has = self.load(key).access;
        let enough = |w: &Want| has >= if w.write { Access::Write } else { Access::Read };
        if let Some(busy) = self.busy.get_mut(key)
            && busy.want.as_ref().is_some_and(enough)
        {
            busy.want = None;
        }
        self.pump(key, turn);
    }

    // Requests.

    pub(crate) fn request(&mut self, request: Request, turn: &mut Turn) {
        let key = request.page;
        if self.policy(key).is_none() || !self.view.contains(request.from) {
            return;
        }
        if planted!(self, ServeOnlyAwake) && self.gate_is_closed(key) {
            return;
        }
        let page = self.load(key);
        if page.own {
            if request.from == self.me {
                // It came round; what was wanted is here.
            } else if self.can_serve(&request, &page) {
                self.serve(request, turn);
            } else {
                self.enqueue(request, turn);
            }
        } else if request.expect > page.version || page.owner == self.me {
            // I1: the page is under way to here.
            if planted!(self, Bounce) {
                let bounced = Request { expect: Version::ZERO, hops: 0, ..request };
                self.forward(bounced, turn);
            } else if request.from != self.me {
                // This site's own want is remembered where wants are.
                self.enqueue(request, turn);
            }
        } else {
            self.forward(request, turn);
        }
    }

    /// Whether nothing stands between an owned page and a request for it, as is the common case. The
    /// same questions are asked of the head of a queue.
    fn can_serve(&self, request: &Request, page: &Page) -> bool {
        let key = request.page;
        let stays = page.held || page.locked || self.must_capture(key, page);
        let free = self.busy.get(key).is_none() && !self.is_unread(key, page);
        free && !(self.gives(request) && stays)
    }

    /// Whether a request is answered with the page itself and not with a copy.
    pub(crate) fn gives(&self, request: &Request) -> bool {
        let stays = self.departure == Departure::Stays;
        request.write || !stays || self.policy(request.page) != Some(Policy::Invalidate)
    }

    fn serve(&mut self, request: Request, turn: &mut Turn) {
        if self.gives(&request) {
            self.give(request, turn);
        } else {
            self.share(request, turn);
        }
    }

    /// I7: the owner named by a hint came to own the page with the hint's version, and whatever that
    /// site knows has a higher one; so versions rise along the way and it ends at the owner, or
    /// where the page is about to arrive.
    fn forward(&mut self, request: Request, turn: &mut Turn) {
        let key = request.page;
        let Some(home) = self.home(key) else { return };
        let mut page = self.load(key);
        let (from, write) = (request.from, request.write);
        let unknown = page.owner == SiteId::NONE || page.owner == self.me;
        let too_far = request.hops >= self.config.hops_max && !request.sure;
        let by_home = home != self.me && (unknown || too_far);
        if unknown && home == self.me {
            return;
        }
        if unknown && page.refused {
            // The giver will hear so when it asks again, and then has the page.
            return;
        }
        if unknown && request.sure && request.expect > Version::ZERO {
            // The home took this site for the owner by the word of a giver who did not know that
            // the page had been taken and given on, to a site that is gone. Whoever asks, asks again.
            self.send(home, Message::NotHere { page: key, version: request.expect }, turn);
            return;
        }
        let to = if by_home { home } else { page.owner };
        let forwarded = Request {
            hops: request.hops.saturating_add(1),
            sure: request.sure || home == self.me || by_home,
            expect: if by_home { Version::ZERO } else { page.version },
            ..request
        };
        self.send(to, Message::Request(forwarded), turn);
        if planted!(self, HintFromRead) && !write && from != self.me {
            page.owner = from;
            self.table.set(key, &page);
        }
    }

    fn enqueue(&mut self, request: Request, turn: &mut Turn) {
        let key = request.page;
        let unfair = planted!(self, Unfair);
        let busy = self.busy.entry(key);
        add_request(&mut busy.queue, request);
        if unfair && let Some(last) = busy.queue.pop() {
            busy.queue.insert(0, last);
        }
        self.pump(key, turn);
    }

    /// Does for an owned page what can be done: first what this site waits for, then requests in
    /// order (I6).
    pub(crate) fn pump(&mut self, key: PageKey, turn: &mut Turn) {
        loop {
            let page = self.load(key);
            let Some(busy) = self.busy.get(key) else { return };
            let Some(policy) = self.policy(key) else { return };
            if policy != Policy::Lock && !self.rebuild.is_over() {
                return;
            }
            let waits = !busy.acks.is_empty() || busy.install != Access::None;
            if !page.own || waits || self.is_unread(key, &page) {
                break;
            }
            if policy != Policy::Lock
                && let Some(want) = &busy.want
            {
                let write = want.write;
                let enough = if write { Access::Write } else { Access::Read };
                if page.access >= enough || !page.due || !write {
                    self.busy.entry(key).want = None;
                    if page.access < enough {
                        self.own_fault(key, write, turn);
                    }
                    continue;
                }
            }
            if policy == Policy::Lock && busy.want.is_some() {
                // The lock came back here as its home, not by a grant.
                self.wait_in_own_line(key);
                continue;
            }
            let Some(head) = busy.queue.first() else { break };
            let from = head.from;
            let gives = self.gives(head);
            if from == self.me {
                if page.locked {
                    break;
                }
                self.busy.entry(key).queue.remove(0);
                if policy == Policy::Lock {
                    self.have_lock(key, turn);
                }
                continue;
            }
            if gives {
                if page.held || page.locked || planted!(self, HoldAndWait) && self.waits_near(key) {
                    break;
                }
                if self.must_capture(key, &page) && !planted!(self, GiveUncaptured) {
                    self.capture(key, turn);
                    break;
                }
            }
            let request = self.busy.entry(key).queue.remove(0);
            self.serve(request, turn);
        }
        if !self.load(key).own {
            self.pass_queue_on(key, turn);
        }
        self.forget_if_idle(key);
    }

    /// Whether a neighbour of the page is being waited for here.
    #[cfg(feature = "planted")]
    fn waits_near(&self, key: PageKey) -> bool {
        let near = |other: PageKey| other != key && other.chunk() == key.chunk();
        self.busy.iter().any(|(other, busy)| near(other) && busy.want.is_some())
    }

    #[cfg(not(feature = "planted"))]
    fn waits_near(&self, _: PageKey) -> bool {
        false
    }

    /// Requests that waited for a page which then went elsewhere go after it.
    pub(crate) fn pass_queue_on(&mut self, key: PageKey, turn: &mut Turn) {
        let page = self.load(key);
        if page.owner == self.me || page.owner == SiteId::NONE || !self.rebuild.is_over() {
            return;
        }
        while let Some(busy) = self.busy.get_mut(key)
            && let Some(at) = busy.queue.iter().position(|r| r.expect <= page.version)
        {
            let request = busy.queue.remove(at);
            self.forward(request, turn);
        }
    }

    // Giving.

    fn share(&mut self, request: Request, turn: &mut Turn) {
        let key = request.page;
        let first = self.share_one(key, request.from, turn);
        // I9: what is not free is left out, and nobody waits for it.
        let mut more = Vec::new();
        for at in bits(request.run & !1 & (u64::MAX >> key.slot())) {
            let next = neighbour(key, at);
            let page = self.load(next);
            if page.own && self.busy.get(next).is_none() && !self.is_unread(next, &page) {
                more.push(self.share_one(next, request.from, turn));
            }
        }
        self.send(request.from, Message::Copies { number: request.number, first, more }, turn);
    }

    /// The copy has what was stored last: the owner stores no more before it goes (I12).
    fn share_one(&mut self, key: PageKey, to: SiteId, turn: &mut Turn) -> Copy {
        let mut page = self.load(key);
        if page.access == Access::Write {
            turn.out.push(Effect::Protect { page: key });
            page.access = Access::Read;
        }
        self.table.add_reader(key, &mut page, to);
        if page.modified {
            self.note_lent(key, to);
        }
        self.table.set(key, &page);
        let (colour, cut) = self.colour(key);
        Copy { page: key, version: page.version, modified: page.modified, colour, cut }
    }

    fn give(&mut self, request: Request, turn: &mut Turn) {
        let key = request.page;
        let waiting = self.take_queue(key);
        let first = self.give_one(key, request.from, request.have, waiting, turn);
        let mut more = Vec::new();
        for at in bits(request.run & !1 & (u64::MAX >> key.slot())) {
            let next = neighbour(key, at);
            if self.is_free(next) {
                more.push(self.give_one(next, request.from, Version::ZERO, Vec::new(), turn));
            }
        }
        self.send(request.from, Message::Grants { first, more }, turn);
        if planted!(self, DropFrame) {
            turn.out.push(Effect::Release { page: key });
        }
        if let Some(with) = request.with
            && self.is_free(with)
        {
            let first = self.give_one(with, request.from, Version::ZERO, Vec::new(), turn);
            self.send(request.from, Message::Grants { first, more: Vec::new() }, turn);
        }
    }

    /// Whether a page can be given away at once.
    pub(crate) fn is_free(&self, key: PageKey) -> bool {
        let page = self.load(key);
        let free = page.own && !page.held && !page.locked && self.busy.get(key).is_none();
        free && !self.must_capture(key, &page) && !self.is_unread(key, &page)
    }

    /// The requests that go with a page. A thread here that waits for the lock becomes one of them.
    pub(crate) fn take_queue(&mut self, key: PageKey) -> Vec<Request> {
        let me = self.me;
        let Some(busy) = self.busy.get_mut(key) else { return Vec::new() };
        let mut queue = core::mem::take(&mut busy.queue);
        let Some(at) = queue.iter().position(|r| r.from == me) else { return queue };
        let first = queue[at].clone();
        let own_count = queue.iter().filter(|r| r.from == me).count() as u32;
        busy.lock_waiters += own_count - 1;
        busy.want = Some(Want {
            number: first.number,
            write: true,
            run: 0,
            with: first.with,
            due: 0,
            optional: false,
        });
        queue.retain(|r| r.from != me);
        queue.insert(at, first);
        queue
    }

    /// Takes the page away from the programs here and makes the grant for it. The frame is kept until
    /// the receiver says that it took the page (I15).
    pub(crate) fn give_one(
        &mut self,
        key: PageKey,
        to: SiteId,
        have: Version,
        waiting: Vec<Request>,
        turn: &mut Turn,
    ) -> Grant {
        let mut page = self.load(key);
        let is_lock = self.policy(key) == Some(Policy::Lock);
        let mut copies = self.table.take_readers(key, &mut page);
        let had_copy = copies.remove(to);
        // I4: only the version says whether the copy that the asker had is still the page.
        let current =
            had_copy && have == page.version || planted!(self, TrustCopy) && have > Version::ZERO;
        let kept_version = page.version;
        let version = page.version.next();
        let frame = !page.stored && !is_lock;
        if frame {
            turn.out.push(Effect::Revoke { page: key, keep: true });
        }
        if planted!(self, SkipInvalidation) {
            let skipped = copies.iter().next();
            copies.retain(|s| Some(s) != skipped);
        }
        let (colour, cut) = self.colour(key);
        let grant = Grant {
            page: key,
            version,
            body: !current && !is_lock,
            stable: false,
            modified: page.modified,
            colour,
            cut,
            copies: copies.clone(),
            waiting,
        };
        if page.modified {
            self.note_gave(key, to);
        }
        let again = Grant { body: !is_lock, waiting: Vec::new(), ..grant.clone() };
        self.busy.entry(key).leaving = Some(Leaving {
            to,
            grant: again,
            kept_version,
            frame,
            due: turn.now + self.config.retry_us,
            stranded: false,
            bereft: false,
            capture: false,
            captured: page.captured,
        });
        page = Page { version, owner: to, ..Page::default() };
        self.table.set(key, &page);
        // The copies answer the receiver; that they are told from here saves it a round trip.
        for reader in copies.iter() {
            self.send(reader, Message::Invalidate { page: key, version, owner: to }, turn);
        }
        grant
    }

    // Time.

    /// Says again what was not answered.
    pub(crate) fn page_tick(&mut self, key: PageKey, turn: &mut Turn) {
        let again = turn.now + self.config.retry_us;
        let page = self.load(key);
        let me = self.me;
        let Some(busy) = self.busy.get_mut(key) else { return };
        if let Some(want) = &mut busy.want
            && want.due <= turn.now
        {
            if want.optional {
                busy.want = None;
            } else if !page.own {
                want.due = again;
                want.run = 0;
                self.ask(key, true, turn);
            } else {
                want.due = again;
            }
        }
        let Some(busy) = self.busy.get_mut(key) else { return };
        if !busy.acks.is_empty() && busy.acks_due <= turn.now {
            busy.acks_due = again;
            let acks = busy.acks.clone();
            for reader in acks.iter() {
                let message = Message::Invalidate { page: key, version: page.version, owner: me };
                self.send(reader, message, turn);
            }
        }
        let Some(busy) = self.busy.get_mut(key) else { return };
        if let Some(leaving) = &mut busy.leaving
            && leaving.due <= turn.now
        {
            leaving.due = again;
            let (to, stranded, grant) = (leaving.to, leaving.stranded, leaving.grant.clone());
            let unread = Page { stored: grant.stable, ..Page::default() };
            if !stranded && self.is_unread(key, &unread) {
                // The receiver would read it.
            } else if !stranded {
                self.send(to, Message::Grants { first: grant, more: Vec::new() }, turn);
            } else if let Some(home) = self.home(key) {
                let message = Message::Stranded { page: key, version: grant.version };
                self.send(home, message, turn);
            }
        }
        self.forget_if_idle(key);
    }
}

/// At most one request of each site waits, so that the queue is no longer than the view; a repeated
/// one keeps its place.
pub(crate) fn add_request(queue: &mut Vec<Request>, request: Request) {
    match queue.iter_mut().find(|r| r.from == request.from) {
        Some(waiting) => {
            // Numbers may wrap; the later one is ahead by less than half their range.
            if request.number.wrapping_sub(waiting.number) < Number::MAX / 2 {
                *waiting = request;
            }
        }
        None => queue.push(request),
    }
}

pub(crate) fn neighbour(key: PageKey, at: usize) -> PageKey {
    PageKey { page: stead_model::PageNo(key.page.0 + at as u64), ..key }
}
