//! The tests of the gate find a gate that is left out.
#![cfg(feature = "planted")]

mod stress;

use std::time::Duration;

use stead_memory::Gate;
use stead_memory::planted::{self, Bug};
use stead_model::ContainerId;

#[test]
fn planted_gate_left_out_is_found() {
    planted::set(Bug::GateLeftOut);
    let torn = stress::run(Gate::new, Duration::from_secs(20));
    let found = stress::RACES.map(|(entering, closing)| {
        let gate = Gate::new(ContainerId(1));
        stress::race(&gate, entering, closing, Duration::from_secs(20))
    });
    planted::set(Bug::None);
    assert!(torn.is_err(), "sections entered closed gates, and nothing was seen torn");
    assert_eq!(found, [true; 4]);
}
