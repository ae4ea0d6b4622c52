//! Mistakes made on purpose, each of which the checker has to find (the others are found by the
//! simulator). Read [`catch`] first.

use stead_coherence::Manager;
use stead_coherence::planted::Bug;

use crate::world::Bounds;
use crate::{Limits, Pages, Rounds, explore, rounds_of};

const LIMITS: Limits = Limits { states_max: 2_000_000, seconds_max: 120, breadth: true };

/// Explores until the mistake shows, and prints by which property.
fn catch(bug: Bug, change: impl Fn(&mut Bounds)) {
    let mut bounds = Bounds::new(Manager::Dynamic);
    bounds.pages = 1;
    bounds.bug = Some(bug);
    change(&mut bounds);
    explore(&format!("planted {bug:?}"), Pages::new(bounds), LIMITS).expect_violated(bug);
}

fn catch_in_round(bug: Bug, case: &str) {
    let Rounds { mut bounds, .. } = rounds_of(case);
    bounds.bug = Some(bug);
    let model = Rounds::new(bounds, Vec::new());
    explore(&format!("planted {bug:?}"), model, LIMITS).expect_violated(bug);
}

/// I1: a request that came before the page.
#[test]
fn bounce() {
    catch(Bug::Bounce, |b| b.count_hops = true);
}

/// I2: a copy that an invalidation overtook.
#[test]
fn install_stale() {
    catch(Bug::InstallStale, |_| ());
}

/// I3: an invalidation that waits.
#[test]
fn wait_for_fault() {
    catch(Bug::WaitForFault, |_| ());
}

/// I4: the copy of the second of two upgraders.
#[test]
fn trust_copy() {
    catch(Bug::TrustCopy, |b| b.faults = 4);
}

/// I5, I13, I14: a grant that comes again when its version has passed.
#[test]
fn take_twice() {
    catch(Bug::TakeTwice, |b| b.doubles = 1);
}

/// I7: hints that name readers.
#[test]
fn hint_from_read() {
    catch(Bug::HintFromRead, |b| {
        b.faults = 4;
        b.count_hops = true;
    });
}

/// I8: a message from before the death.
#[test]
fn no_fence() {
    catch(Bug::NoFence, |b| {
        b.faults = 3;
        b.crashes = 1;
        b.rejoins = 1;
    });
}

/// I9: two sites with a page each and a wish for the other's.
#[test]
fn hold_and_wait() {
    catch(Bug::HoldAndWait, |b| {
        b.sites = 2;
        b.pages = 2;
        b.runs = true;
        b.faults = 4;
        b.stores = 4;
    });
}

/// I16: a copy that nobody counts.
#[test]
fn skip_invalidation() {
    catch(Bug::SkipInvalidation, |_| ());
}

/// I11: a writer while there are readers.
#[test]
fn write_early() {
    catch(Bug::WriteEarly, |_| ());
}

/// I15: a page that is lost with the message.
#[test]
fn drop_frame() {
    catch(Bug::DropFrame, |b| b.losses = 1);
}

/// I21: what was known of a dead owner, when the home that was told dies as well.
#[test]
fn forget_missing() {
    catch(Bug::ForgetMissing, |b| b.crashes = 2);
}

/// I21: a page that only its home had.
#[test]
fn home_unnamed() {
    catch(Bug::HomeUnnamed, |b| b.crashes = 1);
}

/// I21: a home that a death was told to, and that had a newer view before it had heard all.
#[test]
fn forget_death() {
    let mut bounds = Bounds::new(Manager::Dynamic);
    bounds.pages = 2;
    bounds.faults = 2;
    bounds.crashes = 1;
    bounds.rejoins = 1;
    bounds.bug = Some(Bug::ForgetDeath);
    // Too deep for breadth.
    let limits = Limits { breadth: false, states_max: 20_000_000, ..LIMITS };
    explore("planted ForgetDeath", Pages::new(bounds), limits).expect_violated(Bug::ForgetDeath);
}

/// I10: a page that is not served while its site is closing.
#[test]
fn serve_only_awake() {
    catch_in_round(Bug::ServeOnlyAwake, "both write both pages");
}

/// R1.
#[test]
fn forget_gave() {
    catch_in_round(Bug::ForgetGave, "the giver stabilises");
}

/// R2.
#[test]
fn forget_took() {
    catch_in_round(Bug::ForgetTook, "the taker stabilises");
}

/// R3.
#[test]
fn give_uncaptured() {
    catch_in_round(Bug::GiveUncaptured, "a page leaves while its site is quiet");
}

/// I19: what a cut is to capture, and a page that comes in its place.
#[test]
fn forget_leaving_capture() {
    catch_in_round(Bug::ForgetLeavingCapture, "a page goes, and comes back with the cut");
}

/// I18: the gate.
#[test]
fn no_drain() {
    catch_in_round(Bug::NoDrain, "the giver stabilises");
}

/// I18: what was shared before Close.
#[test]
fn forget_history() {
    catch_in_round(Bug::ForgetHistory, "the giver stabilises");
}
