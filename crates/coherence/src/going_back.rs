//! Going back: whoever shared modified pages with a site that died, or with one that went back, returns
//! to its last stable state, and tells its partners until they have heard (C10). Read [`Site::go_back`]
//! first.

use alloc::vec::Vec;

use crate::domain::Phase;
use crate::effect::Effect;
use crate::ids::{Access, DomainId, PageKey, SiteId};
use crate::message::{Message, RoundWord};
use crate::site::{Site, Turn, Want};
use crate::site_set::SiteSet;
use crate::table::Page;

impl Site {
    /// Stabilisations that were asked for during a rebuild begin.
    pub(crate) fn rounds_resume(&mut self, turn: &mut Turn) {
        let mut next = self.domains.key_at(0);
        while let Some(id) = next {
            self.tell_partners(id, turn);
            self.start_wished(id, turn);
            next = self.domains.key_after(id);
        }
    }

    /// Homes are not whole before rounds have ended, so whatever went back can be read.
    pub(crate) fn all_rounds_are_over(&mut self) {
        let mut next = self.domains.key_at(0);
        while let Some(id) = next {
            self.domains.entry(id).unread = SiteSet::new();
            next = self.domains.key_after(id);
        }
    }

    /// Whoever shared modified pages with a dead site since the last cut goes back with it (I8).
    pub(crate) fn doom_partners_of(&mut self, dead: &SiteSet, gone: &SiteSet, turn: &mut Turn) {
        let mut next = self.domains.key_at(0);
        while let Some(id) = next {
            let domain = self.domains.entry(id);
            let because = dead.iter().find(|s| domain.now.has(*s) || domain.until_quiet.has(*s));
            if let Some(because) = because
                && !domain.doomed
            {
                domain.doomed = true;
                turn.out.push(Effect::Doomed { domain: id, because });
            }
            // Whoever comes back with the same number has had nothing to do with it.
            domain.now.forget(gone);
            domain.until_quiet.forget(gone);
            next = self.domains.key_after(id);
        }
    }

    /// What a page had here is gone: what is left of its section goes too.
    pub(crate) fn doom(&mut self, key: PageKey, because: SiteId, turn: &mut Turn) {
        let Some(id) = self.domain_of(key) else { return };
        let domain = self.domains.entry(id);
        if !domain.doomed {
            domain.doomed = true;
            turn.out.push(Effect::Doomed { domain: id, because });
        }
    }

    pub(crate) fn told_to_go_back(
        &mut self,
        from: SiteId,
        id: DomainId,
        because: SiteId,
        colour: u32,
        turn: &mut Turn,
    ) {
        let domain = self.domains.entry(id);
        let below = domain.void.entry(from);
        // Said again, it is not about what was shared since.
        let is_news = *below < colour;
        *below = (*below).max(colour);
        let shared = domain.now.has(from) || domain.until_quiet.has(from);
        if shared && is_news && !domain.doomed {
            domain.doomed = true;
            turn.out.push(Effect::Doomed { domain: id, because });
        }
        let later = self.domains.entry(id).answers.entry(from);
        *later = (*later).max(colour);
        self.answer_who_went_back(id, turn);
    }

    /// A site that went back hears that the rounds that were under way here are over.
    pub(crate) fn answer_who_went_back(&mut self, id: DomainId, turn: &mut Turn) {
        let domain = self.domains.entry(id);
        if !domain.is_settled() || domain.answers.len() == 0 {
            return;
        }
        let answers = core::mem::take(&mut domain.answers);
        for (site, colour) in answers.iter() {
            self.send(site, Message::WentBack { domain: id, colour: *colour }, turn);
        }
    }

    pub(crate) fn heard_to_go_back(
        &mut self,
        from: SiteId,
        id: DomainId,
        colour: u32,
        turn: &mut Turn,
    ) {
        let any = planted!(self, ForgetWhichBack);
        let domain = self.domains.entry(id);
        // It may be the answer to what was told before.
        if colour < domain.back_at && !any {
            return;
        }
        domain.telling.remove(from);
        if domain.unread.remove(from) && domain.unread.is_empty() {
            let mut next = self.busy.key_at(0);
            while let Some(key) = next {
                if self.domain_of(key) == Some(id) {
                    self.pump(key, turn);
                }
                next = self.busy.key_after(key);
            }
        }
    }

    /// In whatever phase: rounds come to nothing until they have heard.
    pub(crate) fn tell_partners(&mut self, id: DomainId, turn: &mut Turn) {
        let again = turn.now + self.config.retry_us;
        let domain = self.domains.entry(id);
        let Some(because) = domain.telling_because else { return };
        domain.telling_due = again;
        let (colour, mut partners) = (domain.back_at, domain.telling.clone());
        partners.extend(&domain.unread);
        for partner in partners.iter() {
            self.send(partner, Message::GoBack { domain: id, because, colour }, turn);
        }
    }

    /// Every modified page is again what it was in the stable state, under a new version (I14);
    /// partners are told to do the same.
    pub(crate) fn go_back(&mut self, id: DomainId, because: SiteId, turn: &mut Turn) {
        let view = self.view.clone();
        let me = self.me;
        let domain = self.domains.entry(id);
        match domain.phase {
            Phase::Open => {}
            Phase::Closing { asked, .. } => {
                self.say(id, asked.round, RoundWord::Refuse, turn);
                self.domains.entry(id).go_back = Some(because);
                self.round_is_void(id, asked.round, turn);
                return;
            }
            Phase::Quiet { .. } => {
                domain.go_back = Some(because);
                return;
            }
            Phase::Keeping { .. } | Phase::Kept { .. } => {
                // What begins until then would be gone without a word.
                if domain.go_back.replace(because).is_none() && !planted!(self, OpenWhileDoomed) {
                    turn.out.push(Effect::CloseGate { domain: id });
                }
                return;
            }
        }
        let reads_at_once = planted!(self, ReadBeforeOver);
        let domain = self.domains.entry(id);
        let links = core::mem::take(&mut domain.now);
        domain.doomed = false;
        domain.void_here.extend(domain.settled..=domain.colour);
        let gone = self.rebuild.gone();
        for (site, colour) in links.given.iter().filter(|(site, _)| !gone.contains(*site)) {
            let known = domain.dropped.entry(site);
            *known = (*known).max(*colour);
        }
        domain.colour += 1;
        domain.settled = domain.colour;
        domain.back_at = domain.colour;
        domain.telling_because = Some(because);
        for site in links.sites() {
            if site != me && view.contains(site) {
                domain.telling.insert(site);
            }
        }
        // A round of others may have what came here from them, and become stable.
        let others = view.sites().filter(|site| *site != me && !reads_at_once);
        domain.unread = others.collect();
        self.tell_partners(id, turn);
        turn.out.push(Effect::WentBack { domain: id, because });
        for key in self.modified_pages(id) {
            self.return_to_store(key, turn);
        }
        if !planted!(self, KeepVoidCopies) {
            self.drop_modified_copies(id, turn);
        }
        for key in self.modified_leaving(id) {
            let Some(leaving) = self.busy.get_mut(key).and_then(|b| b.leaving.as_mut()) else {
                continue;
            };
            // If it has not arrived, the stable contents shall.
            leaving.grant.modified = false;
            leaving.grant.body = false;
            leaving.grant.stable = true;
            if core::mem::take(&mut leaving.frame) {
                turn.out.push(Effect::Release { page: key });
            }
        }
    }

    /// Copies of what was not stable, which their owners may have taken back: the word for that can be
    /// under way, and nothing read from now on would be undone by it.
    fn drop_modified_copies(&mut self, id: DomainId, turn: &mut Turn) {
        let of_domain = |key: &PageKey| self.domain_of(*key) == Some(id);
        let copies = self.table.iter().filter(|(key, page)| {
            !page.own && page.modified && page.access != Access::None && of_domain(key)
        });
        let copies: Vec<PageKey> = copies.map(|(key, _)| key).collect();
        for key in copies {
            let page = self.load(key);
            turn.out.push(Effect::Revoke { page: key, keep: false });
            self.table.set(key, &Page { access: Access::None, modified: false, ..page });
        }
    }

    fn return_to_store(&mut self, key: PageKey, turn: &mut Turn) {
        let mut page = self.load(key);
        let mut readers = self.table.take_readers(key, &mut page);
        let number = self.next_number();
        if let Some(busy) = self.busy.get_mut(key) {
            readers.extend(&busy.acks);
            busy.acks = SiteSet::new();
            let waits = core::mem::take(&mut busy.install);
            if waits != Access::None && busy.want.is_none() {
                // Whoever waited for the copies to go still waits for the page.
                let (write, due) = (waits == Access::Write, turn.now + self.config.retry_us);
                busy.want = Some(Want { number, write, run: 0, with: None, due, optional: false });
            }
        }
        if !page.stored {
            turn.out.push(Effect::Revoke { page: key, keep: false });
        }
        let version = if planted!(self, SameVersion) { page.version } else { page.version.next() };
        page = Page { version, owner: self.me, own: true, stored: true, ..Page::default() };
        self.table.set(key, &page);
        for reader in readers.iter() {
            let owner = self.me;
            self.send(reader, Message::Invalidate { page: key, version, owner }, turn);
        }
        self.await_acks(key, readers, Access::None, turn);
    }
}
