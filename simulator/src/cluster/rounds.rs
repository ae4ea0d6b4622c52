//! Sections, rounds of stabilisation and going back in a simulated cluster: gates, captures, the store
//! that all sites reach, and what the authority remembers of rounds. Read [`Stable`] and [`Section`]
//! first.

use std::collections::{BTreeMap, BTreeSet};

use stead_coherence::{
    DomainId, Effect, Event, Outcome, PageKey, RoundId, SiteId, Source, Version,
};

use super::{Body, Cluster, Happening, ThreadState, Wait};
use crate::program::{Op, Place, Program, WORDS};

/// The one domain of a cluster that has any.
pub const DOMAIN: DomainId = DomainId(1);

/// A mutating section, and all that it did.
#[derive(Clone, Debug)]
pub struct Section {
    /// Where it ran.
    pub site: usize,
    /// How far it is.
    pub state: SectionState,
    /// Words stored, and what was written.
    pub stores: Vec<(Place, u64)>,
    /// Words loaded, and what was read.
    pub loads: Vec<(Place, u64)>,
}

/// How far a section is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SectionState {
    /// Its thread is in it.
    Open,
    /// Its thread has left it.
    Over,
    /// Its site died, or it was undone, while its thread was in it.
    Gone,
}

/// The stable state, what is durable beside it, and which rounds became part of it.
#[derive(Debug, Default)]
pub struct Stable {
    pages: BTreeMap<PageKey, (Version, Body)>,
    /// What was captured: by site, round and page.
    kept: BTreeMap<(usize, RoundId, PageKey), (Version, Body)>,
    members: BTreeMap<RoundId, Vec<usize>>,
    committed: BTreeSet<RoundId>,
}

impl Stable {
    /// The page's stable contents.
    #[must_use]
    pub fn body(&self, page: PageKey) -> Body {
        self.pages.get(&page).map_or([0; WORDS], |(_, body)| *body)
    }
}

/// A page's step from one stable state to the next.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// The page.
    pub page: PageKey,
    /// Version and contents before.
    pub from: (Version, Body),
    /// Version and contents from now on.
    pub to: (Version, Body),
}

/// What a step did to sections and rounds, for the checkers.
#[derive(Clone, Debug, Default)]
pub struct RoundsDone {
    /// A round was committed, and moved these pages.
    pub committed: Option<Vec<Moved>>,
    /// A stabilisation was asked for at the site that acted.
    pub asked: bool,
    /// The one asked for there ended; whether what was promised is stable.
    pub ended: Option<bool>,
    /// The site that acted went back.
    pub went_back: bool,
    /// Contents that were sent, with the version that was named; whether as a grant.
    pub sent: Vec<(PageKey, Version, bool, Body)>,
}

/// What rounds came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundsSeen {
    /// Committed.
    pub committed: u64,
    /// Of these, with more than one member.
    pub of_many: u64,
    /// Stabilisations that ended without being stable.
    pub aborted: u64,
    /// Rounds that were asked after, as their coordinator died.
    pub orphaned: u64,
    /// Times that a site went back.
    pub went_back: u64,
    /// Two rounds that met.
    pub met: u64,
}

impl std::ops::AddAssign for RoundsSeen {
    fn add_assign(&mut self, more: RoundsSeen) {
        self.committed += more.committed;
        self.of_many += more.of_many;
        self.aborted += more.aborted;
        self.orphaned += more.orphaned;
        self.went_back += more.went_back;
        self.met += more.met;
    }
}

impl std::fmt::Display for RoundsSeen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let RoundsSeen { committed, of_many, aborted, orphaned, went_back, met } = self;
        write!(
            f,
            "{committed} rounds committed, {of_many} of them by several sites, {aborted} aborted, \
             {met} meetings of two, {orphaned} whose coordinator died, {went_back} sites went back"
        )
    }
}

/// Work that a site was asked to do; it takes time.
#[derive(Clone, Debug)]
pub(super) enum Task {
    Drained,
    Capture(PageKey, Version, RoundId),
    Persist(RoundId),
    Commit(RoundId),
    AskFate(RoundId),
    Undo(SiteId),
}

impl Cluster {
    fn later(&mut self, site: usize, task: Task) {
        let time = self.now + 1 + self.rng.u64(..=self.weather.disk_us);
        let life = self.nodes[site].life;
        self.tasks_pending += 1;
        self.push(time, Happening::Works { site, life, task });
    }

    pub(super) fn perform_for_rounds(&mut self, i: usize, effect: Effect) {
        match effect {
            Effect::CloseGate { .. } => {
                self.nodes[i].gate_closed = true;
                self.drain(i);
            }
            Effect::OpenGate { .. } => {
                self.nodes[i].gate_closed = false;
                self.let_in(i);
            }
            // Asked again while it is under way, it is one.
            Effect::Capture { page, version, round }
                if !self.nodes[i].capturing.insert((page, version, round)) => {}
            Effect::Capture { page, version, round } => {
                self.later(i, Task::Capture(page, version, round));
            }
            Effect::Persist { round, .. } => self.later(i, Task::Persist(round)),
            Effect::Commit { round, members, .. } => {
                let members = members.iter().map(|s| usize::from(s.get())).collect();
                self.stable.members.insert(round, members);
                self.later(i, Task::Commit(round));
            }
            Effect::DropCaptures { round, .. } => {
                self.stable.kept.retain(|(site, of, _), _| (*site, *of) != (i, round));
            }
            Effect::AskFate { round, .. } => {
                self.rounds_seen.orphaned += 1;
                self.later(i, Task::AskFate(round));
            }
            Effect::RoundEnded { outcome, .. } => {
                let stable = matches!(outcome, Outcome::Stable { .. });
                self.nodes[i].stabilising = false;
                self.done.rounds.ended = Some(stable);
                self.rounds_seen.aborted += u64::from(!stable);
            }
            Effect::Doomed { because, .. } => {
                self.nodes[i].doomed = true;
                self.later(i, Task::Undo(because));
            }
            Effect::WentBack { .. } => {
                self.done.rounds.went_back = true;
                self.rounds_seen.went_back += 1;
            }
            _ => {}
        }
    }

    pub(super) fn work(&mut self, i: usize, task: Task) {
        match task {
            Task::Drained => {
                if self.nodes[i].gate_closed && !self.has_open_section(i) {
                    self.handle(i, Event::Drained { domain: DOMAIN }, &[]);
                }
            }
            Task::Capture(page, version, round) => {
                self.nodes[i].capturing.remove(&(page, version, round));
                let frame = self.nodes[i].frames.get(&page).and_then(|f| f.body);
                let body = frame.unwrap_or_else(|| self.stable.body(page));
                let kept = self.stable.kept.entry((i, round, page)).or_insert((version, body));
                if version >= kept.0 {
                    *kept = (version, body);
                }
                self.handle(i, Event::Captured { page, version, round }, &[]);
            }
            Task::Persist(round) => {
                self.handle(i, Event::Persisted { round, domain: DOMAIN }, &[]);
            }
            Task::Commit(round) => {
                self.commit(round);
                self.handle(i, Event::Committed { round, domain: DOMAIN }, &[]);
            }
            Task::AskFate(round) => {
                let committed = self.stable.committed.contains(&round);
                self.handle(i, Event::Fate { round, domain: DOMAIN, committed }, &[]);
            }
            Task::Undo(because) => self.undo(i, because),
        }
    }

    /// I20: of each page the highest version that a member captured.
    fn commit(&mut self, round: RoundId) {
        let members = self.stable.members.remove(&round).unwrap_or_default();
        let mut highest: BTreeMap<PageKey, (Version, Body)> = BTreeMap::new();
        for ((site, of, page), (version, body)) in &self.stable.kept {
            if *of == round && members.contains(site) {
                let best = highest.entry(*page).or_insert((*version, *body));
                if *version > best.0 {
                    *best = (*version, *body);
                }
            }
        }
        self.stable.kept.retain(|(_, of, _), _| *of != round);
        self.stable.committed.insert(round);
        let moved = highest.into_iter().map(|(page, to)| {
            let from = self.stable.pages.insert(page, to).unwrap_or((Version::ZERO, [0; WORDS]));
            Moved { page, from, to }
        });
        self.done.rounds.committed = Some(moved.collect());
        self.rounds_seen.committed += 1;
        self.rounds_seen.of_many += u64::from(members.len() > 1);
    }

    // Sections.

    fn has_open_section(&self, site: usize) -> bool {
        self.nodes[site].threads.iter().any(|t| t.section.is_some())
    }

    fn drain(&mut self, site: usize) {
        if self.nodes[site].gate_closed && !self.has_open_section(site) {
            self.later(site, Task::Drained);
        }
    }

    pub(super) fn enter(&mut self, site: usize, thread: usize) {
        let node = &self.nodes[site];
        if node.gate_closed || node.doomed {
            return;
        }
        let section =
            Section { site, state: SectionState::Open, stores: Vec::new(), loads: Vec::new() };
        self.sections.push(section);
        self.nodes[site].threads[thread].section = Some(self.sections.len() - 1);
        self.go_on(site, thread);
    }

    pub(super) fn leave(&mut self, site: usize, thread: usize) {
        if let Some(section) = self.nodes[site].threads[thread].section.take() {
            self.sections[section].state = SectionState::Over;
        }
        self.drain(site);
        self.go_on(site, thread);
    }

    pub(super) fn ask_for_stabilisation(&mut self, site: usize) {
        if !self.nodes[site].stabilising {
            self.nodes[site].stabilising = true;
            self.done.rounds.asked = true;
            self.handle(site, Event::Stabilise { domain: DOMAIN }, &[]);
        }
    }

    /// Threads that wait at the gate try again.
    fn let_in(&mut self, site: usize) {
        for thread in 0..self.nodes[site].threads.len() {
            if matches!(self.nodes[site].threads[thread].state, ThreadState::Waiting(Op::Enter, _))
            {
                self.run_later(site, thread);
            }
        }
    }

    /// Open sections are undone, with their locks; then the modified pages go back.
    fn undo(&mut self, i: usize, because: SiteId) {
        for thread in 0..self.nodes[i].threads.len() {
            if self.nodes[i].threads[thread].section.is_some() {
                self.drop_section(i, thread);
                self.run_later(i, thread);
            }
        }
        self.nodes[i].doomed = false;
        self.handle(i, Event::GoBack { domain: DOMAIN, because }, &[]);
        self.drain(i);
        self.let_in(i);
    }

    fn drop_section(&mut self, i: usize, thread: usize) {
        let now = &mut self.nodes[i].threads[thread];
        if let Some(section) = now.section.take() {
            self.sections[section].state = SectionState::Gone;
        }
        if let Program::Workload { drawn, .. } = &mut now.program {
            drawn.clear();
        }
        if let ThreadState::Waiting(op, _) =
            std::mem::replace(&mut now.state, ThreadState::Thinking)
            && let Some(page) = op.page()
        {
            // Nobody has got anything: as if it had been a wait to read.
            let ends = Wait::Ends { site: i, thread, page, write: false };
            self.done.waits.push(ends);
        }
        let node = &mut self.nodes[i];
        let waited = node.lock_line.len();
        node.lock_line.retain(|(_, waiting)| *waiting != thread);
        node.locks_unwanted += waited - node.lock_line.len();
        for lock in std::mem::take(&mut node.threads[thread].locks) {
            self.handle(i, Event::Unlock { lock }, &[]);
        }
    }

    pub(super) fn forget_sections(&mut self, site: usize) {
        let node = &mut self.nodes[site];
        (node.gate_closed, node.doomed, node.stabilising) = (false, false, false);
        node.capturing.clear();
        node.locks_unwanted = 0;
        for thread in &mut node.threads {
            thread.locks.clear();
            if let Some(section) = thread.section.take() {
                self.sections[section].state = SectionState::Gone;
            }
        }
    }

    /// Whether a site is in a round.
    #[must_use]
    pub fn round_is_on(&self) -> bool {
        self.nodes.iter().filter_map(|n| n.site.as_ref()).any(|s| s.round(DOMAIN).is_some())
    }

    pub(super) fn filled(&self, page: PageKey, source: Source, sent: Option<Body>) -> Option<Body> {
        match source {
            Source::Store => Some(self.stable.body(page)),
            Source::Message => sent,
        }
    }
}
