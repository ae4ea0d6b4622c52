//! Rounds of stabilisation, as members take part in them, and going back (B7, C9, C10). How a
//! coordinator leads one is in `lead`. Pages meet rounds here in few questions: may this be given,
//! must it be captured first. Read [`Domain`] and [`Phase`] first.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::effect::{Effect, Outcome};
use crate::ids::{Access, DomainId, Micros, PageKey, RoundId, SiteId, Version};
use crate::lead::Lead;
use crate::message::{Message, RoundWord};
use crate::site::{Site, Turn, Want};
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
    settled: u32,
    pub(crate) last_cut: Option<RoundId>,
    /// Highest sequence of a round heard of.
    pub(crate) sequence: u32,
    pub(crate) phase: Phase,
    /// With whom modified pages were shared since the last cut, or since Quiet.
    now: Links,
    /// The same up to Quiet, until the round is stable.
    until_quiet: Links,
    /// Who is cut by the round of [`Phase::Keeping`] or [`Phase::Kept`]; `None` if only a page told
    /// of the cut so far.
    members: Option<SiteSet>,
    /// Pages that the cut has still to capture.
    uncaptured: u32,
    pub(crate) due: Micros,
    /// Other rounds that asked while this one was on.
    others: Vec<Asked>,
    pub(crate) lead: Option<Lead>,
    /// A stabilisation was asked for here.
    pub(crate) wished: bool,
    /// The round that the wish was handed over to.
    pub(crate) follows: Option<RoundId>,
    /// Going back has to wait for the round's fate, and the gate is closed meanwhile.
    go_back: Option<SiteId>,
    /// Told to the caller, who has not answered yet.
    doomed: bool,
    /// Who has still to hear that this site went back, and because of whom.
    telling: SiteSet,
    telling_because: Option<SiteId>,
    telling_due: Micros,
    /// The colour with which it went back last.
    back_at: u32,
    /// Sites that went back: what they gave with a lower colour is void.
    void: SortedMap<SiteId, u32>,
    /// Colours of this site of which what was done is gone, as it went back.
    void_here: Vec<u32>,
    /// What was given here by these at this colour or before is gone, as this site went back.
    dropped: SortedMap<SiteId, u32>,
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
struct Links {
    gave: SiteSet,
    /// Who was given copies of modified pages: observers, told if this site goes back.
    lent: SiteSet,
    /// With each colour that the giver had.
    took: BTreeSet<(SiteId, u32)>,
    /// Those that gave pages and not copies, with the highest colour: if this site goes back, what
    /// they stored there is gone.
    given: SortedMap<SiteId, u32>,
}

impl Links {
    /// Whether what this site has depends on that one, or the other way round through a page.
    fn has(&self, site: SiteId) -> bool {
        self.gave.contains(site) || self.took.iter().any(|(from, _)| *from == site)
    }

    fn absorb(&mut self, other: Links) {
        self.gave.extend(&other.gave);
        self.lent.extend(&other.lent);
        self.took.extend(other.took);
        for (site, colour) in other.given.iter() {
            let known = self.given.entry(site);
            *known = (*known).max(*colour);
        }
    }

    fn forget(&mut self, gone: &SiteSet) {
        self.gave.retain(|s| !gone.contains(s));
        self.lent.retain(|s| !gone.contains(s));
        self.took.retain(|(s, _)| !gone.contains(*s));
        self.given.retain(|s, _| !gone.contains(s));
    }

    fn sites(&self) -> impl Iterator<Item = SiteId> {
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

    pub(crate) fn next_tick(&self) -> Option<Micros> {
        let member = match self.phase {
            Phase::Open => self.follows.is_some().then_some(self.due),
            Phase::Closing { until, .. } => Some(until),
            Phase::Quiet { .. } | Phase::Keeping { .. } | Phase::Kept { .. } => Some(self.due),
        };
        let telling = (!self.telling.is_empty()).then_some(self.telling_due);
        let lead = self.lead.as_ref().map(Lead::next_tick);
        member.into_iter().chain(telling).chain(lead).min()
    }
}

// What pages ask.

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

    /// A program waits for a capture that was asked for before.
    pub(crate) fn capture_again(&mut self, key: PageKey, turn: &mut Turn) {
        self.capture(key, turn);
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

    fn modified_pages(&self, id: DomainId) -> Vec<PageKey> {
        let of_domain =
            |cluster| self.config.cluster(cluster).is_some_and(|c| c.domain == Some(id));
        self.table.modified(of_domain).collect()
    }

    fn modified_leaving(&self, id: DomainId) -> Vec<PageKey> {
        let modified = |key: PageKey, busy: &crate::site::Busy| {
            busy.leaving.as_ref().is_some_and(|l| l.grant.modified)
                && self.domain_of(key) == Some(id)
        };
        self.busy.iter().filter(|(key, busy)| modified(*key, busy)).map(|(key, _)| key).collect()
    }
}

// The member's part of a round.

impl Site {
    pub(crate) fn round_word(
        &mut self,
        from: SiteId,
        round: RoundId,
        id: DomainId,
        word: RoundWord,
        turn: &mut Turn,
    ) {
        let known = &mut self.domains.entry(id).sequence;
        *known = (*known).max(round.sequence);
        match word {
            RoundWord::Close { ask, taken_at } => {
                self.close(id, Asked { round, ask, taken_at }, turn);
            }
            RoundWord::Cut { members } => {
                if matches!(&self.domains.entry(id).phase, Phase::Quiet { asked } if asked.round == round)
                {
                    self.cut(id, round, turn);
                }
                let domain = self.domains.entry(id);
                if matches!(domain.phase, Phase::Keeping { round: now } | Phase::Kept { round: now } if now == round)
                {
                    domain.members = Some(members);
                }
            }
            RoundWord::Stable => {
                if from == round.coordinator && self.is_led(round) {
                    self.round_is_stable(id, round, turn);
                    self.say(id, round, RoundWord::Told, turn);
                }
            }
            RoundWord::Abort => self.round_is_void(id, round, turn),
            RoundWord::Quiet { .. }
            | RoundWord::Meets { .. }
            | RoundWord::Join
            | RoundWord::Kept
            | RoundWord::Told
            | RoundWord::Refuse => self.lead_word(from, round, id, word, turn),
        }
    }

    /// Whether the round's coordinator lives, and has not died since it began.
    pub(crate) fn is_led(&self, round: RoundId) -> bool {
        self.view.find(round.coordinator).is_some_and(|member| member.since == round.since)
    }

    /// Says something to a round's coordinator.
    fn say(&mut self, domain: DomainId, round: RoundId, word: RoundWord, turn: &mut Turn) {
        self.send(round.coordinator, Message::Round { round, domain, word }, turn);
    }

    fn close(&mut self, id: DomainId, asked: Asked, turn: &mut Turn) {
        let round = asked.round;
        let domain = self.domains.entry(id);
        if domain.last_cut == Some(round) && domain.phase.round() != Some(round) {
            // It has been: this Close was said twice.
            return;
        }
        match &mut domain.phase {
            Phase::Closing { asked: now, .. } | Phase::Quiet { asked: now }
                if now.round == round =>
            {
                if asked.ask > now.ask {
                    *now = asked;
                }
                if matches!(domain.phase, Phase::Quiet { .. }) {
                    self.say_quiet(id, turn);
                }
            }
            Phase::Keeping { round: now } | Phase::Kept { round: now } if *now == round => {}
            Phase::Open => self.begin_closing(id, asked, turn),
            phase => {
                // Two rounds meet: the one with the higher number gives way if it still can;
                // if not, the other has to come after it.
                let undecided = matches!(phase, Phase::Closing { .. } | Phase::Quiet { .. });
                let now = phase.round();
                domain.others.retain(|o| o.round != round);
                domain.others.push(asked);
                if let Some(now) = now
                    && undecided
                {
                    let (high, low) = (now.max(round), now.min(round));
                    self.say(id, high, RoundWord::Meets { other: low }, turn);
                }
            }
        }
    }

    fn begin_closing(&mut self, id: DomainId, asked: Asked, turn: &mut Turn) {
        let until = turn.now + self.config.gate_us;
        let unmodified = self.modified_pages(id).is_empty() && self.modified_leaving(id).is_empty();
        let leads = asked.round.coordinator == self.me;
        let forget = planted!(self, ForgetHistory);
        let domain = self.domains.entry(id);
        if forget {
            domain.now = Links::default();
        }
        if domain.must_go_back() {
            self.say(id, asked.round, RoundWord::Refuse, turn);
            return;
        }
        // What was taken from here may have become stable since.
        let not_needed = asked.taken_at.is_some_and(|colour| domain.settled > colour);
        // Whoever was given a modified page takes part even if it has nothing: the page may be under
        // way, and belongs to the cut of its giver or of this site, not to neither.
        let may_observe = asked.taken_at.is_some() || leads && asked.ask == 1;
        if not_needed || may_observe && unmodified && domain.now.gave.is_empty() {
            let word = RoundWord::Quiet {
                ask: asked.ask,
                observer: true,
                gave: SiteSet::new(),
                took: Vec::new(),
                settled: domain.settled,
                void: domain.void_here.clone(),
                dropped: Vec::new(),
            };
            self.say(id, asked.round, word, turn);
            return;
        }
        domain.phase = Phase::Closing { asked, until };
        turn.out.push(Effect::CloseGate { domain: id });
        if planted!(self, NoDrain) {
            self.drained(id, turn);
        }
    }

    pub(crate) fn drained(&mut self, id: DomainId, turn: &mut Turn) {
        let domain = self.domains.entry(id);
        if let Phase::Closing { asked, .. } = domain.phase {
            domain.phase = Phase::Quiet { asked };
            domain.until_quiet.absorb(core::mem::take(&mut domain.now));
            domain.uncaptured = 0;
            self.say_quiet(id, turn);
        }
    }

    fn say_quiet(&mut self, id: DomainId, turn: &mut Turn) {
        let due = turn.now + self.config.retry_us;
        let domain = self.domains.entry(id);
        let Phase::Quiet { asked } = domain.phase else { return };
        domain.due = due;
        let word = RoundWord::Quiet {
            ask: asked.ask,
            observer: false,
            gave: domain.until_quiet.gave.clone(),
            took: domain.until_quiet.took.iter().copied().collect(),
            settled: domain.settled,
            void: domain.void_here.clone(),
            dropped: domain.dropped.iter().map(|(site, colour)| (site, *colour)).collect(),
        };
        self.say(id, asked.round, word, turn);
    }

    /// The cut: every site of the association is quiet, so no section is open anywhere (I18).
    fn cut(&mut self, id: DomainId, round: RoundId, turn: &mut Turn) {
        let due = turn.now + self.config.retry_us;
        let mut uncaptured = 0;
        for key in self.modified_pages(id) {
            let mut page = self.load(key);
            if page.captured {
                continue;
            }
            uncaptured += 1;
            if page.access == Access::Write {
                turn.out.push(Effect::Protect { page: key });
                page.access = Access::Read;
            }
            self.table.set(key, &page);
            if !page.due {
                page.due = true;
                self.table.set(key, &page);
                turn.out.push(Effect::Capture { page: key, version: page.version, round });
            }
        }
        for key in self.modified_leaving(id) {
            // Given before Quiet and not taken yet: if it is refused it is here again.
            let Some(leaving) = self.busy.get_mut(key).and_then(|b| b.leaving.as_mut()) else {
                continue;
            };
            if leaving.frame && !leaving.captured && !leaving.capture {
                leaving.capture = true;
                uncaptured += 1;
                let version = leaving.kept_version;
                turn.out.push(Effect::Capture { page: key, version, round });
            }
        }
        let domain = self.domains.entry(id);
        domain.colour += 1;
        domain.last_cut = Some(round);
        domain.uncaptured = uncaptured;
        domain.members = None;
        domain.phase = Phase::Keeping { round };
        domain.due = due;
        if domain.go_back.is_none() {
            turn.out.push(Effect::OpenGate { domain: id });
        }
        if uncaptured == 0 {
            turn.out.push(Effect::Persist { round, domain: id });
        }
    }

    /// A capture of another version was asked for before the page came back here; the one that counts
    /// comes yet.
    pub(crate) fn captured(
        &mut self,
        key: PageKey,
        version: Version,
        round: RoundId,
        turn: &mut Turn,
    ) {
        let Some(id) = self.domain_of(key) else { return };
        let mut page = self.load(key);
        let domain = self.domains.entry(id);
        if domain.phase.round() != Some(round) {
            return;
        }
        let leaving = self.busy.get_mut(key).and_then(|b| b.leaving.as_mut());
        if page.own && page.due && page.version == version {
            page.due = false;
            page.captured = true;
            self.table.set(key, &page);
        } else if let Some(leaving) = leaving
            && leaving.capture
            && leaving.kept_version == version
        {
            leaving.capture = false;
            leaving.captured = true;
        } else {
            return;
        }
        self.one_less_to_capture(key, turn);
        self.pump(key, turn);
    }

    pub(crate) fn one_less_to_capture(&mut self, key: PageKey, turn: &mut Turn) {
        let Some(id) = self.domain_of(key) else { return };
        let domain = self.domains.entry(id);
        if let Phase::Keeping { round } = domain.phase {
            domain.uncaptured -= 1;
            if domain.uncaptured == 0 {
                turn.out.push(Effect::Persist { round, domain: id });
            }
        }
    }

    pub(crate) fn persisted(&mut self, round: RoundId, id: DomainId, turn: &mut Turn) {
        let due = turn.now + self.config.retry_us;
        let domain = self.domains.entry(id);
        if domain.phase == (Phase::Keeping { round }) && domain.uncaptured == 0 {
            domain.phase = Phase::Kept { round };
            domain.due = due;
            self.say(id, round, RoundWord::Kept, turn);
        }
    }

    fn round_is_stable(&mut self, id: DomainId, round: RoundId, turn: &mut Turn) {
        let domain = self.domains.entry(id);
        if domain.phase != (Phase::Kept { round }) {
            return;
        }
        domain.phase = Phase::Open;
        domain.settled = domain.colour;
        domain.members = None;
        domain.until_quiet = Links::default();
        for key in self.modified_pages(id) {
            let mut page = self.load(key);
            if page.captured {
                page.captured = false;
                page.modified = false;
                self.table.set(key, &page);
            }
        }
        for key in self.modified_leaving(id) {
            if let Some(leaving) = self.busy.get_mut(key).and_then(|b| b.leaving.as_mut())
                && leaving.captured
            {
                // Not to be captured once more: by then the page may be newer elsewhere (I20).
                leaving.grant.modified = false;
                leaving.captured = false;
            }
        }
        self.wish_is_done(id, round, turn);
        self.after_round(id, turn);
    }

    /// The round did not happen: everything is as if it had not been asked for.
    pub(crate) fn round_is_void(&mut self, id: DomainId, round: RoundId, turn: &mut Turn) {
        let domain = self.domains.entry(id);
        domain.others.retain(|o| o.round != round);
        if domain.phase.round() == Some(round) {
            let closed = matches!(domain.phase, Phase::Closing { .. } | Phase::Quiet { .. });
            domain.phase = Phase::Open;
            domain.members = None;
            let links = core::mem::take(&mut domain.until_quiet);
            domain.now.absorb(links);
            turn.out.push(Effect::DropCaptures { round, domain: id });
            let mut pages = self.modified_pages(id);
            for key in &pages {
                let mut page = self.load(*key);
                page.captured = false;
                page.due = false;
                self.table.set(*key, &page);
            }
            self.forget_leaving_captures(id);
            if closed && self.domains.entry(id).go_back.is_none() {
                turn.out.push(Effect::OpenGate { domain: id });
            }
            pages.retain(|key| self.busy.get(*key).is_some());
            for key in pages {
                self.pump(key, turn);
            }
            self.after_round(id, turn);
        }
        self.wish_failed(id, round, turn);
    }

    fn forget_leaving_captures(&mut self, id: DomainId) {
        for key in self.modified_leaving(id) {
            if let Some(leaving) = self.busy.get_mut(key).and_then(|b| b.leaving.as_mut()) {
                leaving.capture = false;
                leaving.captured = false;
            }
        }
    }

    /// Whether no round that this site knows of can still become stable.
    pub(crate) fn rounds_are_settled(&self) -> bool {
        self.domains.iter().all(|(_, domain)| {
            let member = matches!(domain.phase, Phase::Open | Phase::Closing { .. });
            member && domain.lead.as_ref().is_none_or(Lead::is_settled)
        })
    }

    fn after_round(&mut self, id: DomainId, turn: &mut Turn) {
        self.rebuild_goes_on(turn);
        let domain = self.domains.entry(id);
        if let Some(because) = domain.go_back.take() {
            self.go_back(id, because, turn);
            turn.out.push(Effect::OpenGate { domain: id });
        }
        loop {
            let domain = self.domains.entry(id);
            if domain.phase != Phase::Open || domain.others.is_empty() {
                break;
            }
            let asked = domain.others.remove(0);
            self.close(id, asked, turn);
        }
        self.start_wished(id, turn);
    }

    fn wish_is_done(&mut self, id: DomainId, round: RoundId, turn: &mut Turn) {
        let domain = self.domains.entry(id);
        if domain.follows == Some(round) {
            domain.follows = None;
            turn.out.push(Effect::RoundEnded { domain: id, outcome: Outcome::Stable { round } });
        }
    }

    fn wish_failed(&mut self, id: DomainId, round: RoundId, turn: &mut Turn) {
        let domain = self.domains.entry(id);
        if domain.follows == Some(round) {
            domain.follows = None;
            let outcome = Outcome::Aborted { waited_for: SiteSet::new() };
            turn.out.push(Effect::RoundEnded { domain: id, outcome });
        }
    }

    pub(crate) fn fate(&mut self, round: RoundId, id: DomainId, committed: bool, turn: &mut Turn) {
        let kept = self.domains.entry(id).phase == Phase::Kept { round };
        if committed && kept {
            self.round_is_stable(id, round, turn);
        } else {
            // A round that was committed without this site's pages only seemed to ask for them: its
            // Close was old.
            self.round_is_void(id, round, turn);
        }
    }

    pub(crate) fn rounds_tick(&mut self, turn: &mut Turn) {
        let mut next = self.domains.key_at(0);
        while let Some(id) = next {
            self.member_tick(id, turn);
            self.lead_tick(id, turn);
            next = self.domains.key_after(id);
        }
    }

    /// Says again, gives up, or asks for the fate, so that every phase ends (I19).
    fn member_tick(&mut self, id: DomainId, turn: &mut Turn) {
        let again = turn.now + self.config.retry_us;
        if self.domains.entry(id).telling_due <= turn.now {
            self.tell_partners(id, turn);
        }
        let domain = self.domains.entry(id);
        let due = domain.due <= turn.now;
        if due {
            domain.due = again;
        }
        match domain.phase.clone() {
            Phase::Open => {
                if due && let Some(round) = domain.follows {
                    self.say(id, round, RoundWord::Join, turn);
                }
            }
            Phase::Closing { asked, until } if until <= turn.now => {
                self.say(id, asked.round, RoundWord::Refuse, turn);
                self.round_is_void(id, asked.round, turn);
            }
            Phase::Closing { .. } => {}
            phase if due => {
                let Some(round) = phase.round() else { return };
                if !self.is_led(round) {
                    turn.out.push(Effect::AskFate { round, domain: id });
                } else if matches!(phase, Phase::Quiet { .. }) {
                    self.say_quiet(id, turn);
                } else if matches!(phase, Phase::Kept { .. }) {
                    self.say(id, round, RoundWord::Kept, turn);
                }
            }
            _ => {}
        }
    }

    pub(crate) fn rounds_in_new_view(&mut self, gone: &SiteSet, turn: &mut Turn) {
        let mut next = self.domains.key_at(0);
        while let Some(id) = next {
            let domain = self.domains.entry(id);
            domain.void.clear();
            // They count their colours from the beginning if they come back.
            domain.dropped.retain(|s, _| !gone.contains(s));
            domain.telling.retain(|s| !gone.contains(s));
            domain.others.clear();
            let round = domain.phase.round();
            if let Phase::Closing { asked, .. } = domain.phase {
                self.round_is_void(id, asked.round, turn);
            } else if let Some(round) = round
                && gone.contains(round.coordinator)
            {
                turn.out.push(Effect::AskFate { round, domain: id });
            }
            let follows = self.domains.entry(id).follows;
            if let Some(round) = follows
                && gone.contains(round.coordinator)
            {
                self.wish_failed(id, round, turn);
            }
            self.lead_in_new_view(id, gone, turn);
            next = self.domains.key_after(id);
        }
    }
}

// Going back.

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

    /// Whoever shared modified pages with a dead site since the last cut goes back with it (I8).
    pub(crate) fn doom_partners_of(&mut self, gone: &SiteSet, turn: &mut Turn) {
        let mut next = self.domains.key_at(0);
        while let Some(id) = next {
            let domain = self.domains.entry(id);
            let dead = gone.iter().find(|s| domain.now.has(*s) || domain.until_quiet.has(*s));
            if let Some(because) = dead
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
        *below = (*below).max(colour);
        let shared = domain.now.has(from) || domain.until_quiet.has(from);
        if shared && !domain.doomed {
            domain.doomed = true;
            turn.out.push(Effect::Doomed { domain: id, because });
        }
        self.send(from, Message::WentBack { domain: id, colour }, turn);
    }

    pub(crate) fn heard_to_go_back(&mut self, from: SiteId, id: DomainId, colour: u32) {
        let any = planted!(self, ForgetWhichBack);
        let domain = self.domains.entry(id);
        // It may be the answer to what was told before.
        if colour >= domain.back_at || any {
            domain.telling.remove(from);
        }
    }

    /// In whatever phase: rounds come to nothing until they have heard.
    fn tell_partners(&mut self, id: DomainId, turn: &mut Turn) {
        let again = turn.now + self.config.retry_us;
        let domain = self.domains.entry(id);
        let Some(because) = domain.telling_because else { return };
        domain.telling_due = again;
        let (colour, partners) = (domain.colour, domain.telling.clone());
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
