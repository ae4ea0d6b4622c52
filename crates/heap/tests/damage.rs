//! What the heap says of containers that are damaged, of another format, of another type or not there:
//! an error that names place and field, never a crash. Damage is done with plain writes.
#![allow(unexpected_cfgs, reason = "stead_asan is set by hand")]

mod common;

use common::Heap;
use proptest::prelude::*;
use stead_derive::Persist;
use stead_heap::ground::plain::PlainGround;
use stead_heap::{
    AllocError, Arena, Box, Counter, DirectoryError, Error, Ground, HashMap, Mutex, OpenArenaError,
    Ptr, RootError, Slot, Text, Vec, directory,
};
use stead_model::{ContainerId, PAGE_SIZE, PageNo, WINDOW_SIZE};

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct Node<'s> {
    value: u64,
    next: Slot<'s, Option<Ptr<'s, Node<'s>>>>,
}

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct Top<'s> {
    head: Slot<'s, Option<Ptr<'s, Node<'s>>>>,
    names: Mutex<'s, HashMap<'s, Text<'s>, Box<'s, u64>>>,
    list: Vec<'s, Text<'s>>,
    hits: Counter<'s>,
}

fn filled() -> Heap<Top<'static>> {
    let heap: Heap<Top<'static>> = Heap::new(1, |tx| {
        Ok(Top {
            head: Slot::new(None),
            names: Mutex::new(HashMap::new(tx)),
            list: Vec::new(tx),
            hits: Counter::new(0),
        })
    });
    heap.exclusive(|r, x| {
        for i in 0..20 {
            let node = x.alloc(Node { value: i, next: Slot::new(*r.head.get(x)) })?;
            r.head.set(x, Some(node));
            let name = Text::from_str(x, &format!("name {i}"))?;
            r.names.get_mut().insert(x, name, Box::new(x, i)?)?;
            r.list.push(x, Text::from_str(x, "an element of the list")?)?;
        }
        Ok(())
    })
    .unwrap();
    heap
}

fn address_of(heap: &Heap<Top<'static>>, of: impl Fn(&Top<'_>) -> usize) -> usize {
    heap.read(|r, _| of(r))
}

fn poke(address: usize, value: u64) -> u64 {
    let p = std::ptr::with_exposed_provenance_mut::<u64>(address);
    // SAFETY: tests pass addresses in their own simulated memory, and no section is open.
    unsafe { p.replace(value) }
}

#[test]
fn the_first_bad_pointer_is_named() {
    let heap = filled();
    assert!(heap.arena().verify().is_clean());
    let head = address_of(&heap, |r| (&raw const r.head).addr());
    let node = heap.read(|r, t| r.head.get(t).unwrap().address().0);

    let old = poke(head, 0x1000);
    let bad = heap.arena().verify().first_bad.expect("found").to_string();
    assert!(bad.contains("container #7") && bad.contains("field head"), "{bad}");
    assert!(bad.contains("0x1000 is outside the container"), "{bad}");
    poke(head, old + 8);
    let bad = heap.arena().verify().first_bad.expect("found").to_string();
    assert!(bad.contains("no live object begins at"), "{bad}");
    // Points at a live allocation of another type.
    let list = heap.read(|r, _| r.list.as_ptr().addr()) as u64;
    poke(head, list);
    let bad = heap.arena().verify().first_bad.expect("found").to_string();
    assert!(bad.contains("is Text") && bad.contains("not Node"), "{bad}");
    poke(head, old);

    let old = poke(node + 8, 0xdead_0000);
    let bad = heap.arena().verify().first_bad.expect("found");
    assert_eq!((bad.address.0, &*bad.field), (node + 8, "next"));
    poke(node + 8, old);

    // A text that is no text, a vector longer than its memory.
    let text = heap.read(|r, _| r.list[3].as_ptr().addr());
    let old = poke(text, u64::MAX);
    let bad = heap.arena().verify().first_bad.expect("found").to_string();
    assert!(bad.contains("not UTF-8"), "{bad}");
    poke(text, old);
    let length = address_of(&heap, |r| (&raw const r.list).addr() + 8);
    let old = poke(length, 1 << 40);
    let bad = heap.arena().verify().first_bad.expect("found").to_string();
    assert!(bad.contains("field list") && bad.contains("in room for"), "{bad}");
    poke(length, old);
    let lock = address_of(&heap, |r| (&raw const r.names).addr());
    poke(lock, 1);
    let bad = heap.arena().verify().first_bad.expect("found").to_string();
    assert!(bad.contains("not zero"), "{bad}");
    poke(lock, 0);
    assert!(heap.arena().verify().is_clean());
}

#[test]
fn an_object_that_nothing_reaches_is_a_leak() {
    let heap = filled();
    heap.write(|_, tx| {
        std::mem::forget(Box::new(tx, 5u64)?);
        tx.alloc([1u64; 700])?;
        Ok(())
    })
    .unwrap();
    let report = heap.check();
    assert_eq!(report.leaked_allocations, 2);
    assert_eq!(report.leaked_bytes, 16 + 8192);
    assert_eq!(report.leaks[1].ty, "[u64; 700]");
}

// Writes into free slots too, which AddressSanitizer would not allow.
#[cfg(not(stead_asan))]
proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]
    /// Whatever the bytes, verify ends and opening gives an answer.
    #[test]
    fn verify_and_open_survive_any_damage(
        pokes in prop::collection::vec((0usize..3, any::<prop::sample::Index>(), any::<u64>(), 0u32..4), 1..20)
    ) {
        let heap = filled();
        let base = heap.arena().base().0;
        let first = base + PAGE_SIZE * (1 + (1 << 18));
        for (area, index, value, shape) in pokes {
            let (start, bytes) = match area {
                0 => (base, 512),
                1 => (base + PAGE_SIZE + ((1 << 18) + 1) * 64, 64 * 64),
                _ => (first, 20 * PAGE_SIZE),
            };
            // Raw garbage, small numbers, addresses in the container.
            let value = match shape {
                0 => value,
                1 => value % 64,
                2 => base as u64 + value % (1 << 31),
                _ => first as u64 + value % (20 * 4096),
            };
            poke(start + index.index(bytes / 8) * 8, value);
        }
        let _ = heap.arena().verify().to_string();
        let ground = heap.ground().clone();
        assert!(matches!(Arena::open(ground.clone()), Err(OpenArenaError::InUse { .. })));
        drop(heap);
        if let Ok(arena) = Arena::open(ground) {
            let _ = arena.check_root::<Top<'static>>();
            let _ = arena.verify().to_string();
        }
    }
}

#[test]
fn a_first_page_says_what_is_wrong_with_it() {
    let heap = filled();
    let page = std::ptr::with_exposed_provenance::<[u8; PAGE_SIZE]>(heap.arena().base().0);
    // SAFETY: the container's first page; nobody writes it now.
    let page = unsafe { *page };
    let found = directory(&page).unwrap();
    assert_eq!(found.container, ContainerId(7));
    assert_eq!(found.base, heap.arena().base());
    assert_eq!((found.window_count, &found.clusters[..]), (1, &[Some(0)][..]));
    assert!(found.root.is_some() && found.root_type.is_some());

    assert!(matches!(directory(&[0; PAGE_SIZE]), Err(DirectoryError::NotAContainer { .. })));
    let mut newer = page;
    newer[8] = 9;
    assert_eq!(directory(&newer), Err(DirectoryError::OtherFormat { found: 9 }));
    let mut damaged = page;
    damaged[28..32].copy_from_slice(&[0xff; 4]);
    let error = directory(&damaged).unwrap_err().to_string();
    assert!(error.contains("the number of windows is 0xffffffff"), "{error}");
}

#[test]
fn a_container_elsewhere_is_not_opened() {
    let heap = filled();
    let other = PlainGround::new(1).unwrap();
    let (from, to) = (heap.arena().base().0, other.base());
    let from = std::ptr::with_exposed_provenance::<u8>(from);
    let to = std::ptr::with_exposed_provenance_mut::<u8>(to);
    // SAFETY: two mappings of a window each, disjoint.
    unsafe { std::ptr::copy_nonoverlapping(from, to, PAGE_SIZE) };
    assert!(matches!(Arena::open(other), Err(OpenArenaError::Elsewhere { .. })));
    let empty = PlainGround::new(1).unwrap();
    assert!(matches!(Arena::open(empty), Err(OpenArenaError::Directory(_))));
}

mod other {
    use super::*;

    /// Same name as the one above, other fields.
    #[derive(Persist)]
    #[persist(crate = stead_heap)]
    #[repr(C)]
    pub(super) struct Top<'s> {
        pub(super) head: Slot<'s, Option<Ptr<'s, Node<'s>>>>,
        pub(super) hits: Counter<'s>,
        pub(super) extra: u64,
    }

    #[derive(Persist)]
    #[persist(crate = stead_heap)]
    #[repr(C)]
    pub(super) struct Node<'s> {
        pub(super) value: u32,
        pub(super) rank: u32,
        pub(super) next: Slot<'s, Option<Ptr<'s, Node<'s>>>>,
    }
}

#[test]
fn another_type_is_shown_beside_the_stored_one() {
    let heap = filled();
    heap.arena().check_root::<Top<'static>>().unwrap();
    let Err(RootError::OtherType(e)) = heap.arena().check_root::<other::Top<'static>>() else {
        panic!("taken for the same type");
    };
    let text = e.to_string();
    assert!(text.contains("type `Top` of this program is not the one in the container"), "{text}");
    assert!(text.contains("in the container") && text.contains("in this program"), "{text}");
    assert!(text.contains("names: Mutex<HashMap<Text, Box<u64>>>"), "{text}");
    assert!(text.contains("extra: u64"), "{text}");
    let e = heap.arena().check_root::<Node<'static>>().unwrap_err();
    assert!(matches!(e, RootError::OtherRoot { .. }) && e.to_string().contains("Node"), "{e}");
    assert!(heap.arena().root_type().unwrap().to_string().starts_with("Top ("));

    // A type met inside a section clashes there, and the section can go on.
    heap.write(|_, tx| {
        let node = other::Node { value: 1, rank: 2, next: Slot::new(None) };
        match tx.alloc(node) {
            Err(AllocError::OtherType(e)) => assert_eq!(e.name, "Node"),
            other => panic!("{:?}", other.err()),
        }
        Ok::<_, Error>(())
    })
    .unwrap();
    heap.check();
}

#[test]
fn freed_pages_are_reported_once_and_only_while_free() {
    let heap = filled();
    let taken = || {
        let mut runs = std::vec::Vec::new();
        heap.arena().take_freed_pages(&mut |run| runs.push(run));
        runs
    };
    taken();
    heap.exclusive(|r, x| {
        let mut large = Vec::new(x);
        large.extend(x, (0..200_000).map(|_| 7u64))?;
        drop(large);
        let _ = r;
        Ok(())
    })
    .unwrap();
    let runs = taken();
    let pages: u64 = runs.iter().map(|r| r.page_count()).sum();
    assert!(pages > 200_000 * 8 / 4096, "{runs:?}");
    for run in &runs {
        assert!(run.pages().all(|p| heap.arena().page_is_free(p)));
    }
    assert!(taken().is_empty());
    assert!(!heap.arena().page_is_free(PageNo(0)));
    assert!(heap.arena().page_is_free(PageNo((WINDOW_SIZE / PAGE_SIZE) as u64 - 1)));
    heap.check();
}

#[test]
fn a_segment_shrinks_at_its_end_and_space_is_used_again() {
    let heap = filled();
    let pages = || {
        let r = heap.arena().verify();
        r.live_bytes + r.free_bytes + r.waste_bytes + r.own_bytes
    };
    let before = pages();
    for _ in 0..5 {
        heap.write(|_, tx| {
            let mut v = Vec::with_capacity(tx, 1_000_000)?;
            v.push(tx, 1u64)?;
            Ok(())
        })
        .unwrap();
        assert_eq!(pages(), before);
    }
    assert!(heap.ground().asked_bytes() >= 8_000_000);
}
