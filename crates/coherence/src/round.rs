//! Rounds of stabilisation, as members take part in them (B7, C9). How a coordinator leads one is in
//! `lead`, going back in `going_back`. Read [`Site::round_word`] first.

use alloc::vec::Vec;

use crate::domain::{Asked, Links, Phase};
use crate::effect::{Effect, Outcome};
use crate::ids::{Access, DomainId, PageKey, RoundId, SiteId, Version};
use crate::message::{Message, RoundWord};
use crate::site::{Site, Turn};
use crate::site_set::SiteSet;
use crate::sorted_map::SortedMap;

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
    pub(crate) fn say(
        &mut self,
        domain: DomainId,
        round: RoundId,
        word: RoundWord,
        turn: &mut Turn,
    ) {
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
    pub(crate) fn cut(&mut self, id: DomainId, round: RoundId, turn: &mut Turn) {
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

    pub(crate) fn rounds_are_settled(&self) -> bool {
        self.domains.iter().all(|(_, domain)| domain.is_settled())
    }

    fn after_round(&mut self, id: DomainId, turn: &mut Turn) {
        self.rebuild_goes_on(turn);
        self.answer_who_went_back(id, turn);
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
            domain.answers = SortedMap::default();
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
