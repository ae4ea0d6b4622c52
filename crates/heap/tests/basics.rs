//! The heap as a program sees it, on simulated memory: a container is made, filled, closed, opened and
//! read again. No store and no gate. The site's part is played by `Heap` in `common`.
#![deny(unsafe_code)]

mod common;

use common::Heap;
use stead_derive::{Persist, StableHash};
use stead_heap::{
    AllocError, Box, Counter, Error, HashMap, LockError, Mutex, Ptr, RwLock, Slot, Text, Vec,
};

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct Task<'s> {
    id: u64,
    done: Counter<'s>,
    next: Slot<'s, Option<Ptr<'s, Task<'s>>>>,
    notes: Mutex<'s, Vec<'s, u64>>,
}

#[derive(Persist, StableHash, PartialEq, Eq, Debug, Clone, Copy)]
#[persist(crate = stead_heap)]
#[repr(u8)]
enum Colour {
    Red,
    Green = 7,
}

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C, u32)]
enum Tree<'s> {
    Leaf(u64),
    Node { left: Box<'s, Tree<'s>>, right: Box<'s, Tree<'s>>, weight: u32 },
    Named(Text<'s>),
}

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct Pair<A, B> {
    a: A,
    b: B,
}

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct Board<'s> {
    head: Slot<'s, Option<Ptr<'s, Task<'s>>>>,
    names: Mutex<'s, HashMap<'s, Text<'s>, Vec<'s, u32>>>,
    tree: RwLock<'s, Option<Box<'s, Tree<'s>>>>,
    pair: Pair<u64, Option<std::num::NonZero<u64>>>,
    colours: Mutex<'s, HashMap<'s, Colour, u64>>,
    plain: Vec<'s, u64>,
}

fn board() -> Heap<Board<'static>> {
    Heap::new(2, |tx| {
        Ok(Board {
            head: Slot::new(None),
            names: Mutex::new(HashMap::new(tx)),
            tree: RwLock::new(None),
            pair: Pair { a: 1, b: None },
            colours: Mutex::new(HashMap::new(tx)),
            plain: Vec::new(tx),
        })
    })
}

#[test]
fn a_container_keeps_what_sections_did() {
    let mut heap = board();
    heap.exclusive(|r, x| {
        for id in 0..10 {
            let task = x.alloc(Task {
                id,
                done: Counter::new(0),
                next: Slot::new(*r.head.get(x)),
                notes: Mutex::new(Vec::new(x)),
            })?;
            r.head.set(x, Some(task));
            r.plain.push(x, id)?;
        }
        Ok(())
    })
    .unwrap();
    heap.write(|r, tx| {
        let mut at = *r.head.get(tx);
        while let Some(task) = at {
            task.done.add(tx, 2);
            task.notes.lock(tx)?.push(tx, task.id * 3)?;
            at = *task.next.get(tx);
        }
        let mut names = r.names.lock(tx)?;
        for (i, name) in ["ada", "grace", "barbara", "frances"].iter().enumerate() {
            let name = Text::from_str(tx, name)?;
            let list = names.get_or_insert_with(tx, name, || Ok::<_, Error>(Vec::new(tx)))?;
            list.push(tx, i as u32)?;
        }
        r.colours.lock(tx)?.insert(tx, Colour::Green, 3)?;
        Ok(())
    })
    .unwrap();
    heap.reopen();
    heap.read(|r, tx| {
        let mut at = *r.head.get(tx);
        let mut seen = 0;
        while let Some(task) = at {
            assert_eq!(task.done.get(), 2);
            seen += task.id;
            at = *task.next.get(tx);
        }
        assert_eq!(seen, 45);
        assert_eq!(r.plain[..], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    });
    heap.write(|r, tx| {
        let names = r.names.lock(tx)?;
        assert_eq!(names.get("grace").map(|v| v.len()), Some(1));
        assert_eq!(names["barbara"][..], [2]);
        assert!(names.get("alan").is_none());
        let notes = r.head.get(tx).unwrap().get().notes.lock(tx)?;
        assert_eq!(notes[..], [27]);
        assert_eq!(r.colours.lock(tx)?.get(&Colour::Green), Some(&3));
        assert_eq!(r.colours.lock(tx)?.get(&Colour::Red), None);
        Ok(())
    })
    .unwrap();
    heap.check();
}

#[test]
fn an_error_undoes_the_section() {
    let mut heap = board();
    let before = heap.write(|r, tx| {
        let mut names = r.names.lock(tx)?;
        for i in 0..100u32 {
            let mut v = Vec::new(tx);
            v.push(tx, i)?;
            names.insert(tx, Text::from_str(tx, &format!("name {i}"))?, v)?;
        }
        Ok(names.len())
    });
    assert_eq!(before.unwrap(), 100);
    let undone = heap.write(|r, tx| {
        let mut names = r.names.lock(tx)?;
        for i in 0..1000u32 {
            names.remove(tx, format!("name {}", i * 2).as_str());
            names.insert(tx, Text::from_str(tx, &format!("other {i}"))?, Vec::new(tx))?;
            if let Some(v) = names.get_mut(tx, "name 1") {
                v.push(tx, 77)?;
                *v.get_mut(tx, 0).expect("one element") = 5;
            }
        }
        Err::<(), _>(Error::Lock(LockError::Deadlock))
    });
    assert!(undone.is_err());
    for _ in 0..2 {
        heap.write(|r, tx| {
            let names = r.names.lock(tx)?;
            assert_eq!(names.len(), 100);
            for i in 0..100u32 {
                assert_eq!(names[format!("name {i}").as_str()][..], [i]);
            }
            assert_eq!(names.iter().count(), 100);
            Ok(())
        })
        .unwrap();
        heap.check();
        heap.reopen();
    }
}

#[test]
fn trees_are_freed_when_the_section_commits() {
    let heap = board();
    for round in 0..3 {
        heap.write(|r, tx| {
            let mut tree = Tree::Leaf(round);
            for weight in 0..500 {
                let left = Box::new(tx, tree)?;
                let right = Box::new(tx, Tree::Named(Text::from_str(tx, "a leaf with a name")?))?;
                tree = Tree::Node { left, right, weight };
            }
            *r.tree.write(tx)? = Some(Box::new(tx, tree)?);
            Ok(())
        })
        .unwrap();
        heap.check();
    }
    heap.write(|r, tx| {
        let mut depth = 0;
        let tree = r.tree.read(tx)?;
        let mut at: &Tree = tree.as_ref().unwrap();
        while let Tree::Node { left, right, weight } = at {
            assert!(matches!(&**right, Tree::Named(t) if t == "a leaf with a name"));
            depth += 1;
            assert_eq!(*weight, 500 - depth);
            at = left;
        }
        assert!(matches!(at, Tree::Leaf(2)));
        Ok(())
    })
    .unwrap();
    let full = heap.arena().verify().live_bytes;
    heap.write(|r, tx| {
        *r.tree.write(tx)? = None;
        Ok(())
    })
    .unwrap();
    let report = heap.check();
    assert!(report.live_bytes < full / 10, "{report}");
    heap.read(|r, _| assert_eq!(r.pair.a, 1));
}

#[test]
fn a_panic_undoes_the_section_and_goes_on() {
    let heap = board();
    heap.exclusive(|r, x| r.plain.extend(x, 0..50).map_err(Error::from)).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        heap.exclusive(|r, x| {
            r.pair.a = 99;
            r.plain.clear(x);
            r.plain.extend(x, 0..5000)?;
            r.head.set(
                x,
                Some(x.alloc(Task {
                    id: 1,
                    done: Counter::new(0),
                    next: Slot::new(None),
                    notes: Mutex::new(Vec::new(x)),
                })?),
            );
            panic!("on purpose");
            #[allow(unreachable_code)]
            Ok(())
        })
    }));
    assert_eq!(*panicked.unwrap_err().downcast::<&str>().unwrap(), "on purpose");
    heap.read(|r, tx| {
        assert_eq!(r.pair.a, 1);
        assert!(r.plain.iter().copied().eq(0..50));
        assert!(r.head.get(tx).is_none());
    });
    let report = heap.check();
    assert_eq!(report.leaked_allocations, 0, "{report}");
}

#[test]
fn locks_are_lent_once_and_held_to_the_end() {
    let heap = board();
    heap.write(|r, tx| {
        let guard = r.names.lock(tx)?;
        assert_eq!(r.names.lock(tx).err(), Some(LockError::AlreadyLent));
        drop(guard);
        // Dropped, it is granted at once; forgotten, it stays lent.
        std::mem::forget(r.names.lock(tx)?);
        assert_eq!(r.names.lock(tx).err(), Some(LockError::AlreadyLent));
        let (a, b) = (r.tree.read(tx)?, r.tree.read(tx)?);
        assert_eq!(r.tree.write(tx).err(), Some(LockError::AlreadyLent));
        drop((a, b));
        let write = r.tree.write(tx)?;
        assert_eq!(r.tree.read(tx).err(), Some(LockError::AlreadyLent));
        heap.read(|inner, read| {
            assert_eq!(inner.tree.read(read).err(), Some(LockError::AlreadyLent));
        });
        drop(write);
        // The section around still holds it.
        heap.read(|inner, read| {
            assert_eq!(inner.tree.read(read).err(), Some(LockError::AlreadyLent));
        });
        // A lock that is not in the container yet is a lock all the same.
        let local = Mutex::new(5u64);
        let mut guard = local.lock(tx)?;
        *guard += 1;
        assert_eq!(local.lock(tx).err(), Some(LockError::AlreadyLent));
        drop(guard);
        assert_eq!(*local.lock(tx)?, 6);
        Ok(())
    })
    .unwrap();
    // All released at the end, the forgotten one too.
    heap.write(|r, tx| {
        drop(r.names.lock(tx)?);
        drop(r.tree.write(tx)?);
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_reading_section_inside_keeps_its_own_locks() {
    let heap = board();
    heap.write(|r, tx| {
        heap.read(|inner, read| {
            let guard = inner.tree.read(read).unwrap();
            assert_eq!(r.tree.write(tx).err(), Some(LockError::AlreadyLent));
            // The outer section takes one while the inner is open; it must survive it.
            std::mem::forget(r.colours.lock(tx).unwrap());
            drop(guard);
        });
        assert_eq!(r.colours.lock(tx).err(), Some(LockError::AlreadyLent));
        drop(r.tree.write(tx)?);
        Ok(())
    })
    .unwrap();
}

#[test]
fn clusters_are_where_the_program_says() {
    let mut heap = board();
    let number = heap
        .write(|_, tx| {
            let cluster = tx.new_cluster()?;
            let p = tx.alloc_in(cluster, 7u64)?;
            let q = tx.alloc_near(&*p, 8u64)?;
            let mut v = Vec::new_in(cluster);
            v.extend(tx, 0..10_000u64)?;
            let own = p.address().window_base();
            assert_ne!(own, tx.alloc(9u64)?.address().window_base());
            assert_eq!(own, q.address().window_base());
            assert_eq!(own.0, (&raw const v[0]).addr() & !(stead_model::WINDOW_SIZE - 1));
            assert!(matches!(tx.new_cluster(), Err(AllocError::Full { cluster: 2, .. })));
            Ok(cluster.number())
        })
        .unwrap();
    heap.reopen();
    heap.write(|_, tx| {
        let cluster = tx.cluster(number).expect("clusters stay");
        let p = tx.alloc_in(cluster, 7u64)?;
        assert_eq!(p.address().window_base().0, heap.arena().base().0 + stead_model::WINDOW_SIZE);
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_reading_section_of_another_container_may_be_inside() {
    let (a, b) = (board(), board());
    b.exclusive(|r, x| r.plain.extend(x, 0..10).map_err(Error::from)).unwrap();
    let undone = a.write(|r, tx| {
        let mut names = r.names.lock(tx)?;
        let sum = b.read(|rb, token| {
            let _tree = rb.tree.read(token).unwrap();
            // What is dropped here belongs to the section around.
            names.clear(tx);
            names.insert(tx, Text::from_str(tx, "sum").unwrap(), Vec::new(tx)).unwrap();
            rb.plain.iter().sum::<u64>()
        });
        assert_eq!(sum, 45);
        Err::<(), _>(Error::Lock(LockError::AlreadyLent))
    });
    assert!(undone.is_err());
    // The reading lock that was taken inside is free again.
    b.write(|r, tx| r.tree.write(tx).map(drop).map_err(Error::from)).unwrap();
    assert_eq!(a.check().leaked_allocations, 0);
    b.check();
}

#[test]
fn a_deadlock_in_a_reading_section_is_not_laid_to_a_later_one() {
    let heap = board();
    std::thread::scope(|s| {
        let (locked, is_locked) = std::sync::mpsc::channel();
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let heap = &heap;
        s.spawn(move || {
            heap.write(|r, tx| {
                let _guard = r.tree.write(tx)?;
                locked.send(()).unwrap();
                let _ = is_done.recv();
                Ok(())
            })
            .unwrap();
        });
        is_locked.recv().unwrap();
        heap.write(|r, tx| {
            let _names = r.names.lock(tx)?;
            // This section holds a lock and is younger than the other: it may not wait.
            assert_eq!(r.tree.read(tx).err(), Some(LockError::Deadlock));
            Ok(())
        })
        .unwrap();
        let error = heap.write(|_, _| Err::<(), _>(Error::Lock(LockError::AlreadyLent)));
        assert_eq!(error, Err(Error::Lock(LockError::AlreadyLent)));
        done.send(()).unwrap();
    });
}

#[test]
fn a_mutating_section_inside_another_is_refused_loudly() {
    let heap = board();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        heap.write(|_, _| heap.write(|_, _| Ok(())))
    }));
    let text = *panicked.unwrap_err().downcast::<String>().unwrap();
    assert!(text.contains("a mutating section was entered while this thread has another open"));
    heap.write(|_, _| Ok(())).unwrap();
}

/// Two arrays that do not fit into one window of 64 GiB: the cluster takes a second one. Their page
/// descriptors alone are a gigabyte.
#[test]
fn a_cluster_grows_into_another_window() {
    if std::env::var_os("STEAD_LARGE").is_none() {
        eprintln!("NOT RUN: takes over a gigabyte of memory; set STEAD_LARGE=1");
        return;
    }
    let mut heap = board();
    let elements = 33 << 27;
    heap.exclusive(|r, x| {
        let mut first: Vec<u64> = Vec::with_capacity(x, elements)?;
        first.push(x, 1)?;
        let mut second: Vec<u64> = Vec::with_capacity(x, elements)?;
        second.push(x, 2)?;
        assert!(matches!(
            Vec::<u64>::with_capacity(x, elements),
            Err(AllocError::Full { cluster: 0, .. })
        ));
        assert!(matches!(Vec::<u64>::with_capacity(x, 1 << 40), Err(AllocError::TooLarge { .. })));
        r.plain = second;
        // With the first window full, the table of types outgrows its run and moves to the second.
        macro_rules! boxed {
            ($($n:literal)*) => { $(drop(Box::new(x, [0u8; $n])?);)* };
        }
        #[rustfmt::skip]
        boxed!(
            1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28
            29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53
            54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71 72 73 74 75 76 77 78
            79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95 96 97 98 99 100 101 102
            103 104 105 106 107 108 109 110 111 112 113 114 115 116 117 118 119 120 121
            122 123 124 125 126 127 128 129 130 131 132 133 134 135 136 137 138 139 140
            141 142 143 144 145 146 147 148 149 150 151 152 153 154 155 156 157 158 159
            160 161 162 163 164 165 166 167 168 169 170 171 172 173 174 175 176 177 178
            179 180 181 182 183 184 185 186 187 188 189 190 191 192 193 194 195 196 197
            198 199 200
        );
        drop(first);
        Ok(())
    })
    .unwrap();
    assert_eq!(heap.check().leaked_allocations, 0);
    heap.reopen();
    heap.check();
    heap.read(|r, _| {
        assert_eq!(r.plain[0], 2);
        let window = (r.plain.as_ptr().addr() - heap.arena().base().0) / stead_model::WINDOW_SIZE;
        assert_eq!(window, 1);
    });
    heap.exclusive(|r, x| {
        r.plain.extend(x, [3, 4])?;
        r.plain = Vec::new(x);
        Ok(())
    })
    .unwrap();
    assert_eq!(heap.check().leaked_allocations, 0);
}

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct Nothings<'s> {
    before: u64,
    set: HashMap<'s, u64, [u8; 0]>,
    locked: Mutex<'s, [u64; 0]>,
    slot: Slot<'s, [u8; 0]>,
}

#[test]
fn values_without_bytes_leave_undo_as_it_is() {
    let heap = Heap::<Nothings<'static>>::new(2, |tx| {
        let set = HashMap::new(tx);
        Ok(Nothings { before: 7, set, locked: Mutex::new([]), slot: Slot::new([]) })
    });
    heap.exclusive(|r, tx| r.set.insert(tx, 3, []).map(drop).map_err(Error::from)).unwrap();
    let undone = heap.exclusive(|r, tx| {
        r.before = 8;
        r.set.insert(tx, 3, [])?;
        r.set.get_mut(tx, &3).expect("it is there");
        *r.locked.lock(tx)? = [];
        *r.slot.get_mut(tx) = [];
        r.set.insert(tx, 4, [])?;
        Err::<(), _>(Error::Lock(LockError::Deadlock))
    });
    assert!(undone.is_err());
    let left = heap.read(|r, _| (r.before, r.set.len(), r.set.contains_key(&3)));
    assert_eq!(left, (7, 1, true));
    heap.check();
}

/// Another type of the name of [`Task`].
#[derive(Persist)]
#[persist(crate = stead_heap, name = "Task")]
#[repr(C)]
struct NotTask {
    x: u64,
}

#[test]
fn a_failed_allocation_leaves_nothing_to_the_next_section() {
    let (a, b) = (board(), board());
    a.exclusive(|_, tx| {
        // The first of this section, and it fails: there is a type of that name already.
        assert!(matches!(tx.alloc(NotTask { x: 1 }), Err(AllocError::OtherType(_))));
        Ok(())
    })
    .unwrap();
    b.exclusive(|r, tx| {
        let task = Task {
            id: 1,
            done: Counter::new(0),
            next: Slot::new(None),
            notes: Mutex::new(Vec::new(tx)),
        };
        let task = tx.alloc(task)?;
        r.head.set(tx, Some(task));
        Ok(())
    })
    .unwrap();
    // The task is an object of its own container.
    assert_eq!(b.check().leaked_allocations, 0);
    a.check();
}
