//! Leaving in order: a site whose programs have ended gives away all that only it has, and may then be
//! left out of the next view without a loss (I22). A site that dies does none of this. Read
//! [`Site::leave_on`] first.

use alloc::vec::Vec;

use crate::domain::{Domain, Phase};
use crate::effect::Effect;
use crate::ids::{DomainId, Micros, PageKey, SiteId, Version};
use crate::message::Message;
use crate::site::{Site, Turn};

/// Whether a site stays.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) enum Departure {
    #[default]
    Stays,
    /// It gives away what it has. When to ask for a cut again.
    Leaving { due: Micros },
    /// It has nothing more, and takes nothing.
    Left,
}

impl Site {
    pub(crate) fn leave(&mut self, turn: &mut Turn) {
        if self.departure == Departure::Stays {
            self.departure = Departure::Leaving { due: turn.now };
        }
    }

    /// What it had given away by then may have come back to it as a home.
    pub(crate) fn leave_again(&mut self, turn: &mut Turn) {
        if self.departure == Departure::Left {
            self.departure = Departure::Leaving { due: turn.now };
        }
    }

    /// Goes on with what leaving needs; after each event, as any of them may have made way for it.
    pub(crate) fn leave_on(&mut self, turn: &mut Turn) {
        let Departure::Leaving { due } = self.departure else { return };
        if !self.rebuild.is_over() {
            return;
        }
        let keeps = planted!(self, KeepOnLeaving);
        if !keeps {
            self.hand_over(turn);
        }
        let may_cut = due <= turn.now;
        if may_cut {
            self.departure = Departure::Leaving { due: turn.now + self.config.retry_us };
        }
        let (config, mut settled) = (self.config.clone(), true);
        for id in config.clusters.iter().filter_map(|cluster| cluster.domain) {
            settled &= self.is_done_with(id, may_cut, turn);
        }
        let has_pages = self.heir().is_some() && self.table.iter().any(|(_, page)| page.own);
        if settled && (!has_pages || keeps) && self.busy.len() == 0 {
            self.departure = Departure::Left;
            turn.out.push(Effect::MayLeave { view: self.view.number() });
        }
    }

    /// Who gets what this site is the home of.
    fn heir(&self) -> Option<SiteId> {
        let later = self.view.sites().find(|site| *site > self.me);
        later.or_else(|| self.view.sites().find(|site| *site != self.me))
    }

    /// Gives each page that it owns to its home, as if that had asked. Not what is modified and persists:
    /// a cut comes first, or the page's section could become stable by half without this site (I18).
    fn hand_over(&mut self, turn: &mut Turn) {
        let Some(heir) = self.heir() else { return };
        let owned: Vec<PageKey> =
            self.table.iter().filter(|(_, page)| page.own).map(|(key, _)| key).collect();
        for key in owned {
            let unsettled = self.load(key).modified && self.domain_of(key).is_some();
            let leaves_now = planted!(self, LeaveUnsettled);
            if !self.is_free(key) || unsettled && !leaves_now {
                continue;
            }
            let to = self.home(key).filter(|home| *home != self.me).unwrap_or(heir);
            let first = self.give_one(key, to, Version::ZERO, Vec::new(), turn);
            self.send(to, Message::Grants { first, more: Vec::new() }, turn);
        }
    }

    /// Whether nothing that happened here in this domain still waits to become stable; if not, a round is
    /// asked for.
    fn is_done_with(&mut self, id: DomainId, may_cut: bool, turn: &mut Turn) -> bool {
        let modified = !self.modified_pages(id).is_empty() || !self.modified_leaving(id).is_empty();
        let leaves_now = planted!(self, LeaveUnsettled);
        let domain = self.domains.entry(id);
        if (modified || domain.has_given()) && !leaves_now {
            if may_cut && domain.is_idle() {
                self.stabilise(id, turn);
            }
            return false;
        }
        domain.is_idle() && !domain.must_go_back()
    }
}

impl Domain {
    fn is_idle(&self) -> bool {
        let alone = self.lead.is_none() && self.follows.is_none() && !self.wished;
        self.phase == Phase::Open && alone && self.telling.is_empty() && self.unread.is_empty()
    }

    /// Whether a section of this site may be in a page that another one has.
    fn has_given(&self) -> bool {
        !self.now.gave.is_empty() || !self.until_quiet.gave.is_empty()
    }
}
