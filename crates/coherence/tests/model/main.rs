//! Model checking of the shipped types with stateright. The tests here are bounded and print the
//! number of states; the complete runs are
//! `cargo test --release -p stead-coherence --test model -- --ignored --nocapture`.
//! What is explored is said by [`world::Bounds`] and [`rounds::Bounds`].

mod full;
mod planted;
mod rounds;
mod world;

use std::time::Duration;

use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};
use stead_coherence::{Access, Manager, Policy, SiteId};
use world::{Bounds, World};

/// The world of pages as stateright sees it (I1 to I16).
#[derive(Clone)]
struct Pages(Bounds);

impl Model for Pages {
    type State = World;
    type Action = world::Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(&self.0)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<world::Step>) {
        world.steps(&self.0, steps);
    }

    fn next_state(&self, world: &World, step: world::Step) -> Option<World> {
        let mut next = world.clone();
        next.take(&self.0, step);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Pages>> {
        let mut properties = vec![
            Property::<Pages>::always("I11 single writer", |_, w| w.single_writer()),
            Property::<Pages>::always("I12 last write read", |_, w| w.last_write_read()),
            Property::<Pages>::always("I13 one owner", |_, w| w.one_owner()),
            Property::<Pages>::always("I15 frames are kept", |_, w| w.broken.is_none()),
            Property::<Pages>::always("I1 I7 forwarding is bounded", |m, w| {
                w.forwarding_is_bounded(&m.0)
            }),
            Property::<Pages>::always("I1 I3 I5 I9 nobody waits for ever", |m, w| {
                // Long to find out, so only where nothing is under way.
                !w.letters.is_empty() || w.completes(&m.0)
            }),
        ];
        if self.0.bug.is_none() {
            properties
                .push(Property::<Pages>::sometimes("all have what they asked for", |_, w| {
                    w.left.faults == 0 && w.waiting.is_empty() && w.letters.is_empty()
                }));
            properties.push(Property::<Pages>::sometimes("a request waits in line", |_, w| {
                w.seen.waited
            }));
            if self.0.crashes > 0 {
                properties.push(Property::<Pages>::sometimes("a page is lost", |_, w| w.seen.lost));
            }
            if self.0.policy == Policy::Invalidate && self.0.faults > 2 {
                properties.push(Property::<Pages>::sometimes("two read at once", |_, w| {
                    w.frames.iter().filter(|s| s[0].access == Access::Read).count() >= 2
                }));
                properties.push(Property::<Pages>::sometimes("an upgrade has no body", |_, w| {
                    w.seen.upgrade_without_body
                }));
                properties.push(Property::<Pages>::sometimes("a copy comes too late", |_, w| {
                    w.seen.copy_refused
                }));
            }
        }
        properties
    }
}

/// The world of sections and rounds as stateright sees it (I17 to I20, R1 to R3).
#[derive(Clone)]
struct Rounds {
    bounds: rounds::Bounds,
    sometimes: Vec<Property<Rounds>>,
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
        next.take(&self.bounds, step);
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

/// Explores in breadth up to `states_max` states, and prints how far it got.
fn explore<M>(name: &str, model: M, states_max: usize, seconds_max: u64) -> Found
where
    M: Model + Send + Sync + 'static + Clone,
    M::State: std::hash::Hash + Send + Sync + Clone + PartialEq + std::fmt::Debug + 'static,
    M::Action: std::fmt::Debug + Clone + PartialEq + Send + Sync + 'static,
{
    let properties = model.properties();
    let checker = model
        .checker()
        .threads(1)
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(states_max)
        .timeout(Duration::from_secs(seconds_max))
        .spawn_bfs()
        .join();
    let discoveries = checker.discoveries();
    let mut found = Found { violated: None, unseen: Vec::new(), complete: false };
    for property in &properties {
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
    found.complete =
        found.violated.is_none() && checker.state_count() < states_max && checker.is_done();
    println!(
        "{name}: {} different states, {} reached, depth {}, {}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        if found.complete { "complete" } else { "not complete" }
    );
    found
}

fn expect_sound(name: &str, found: &Found) {
    assert_eq!(found.violated, None, "{name}");
    if found.complete {
        assert_eq!(found.unseen, [""; 0], "{name}");
    }
}

fn managers() -> [Manager; 3] {
    [Manager::Central(SiteId::new(0)), Manager::Fixed, Manager::Dynamic]
}

/// States that a bounded run may reach in the test command.
const STATES_MAX: usize = 250_000;

fn check_pages(what: &str, change: impl Fn(&mut Bounds)) {
    for manager in managers() {
        let mut bounds = Bounds::new(manager);
        change(&mut bounds);
        let name = format!("{what}, {manager:?}");
        expect_sound(&name, &explore(&name, Pages(bounds), STATES_MAX, 600));
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
    Rounds { bounds, sometimes }
}

#[test]
fn a_round() {
    for (name, bounds, sometimes) in full::round_cases() {
        let model = Rounds { bounds, sometimes };
        expect_sound(name, &explore(name, model, STATES_MAX, 600));
    }
}
