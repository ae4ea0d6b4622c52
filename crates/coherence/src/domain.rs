//! What a site knows of a domain: where it is in a round, with whom it shares modified pages, what has gone
//! back; and the few questions that pages ask of it: may this be given, must it be captured first.
//! Read [`Domain`] and [`Phase`] first.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::effect::Effect;
use crate::ids::{DomainId, Micros, PageKey, RoundId, SiteId};
use crate::lead::Lead;
use crate::site::{Site, Turn};
use crate::site_set::SiteSet;
use crate::sorted_map::SortedMap;
use crate::table::Page;

/// A domain as a site sees it.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub(crate) struct Domain {
    /// How often it was cut or went back here.
    pub(crate) colour: u32,
    /// What was done here at a lower colour is stable, or gone as this site went back. A cut alone does
    /// not settle: its round may come to nothing.
    pub(crate) settled: u32,
    pub(crate) last_cut: Option<RoundId>,
    /// Highest sequence of a round heard of.
    pub(crate) sequence: u32,
    pub(crate) phase: Phase,
    /// With whom modified pages were shared since the last cut, or since Quiet.
    pub(crate) now: Links,
    /// The same up to Quiet, until the round is stable.
    pub(crate) until_quiet: Links,
    /// Who is cut by the round of [`Phase::Keeping`] or [`Phase::Kept`]; `None` if only a page told
    /// of the cut so far.
    pub(crate) members: Option<SiteSet>,
    /// Pages that the cut has still to capture.
    pub(crate) uncaptured: u32,
    pub(crate) due: Micros,
    /// Other rounds that asked while this one was on.
    pub(crate) others: Vec<Asked>,
    pub(crate) lead: Option<Lead>,
    /// A stabilisation was asked for here.
    pub(crate) wished: bool,
    /// The round that the wish was handed over to.
    pub(crate) follows: Option<RoundId>,
    /// Going back has to wait for the round's fate, and the gate is closed meanwhile.
    pub(crate) go_back: Option<SiteId>,
    /// Told to the caller, who has not answered yet.
    pub(crate) doomed: bool,
    /// Who has still to hear that this site went back, and because of whom.
    pub(crate) telling: SiteSet,
    pub(crate) telling_because: Option<SiteId>,
    pub(crate) telling_due: Micros,
    /// Who has not said yet that its rounds are over: they may move the store under what went back here.
    pub(crate) unread: SiteSet,
    /// Who is to hear that this site's rounds are over, and the colour it named.
    pub(crate) answers: SortedMap<SiteId, u32>,
    /// The colour with which it went back last.
    pub(crate) back_at: u32,
    /// Sites that went back: what they gave with a lower colour is void.
    pub(crate) void: SortedMap<SiteId, u32>,
    /// Colours of this site of which what was done is gone, as it went back.
    pub(crate) void_here: Vec<u32>,
    /// What was given here by these at this colour or before is gone, as this site went back.
    pub(crate) dropped: SortedMap<SiteId, u32>,
}

/// Where a member is in a round.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub(crate) enum Phase {
    /// In none.
    #[default]
    Open,
    /// The gate is closed, sections run out.
    Closing { asked: Asked, until: Micros },
    /// All sections are out. Only the coordinator can end this.
    Quiet { asked: Asked },
    /// The cut has been; pages are being captured and then made durable.
    Keeping { round: RoundId },
    /// All is durable.
    Kept { round: RoundId },
}

/// A Close as it was said.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Asked {
    pub(crate) round: RoundId,
    pub(crate) ask: u8,
    pub(crate) taken_at: Option<u32>,
}

/// Who gave modified pages to whom: the edges of associations.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub(crate) struct Links {
    pub(crate) gave: SiteSet,
    /// Who was given copies of modified pages: observers, told if this site goes back.
    pub(crate) lent: SiteSet,
    /// With each colour that the giver had.
    pub(crate) took: BTreeSet<(SiteId, u32)>,
    /// Those that gave pages and not copies, with the highest colour: if this site goes back, what
    /// they stored there is gone.
    pub(crate) given: SortedMap<SiteId, u32>,
}

impl Links {
    /// Whether what this site has depends on that one, or the other way round through a page.
    pub(crate) fn has(&self, site: SiteId) -> bool {
        self.gave.contains(site) || self.took.iter().any(|(from, _)| *from == site)
    }

    pub(crate) fn absorb(&mut self, other: Links) {
        self.gave.extend(&other.gave);
        self.lent.extend(&other.lent);
        self.took.extend(other.took);
        for (site, colour) in other.given.iter() {
            let known = self.given.entry(site);
            *known = (*known).max(*colour);
        }
    }

    pub(crate) fn forget(&mut self, gone: &SiteSet) {
        self.gave.retain(|s| !gone.contains(s));
        self.lent.retain(|s| !gone.contains(s));
        self.took.retain(|(s, _)| !gone.contains(*s));
        self.given.retain(|s, _| !gone.contains(s));
    }

    pub(crate) fn sites(&self) -> impl Iterator<Item = SiteId> {
        let took = self.took.iter().map(|(site, _)| *site);
        self.gave.iter().chain(self.lent.iter()).chain(took)
    }
}

impl Phase {
    pub(crate) fn round(&self) -> Option<RoundId> {
        match self {
            Phase::Open => None,
            Phase::Closing { asked, .. } | Phase::Quiet { asked } => Some(asked.round),
            Phase::Keeping { round } | Phase::Kept { round } => Some(*round),
        }
    }
}

impl Domain {
    /// Its state has lost something with another site, and is no part of any cut.
    pub(crate) fn must_go_back(&self) -> bool {
        self.doomed || self.go_back.is_some()
    }

    /// Whether no round that this site knows of can still move the store.
    pub(crate) fn is_settled(&self) -> bool {
        let member = matches!(self.phase, Phase::Open | Phase::Closing { .. });
        member && self.lead.as_ref().is_none_or(Lead::is_settled)
    }

    pub(crate) fn next_tick(&self) -> Option<Micros> {
        let member = match self.phase {
            Phase::Open => self.follows.is_some().then_some(self.due),
            Phase::Closing { until, .. } => Some(until),
            Phase::Quiet { .. } | Phase::Keeping { .. } | Phase::Kept { .. } => Some(self.due),
        };
        let tells = !self.telling.is_empty() || !self.unread.is_empty();
        let telling = tells.then_some(self.telling_due);
        let lead = self.lead.as_ref().map(Lead::next_tick);
        member.into_iter().chain(telling).chain(lead).min()
    }
}

impl Site {
    pub(crate) fn domain_of(&self, key: PageKey) -> Option<DomainId> {
        self.config.cluster(key.cluster)?.domain
    }

    fn domain_at(&self, key: PageKey) -> Option<&Domain> {
        self.domains.get(self.domain_of(key)?)
    }

    pub(crate) fn gate_is_closed(&self, key: PageKey) -> bool {
        let phase = self.domain_at(key).map(|d| &d.phase);
        matches!(phase, Some(Phase::Closing { .. } | Phase::Quiet { .. }))
    }

    /// Colour and last cut, to be said with every page given.
    pub(crate) fn colour(&self, key: PageKey) -> (u32, Option<RoundId>) {
        self.domain_at(key).map_or((0, None), |d| (d.colour, d.last_cut))
    }

    /// Whether the page's contents must be set aside before it is given: the cut wants them (R3).
    pub(crate) fn must_capture(&self, key: PageKey, page: &Page) -> bool {
        if page.due {
            return true;
        }
        let quiet = self.domain_at(key).is_some_and(|d| matches!(d.phase, Phase::Quiet { .. }));
        quiet && page.modified && !page.captured
    }

    pub(crate) fn capture(&mut self, key: PageKey, turn: &mut Turn) {
        let mut page = self.load(key);
        let Some(round) = self.domain_at(key).and_then(|d| d.phase.round()) else { return };
        page.due = true;
        self.table.set(key, &page);
        turn.out.push(Effect::Capture { page: key, version: page.version, round });
    }

    /// Whether the page is in the store, and a round under way may give it other contents there (I20).
    pub(crate) fn is_unread(&self, key: PageKey, page: &Page) -> bool {
        page.stored && self.domain_at(key).is_some_and(|d| !d.unread.is_empty())
    }

    pub(crate) fn leaving_is_due(&self, key: PageKey) -> bool {
        self.busy.get(key).and_then(|b| b.leaving.as_ref()).is_some_and(|l| l.capture)
    }

    pub(crate) fn note_gave(&mut self, key: PageKey, to: SiteId) {
        let Some(id) = self.domain_of(key) else { return };
        if !planted!(self, ForgetGave) {
            self.domains.entry(id).now.gave.insert(to);
        }
    }

    pub(crate) fn note_lent(&mut self, key: PageKey, to: SiteId) {
        if let Some(id) = self.domain_of(key) {
            self.domains.entry(id).now.lent.insert(to);
        }
    }

    /// `page`: it was the page itself that came, and no copy.
    pub(crate) fn note_took(&mut self, key: PageKey, from: SiteId, colour: u32, page: bool) {
        let Some(id) = self.domain_of(key) else { return };
        let forget = planted!(self, ForgetTook);
        let links = &mut self.domains.entry(id).now;
        if !forget {
            links.took.insert((from, colour));
        }
        if page {
            let known = links.given.entry(from);
            *known = (*known).max(colour);
        }
    }

    /// Whether the giver of something modified went back after it gave it.
    pub(crate) fn is_void(&self, key: PageKey, from: SiteId, colour: u32) -> bool {
        let void = self.domain_at(key).and_then(|d| d.void.get(from));
        void.is_some_and(|below| colour < *below)
    }

    /// Whether a modified page may become this site's now. Not while it is quiet, and after the cut
    /// not from a member that has not been cut yet: the page is in the giver's cut, or else in none
    /// (R3). If the giver has been cut by the round that this site is quiet for, the cut is here too.
    pub(crate) fn may_take_modified(
        &mut self,
        key: PageKey,
        from: SiteId,
        cut: Option<RoundId>,
        turn: &mut Turn,
    ) -> bool {
        let Some(id) = self.domain_of(key) else { return true };
        let Some(domain) = self.domains.get(id) else { return true };
        match &domain.phase {
            Phase::Keeping { round } | Phase::Kept { round } => {
                let member = domain.members.as_ref().is_none_or(|m| m.contains(from));
                cut == Some(*round) || !member
            }
            Phase::Quiet { asked } => {
                let round = asked.round;
                if cut == Some(round) {
                    self.cut(id, round, turn);
                    return true;
                }
                false
            }
            _ => true,
        }
    }

    pub(crate) fn modified_pages(&self, id: DomainId) -> Vec<PageKey> {
        let of_domain =
            |cluster| self.config.cluster(cluster).is_some_and(|c| c.domain == Some(id));
        self.table.modified(of_domain).collect()
    }

    pub(crate) fn modified_leaving(&self, id: DomainId) -> Vec<PageKey> {
        let modified = |key: PageKey, busy: &crate::site::Busy| {
            busy.leaving.as_ref().is_some_and(|l| l.grant.modified)
                && self.domain_of(key) == Some(id)
        };
        self.busy.iter().filter(|(key, busy)| modified(*key, busy)).map(|(key, _)| key).collect()
    }
}
