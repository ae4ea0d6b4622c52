//! The gate under real threads: the rules of nesting, and stress whose invariants break only if a
//! closed gate lets somebody in (catalogue B1, B8).

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use stead_memory::{CloseError, EnterError, Gate, close_writers, in_section};
use stead_model::ContainerId;

mod stress;

fn gate() -> Gate {
    Gate::new(ContainerId(1))
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(20))
}

#[test]
fn sections_nest_as_the_rules_say() {
    let (a, b) = (gate(), gate());
    assert!(!in_section());
    {
        let _write = a.enter_write().unwrap();
        assert!(in_section());
        assert!(matches!(a.enter_write(), Err(EnterError::Nested)));
        assert!(matches!(b.enter_write(), Err(EnterError::Nested)));
        assert!(matches!(b.enter_exclusive(None), Err(EnterError::Nested)));
        assert!(matches!(close_writers(&[&b], None), Err(CloseError::Nested)));
        let _read = a.enter_read().unwrap();
        let _other = b.enter_read().unwrap();
        assert!(matches!(a.enter_write(), Err(EnterError::Nested)));
    }
    assert!(!in_section());
    {
        let _read = a.enter_read().unwrap();
        assert!(matches!(b.enter_write(), Err(EnterError::Nested)));
        assert!(matches!(a.enter_exclusive(soon()), Err(EnterError::Nested)));
    }
    {
        let _exclusive = a.enter_exclusive(None).unwrap();
        assert!(in_section());
        assert!(matches!(a.enter_read(), Err(EnterError::InExclusive)));
        assert!(matches!(b.enter_read(), Err(EnterError::InExclusive)));
        assert!(matches!(b.enter_write(), Err(EnterError::InExclusive)));
        assert!(matches!(b.enter_exclusive(None), Err(EnterError::InExclusive)));
        assert!(matches!(close_writers(&[&b], None), Err(CloseError::Nested)));
    }
    drop(a.enter_write().unwrap());
}

#[test]
fn reading_sections_go_eight_deep_and_end_in_any_order() {
    let a = gate();
    let mut entries: Vec<_> = (0..8).map(|_| a.enter_read().unwrap()).collect();
    assert!(matches!(a.enter_read(), Err(EnterError::TooDeep)));
    drop(entries.remove(3));
    entries.push(a.enter_read().unwrap());
    assert!(matches!(a.enter_read(), Err(EnterError::TooDeep)));
    while !entries.is_empty() {
        assert!(in_section());
        drop(entries.remove(0));
    }
    assert!(!in_section());
    drop(a.enter_exclusive(None).unwrap());
}

#[test]
fn a_panic_leaves_its_section() {
    let a = gate();
    let result = std::panic::catch_unwind(|| {
        let _write = a.enter_write().unwrap();
        let _read = a.enter_read().unwrap();
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(result.is_err());
    assert!(!in_section());
    drop(close_writers(&[&a], soon()).unwrap());
}

#[test]
fn who_holds_a_gate_up_is_named_and_the_gate_opens_again() {
    let (a, b) = (gate(), gate());
    let (inside, go_on) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        let holder = std::thread::Builder::new().name("holder".to_owned());
        let line = line!() + 2;
        let body = || {
            let entry = b.enter_write().unwrap();
            inside.wait();
            go_on.wait();
            drop(entry);
            // Let in again, as the other closers have given up.
            drop(a.enter_write().unwrap());
        };
        let thread = holder.spawn_scoped(scope, body).unwrap();
        inside.wait();
        let Err(CloseError::Held(held)) = close_writers(&[&a, &b], soon()) else {
            panic!("a writer is inside")
        };
        assert_eq!(held.holders.len(), 1, "{held}");
        let holder = &held.holders[0];
        assert_eq!(holder.thread_name.as_deref(), Some("holder"));
        let place = holder.entered_at.unwrap();
        assert_eq!((place.file(), place.line()), (file!(), line));
        assert!(holder.open_at_least >= Duration::from_millis(10));
        let Err(EnterError::Held(held)) = b.enter_exclusive(soon()) else {
            panic!("a writer is inside")
        };
        assert_eq!(held.holders[0].thread_name.as_deref(), Some("holder"));
        // Both are open again.
        drop(a.enter_write().unwrap());
        drop(b.enter_write().unwrap());
        // A closing of another gate is not concerned.
        drop(close_writers(&[&a], None).unwrap());
        go_on.wait();
        thread.join().unwrap();
    });
    let closed = close_writers(&[&b, &a, &b], None).unwrap();
    assert_eq!(closed.gate_count(), 2);
}

#[test]
fn a_closed_gate_stops_writers_and_no_readers() {
    let a = gate();
    let wrote = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let closed = close_writers(&[&a], None).unwrap();
        let (sender, receiver) = channel();
        let (gate, flag) = (&a, &wrote);
        scope.spawn(move || {
            let read = gate.enter_read().unwrap();
            drop(read);
            sender.send(()).unwrap();
            let _write = gate.enter_write().unwrap();
            flag.store(true, Ordering::SeqCst);
        });
        receiver.recv().unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert!(!wrote.load(Ordering::SeqCst));
        // Another closer waits for its turn.
        let Err(CloseError::Held(held)) = close_writers(&[&a], soon()) else { panic!() };
        assert!(held.holders.is_empty());
        drop(closed);
    });
    assert!(wrote.load(Ordering::SeqCst));
}

#[test]
fn an_exclusive_section_is_alone() {
    let a = gate();
    let entered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let exclusive = a.enter_exclusive(None).unwrap();
        let (gate, entered_ref) = (&a, &entered);
        scope.spawn(move || {
            let _read = gate.enter_read().unwrap();
            entered_ref.fetch_add(1, Ordering::SeqCst);
        });
        scope.spawn(move || {
            let _write = gate.enter_write().unwrap();
            entered_ref.fetch_add(1, Ordering::SeqCst);
        });
        scope.spawn(move || {
            let _exclusive = gate.enter_exclusive(None).unwrap();
            entered_ref.fetch_add(1, Ordering::SeqCst);
        });
        scope.spawn(move || {
            let _closed = close_writers(&[gate], None).unwrap();
            entered_ref.fetch_add(1, Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(entered.load(Ordering::SeqCst), 0);
        drop(exclusive);
    });
    assert_eq!(entered.load(Ordering::SeqCst), 4);
}

/// Two threads read one container each and then want to read the other's, while two more want each
/// container for themselves: without letting nested readers in, all four wait for ever.
#[test]
fn nested_readers_pass_those_who_wait_to_be_alone() {
    let watchdog = stress::Watchdog::start("nested readers");
    for _ in 0..200 {
        let (a, b) = (gate(), gate());
        let both_inside = Barrier::new(2);
        std::thread::scope(|scope| {
            for (first, second) in [(&a, &b), (&b, &a)] {
                let both_inside = &both_inside;
                scope.spawn(move || {
                    let _outer = first.enter_read().unwrap();
                    both_inside.wait();
                    std::thread::yield_now();
                    let _inner = second.enter_read().unwrap();
                });
                scope.spawn(move || drop(first.enter_exclusive(None).unwrap()));
            }
        });
        watchdog.alive();
    }
}

#[test]
fn slots_pass_to_later_threads() {
    let a = gate();
    for _ in 0..500 {
        std::thread::scope(|scope| {
            scope.spawn(|| drop(a.enter_write().unwrap()));
        });
    }
    // A leaked section stays open, and its slot is not given to anybody.
    let b = gate();
    std::thread::scope(|scope| {
        scope.spawn(|| std::mem::forget(b.enter_write().unwrap()));
    });
    for _ in 0..10 {
        std::thread::scope(|scope| {
            scope.spawn(|| drop(a.enter_write().unwrap()));
        });
    }
    assert!(matches!(close_writers(&[&b], soon()), Err(CloseError::Held(_))));
}

#[test]
fn nothing_is_torn_and_nobody_waits_for_ever() {
    stress::run(Gate::new, Duration::from_secs(4)).unwrap();
}

#[test]
fn nothing_is_torn_where_membarrier_is_refused() {
    stress::run(Gate::fenced, Duration::from_secs(4)).unwrap();
}

#[test]
fn entering_and_closing_see_each_other() {
    for (entering, closing) in stress::RACES {
        for gate in [Gate::new(ContainerId(1)), Gate::fenced(ContainerId(1))] {
            let both = stress::race(&gate, entering, closing, Duration::from_millis(300));
            assert!(!both, "{entering:?} against {closing:?}: both were in");
        }
    }
}
