//! Many threads in mutating sections of one container: locks in any order, deadlocks that wait-die
//! ends, errors and panics, frees of each other's memory. Nothing of money is lost, and the container
//! verifies. No stable states here.
#![deny(unsafe_code)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use common::Heap;
use stead_derive::Persist;
use stead_heap::planted::{self, Bug};
use stead_heap::{Box, Counter, Error, HashMap, LockError, Mutex, Ptr, RwLock, Text, Vec};

const ACCOUNTS: usize = 12;
const START: u64 = 1000;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct Account<'s> {
    balance: Mutex<'s, u64>,
    notes: Mutex<'s, Vec<'s, Text<'s>>>,
}

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct Bank<'s> {
    accounts: RwLock<'s, Vec<'s, Ptr<'s, Account<'s>>>>,
    journal: Mutex<'s, HashMap<'s, u64, Box<'s, [u64; 5]>>>,
    transfers: Counter<'s>,
}

fn bank() -> Heap<Bank<'static>> {
    Heap::new(1, |tx| {
        let mut accounts = Vec::new(tx);
        for _ in 0..ACCOUNTS {
            let account = Account { balance: Mutex::new(START), notes: Mutex::new(Vec::new(tx)) };
            accounts.push(tx, tx.alloc(account)?)?;
        }
        Ok(Bank {
            accounts: RwLock::new(accounts),
            journal: Mutex::new(HashMap::new(tx)),
            transfers: Counter::new(0),
        })
    })
}

/// Moves money round a few accounts, at times giving up in the midst.
fn transfer(
    heap: &Heap<Bank<'static>>,
    rng: &mut fastrand::Rng,
    only_money: bool,
) -> Result<bool, Error> {
    let route: std::vec::Vec<usize> =
        (0..rng.usize(2..5)).map(|_| rng.usize(0..ACCOUNTS)).collect();
    let amount = rng.u64(1..200);
    let (give_up, panics) = (rng.u32(0..10) == 0, rng.u32(0..10) == 0);
    let stop_at = rng.usize(1..route.len());
    let entry = rng.u64(0..50);
    let result = heap.write(|r, tx| {
        let accounts = r.accounts.read(tx)?;
        for (i, pair) in route.windows(2).enumerate() {
            let (from, to) = (accounts[pair[0]], accounts[pair[1]]);
            {
                let mut balance = from.balance.lock(tx)?;
                if *balance < amount {
                    return Ok(false);
                }
                *balance -= amount;
            }
            if i + 1 == stop_at && give_up {
                return Err(Error::Lock(LockError::AlreadyLent));
            }
            if i + 1 == stop_at && panics {
                panic_any(entry);
            }
            std::thread::yield_now();
            *to.balance.lock(tx)? += amount;
            if only_money {
                continue;
            }
            let mut notes = to.notes.lock(tx)?;
            if notes.len() > 20 {
                notes.clear(tx);
            }
            notes.push(tx, Text::from_str(tx, &format!("{amount} from {}", pair[0]))?)?;
        }
        if only_money {
            return Ok(true);
        }
        let mut journal = r.journal.lock(tx)?;
        if let Some(mut old) = journal.remove(tx, &entry) {
            old.get_mut(tx)[0] += 1;
            drop(old);
        }
        journal.insert(tx, entry, Box::new(tx, [amount; 5])?)?;
        r.transfers.add(tx, 1);
        Ok(true)
    });
    match result {
        Err(Error::Lock(LockError::AlreadyLent)) if give_up => Ok(false),
        other => other,
    }
}

fn total(heap: &Heap<Bank<'static>>) -> u64 {
    heap.write(|r, tx| {
        let accounts = r.accounts.read(tx)?;
        let mut total = 0;
        for account in accounts.iter() {
            total += *account.balance.lock(tx)?;
        }
        Ok(total)
    })
    .expect("no error")
}

/// Runs threads; with a bug planted they touch numbers only, as anything else could crash. Returns transfers done, and totals seen midway that were wrong.
fn run(heap: &Heap<Bank<'static>>, threads: u64, rounds: u64, bug: Option<Bug>) -> (u64, u64) {
    let wrong = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    std::thread::scope(|s| {
        for seed in 0..threads {
            let (wrong, done) = (&wrong, &done);
            s.spawn(move || {
                planted::set(bug);
                let mut rng = fastrand::Rng::with_seed(seed);
                for round in 0..rounds {
                    if round % 50 == 7 && total(heap) != START * ACCOUNTS as u64 {
                        wrong.fetch_add(1, Relaxed);
                    }
                    let outcome =
                        catch_unwind(AssertUnwindSafe(|| transfer(heap, &mut rng, bug.is_some())));
                    match outcome {
                        Ok(moved) => {
                            done.fetch_add(u64::from(moved.expect("an error")), Relaxed);
                        }
                        Err(payload) => assert!(payload.is::<u64>(), "a panic not on purpose"),
                    }
                    if round % 100 == 50 && bug.is_none() {
                        heap.exclusive(|r, x| {
                            for account in r.accounts.get_mut().iter() {
                                account.notes.lock(x)?.clear(x);
                            }
                            Ok(())
                        })
                        .expect("an exclusive section has all locks");
                    }
                }
            });
        }
    });
    (done.into_inner(), wrong.into_inner())
}

fn silence_panics_on_purpose() {
    let default = std::panic::take_hook();
    std::panic::set_hook(std::boxed::Box::new(move |info| {
        if !info.payload().is::<u64>() {
            default(info);
        }
    }));
}

#[test]
fn money_is_neither_made_nor_lost() {
    silence_panics_on_purpose();
    let mut heap = bank();
    let (done, wrong) = run(&heap, 6, 1500, None);
    assert_eq!(wrong, 0);
    assert_eq!(heap.read(|r, _| r.transfers.get()), done);
    for _ in 0..2 {
        assert_eq!(total(&heap), START * ACCOUNTS as u64);
        let report = heap.check();
        assert_eq!(report.leaked_allocations, 0, "{report} {:?}", report.leaks);
        heap.reopen();
    }

    // With locks released when their guards are dropped, sums are seen that never were.
    let seen = (0..20).any(|_| run(&bank(), 6, 400, Some(Bug::LocksNotTwoPhase)).1 > 0);
    assert!(seen, "locks that are not held to the end were not noticed");
}

/// Two threads that lock in opposite order, again and again: neither hangs, both get through.
#[test]
fn opposite_orders_end() {
    let heap = bank();
    std::thread::scope(|s| {
        for turn in 0..2 {
            let heap = &heap;
            s.spawn(move || {
                for _ in 0..2000 {
                    heap.write(|r, tx| {
                        let accounts = r.accounts.read(tx)?;
                        let (a, b) = (accounts[turn], accounts[1 - turn]);
                        *a.balance.lock(tx)? += 1;
                        std::thread::yield_now();
                        *b.balance.lock(tx)? += 1;
                        Ok(())
                    })
                    .expect("no error");
                }
            });
        }
    });
    assert_eq!(total(&heap), START * ACCOUNTS as u64 + 2 * 2 * 2000);
}

/// Threads that read a lock and then want to write it cannot all wait for each other.
#[test]
fn readers_that_become_writers_end() {
    let heap = bank();
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                for _ in 0..500 {
                    heap.write(|r, tx| {
                        let accounts = r.accounts.read(tx)?.len();
                        std::thread::yield_now();
                        let mut accounts_mut = r.accounts.write(tx)?;
                        assert_eq!(accounts_mut.len(), accounts);
                        let account =
                            Account { balance: Mutex::new(0), notes: Mutex::new(Vec::new(tx)) };
                        let new = tx.alloc(account)?;
                        accounts_mut.push(tx, new)?;
                        Ok(())
                    })
                    .expect("no error");
                }
            });
        }
    });
    let count = heap.write(|r, tx| Ok(r.accounts.read(tx)?.len())).expect("no error");
    assert_eq!(count, ACCOUNTS + 1500);
    assert_eq!(heap.check().leaked_allocations, 0);
}

/// Readers whose sections overlap without end let a writer in.
#[test]
fn overlapping_readers_do_not_keep_a_writer_out() {
    let heap = bank();
    let (done, readers) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                while done.load(Relaxed) == 0 {
                    heap.read(|r, token| {
                        let _accounts = r.accounts.read(token).expect("no deadlock is possible");
                        readers.fetch_add(1, Relaxed);
                        std::thread::sleep(std::time::Duration::from_millis(2));
                    });
                }
            });
        }
        s.spawn(|| {
            // All three have been seen inside, so that they overlap from now on.
            while readers.load(Relaxed) < 10 {
                std::thread::yield_now();
            }
            for _ in 0..20 {
                heap.write(|r, tx| r.accounts.write(tx).map(drop).map_err(Error::from))
                    .expect("no deadlock is possible");
            }
            done.store(1, Relaxed);
        });
    });
}

/// What one thread allocates others free; memory does not grow without end.
#[test]
fn memory_freed_by_other_threads_is_used_again() {
    let heap = bank();
    for _ in 0..30 {
        std::thread::scope(|s| {
            s.spawn(|| {
                heap.write(|r, tx| {
                    let mut journal = r.journal.lock(tx)?;
                    for i in 0..2000 {
                        journal.insert(tx, i, Box::new(tx, [i; 5])?)?;
                    }
                    Ok(())
                })
                .expect("no error");
            });
        });
        std::thread::scope(|s| {
            s.spawn(|| {
                heap.write(|r, tx| {
                    r.journal.lock(tx)?.retain(tx, |k, _| k % 100 == 0);
                    Ok(())
                })
                .expect("no error");
            });
        });
    }
    let report = heap.check();
    assert_eq!(report.leaked_allocations, 0);
    assert!(report.live_bytes + report.free_bytes < 2_000_000, "{report}");
}
