//! Pages and locks: faults, requests, copies, grants, invalidations. A lock is a page without a body
//! that is not given away while a thread has it. Views and rounds are elsewhere. Read
//! [`Site::fault`] and [`Site::request`] first.

use alloc::vec::Vec;

use crate::config::{Manager, Policy};
use crate::effect::{Effect, Source};
use crate::ids::{Access, Number, PageKey, SiteId, Version};
use crate::message::{Copy, Grant, Message, Request, Vec1};
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

    fn want(
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
    fn own_fault(&mut self, key: PageKey, write: bool, turn: &mut Turn) {
        let mut page = self.load(key);
        let unfinished = self.busy.get(key).is_some_and(|b| !b.acks.is_empty());
        if unfinished || (write && page.due) || !self.rebuild.is_over() {
            // During a rebuild everything stays as it was reported (I8).
            let number = self.next_number();
            let due = turn.now + self.config.retry_us;
            self.busy.entry(key).want =
                Some(Want { number, write, run: 0, with: None, due, optional: false });
            if page.due {
                self.capture_again(key, turn);
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
        self.busy.get(key).is_none() && !(self.gives(request) && stays)
    }

    /// Whether a request is answered with the page itself and not with a copy.
    fn gives(&self, request: &Request) -> bool {
        request.write || self.policy(request.page) != Some(Policy::Invalidate)
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
            if !page.own || !busy.acks.is_empty() || busy.install != Access::None {
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
    fn pass_queue_on(&mut self, key: PageKey, turn: &mut Turn) {
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
            if self.load(next).own && self.busy.get(next).is_none() {
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
    fn is_free(&self, key: PageKey) -> bool {
        let page = self.load(key);
        let free = page.own && !page.held && !page.locked && self.busy.get(key).is_none();
        free && !self.must_capture(key, &page)
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
    fn give_one(
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
        self.leave(key, to, again, kept_version, frame, page.captured, turn);
        page = Page { version, owner: to, ..Page::default() };
        self.table.set(key, &page);
        // The copies answer the receiver; that they are told from here saves it a round trip.
        for reader in copies.iter() {
            self.send(reader, Message::Invalidate { page: key, version, owner: to }, turn);
        }
        grant
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one record, in its order")]
    pub(crate) fn leave(
        &mut self,
        key: PageKey,
        to: SiteId,
        grant: Grant,
        kept_version: Version,
        frame: bool,
        captured: bool,
        turn: &Turn,
    ) {
        let due = turn.now + self.config.retry_us;
        let leaving = Leaving {
            to,
            grant,
            kept_version,
            frame,
            due,
            stranded: false,
            capture: false,
            captured,
        };
        self.busy.entry(key).leaving = Some(leaving);
    }

    // Taking.

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
        let install = if wants_write {
            Access::Write
        } else if page.stored {
            Access::None
        } else {
            Access::Read
        };
        if install == Access::None && want.is_some() {
            self.own_fault(key, false, turn);
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
            if !stranded {
                self.send(to, Message::Grants { first: grant, more: Vec::new() }, turn);
            } else if let Some(home) = self.home(key) {
                let message = Message::Stranded { page: key, version: grant.version };
                self.send(home, message, turn);
            }
        }
        self.forget_if_idle(key);
    }

    // Locks.

    pub(crate) fn lock(&mut self, key: PageKey, with: Option<PageKey>, turn: &mut Turn) {
        if self.policy(key) != Some(Policy::Lock) {
            return;
        }
        let page = self.load(key);
        if page.own {
            self.wait_for_own_lock(key, with);
            self.pump(key, turn);
        } else if let Some(busy) = self.busy.get_mut(key)
            && busy.want.is_some()
        {
            busy.lock_waiters += 1;
        } else {
            self.want(key, true, 0, with, turn);
        }
    }

    pub(crate) fn unlock(&mut self, key: PageKey, turn: &mut Turn) {
        let mut page = self.load(key);
        if self.policy(key) != Some(Policy::Lock) || !page.locked {
            return;
        }
        page.locked = false;
        self.table.set(key, &page);
        self.pump(key, turn);
    }

    fn have_lock(&mut self, key: PageKey, turn: &mut Turn) {
        let mut page = self.load(key);
        page.locked = true;
        self.table.set(key, &page);
        turn.out.push(Effect::Locked { lock: key });
    }

    /// Threads that waited for another site wait here now.
    fn wait_in_own_line(&mut self, key: PageKey) {
        let busy = self.busy.entry(key);
        let with = busy.want.take().and_then(|w| w.with);
        let waiters = core::mem::take(&mut busy.lock_waiters);
        self.wait_for_own_lock(key, with);
        for _ in 0..waiters {
            self.wait_for_own_lock(key, None);
        }
    }

    /// A thread here waits in line with the requests of other sites (I17).
    fn wait_for_own_lock(&mut self, key: PageKey, with: Option<PageKey>) {
        let (from, number) = (self.me, self.next_number());
        self.busy.entry(key).queue.push(Request {
            page: key,
            run: 0,
            from,
            number,
            write: true,
            have: Version::ZERO,
            expect: Version::ZERO,
            hops: 0,
            sure: false,
            with,
        });
    }
}

/// At most one request of each site waits, so that the queue is no longer than the view; a repeated
/// one keeps its place.
fn add_request(queue: &mut Vec<Request>, request: Request) {
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

fn neighbour(key: PageKey, at: usize) -> PageKey {
    PageKey { page: stead_model::PageNo(key.page.0 + at as u64), ..key }
}
