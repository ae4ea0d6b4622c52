//! The coordinator's part of a round of stabilisation: whom to ask, when all are quiet, what is
//! decided. Members' own state is in `round`; the coordinator is a member like the others and speaks
//! to itself in messages. Read [`Lead`] first.

use alloc::vec::Vec;

use crate::domain::Phase;
use crate::effect::{Effect, Outcome};
use crate::ids::{DomainId, Micros, RoundId, SiteId};
use crate::message::{Message, RoundWord};
use crate::site::{Site, Turn};
use crate::site_set::SiteSet;
use crate::sorted_map::SortedMap;

/// A round coordinated here.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Lead {
    pub(crate) round: RoundId,
    stage: Stage,
    seats: SortedMap<SiteId, Seat>,
    deadline: Micros,
    due: Micros,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Stage {
    /// Members are found and asked to be quiet.
    Gathering,
    /// Decided: the cut is told.
    Cutting,
    /// Everything is durable at its member; the stable state is being moved.
    Committing,
    /// It has moved; members are told.
    Telling,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Seat {
    ask: u8,
    taken_at: Option<u32>,
    state: SeatState,
    /// As it said with Quiet.
    took: Vec<(SiteId, u32)>,
    settled: u32,
    void: Vec<u32>,
    dropped: Vec<(SiteId, u32)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum SeatState {
    #[default]
    Asked,
    /// Changed nothing, or nothing that matters here: no part of the cut unless someone else names
    /// it.
    Observer,
    Quiet,
    Kept,
    Told,
}

impl Lead {
    pub(crate) fn next_tick(&self) -> Micros {
        if self.stage == Stage::Gathering { self.due.min(self.deadline) } else { self.due }
    }

    /// Whether it has become stable, or need not.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.stage, Stage::Gathering | Stage::Telling)
    }

    /// Whether a site went back and a member that has to do the same has not heard of it yet, so that
    /// the cut would have sections by half (I18): one took what is void, or one stored to a page with
    /// which another went back.
    fn has_parted(&self) -> bool {
        let quiet = || self.seats.iter().filter(|(_, seat)| seat.state == SeatState::Quiet);
        let void = |(site, colour): &(SiteId, u32)| {
            self.seats.get(*site).is_some_and(|giver| giver.void.contains(colour))
        };
        let unsettled = |(site, colour): &(SiteId, u32)| {
            quiet().any(|(giver, seat)| giver == *site && seat.settled <= *colour)
        };
        quiet().any(|(_, seat)| seat.took.iter().any(void) || seat.dropped.iter().any(unsettled))
    }

    fn members(&self) -> impl Iterator<Item = SiteId> {
        self.seats.iter().filter(|(_, seat)| seat.state != SeatState::Observer).map(|(s, _)| s)
    }
}

impl Site {
    pub(crate) fn stabilise(&mut self, id: DomainId, turn: &mut Turn) {
        self.domains.entry(id).wished = true;
        self.start_wished(id, turn);
    }

    /// Begins a round if one is wished for and nothing stands in its way.
    pub(crate) fn start_wished(&mut self, id: DomainId, turn: &mut Turn) {
        let (me, ready) = (self.me, self.rebuild.is_over());
        let since = self.view.find(me).map_or(0, |member| member.since);
        let (now, retry_us, gate_us) = (turn.now, self.config.retry_us, self.config.gate_us);
        let domain = self.domains.entry(id);
        let free = domain.phase == Phase::Open && domain.lead.is_none() && domain.follows.is_none();
        if !domain.wished || !free || !ready || domain.must_go_back() {
            return;
        }
        domain.sequence += 1;
        let round = RoundId { sequence: domain.sequence, coordinator: me, since };
        let mut seats = SortedMap::default();
        seats.insert(me, Seat { ask: 1, ..Seat::default() });
        domain.lead = Some(Lead {
            round,
            stage: Stage::Gathering,
            seats,
            deadline: now + gate_us,
            due: now + retry_us,
        });
        self.tell(id, me, round, RoundWord::Close { ask: 1, taken_at: None }, turn);
    }

    /// Whether the round is or was led by this site in its present life.
    fn coordinates(&self, round: RoundId) -> bool {
        round.coordinator == self.me && self.is_led(round)
    }

    fn tell(
        &mut self,
        domain: DomainId,
        to: SiteId,
        round: RoundId,
        word: RoundWord,
        turn: &mut Turn,
    ) {
        self.send(to, Message::Round { round, domain, word }, turn);
    }

    pub(crate) fn lead_word(
        &mut self,
        from: SiteId,
        round: RoundId,
        id: DomainId,
        word: RoundWord,
        turn: &mut Turn,
    ) {
        if !self.coordinates(round) {
            // Led here in an earlier life, and perhaps stable: the authority knows.
            return;
        }
        let domain = self.domains.entry(id);
        let stage = domain.lead.as_ref().filter(|l| l.round == round).map(|l| l.stage);
        match (word, stage) {
            (RoundWord::Quiet { observer: true, .. }, None) | (RoundWord::Told, None) => {}
            (RoundWord::Quiet { .. } | RoundWord::Join | RoundWord::Kept, None) => {
                // Not led here any more, and not stable, or it would be led until all are told.
                self.tell(id, from, round, RoundWord::Abort, turn);
            }
            (
                RoundWord::Quiet { ask, observer, gave, took, settled, void, dropped },
                Some(Stage::Gathering),
            ) => {
                let Some(lead) = domain.lead.as_mut() else { return };
                let Some(seat) = lead.seats.get_mut(from).filter(|s| s.ask == ask) else { return };
                seat.state = if observer { SeatState::Observer } else { SeatState::Quiet };
                seat.took = took.clone();
                seat.settled = settled;
                seat.void = void;
                seat.dropped = dropped;
                for site in gave.iter() {
                    self.ask_site(id, site, None, turn);
                }
                for of_site in took.chunk_by(|a, b| a.0 == b.0) {
                    let latest = of_site.iter().map(|(_, colour)| *colour).max();
                    self.ask_site(id, of_site[0].0, latest, turn);
                }
                self.decide_if_quiet(id, turn);
            }
            (RoundWord::Quiet { observer: false, .. }, Some(Stage::Cutting)) => {
                let members = domain.lead.iter().flat_map(Lead::members).collect();
                self.tell(id, from, round, RoundWord::Cut { members }, turn);
            }
            (RoundWord::Join, Some(Stage::Gathering)) => self.ask_site(id, from, None, turn),
            (RoundWord::Join, Some(_)) => {
                let in_it = domain.lead.as_ref().is_some_and(|l| l.members().any(|s| s == from));
                if !in_it {
                    self.tell(id, from, round, RoundWord::Abort, turn);
                }
            }
            (RoundWord::Meets { other }, Some(Stage::Gathering)) => {
                if self.coordinates(other) {
                    // This site leads one round at a time: the other is over, and its end was not
                    // heard.
                    self.tell(id, from, other, RoundWord::Abort, turn);
                } else if other < round {
                    // Whoever gives way goes with the other, so its caller need not ask again.
                    let wished = self.domains.entry(id).wished;
                    self.abort_round(id, false, turn);
                    let domain = self.domains.entry(id);
                    if wished {
                        domain.wished = false;
                        domain.follows = Some(other);
                        domain.due = turn.now + self.config.retry_us;
                        self.tell(id, other.coordinator, other, RoundWord::Join, turn);
                    }
                }
            }
            (RoundWord::Refuse, Some(Stage::Gathering)) => self.abort_round(id, true, turn),
            (RoundWord::Kept, Some(Stage::Cutting)) => {
                let Some(lead) = domain.lead.as_mut() else { return };
                if let Some(seat) = lead.seats.get_mut(from) {
                    seat.state = SeatState::Kept;
                }
                let all = lead
                    .seats
                    .iter()
                    .all(|(_, seat)| matches!(seat.state, SeatState::Observer | SeatState::Kept));
                if all {
                    lead.stage = Stage::Committing;
                    let members = lead.members().collect();
                    turn.out.push(Effect::Commit { round, domain: id, members });
                }
            }
            (RoundWord::Kept, Some(Stage::Telling)) => {
                self.tell(id, from, round, RoundWord::Stable, turn);
            }
            (RoundWord::Told, Some(Stage::Telling)) => {
                let Some(lead) = domain.lead.as_mut() else { return };
                if let Some(seat) = lead.seats.get_mut(from) {
                    seat.state = SeatState::Told;
                }
                self.end_if_told(id, turn);
            }
            // Said again, or too late to matter.
            (_, _) => {}
        }
    }

    fn ask_site(&mut self, id: DomainId, site: SiteId, taken_at: Option<u32>, turn: &mut Turn) {
        if !self.view.contains(site) {
            // It died with what it shared: this association goes back, and is not cut.
            self.abort_round(id, true, turn);
            return;
        }
        let Some(lead) = self.domains.entry(id).lead.as_mut() else { return };
        let round = lead.round;
        let known = lead.seats.get(site).is_some();
        let seat = lead.seats.entry(site);
        let wider = taken_at.is_none() && seat.taken_at.is_some();
        // Someone else took of it later: what it answers to the question before is not enough.
        let later = seat.taken_at.zip(taken_at).is_some_and(|(asked, now)| now > asked);
        let again = match seat.state {
            SeatState::Asked => !known || wider || later,
            SeatState::Observer => true,
            SeatState::Quiet | SeatState::Kept | SeatState::Told => false,
        };
        if !again {
            return;
        }
        seat.ask = seat.ask.saturating_add(1);
        seat.state = SeatState::Asked;
        seat.taken_at = if known && !wider { seat.taken_at.max(taken_at) } else { taken_at };
        let word = RoundWord::Close { ask: seat.ask, taken_at: seat.taken_at };
        self.tell(id, site, round, word, turn);
    }

    fn decide_if_quiet(&mut self, id: DomainId, turn: &mut Turn) {
        let due = turn.now + self.config.retry_us;
        let Some(lead) = self.domains.entry(id).lead.as_mut() else { return };
        if lead.seats.iter().any(|(_, seat)| seat.state == SeatState::Asked) {
            return;
        }
        let round = lead.round;
        if lead.has_parted() && !planted!(self, ForgetVoid) {
            self.abort_round(id, true, turn);
            return;
        }
        let Some(lead) = self.domains.entry(id).lead.as_mut() else { return };
        let members: SiteSet = lead.members().collect();
        lead.stage = Stage::Cutting;
        lead.due = due;
        if members.is_empty() {
            self.domains.entry(id).lead = None;
            self.end_wish(id, Outcome::Stable { round }, turn);
            return;
        }
        for member in members.iter() {
            let members = members.clone();
            self.tell(id, member, round, RoundWord::Cut { members }, turn);
        }
    }

    pub(crate) fn committed(&mut self, round: RoundId, id: DomainId, turn: &mut Turn) {
        let due = turn.now + self.config.retry_us;
        let Some(lead) = self.domains.entry(id).lead.as_mut() else { return };
        if lead.round != round || lead.stage != Stage::Committing {
            return;
        }
        lead.stage = Stage::Telling;
        lead.due = due;
        let members: SiteSet = lead.members().collect();
        for member in members.iter() {
            self.tell(id, member, round, RoundWord::Stable, turn);
        }
        self.end_wish(id, Outcome::Stable { round }, turn);
        self.end_if_told(id, turn);
        self.rebuild_goes_on(turn);
        self.answer_who_went_back(id, turn);
    }

    fn end_if_told(&mut self, id: DomainId, turn: &mut Turn) {
        let Some(lead) = self.domains.entry(id).lead.as_ref() else { return };
        let told = |seat: &Seat| matches!(seat.state, SeatState::Observer | SeatState::Told);
        if lead.stage == Stage::Telling && lead.seats.iter().all(|(_, seat)| told(seat)) {
            self.domains.entry(id).lead = None;
            self.start_wished(id, turn);
        }
    }

    fn end_wish(&mut self, id: DomainId, outcome: Outcome, turn: &mut Turn) {
        let domain = self.domains.entry(id);
        if core::mem::take(&mut domain.wished) {
            turn.out.push(Effect::RoundEnded { domain: id, outcome });
        }
    }

    pub(crate) fn give_up(&mut self, id: DomainId, turn: &mut Turn) {
        let gathering = |lead: &Lead| lead.stage == Stage::Gathering;
        if self.domains.entry(id).lead.as_ref().is_some_and(gathering) {
            self.abort_round(id, true, turn);
        }
    }

    /// Ends a round that is not committed. `tell_caller` says how it ended to whoever asked here.
    fn abort_round(&mut self, id: DomainId, tell_caller: bool, turn: &mut Turn) {
        let domain = self.domains.entry(id);
        let Some(lead) = domain.lead.take() else { return };
        if tell_caller {
            let asked = lead.seats.iter().filter(|(_, seat)| seat.state == SeatState::Asked);
            let waited_for = asked.map(|(site, _)| site).collect();
            self.end_wish(id, Outcome::Aborted { waited_for }, turn);
        }
        for (site, _) in lead.seats.iter() {
            self.tell(id, site, lead.round, RoundWord::Abort, turn);
        }
    }

    pub(crate) fn lead_tick(&mut self, id: DomainId, turn: &mut Turn) {
        let again = turn.now + self.config.retry_us;
        let Some(lead) = self.domains.entry(id).lead.as_mut() else { return };
        if lead.stage == Stage::Gathering && lead.deadline <= turn.now {
            self.abort_round(id, true, turn);
            return;
        }
        if lead.due > turn.now {
            return;
        }
        lead.due = again;
        let (round, stage, seats) = (lead.round, lead.stage, lead.seats.clone());
        let members: SiteSet = lead.members().collect();
        for (site, seat) in seats.iter() {
            let word = match (stage, seat.state) {
                (Stage::Gathering, SeatState::Asked) => {
                    RoundWord::Close { ask: seat.ask, taken_at: seat.taken_at }
                }
                (Stage::Cutting, SeatState::Quiet) => RoundWord::Cut { members: members.clone() },
                (Stage::Telling, SeatState::Kept) => RoundWord::Stable,
                _ => continue,
            };
            self.tell(id, site, round, word, turn);
        }
    }

    pub(crate) fn lead_in_new_view(&mut self, id: DomainId, gone: &SiteSet, turn: &mut Turn) {
        let Some(lead) = self.domains.entry(id).lead.as_mut() else { return };
        match lead.stage {
            Stage::Gathering => self.abort_round(id, true, turn),
            Stage::Cutting => {
                // The cut cannot be whole without a member's pages.
                if lead.members().any(|s| gone.contains(s)) {
                    self.abort_round(id, true, turn);
                }
            }
            Stage::Committing => {}
            Stage::Telling => {
                lead.seats.retain(|site, _| !gone.contains(site));
                // The dead may have been the last to be told.
                self.end_if_told(id, turn);
            }
        }
    }
}
