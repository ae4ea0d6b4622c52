//! Model checking of the shipped types with stateright (I1 to I16). The tests here are bounded; the
//! complete runs are `cargo test --release -p stead-coherence --test model -- --ignored --nocapture`.
//! What is explored is said by [`world::Bounds`]; the number of states is printed.

mod world;

use std::time::Duration;

use stateright::{Checker, Model, Property};
use stead_coherence::planted::Bug;
use stead_coherence::{Access, Manager, Policy, SiteId};
use world::{Bounds, Step, World};

/// The world as stateright sees it.
#[derive(Clone)]
struct Pages {
    bounds: Bounds,
    sometimes: Vec<Property<Pages>>,
}

impl Model for Pages {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(&self.bounds)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        world.steps(&self.bounds, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.take(&self.bounds, step);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Pages>> {
        let mut properties = vec![
            Property::<Pages>::always("I11 single writer", |_, w| w.single_writer()),
            Property::<Pages>::always("I12 last write read", |_, w| w.last_write_read()),
            Property::<Pages>::always("I13 one owner", |_, w| w.one_owner()),
            Property::<Pages>::always("I15 frames are kept", |_, w| w.broken.is_none()),
            Property::<Pages>::always("I1 I3 I5 nobody waits for ever", |m, w| {
                // Long to find out, so only where nothing is under way.
                !w.letters.is_empty() || w.completes(&m.bounds)
            }),
        ];
        properties.extend(self.sometimes.iter().cloned());
        properties
    }
}

fn two_readers() -> Property<Pages> {
    Property::sometimes("two read at once", |_, w: &World| {
        w.frames.iter().filter(|s| s[0].access == Access::Read).count() >= 2
    })
}

fn all_done() -> Property<Pages> {
    Property::sometimes("everyone has what they asked for", |_, w: &World| {
        w.left.faults == 0 && w.waiting.is_empty() && w.letters.is_empty()
    })
}

struct Found {
    states: usize,
    complete: bool,
    violated: Option<&'static str>,
}

/// Explores up to `states_max` states or `seconds_max` seconds, and says how far it got.
fn explore(
    name: &str,
    bounds: Bounds,
    sometimes: Vec<Property<Pages>>,
    states_max: usize,
    seconds_max: u64,
) -> Found {
    let names: Vec<_> = sometimes.iter().map(|p| p.name).collect();
    let model = Pages { bounds, sometimes };
    let checker = model
        .checker()
        .threads(1)
        .target_state_count(states_max)
        .timeout(Duration::from_secs(seconds_max))
        .spawn_bfs()
        .join();
    let complete = checker.is_done() && checker.state_count() < states_max;
    println!(
        "{name}: {} different states ({} reached), depth {}, {}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        if complete { "complete" } else { "bounded" }
    );
    let discoveries = checker.discoveries();
    for name in &names {
        assert!(discoveries.contains_key(name), "never seen: {name}");
    }
    let mut violated = None;
    for (property, path) in discoveries {
        if !names.contains(&property) {
            let steps: Vec<String> =
                path.clone().into_actions().iter().map(|step| format!("  {step:?}")).collect();
            println!("{property} violated by:\n{}", steps.join("\n"));
            violated = Some(property);
        }
    }
    Found { states: checker.unique_state_count(), complete, violated }
}

fn managers() -> [Manager; 3] {
    [Manager::Central(SiteId::new(0)), Manager::Fixed, Manager::Dynamic]
}

#[test]
fn three_sites_two_pages_reordered() {
    for manager in managers() {
        let bounds = Bounds { faults: 3, stores: 2, ..Bounds::new(manager) };
        let found = explore(
            &format!("reordered, {manager:?}"),
            bounds,
            vec![two_readers(), all_done()],
            2_000_000,
            60,
        );
        assert_eq!(found.violated, None);
    }
}
