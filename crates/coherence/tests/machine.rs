//! Single sites and small groups, step by step: the minimum hold, queues that travel, locks that cost
//! nothing to take again, pages that come with a lock, going back, and mistakes that need too rare a
//! chain of events to wait for. Read [`Group`] first.

use std::collections::VecDeque;
use std::sync::Arc;

use stead_coherence::planted::Bug;
use stead_coherence::{
    Access, ClusterConfig, ClusterId, Config, DomainId, Effect, Effects, Event, Manager, Message,
    PageKey, Policy, RoundId, Site, SiteId, Source, View,
};

const PAGE: PageKey = PageKey::new(1, 0);
const LOCK: PageKey = PageKey::new(2, 0);
/// Another page of the same container.
const NEXT_PAGE: PageKey = PageKey::new(1, 1);
/// A page of another container.
const OTHER_PAGE: PageKey = PageKey::new(3, 0);
const DOMAIN: DomainId = DomainId(1);
const OTHER_DOMAIN: DomainId = DomainId(2);

/// Sites whose messages arrive at once and in order; what else they want done is kept.
struct Group {
    sites: Vec<Site>,
    now: u64,
    done: Vec<(usize, Effect)>,
    sent: usize,
    /// Messages that do not arrive, but wait in `aside`.
    holds: fn(&Message) -> bool,
    aside: Vec<(usize, Event)>,
}

impl Group {
    fn new(count: u16) -> Group {
        Group::with(count, None)
    }

    fn with(count: u16, bug: Option<Bug>) -> Group {
        let cluster = |id, policy, domain| ClusterConfig {
            id: ClusterId(id),
            manager: Manager::Central(SiteId::new(0)),
            policy,
            domain,
        };
        let mut config = Config::new(vec![
            cluster(1, Policy::Invalidate, Some(DOMAIN)),
            cluster(2, Policy::Lock, None),
            cluster(3, Policy::Invalidate, Some(OTHER_DOMAIN)),
        ]);
        config.planted = bug;
        let (config, view) = (Arc::new(config), Arc::new(View::first(count)));
        let site = |i| Site::new(SiteId::new(i), config.clone(), view.clone());
        Group {
            sites: (0..count).map(site).collect(),
            now: 0,
            done: Vec::new(),
            sent: 0,
            holds: |_| false,
            aside: Vec::new(),
        }
    }

    fn give(&mut self, site: usize, event: Event) {
        let mut effects = Effects::new();
        let mut events = VecDeque::from([(site, event)]);
        while let Some((at, event)) = events.pop_front() {
            self.sites[at].handle(self.now, event, &mut effects);
            for effect in effects.drain() {
                let Effect::Send { to, view, message } = effect else {
                    self.done.push((at, effect));
                    continue;
                };
                self.sent += 1;
                let from = SiteId::new(at as u16);
                let held = (self.holds)(&message);
                let event = (usize::from(to.get()), Event::Message { from, view, message });
                if held {
                    self.aside.push(event);
                } else {
                    events.push_back(event);
                }
            }
        }
    }

    fn fault(&mut self, site: usize, page: PageKey, write: bool) {
        self.give(site, Event::Fault { page, run: 0, write });
    }

    /// What has been done since the last time that someone asked.
    fn take_done(&mut self) -> Vec<(usize, Effect)> {
        std::mem::take(&mut self.done)
    }

    fn tick(&mut self, now: u64) {
        self.now = now;
        for site in 0..self.sites.len() {
            self.give(site, Event::Tick);
        }
    }

    fn locked(&mut self) -> Vec<usize> {
        let locked = |(site, effect): &(usize, Effect)| {
            matches!(effect, Effect::Locked { .. }).then_some(*site)
        };
        let sites = self.done.iter().filter_map(locked).collect();
        self.done.clear();
        sites
    }
}

/// I6: the hold delays that a page is given away, not that it is copied, and ends by itself.
#[test]
fn a_page_that_came_to_be_written_stays_for_the_hold() {
    let mut group = Group::new(3);
    group.fault(1, PAGE, true);
    assert_eq!(group.sites[1].page(PAGE).access, Access::Write);
    group.fault(2, PAGE, false);
    assert_eq!(group.sites[2].page(PAGE).access, Access::Read, "a copy is not delayed");
    group.fault(2, PAGE, true);
    assert!(group.sites[1].page(PAGE).owner, "held");
    assert_eq!(group.sites[1].next_tick(), Some(1_000));
    group.tick(999);
    assert!(group.sites[1].page(PAGE).owner, "held to the end");
    group.tick(1_000);
    assert!(group.sites[2].page(PAGE).owner);
    assert_eq!(group.sites[2].page(PAGE).access, Access::Write);
}

/// I6: whoever asks first is served first, also when the page moves on with the others waiting.
#[test]
fn the_line_travels_with_the_page() {
    let mut group = Group::new(5);
    group.fault(1, PAGE, true);
    for site in [3, 2, 4] {
        group.fault(site, PAGE, true);
    }
    let mut owners = Vec::new();
    for round in 1..=3 {
        group.tick(round * 1_000);
        owners.extend((0..5).filter(|i| group.sites[*i].page(PAGE).owner));
    }
    assert_eq!(owners, [3, 2, 4]);
}

/// I17: one line for all sites and all their threads; taking a lock again costs no message.
#[test]
fn locks_are_handed_on_in_order_and_stay_where_nobody_else_wants_them() {
    let mut group = Group::new(4);
    let lock = |group: &mut Group, site| group.give(site, Event::Lock { lock: LOCK, with: None });
    let unlock = |group: &mut Group, site| group.give(site, Event::Unlock { lock: LOCK });
    lock(&mut group, 1);
    assert_eq!(group.locked(), [1]);
    let sent = group.sent;
    for _ in 0..10 {
        unlock(&mut group, 1);
        lock(&mut group, 1);
    }
    assert_eq!(group.sent, sent, "nobody else wanted it");
    assert_eq!(group.locked().len(), 10);
    lock(&mut group, 2);
    lock(&mut group, 1);
    lock(&mut group, 3);
    assert_eq!(group.locked(), []);
    let mut order = Vec::new();
    for holder in [1, 2, 1] {
        unlock(&mut group, holder);
        order.extend(group.locked());
    }
    assert_eq!(order, [2, 1, 3]);
}

/// The page that a lock protects comes with the lock, without a request of its own.
#[test]
fn a_page_comes_with_its_lock() {
    let mut group = Group::new(3);
    group.give(1, Event::Lock { lock: LOCK, with: Some(PAGE) });
    group.fault(1, PAGE, true);
    group.tick(5_000);
    group.give(1, Event::Unlock { lock: LOCK });
    group.give(2, Event::Lock { lock: LOCK, with: Some(PAGE) });
    assert!(group.sites[2].page(LOCK).locked);
    assert!(group.sites[2].page(PAGE).owner, "it came with the lock");
    let sent = group.sent;
    group.fault(2, PAGE, true);
    assert_eq!(group.sent, sent, "the store after it asks nobody");
}

/// I14: after going back the contents are old and the version is new; copies of what was are gone.
#[test]
fn versions_do_not_repeat_after_going_back() {
    let mut group = Group::new(3);
    group.fault(1, PAGE, true);
    group.fault(2, PAGE, false);
    let before = group.sites[1].page(PAGE);
    assert!(before.modified);
    group.give(1, Event::GoBack { domain: DOMAIN, because: SiteId::new(9) });
    let after = group.sites[1].page(PAGE);
    assert!(after.owner && !after.modified && after.version > before.version);
    assert_eq!(group.sites[2].page(PAGE).access, Access::None, "its copy was of what is gone");
    let doomed = |(site, effect): &(usize, Effect)| {
        *site == 2 && matches!(effect, Effect::Doomed { domain: DOMAIN, .. })
    };
    assert!(group.done.iter().any(doomed), "whoever read it goes back too");
}

/// I8: what a member of another view says is not heard, and neither is who is no member.
#[test]
fn other_views_are_not_heard() {
    let mut group = Group::new(3);
    group.fault(1, PAGE, true);
    let version = group.sites[1].page(PAGE).version;
    let steal = Message::Owner {
        pages: stead_coherence::Vec1 { first: (PAGE, version.next()), more: Vec::new() },
        owner: SiteId::new(2),
    };
    for (from, view) in [(2, 0), (2, 2), (7, 1)] {
        let before = group.sites[0].clone();
        let from = SiteId::new(from);
        group.give(0, Event::Message { from, view, message: steal.clone() });
        assert_eq!(group.sites[0], before);
    }
    group.give(0, Event::Message { from: SiteId::new(2), view: 1, message: steal });
    assert_eq!(group.sites[0].page(PAGE).probable_owner, Some(SiteId::new(2)));
}

/// A message about a cluster that a site was not told of changes nothing.
#[test]
fn an_unknown_cluster_is_ignored() {
    let mut group = Group::new(2);
    let page = PageKey::new(99, 0);
    let before = group.sites[0].clone();
    group.fault(0, page, true);
    let version = stead_coherence::Version::first_of(1);
    for message in [
        Message::Invalidate { page, version, owner: SiteId::new(1) },
        Message::Invalidated { page, version },
        Message::NotHere { page, version },
    ] {
        let from = SiteId::new(1);
        group.give(0, Event::Message { from, view: 1, message });
    }
    assert_eq!(group.sites[0], before);
    assert_eq!(group.sent, 0);
}

/// Leads a round of site 1, which has a modified page, to where it is being committed.
fn round_being_committed(group: &mut Group) -> RoundId {
    group.fault(1, PAGE, true);
    group.give(1, Event::Stabilise { domain: DOMAIN });
    group.give(1, Event::Drained { domain: DOMAIN });
    let capture = |(_, effect): &(usize, Effect)| match effect {
        Effect::Capture { page, version, round } => Some((*page, *version, *round)),
        _ => None,
    };
    let (page, version, round) = group.done.iter().find_map(capture).expect("a capture");
    group.give(1, Event::Captured { page, version, round });
    group.give(1, Event::Persisted { round, domain: DOMAIN });
    let commits = |(_, effect): &(usize, Effect)| matches!(effect, Effect::Commit { .. });
    assert!(group.done.iter().any(commits));
    round
}

/// Whether a page that was lost is read from the store before the round that has it is in the store.
fn reads_before_the_commit(bug: Option<Bug>) -> bool {
    let mut group = Group::with(3, bug);
    let round = round_being_committed(&mut group);
    group.fault(2, PAGE, true);
    group.tick(1_000);
    assert!(group.sites[2].page(PAGE).owner, "it left after it was captured");
    let without = Arc::new(View::first(3).without(SiteId::new(2)));
    for site in [0, 1] {
        group.give(site, Event::View(without.clone()));
    }
    let reads = |group: &mut Group| {
        let fill = Effect::Fill { page: PAGE, source: Source::Store };
        group.take_done().contains(&(0, fill))
    };
    group.take_done();
    group.fault(0, PAGE, false);
    if reads(&mut group) {
        return true;
    }
    group.give(1, Event::Committed { round, domain: DOMAIN });
    assert!(group.sites[0].is_ready(), "homes are whole when the round is over");
    group.tick(60_000);
    assert!(reads(&mut group), "and then it is read");
    false
}

/// I20: homes read from the store only when no round is on its way into it.
#[test]
fn what_is_lost_is_read_when_rounds_have_ended() {
    assert!(!reads_before_the_commit(None));
    assert!(reads_before_the_commit(Some(Bug::ReadBeforeCommit)), "the planted mistake shows");
}

/// Whether a partner hears of a second going back if what it answers to the first comes twice.
fn hears_of_the_second(bug: Option<Bug>) -> bool {
    let mut group = Group::with(3, bug);
    let back = Event::GoBack { domain: DOMAIN, because: SiteId::new(9) };
    let share = |group: &mut Group| {
        group.fault(1, PAGE, true);
        group.fault(2, PAGE, false);
        assert_eq!(group.sites[2].page(PAGE).access, Access::Read);
    };
    share(&mut group);
    group.holds = |message| matches!(message, Message::WentBack { .. });
    group.give(1, back.clone());
    let answers = std::mem::take(&mut group.aside);
    group.holds = |_| false;
    for (site, event) in &answers {
        group.give(*site, event.clone());
    }
    group.give(2, back.clone());
    share(&mut group);
    group.holds = |message| matches!(message, Message::GoBack { .. });
    group.take_done();
    group.give(1, back);
    assert_eq!(group.aside.len(), 2, "words that are lost");
    group.aside.clear();
    group.holds = |_| false;
    for (site, event) in answers {
        group.give(site, event);
    }
    group.tick(60_000);
    let doomed = |(site, effect): &(usize, Effect)| {
        *site == 2 && matches!(effect, Effect::Doomed { domain: DOMAIN, .. })
    };
    group.done.iter().any(doomed)
}

/// I18: an answer to what was told before is none to what is told now.
#[test]
fn a_partner_hears_of_each_going_back() {
    assert!(hears_of_the_second(None));
    assert!(!hears_of_the_second(Some(Bug::ForgetWhichBack)), "the planted mistake shows");
}

/// Whether the gate is closed while going back waits for the end of a round.
fn is_shut_while_doomed(bug: Option<Bug>) -> bool {
    let mut group = Group::with(3, bug);
    let round = round_being_committed(&mut group);
    group.take_done();
    group.give(1, Event::GoBack { domain: DOMAIN, because: SiteId::new(9) });
    let shut = group.take_done().contains(&(1, Effect::CloseGate { domain: DOMAIN }));
    group.give(1, Event::Committed { round, domain: DOMAIN });
    let after = group.take_done();
    let back = Effect::WentBack { domain: DOMAIN, because: SiteId::new(9) };
    let at = |wanted: &Effect| after.iter().position(|(_, effect)| effect == wanted);
    assert!(at(&back) < at(&Effect::OpenGate { domain: DOMAIN }), "{after:?}");
    shut
}

/// I19: what begins while going back has to wait would be gone without a word.
#[test]
fn no_section_begins_while_going_back_waits() {
    assert!(is_shut_while_doomed(None));
    assert!(!is_shut_while_doomed(Some(Bug::OpenWhileDoomed)), "the planted mistake shows");
}

/// I20: what went back is read from the store when all have said that their rounds are over, and not
/// before.
#[test]
fn what_went_back_is_read_when_others_have_answered() {
    let mut group = Group::new(3);
    group.fault(1, PAGE, true);
    group.holds = |message| matches!(message, Message::WentBack { .. });
    group.give(1, Event::GoBack { domain: DOMAIN, because: SiteId::new(9) });
    group.take_done();
    let filled = |group: &mut Group| {
        group.take_done().contains(&(1, Effect::Fill { page: PAGE, source: Source::Store }))
    };
    group.fault(1, PAGE, false);
    group.fault(2, PAGE, false);
    assert!(!filled(&mut group), "nobody has answered");
    let mut answers = std::mem::take(&mut group.aside);
    assert_eq!(answers.len(), 2, "all others are asked");
    let (site, event) = answers.remove(0);
    group.give(site, event);
    assert!(!filled(&mut group), "one has not answered");
    let (site, event) = answers.remove(0);
    group.give(site, event);
    assert!(filled(&mut group));
    assert_eq!(group.sites[2].page(PAGE).access, Access::Read, "and whoever waits gets it");
}

/// A round takes the pages of its container, and asks the sites that shared those.
#[test]
fn containers_do_not_join_each_others_rounds() {
    let mut group = Group::new(3);
    group.fault(1, PAGE, true);
    group.fault(1, OTHER_PAGE, true);
    group.tick(1_000);
    group.fault(2, OTHER_PAGE, true);
    group.take_done();
    group.give(1, Event::Stabilise { domain: DOMAIN });
    group.give(1, Event::Drained { domain: DOMAIN });
    for (site, effect) in group.take_done() {
        match effect {
            Effect::CloseGate { domain } => assert_eq!((site, domain), (1, DOMAIN)),
            Effect::Capture { page, .. } => assert_eq!((site, page), (1, PAGE)),
            Effect::OpenGate { .. } | Effect::Protect { .. } => {}
            other => panic!("site {site}: {other:?}"),
        }
    }
    assert_eq!(group.sites[2].page(OTHER_PAGE).access, Access::Write, "it goes on storing");
}

/// I22: a site that leaves gives away what it owns, a lock too, and has modified pages stabilised first.
#[test]
fn a_site_leaves_when_it_has_nothing_more() {
    let mut group = Group::new(3);
    group.fault(1, PAGE, true);
    group.give(1, Event::Lock { lock: LOCK, with: None });
    group.give(1, Event::Unlock { lock: LOCK });
    group.tick(1_000);
    group.take_done();
    group.give(1, Event::Leave);
    let may_leave = (1, Effect::MayLeave { view: 1 });
    let done = group.take_done();
    assert!(done.contains(&(1, Effect::CloseGate { domain: DOMAIN })), "a round: {done:?}");
    assert!(group.sites[0].page(LOCK).owner);
    group.give(1, Event::Drained { domain: DOMAIN });
    let capture = |(_, effect): (usize, Effect)| match effect {
        Effect::Capture { page, version, round } => Some((page, version, round)),
        _ => None,
    };
    let (page, version, round) = group.take_done().into_iter().find_map(capture).expect("one");
    group.give(1, Event::Captured { page, version, round });
    group.give(1, Event::Persisted { round, domain: DOMAIN });
    assert!(!group.take_done().contains(&may_leave), "not before it is stable");
    group.give(1, Event::Committed { round, domain: DOMAIN });
    assert!(group.take_done().contains(&may_leave));
    assert!(group.sites[0].page(PAGE).owner && !group.sites[0].page(PAGE).modified);
    let view = Arc::new(View::first(3).left_by(SiteId::new(1)));
    for site in [0, 2] {
        group.give(site, Event::View(view.clone()));
    }
    let bad = |(_, effect): &(usize, Effect)| {
        matches!(effect, Effect::Lost { .. } | Effect::LostHome { .. } | Effect::Doomed { .. })
    };
    assert!(!group.done.iter().any(bad), "{:?}", group.done);
    assert!(group.sites[0].is_ready() && group.sites[2].is_ready());
}

/// Pages of which something is unfinished at a site that refused a page which came with a lock, after a copy's
/// answer had overtaken it.
fn unfinished_after_refusing(bug: Option<Bug>) -> usize {
    let mut group = Group::with(4, bug);
    group.give(1, Event::Lock { lock: LOCK, with: None });
    group.fault(1, PAGE, true);
    group.fault(2, NEXT_PAGE, true);
    group.tick(1_000);
    group.fault(2, PAGE, false);
    group.fault(3, NEXT_PAGE, true);
    group.tick(2_000);
    assert_eq!(group.sites[3].busy_count(), 0);
    group.holds = |message| matches!(message, Message::Grants { first, .. } if first.page == PAGE);
    group.give(3, Event::Lock { lock: LOCK, with: Some(PAGE) });
    group.give(1, Event::Unlock { lock: LOCK });
    assert_eq!(group.sites[2].page(PAGE).access, Access::None, "it has answered");
    assert_eq!(group.aside.len(), 1, "the page is under way");
    // Quiet, and waiting for site 2, of which it took the other page.
    group.give(3, Event::Stabilise { domain: DOMAIN });
    group.give(3, Event::Drained { domain: DOMAIN });
    group.holds = |_| false;
    let (site, grant) = group.aside.remove(0);
    group.give(site, grant);
    assert!(group.sites[1].page(PAGE).owner, "it was refused");
    group.give(3, Event::GiveUp { domain: DOMAIN });
    group.give(3, Event::Unlock { lock: LOCK });
    group.sites[3].busy_count()
}

/// I22: answers to a grant that is then refused are not waited with; nothing comes for which they count, and a
/// site with something unfinished cannot leave.
#[test]
fn a_refused_page_leaves_nothing_behind() {
    assert_eq!(unfinished_after_refusing(None), 0);
    assert_eq!(unfinished_after_refusing(Some(Bug::KeepEarly)), 1, "the planted mistake shows");
}
