//! What sections refuse and what they undo, on a real store: errors at entry, `Err` and panics at random
//! points, deadlocks, waiting for a change.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use stead::{
    Container, Error, HashMap, LockError, Mutex, Persist, Result, RwLock, SectionError, Slot,
    StabiliseError, Store, Vec,
};

#[derive(Persist)]
#[repr(C)]
struct Root<'s> {
    plain: u64,
    list: Vec<'s, u64>,
    a: Mutex<'s, HashMap<'s, u64, u64>>,
    b: Mutex<'s, u64>,
    shared: RwLock<'s, u64>,
    slot: Slot<'s, u64>,
}

fn fresh() -> (tempfile::TempDir, Store, Container<Root<'static>>) {
    let dir = tempfile::tempdir().unwrap();
    let store = stead::open(dir.path().join("store")).unwrap();
    let container = store
        .container("c", |tx| {
            Ok(Root {
                plain: 0,
                list: Vec::new(tx),
                a: Mutex::new(HashMap::new(tx)),
                b: Mutex::new(0),
                shared: RwLock::new(7),
                slot: Slot::new(0),
            })
        })
        .unwrap();
    (dir, store, container)
}

#[test]
fn entry_refuses_what_would_wait_for_itself() {
    let Some(_alone) = common::alone() else { return };
    let (_dir, store, c) = fresh();
    c.write(|root, _tx| -> Result<_> {
        let nested = c.write(|_, _| -> Result<_> { Ok(()) });
        assert!(matches!(nested, Err(Error::Section(SectionError::Nested))));
        let nested = c.exclusive(|_, _| -> Result<_> { Ok(()) });
        assert!(matches!(nested, Err(Error::Section(SectionError::Nested))));
        assert!(matches!(store.stabilise(), Err(StabiliseError::InSection)));
        assert!(store.container::<Root<'_>>("other", |_| unreachable!()).is_err());
        // Reading inside writing is allowed, and sees what was written.
        let inner = c.read(|again, _| std::ptr::eq(again.list.as_ptr(), root.list.as_ptr()))?;
        assert!(inner);
        Ok(())
    })
    .unwrap();
    c.exclusive(|_, _| -> Result<_> {
        assert_eq!(c.read(|_, _| ()), Err(SectionError::InExclusive));
        let nested = c.write(|_, _| -> Result<_> { Ok(()) });
        assert!(matches!(nested, Err(Error::Section(_))));
        assert!(matches!(store.stabilise(), Err(StabiliseError::InSection)));
        Ok(())
    })
    .unwrap();
    c.read(|_, _| {
        let upgrade = c.write(|_, _| -> Result<_> { Ok(()) });
        assert!(matches!(upgrade, Err(Error::Section(SectionError::Nested))));
    })
    .unwrap();
    // All of it was refused, none of it stuck: sections go on as before.
    assert_eq!(c.read(|root, _| root.plain).unwrap(), 0);
    store.stabilise().unwrap();
}

#[test]
fn err_and_panic_undo_all_of_a_section() {
    let Some(_alone) = common::alone() else { return };
    let (_dir, store, c) = fresh();
    let seen = |c: &Container<Root<'static>>| {
        c.exclusive(|root, tx| -> Result<_> {
            let a = root.a.lock(tx)?;
            let mut pairs: std::vec::Vec<_> = a.iter().map(|(k, v)| (*k, *v)).collect();
            pairs.sort_unstable();
            let slot = *root.slot.get(tx);
            Ok((root.plain, root.list.to_vec(), pairs, slot))
        })
        .unwrap()
    };
    let mut chance = fastrand::Rng::with_seed(common::seed("err_and_panic"));
    for round in 0..300 {
        let before = seen(&c);
        // Where in the section it ends, and how.
        let (steps, panics) = (chance.u64(..12), chance.bool());
        let commit = chance.u8(..3) == 0;
        let picks: std::vec::Vec<u64> = (0..steps).map(|_| chance.u64(..40)).collect();
        let body = || {
            c.exclusive(|root, tx| -> Result<_> {
                for (i, &k) in picks.iter().enumerate() {
                    match i % 5 {
                        0 => root.plain += k,
                        1 => root.list.push(tx, k)?,
                        2 => drop(root.a.get_mut().insert(tx, k, round)?),
                        3 => drop((root.list.pop(tx), root.a.get_mut().remove(tx, &(k / 2)))),
                        _ => root.slot.set(tx, k),
                    }
                }
                match (commit, panics) {
                    (true, _) => Ok(()),
                    (false, true) => std::panic::resume_unwind(std::boxed::Box::new("undo")),
                    (false, false) => Err(Error::other("undo")),
                }
            })
        };
        let ended = catch_unwind(AssertUnwindSafe(body));
        assert_eq!(commit, matches!(ended, Ok(Ok(()))), "round {round}");
        if !commit {
            assert_eq!(seen(&c), before, "round {round}: {steps} steps undone");
        }
    }
    let report = store.site().verify_container(&store.site().existing("c").unwrap()).unwrap();
    assert!(report.first_bad.is_none(), "{report}");
    assert!(report.leaks.is_empty(), "{report}");
}

#[test]
fn a_lock_is_lent_once_at_a_time() {
    let Some(_alone) = common::alone() else { return };
    let (_dir, _store, c) = fresh();
    c.write(|root, tx| -> Result<_> {
        let guard = root.b.lock(tx)?;
        assert!(matches!(root.b.lock(tx), Err(LockError::AlreadyLent)));
        drop(guard);
        *root.b.lock(tx)? += 1;
        std::mem::forget(root.b.lock(tx)?);
        Ok(())
    })
    .unwrap();
    // The forgotten guard was given back at the section's end.
    assert_eq!(c.write(|root, tx| -> Result<_> { Ok(*root.b.lock(tx)?) }).unwrap(), 1);
    assert_eq!(c.read(|root, r| *root.shared.read(r).unwrap()).unwrap(), 7);
}

#[test]
fn deadlocks_end_by_themselves() {
    let Some(_alone) = common::alone() else { return };
    let (_dir, _store, c) = fresh();
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (c, done) = (&c, &done);
            scope.spawn(move || {
                for i in 0..2000u64 {
                    let outcome = c.write(|root, tx| -> Result<_> {
                        // Half of the threads take the locks in the other order.
                        if thread % 2 == 0 {
                            let mut a = root.a.lock(tx)?;
                            let mut b = root.b.lock(tx)?;
                            *b += 1;
                            a.insert(tx, i % 64, *b)?;
                        } else {
                            let mut b = root.b.lock(tx)?;
                            let mut a = root.a.lock(tx)?;
                            *b += 1;
                            a.insert(tx, i % 64, *b)?;
                        }
                        Ok(())
                    });
                    match outcome {
                        Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                        Err(Error::Lock(LockError::Deadlock)) => 0,
                        Err(other) => panic!("{other}"),
                    };
                }
            });
        }
    });
    let b = c.write(|root, tx| -> Result<_> { Ok(*root.b.lock(tx)?) }).unwrap();
    assert_eq!(b, done.load(Ordering::Relaxed), "a section counts if and only if it returned Ok");
    assert!(b > 0);
}

#[test]
fn waits_for_a_change_with_no_section_open() {
    let Some(_alone) = common::alone() else { return };
    let (_dir, store, c) = fresh();
    let total = 500;
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let taker = scope.spawn(|| {
            (0..total)
                .map(|_| {
                    c.write_when(|root, tx| -> Result<_> {
                        let mut b = root.b.lock(tx)?;
                        if *b == 0 {
                            return Ok(None);
                        }
                        *b -= 1;
                        Ok(Some(1u64))
                    })
                    .unwrap()
                })
                .sum::<u64>()
        });
        scope.spawn(|| {
            // A waiter has no section open, so stabilisations go through meanwhile.
            while !stopped.load(Ordering::Relaxed) {
                store.stabilise_within(Duration::from_secs(10)).unwrap();
            }
        });
        for _ in 0..total {
            c.write(|root, tx| -> Result<_> {
                *root.b.lock(tx)? += 1;
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(taker.join().unwrap(), total);
        stopped.store(true, Ordering::Relaxed);
    });
    assert_eq!(c.write(|root, tx| -> Result<_> { Ok(*root.b.lock(tx)?) }).unwrap(), 0);
}

#[test]
fn a_stabilisation_says_who_holds_it_up() {
    let Some(_alone) = common::alone() else { return };
    let (_dir, store, c) = fresh();
    let (inside, over) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("the slow one".to_owned())
            .spawn_scoped(scope, || {
                c.write(|root, tx| -> Result<_> {
                    *root.b.lock(tx)? = 5;
                    inside.store(true, Ordering::SeqCst);
                    while !over.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                    Ok(())
                })
                .unwrap();
            })
            .unwrap();
        while !inside.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        // Readers are not held up by a stabilisation that waits for a writer.
        let error = store.stabilise_within(Duration::from_millis(30)).unwrap_err();
        assert!(error.to_string().contains("the slow one"), "{error}");
        assert_eq!(c.read(|root, _| root.plain).unwrap(), 0);
        over.store(true, Ordering::SeqCst);
    });
    store.stabilise().unwrap();
}

#[test]
fn a_store_given_up_inside_anothers_section_is_stabilised() {
    let Some(_alone) = common::alone() else { return };
    let (_dir, _store, c) = fresh();
    let (dir, other_store, other) = fresh();
    other
        .exclusive(|root, _| -> Result<_> {
            root.plain = 9;
            Ok(())
        })
        .unwrap();
    let mut held = Some((other_store, other));
    c.write(|_, _| -> Result<_> {
        drop(held.take());
        Ok(())
    })
    .unwrap();
    let store = stead::open(dir.path().join("store")).unwrap();
    let again = store.container::<Root<'_>>("c", |_| unreachable!("it is there")).unwrap();
    assert_eq!(again.read(|root, _| root.plain).unwrap(), 9);
}
