//! Three levels of fault (A7), addresses for life (D1), clusters and segments (A1, A2, A4), and what a forked
//! child sees: counted on real page faults.

mod common;

use stead::{ContainerOptions, Counters, Options, Persist, Ptr, Result, Slot, Store, Vec};

#[derive(Persist)]
#[repr(C)]
struct Root<'s> {
    list: Vec<'s, u64>,
    head: Slot<'s, Option<Ptr<'s, Node<'s>>>>,
}

#[derive(Persist)]
#[repr(C)]
struct Node<'s> {
    value: u64,
    next: Slot<'s, Option<Ptr<'s, Node<'s>>>>,
}

fn root(store: &Store, name: &str, bytes: u64) -> stead::Container<Root<'static>> {
    let options = ContainerOptions::new().address_bytes(bytes);
    store
        .container_with(name, &options, |tx| Ok(Root { list: Vec::new(tx), head: Slot::new(None) }))
        .unwrap()
}

/// No stabilisation by itself, so that counters count what the test does.
fn quiet() -> Options {
    Options::new().interval(None)
}

/// The counters once they stand still: neighbours of a page come in after who asked for it goes on.
fn settled(store: &Store) -> Counters {
    let mut last = store.counters();
    loop {
        std::thread::sleep(std::time::Duration::from_millis(30));
        let now = store.counters();
        if now == last {
            return now;
        }
        last = now;
    }
}

fn spent(before: Counters, after: Counters) -> (u64, u64, u64) {
    let (b, a) = (before.memory, after.memory);
    (
        a.calls_mapping - b.calls_mapping,
        a.pages_asked - b.pages_asked,
        a.pages_ahead - b.pages_ahead,
    )
}

#[test]
fn a_hundred_gib_open_as_fast_as_a_few_pages() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    {
        let store = stead::open(&dir).unwrap();
        root(&store, "small", 1 << 20);
        root(&store, "large", 100 << 30);
    }
    let store = Store::open_with(&dir, &quiet()).unwrap();
    let start = settled(&store);
    let small = root(&store, "small", 0);
    let middle = settled(&store);
    let large = root(&store, "large", 0);
    let end = settled(&store);
    assert_eq!(spent(start, middle), spent(middle, end), "opening costs by what is opened");
    assert_eq!(small.read(|r, _| r.list.len()).unwrap(), 0);
    assert_eq!(large.read(|r, _| r.list.len()).unwrap(), 0);
    let sizes: std::vec::Vec<u64> =
        store.stat().containers.iter().map(|c| c.address_bytes >> 30).collect();
    assert_eq!(sizes, [64, 64, 128]);
}

#[test]
fn one_touch_asks_for_one_page() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let n = 1_000_000u64;
    {
        let store = stead::open(&dir).unwrap();
        root(&store, "c", 1 << 30)
            .exclusive(|r, tx| -> Result<_> {
                r.list.reserve(tx, n as usize)?;
                (0..n).try_for_each(|i| r.list.push(tx, i))?;
                Ok(())
            })
            .unwrap();
    }
    let store = Store::open_with(&dir, &quiet()).unwrap();
    let c = root(&store, "c", 0);
    let opened = settled(&store);
    // The header, and with it the cluster, is touched when the heap is opened; nothing else of it is.
    assert!(opened.clusters_touched <= 1);
    assert!(opened.memory.pages_asked <= 4, "{opened:?}");
    c.read(|r, _| assert_eq!(r.list[500_000], 500_000)).unwrap();
    let before = settled(&store).memory;
    c.read(|r, _| assert_eq!(r.list[900_000], 900_000)).unwrap();
    let after = settled(&store).memory;
    assert_eq!(after.pages_asked - before.pages_asked, 1);
    let ahead = after.pages_ahead - before.pages_ahead;
    assert!((1..16).contains(&ahead), "its neighbours came along: {ahead}");
    c.read(|r, _| assert_eq!(r.list[900_001], 900_001)).unwrap();
    assert_eq!(settled(&store).memory.pages_asked, after.pages_asked, "no second fault");
}

#[test]
fn addresses_are_for_life_and_disjoint() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let (one, two) = (temp.path().join("one"), temp.path().join("two"));
    let places = |dir: &std::path::Path| {
        let store = stead::open(dir).unwrap();
        ["a", "b", "c"].map(|name| root(&store, name, 100 << 30).address())
    };
    let first = places(&one);
    assert_eq!(places(&one), first, "the same after a restart");
    // Two stores in one process. A new store finds addresses that are free here.
    let store_one = stead::open(&one).unwrap();
    let mut all: std::vec::Vec<usize> =
        ["a", "b", "c"].map(|name| root(&store_one, name, 100 << 30).address().0).to_vec();
    let store_two = stead::open(&two).unwrap();
    let others = ["a", "b", "c"].map(|name| root(&store_two, name, 100 << 30));
    all.extend(others.iter().map(|c| c.address().0));
    all.sort_unstable();
    for pair in all.windows(2) {
        assert!(pair[1] - pair[0] >= 128 << 30, "{all:x?}");
    }
}

#[test]
fn objects_keep_their_address_and_choose_their_cluster() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let window = 64usize << 30;
    let made = {
        let store = stead::open(&dir).unwrap();
        let c = root(&store, "c", 256 << 30);
        c.exclusive(|r, tx| -> Result<_> {
            let cluster = tx.new_cluster()?;
            let far = tx.alloc_in(cluster, Node { value: 1, next: Slot::new(None) })?;
            let near = tx.alloc_near(far.get(), Node { value: 2, next: Slot::new(Some(far)) })?;
            let home = tx.alloc(Node { value: 3, next: Slot::new(Some(near)) })?;
            r.head.set(tx, Some(home));
            Ok([home.address(), near.address(), far.address()])
        })
        .unwrap()
    };
    assert_eq!(made[1].0 / window, made[2].0 / window, "near means in the same cluster");
    assert_ne!(made[0].0 / window, made[2].0 / window, "another cluster is elsewhere");
    let store = stead::open(&dir).unwrap();
    let c = root(&store, "c", 0);
    let walked = c
        .read(|r, token| {
            let mut walked = std::vec::Vec::new();
            let mut at = *r.head.get(token);
            while let Some(node) = at {
                walked.push((node.address(), node.value));
                at = *node.next.get(token);
            }
            walked
        })
        .unwrap();
    assert_eq!(walked, [(made[0], 3), (made[1], 2), (made[2], 1)]);
    // Taken addresses are not given out again.
    let new = c
        .exclusive(|_, tx| -> Result<_> {
            Ok(tx.alloc(Node { value: 4, next: Slot::new(None) })?.address())
        })
        .unwrap();
    assert!(!made.contains(&new));
}

#[test]
fn a_segment_grows_and_shrinks_at_its_end() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let stored = |store: &Store| store.stat().containers[1].stored_bytes;
    let (full, shrunk) = {
        let store = stead::open(&dir).unwrap();
        let c = root(&store, "c", 1 << 30);
        c.exclusive(|r, tx| -> Result<_> {
            (0..2_000_000).try_for_each(|i| r.list.push(tx, i))?;
            Ok(())
        })
        .unwrap();
        store.stabilise().unwrap();
        let full = stored(&store);
        c.exclusive(|r, tx| -> Result<_> {
            r.list = Vec::new(tx);
            Ok(())
        })
        .unwrap();
        store.stabilise().unwrap();
        (full, stored(&store))
    };
    assert!(full >= 16_000_000, "{full}");
    assert!(shrunk < full / 4, "freed memory leaves the store: {shrunk} of {full}");
    let store = stead::open(&dir).unwrap();
    assert_eq!(root(&store, "c", 0).read(|r, _| r.list.len()).unwrap(), 0);
}

#[test]
fn a_forked_child_gets_a_fault_never_zeros() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let store = stead::open(temp.path().join("store")).unwrap();
    let c = root(&store, "c", 1 << 30);
    c.exclusive(|r, tx| -> Result<_> { Ok(r.list.push(tx, 77)?) }).unwrap();
    let address = c.address().0;
    // SAFETY: the child makes no call but a load and _exit, both allowed after a fork.
    let status = unsafe {
        let child = libc::fork();
        if child == 0 {
            let word = std::ptr::with_exposed_provenance::<u64>(address).read_volatile();
            libc::_exit(if word == 0 { 1 } else { 2 });
        }
        let mut status = 0;
        libc::waitpid(child, &mut status, 0);
        status
    };
    assert!(libc::WIFSIGNALED(status), "the child ended with {status:#x}");
    assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
    // The parent goes on.
    assert_eq!(c.read(|r, _| r.list[0]).unwrap(), 77);
    store.stabilise().unwrap();
}
