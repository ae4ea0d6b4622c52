//! The tests of the gate find a gate that is left out, and a barrier that is.
#![cfg(feature = "planted")]

mod stress;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stead_memory::Gate;
use stead_memory::planted::{self, Bug};
use stead_model::ContainerId;

/// The switch is one for the whole process.
fn plant(bug: Bug) -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    planted::set(bug);
    turn
}

fn races() -> [bool; 4] {
    stress::RACES.map(|(entering, closing)| {
        let gate = Gate::new(ContainerId(1));
        stress::race(&gate, entering, closing, Duration::from_secs(20))
    })
}

#[test]
fn planted_gate_left_out_is_found() {
    let _turn = plant(Bug::GateLeftOut);
    let torn = stress::run(Gate::new, Duration::from_secs(20));
    let found = races();
    planted::set(Bug::None);
    assert!(torn.is_err(), "sections entered closed gates, and nothing was seen torn");
    assert_eq!(found, [true; 4]);
}

#[test]
fn planted_barrier_left_out_is_found() {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        eprintln!("NOT RUN: two threads have to run at once");
        return;
    }
    let _turn = plant(Bug::BarrierLeftOut);
    let [write, exclusive @ ..] = races();
    planted::set(Bug::None);
    assert!(write, "a writer and a stabilisation were never in at once");
    // An exclusive section looks twice, so that each of these is seldom in at the wrong moment.
    assert!(exclusive.contains(&true), "nobody and an exclusive section were in at once");
}
