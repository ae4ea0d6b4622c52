//! Model checking of the shipped types with stateright. The tests here are bounded and print the
//! number of states; the complete runs are
//! `cargo test --release -p stead-coherence --test model -- --ignored --nocapture`.
//! What is explored is said by [`world::Bounds`] and [`rounds::Bounds`].

mod full;
mod happened;
mod interned;
mod planted;
mod rounds;
mod world;

use std::time::{Duration, Instant};

use happened::{Happened, Sight};
use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};
use stead_coherence::planted::Bug;
use stead_coherence::{Access, Manager, Policy, SiteId};
use world::{Bounds, World};

/// The world of pages as stateright sees it (I1 to I16).
#[derive(Clone)]
struct Pages {
    bounds: Bounds,
    happened: Happened,
}

impl Pages {
    fn new(bounds: Bounds) -> Pages {
        Pages { bounds, happened: Happened::default() }
    }
}

impl Model for Pages {
    type State = World;
    type Action = world::Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(&self.bounds)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<world::Step>) {
        world.steps(&self.bounds, steps);
    }

    fn next_state(&self, world: &World, step: world::Step) -> Option<World> {
        let mut next = world.clone();
        next.take(&self.bounds, step, &self.happened);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Pages>> {
        let mut properties = vec![
            Property::<Pages>::always("I11 single writer", |_, w| w.single_writer()),
            Property::<Pages>::always("I12 last write read", |_, w| w.last_write_read()),
            Property::<Pages>::always("I13 one owner", |_, w| w.one_owner()),
            Property::<Pages>::always("I15 I21 I22 frames are kept, losses named", |_, w| {
                w.broken.is_none()
            }),
            Property::<Pages>::always("I1 I7 forwarding is bounded", |m, w| {
                w.forwarding_is_bounded(&m.bounds)
            }),
            Property::<Pages>::always("I1 I3 I5 I9 nobody waits for ever", |m, w| {
                // Long to find out, so only where nothing is under way.
                !w.letters.is_empty() || w.completes(&m.bounds)
            }),
        ];
        let bounds = &self.bounds;
        if bounds.bug.is_none() {
            let seen = |name, condition| Property::<Pages>::sometimes(name, condition);
            properties.push(seen("all have what they asked for", |_, w| {
                w.left.faults == 0 && w.nobody_waits() && w.letters.is_empty()
            }));
            properties
                .push(seen("a request waits in line", |m, _| m.happened.has(Sight::WaitsInLine)));
            if bounds.leaves > 0 {
                properties.push(seen("a site leaves", |m, _| m.happened.has(Sight::LeftInOrder)));
            }
            if bounds.crashes > 0 {
                properties.push(seen("a page is lost", |m, _| m.happened.has(Sight::Lost)));
            }
            if bounds.policy == Policy::Invalidate && bounds.faults > 2 {
                properties.push(seen("two read at once", |_, w| {
                    w.frames_of(0).filter(|f| f.access == Access::Read).count() >= 2
                }));
                properties.push(seen("an upgrade has no body", |m, _| {
                    m.happened.has(Sight::UpgradeWithoutBody)
                }));
                properties
                    .push(seen("a copy comes too late", |m, _| m.happened.has(Sight::CopyTooLate)));
            }
        }
        properties
    }
}

/// The world of sections and rounds as stateright sees it (I17 to I20, R1 to R3).
#[derive(Clone)]
struct Rounds {
    bounds: rounds::Bounds,
    happened: Happened,
    sometimes: Vec<Property<Rounds>>,
}

impl Rounds {
    fn new(bounds: rounds::Bounds, sometimes: Vec<Property<Rounds>>) -> Rounds {
        Rounds { bounds, happened: Happened::default(), sometimes }
    }
}

impl Model for Rounds {
    type State = rounds::World;
    type Action = rounds::Step;

    fn init_states(&self) -> Vec<rounds::World> {
        vec![rounds::World::new(&self.bounds)]
    }

    fn actions(&self, world: &rounds::World, steps: &mut Vec<rounds::Step>) {
        world.steps(&self.bounds, steps);
    }

    fn next_state(&self, world: &rounds::World, step: rounds::Step) -> Option<rounds::World> {
        let mut next = world.clone();
        next.take(&self.bounds, step, &self.happened);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Rounds>> {
        let mut properties = vec![
            Property::<Rounds>::always("I11 single writer", |_, w| w.single_writer()),
            Property::<Rounds>::always("I15 I20 promises are kept", |_, w| w.is_sound()),
            Property::<Rounds>::always("I17 one has the lock", |_, w| w.one_lock_holder()),
            Property::<Rounds>::always("I18 no section is stable by half", |m, w| {
                w.stable_is_whole(&m.bounds)
            }),
            Property::<Rounds>::always("I19 rounds and sections end", |m, w| {
                !w.nothing_under_way() || w.completes(&m.bounds)
            }),
        ];
        properties.extend(self.sometimes.iter().cloned());
        properties
    }
}

/// What an exploration found.
struct Found {
    /// The first property that does not hold.
    violated: Option<&'static str>,
    /// Things that ought to happen sometimes and were not seen.
    unseen: Vec<&'static str>,
    /// All states within the bounds were explored.
    complete: bool,
}

/// How far an exploration goes.
#[derive(Clone, Copy)]
struct Limits {
    /// States that it may reach, those it has seen before included.
    states_max: usize,
    seconds_max: u64,
    /// In breadth: the first path found is a shortest one, and where it breaks off all shorter ones
    /// are done. In depth: a state costs some 16 bytes once it is done.
    breadth: bool,
}

/// Explores, and prints how far it got.
fn explore<M>(name: &str, model: M, limits: Limits) -> Found
where
    M: Model + Send + Sync + 'static + Clone,
    M::State: std::hash::Hash + Send + Sync + Clone + PartialEq + std::fmt::Debug + 'static,
    M::Action: std::fmt::Debug + Clone + PartialEq + Send + Sync + 'static,
{
    let begun = Instant::now();
    let properties = model.properties();
    let checker = model
        .checker()
        .threads(1)
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(limits.states_max)
        .timeout(Duration::from_secs(limits.seconds_max));
    let found = if limits.breadth {
        judge(name, &properties, checker.spawn_bfs().join(), limits)
    } else {
        judge(name, &properties, checker.spawn_dfs().join(), limits)
    };
    println!("{name}: {} s", begun.elapsed().as_secs());
    found
}

fn judge<M>(
    name: &str,
    properties: &[Property<M>],
    checker: impl Checker<M>,
    limits: Limits,
) -> Found
where
    M: Model,
    M::State: std::hash::Hash + Clone + PartialEq + std::fmt::Debug,
    M::Action: std::fmt::Debug + Clone + PartialEq,
{
    let discoveries = checker.discoveries();
    let mut found = Found { violated: None, unseen: Vec::new(), complete: false };
    for property in properties {
        let seen = discoveries.get(property.name);
        match (&property.expectation, seen) {
            (Expectation::Sometimes, None) => found.unseen.push(property.name),
            (Expectation::Always, Some(path)) => {
                let steps = path.clone().into_actions();
                let steps: Vec<String> = steps.iter().map(|step| format!("  {step:?}")).collect();
                println!("{name}: {} violated by:\n{}", property.name, steps.join("\n"));
                found.violated = found.violated.or(Some(property.name));
            }
            _ => {}
        }
    }
    let all_reached = checker.state_count() < limits.states_max && checker.is_done();
    found.complete = found.violated.is_none() && all_reached;
    println!(
        "{name}: {} different states, {} reached, {} {}, {}",
        checker.unique_state_count(),
        checker.state_count(),
        if limits.breadth { "depth" } else { "longest path" },
        checker.max_depth(),
        if found.complete { "complete" } else { "not complete" }
    );
    found
}

impl Found {
    fn expect_sound(self, name: &str) {
        assert_eq!(self.violated, None, "{name}");
        if self.complete {
            assert_eq!(self.unseen, [""; 0], "{name}");
        }
    }

    fn expect_violated(self, bug: Bug) {
        let by = self.violated.unwrap_or_else(|| panic!("{bug:?} was not found"));
        println!("planted {bug:?}: found by {by}");
    }
}

/// What a case may cost in the test command.
const BOUNDED: Limits = Limits { states_max: 250_000, seconds_max: 600, breadth: true };

/// A case of pages with each manager, and its name.
fn page_cases(what: &str, change: impl Fn(&mut Bounds)) -> [(String, Pages); 3] {
    [Manager::Central(SiteId::new(0)), Manager::Fixed, Manager::Dynamic].map(|manager| {
        let mut bounds = Bounds::new(manager);
        change(&mut bounds);
        (format!("{what}, {manager:?}"), Pages::new(bounds))
    })
}

fn check_pages(what: &str, change: impl Fn(&mut Bounds)) {
    for (name, pages) in page_cases(what, change) {
        explore(&name, pages, BOUNDED).expect_sound(&name);
    }
}

#[test]
fn reordering() {
    check_pages("3 sites, 2 pages, 3 faults, any order", |b| b.count_hops = true);
}

#[test]
fn a_loss() {
    check_pages("3 sites, 2 pages, 3 faults, any order, 1 loss", |b| b.losses = 1);
}

#[test]
fn a_doubling() {
    check_pages("3 sites, 2 pages, 3 faults, any order, 1 doubled", |b| b.doubles = 1);
}

#[test]
fn an_early_timer() {
    check_pages("3 sites, 2 pages, 3 faults, any order, 1 early timer", |b| b.early_ticks = 1);
}

#[test]
fn a_crash() {
    check_pages("3 sites, 2 pages, 2 faults, any order, 1 crash", |b| {
        b.faults = 2;
        b.crashes = 1;
    });
}

#[test]
fn a_crash_and_a_return() {
    check_pages("3 sites, 1 page, 2 faults, any order, 1 crash, 1 return", |b| {
        b.pages = 1;
        b.faults = 2;
        b.crashes = 1;
        b.rejoins = 1;
    });
}

/// I21: what one death left unnamed is still named if a second one comes before homes are whole.
#[test]
fn two_crashes() {
    check_pages("3 sites, 1 page, 2 faults, any order, 2 crashes", |b| {
        b.pages = 1;
        b.faults = 2;
        b.crashes = 2;
    });
}

/// I22: whatever else happens, a crash too.
#[test]
fn a_leave() {
    check_pages("3 sites, 2 pages, 2 faults, any order, 1 leave", |b| {
        b.faults = 2;
        b.leaves = 1;
    });
    check_pages("3 sites, 1 page, 2 faults, any order, 1 leave, 1 crash", |b| {
        b.pages = 1;
        b.faults = 2;
        b.leaves = 1;
        b.crashes = 1;
    });
}

#[test]
fn runs_of_pages() {
    check_pages("3 sites, run of 2 pages, 3 faults, any order", |b| b.runs = true);
}

#[test]
fn single_copies() {
    check_pages("3 sites, 2 pages, 3 faults, any order, single copy", |b| {
        b.policy = Policy::SingleCopy;
    });
}

fn rounds_of(what: &str) -> Rounds {
    let (_, bounds, sometimes) = full::round_cases()
        .into_iter()
        .find(|(name, ..)| *name == what)
        .expect("a case of this name");
    Rounds::new(bounds, sometimes)
}

#[test]
fn a_round() {
    for (name, bounds, sometimes) in full::round_cases() {
        explore(name, Rounds::new(bounds, sometimes), BOUNDED).expect_sound(name);
    }
}
