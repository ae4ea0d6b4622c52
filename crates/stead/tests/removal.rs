//! What a program gives up. Containers that are removed: their space and addresses come back, and a kill finds
//! all of a container or none. Changes that are abandoned: the store goes back to its last stable state.

mod common;

use std::io::Write;
use std::time::Duration;

use stead::{ContainerError, Options, Persist, RemoveError, Result, Store, Vec};

#[derive(Persist)]
#[repr(C)]
struct Numbers<'s> {
    numbers: Vec<'s, u64>,
}

#[derive(Persist)]
#[repr(C)]
struct Single {
    value: u64,
}

fn numbers(store: &Store, name: &str, count: u64) -> Result<()> {
    let container = store.container::<Numbers>(name, |tx| Ok(Numbers { numbers: Vec::new(tx) }))?;
    container.exclusive(|root, tx| {
        for i in 0..count {
            root.numbers.push(tx, i)?;
        }
        Ok(())
    })
}

fn sum(store: &Store, name: &str) -> Result<u64> {
    let container = store.container::<Numbers>(name, |tx| Ok(Numbers { numbers: Vec::new(tx) }))?;
    Ok(container.read(|root, _| root.numbers.iter().sum())?)
}

#[test]
fn a_removed_container_leaves_nothing() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let store = Store::open_with(&dir, &Options::new().interval(None)).unwrap();
    numbers(&store, "kept", 1000).unwrap();
    let held = store.container::<Numbers>("large", |tx| Ok(Numbers { numbers: Vec::new(tx) }));
    let held = held.unwrap();
    numbers(&store, "large", 1 << 20).unwrap();
    store.stabilise().unwrap();
    let before = store.stat().store.live_bytes;
    assert!(before > 8 << 20, "a MiB of numbers of 8 bytes");

    assert!(matches!(store.remove("large"), Err(RemoveError::Open { .. })));
    assert_eq!(held.read(|root, _| root.numbers.len()).unwrap(), 1 << 20);
    let address = held.address();
    drop(held);
    store.remove("large").unwrap();
    assert_eq!(store.names(), ["kept"]);
    let missing = store.remove("large").unwrap_err();
    assert!(matches!(missing, RemoveError::Container(ContainerError::Missing { .. })));
    assert!(matches!(store.remove(""), Err(RemoveError::Container(ContainerError::Name(_)))));

    // The name and the addresses may be had again, by something else.
    let single = store.container::<Single>("large", |_| Ok(Single { value: 7 })).unwrap();
    assert_eq!(single.address(), address);
    assert_eq!(single.read(|root, _| root.value).unwrap(), 7);
    drop(single);
    store.close().unwrap();

    let store = stead::open(&dir).unwrap();
    let single = store.container::<Single>("large", |_| Ok(Single { value: 0 })).unwrap();
    assert_eq!(single.read(|root, _| root.value).unwrap(), 7);
    assert_eq!(sum(&store, "kept").unwrap(), 999 * 1000 / 2);
    assert!(store.stat().store.live_bytes < before / 8);
    assert!(store.site().verify_store(&mut |_| {}).unwrap().is_clean());
}

#[test]
fn containers_that_are_not_open_can_be_removed() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let store = stead::open(&dir).unwrap();
    for name in ["a", "b", "c"] {
        numbers(&store, name, 5000).unwrap();
    }
    store.close().unwrap();
    let store = stead::open(&dir).unwrap();
    store.remove("b").unwrap();
    assert_eq!(store.names(), ["a", "c"]);
    assert_eq!(sum(&store, "c").unwrap(), 4999 * 2500);
    assert!(store.site().verify_store(&mut |_| {}).unwrap().is_clean());
}

/// Makes and removes containers beside a background stabilisation every few milliseconds.
fn make_and_remove(dir: &std::path::Path) {
    let options = Options::new().interval(Some(Duration::from_millis(2)));
    let store = Store::open_with(dir, &options).unwrap();
    for i in fastrand::u64(..1000).. {
        let name = format!("passing {}", i % 5);
        numbers(&store, &name, 600 + i % 50).unwrap();
        if i % 3 != 0 {
            store.remove(&name).unwrap();
            println!("> {i}.");
            std::io::stdout().flush().unwrap();
        }
    }
}

#[test]
fn a_kill_finds_all_of_a_container_or_none() {
    const TEST: &str = "a_kill_finds_all_of_a_container_or_none";
    if let Some(dir) = common::part() {
        return make_and_remove(dir.as_ref());
    }
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let mut removed = 0;
    for _ in 0..12 {
        let child = common::child(TEST, dir.to_str().unwrap());
        removed +=
            common::run_and_kill(child, Duration::from_millis(fastrand::u64(150..400))).len();
        let store = stead::open(&dir).unwrap();
        assert!(store.site().verify_store(&mut |_| {}).unwrap().is_clean());
        let known: std::vec::Vec<_> = store.stat().containers.iter().map(|c| c.id).collect();
        for name in store.names() {
            sum(&store, &name).unwrap();
            let opened = store.site().existing(&name).unwrap();
            assert!(store.site().verify_container(&opened).unwrap().is_clean(), "{name}");
        }
        for id in store.site().stored_containers() {
            assert!(known.contains(&id), "pages of {id} are left, which no name leads to");
        }
    }
    assert!(removed > 0, "the children came to remove something");
}

#[test]
fn a_program_goes_back_to_the_last_stabilisation() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let quiet = Options::new().interval(None);
    let store = Store::open_with(&dir, &quiet).unwrap();
    numbers(&store, "c", 100).unwrap();
    store.stabilise().unwrap();
    let mut store = store;
    for _ in 0..3 {
        numbers(&store, "c", 1000).unwrap();
        numbers(&store, "unwanted", 10).unwrap();
        let other = store.clone();
        store = store.abandon().expect_err("another handle is there");
        drop(other);
        let container = store.container::<Numbers>("c", |_| unreachable!("it is there")).unwrap();
        store = store.abandon().expect_err("a container is held");
        assert_eq!(container.read(|root, _| root.numbers.len()).unwrap(), 1100);
        drop(container);
        store.abandon().unwrap();

        store = Store::open_with(&dir, &quiet).unwrap();
        assert_eq!(store.names(), ["c"]);
        assert_eq!(sum(&store, "c").unwrap(), 99 * 50);
    }
    numbers(&store, "c", 1).unwrap();
    store.close().unwrap();
    let store = stead::open(&dir).unwrap();
    assert_eq!(sum(&store, "c").unwrap(), 99 * 50, "0 was added, and is there");
    let container = store.container::<Numbers>("c", |_| unreachable!("it is there")).unwrap();
    assert_eq!(container.read(|root, _| root.numbers.len()).unwrap(), 101);
}
