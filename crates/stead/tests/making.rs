//! Making containers: one that cannot be made is not there, whatever failed; all the addresses of a store can be had; names
//! that earlier versions allowed still open.

mod common;

use std::process::Command;

use stead::{ContainerError, ContainerOptions, Error, Mutex, Options, Persist, Result, Store, Vec};

#[derive(Persist)]
#[repr(C)]
struct Numbers<'s> {
    numbers: Vec<'s, Mutex<'s, u64>>,
}

#[derive(Persist)]
#[repr(C)]
struct Other {
    number: u64,
}

const TIB: u64 = 1 << 40;

fn make(store: &Store, name: &str, tib: u64) -> Result<stead::Container<Numbers<'static>>> {
    let options = ContainerOptions::new().address_bytes(tib * TIB);
    store.container_with(name, &options, |tx| Ok(Numbers { numbers: Vec::new(tx) }))
}

#[test]
fn all_addresses_of_a_store_can_be_had_and_no_more() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let store = Store::open_with(&dir, &Options::new().interval(None)).unwrap();
    // Twice these, for locks, is more than there are above the range of containers.
    let made: std::vec::Vec<_> =
        (0..12).map(|i| make(&store, &format!("c{i}"), 4).unwrap()).collect();
    for (i, container) in (0..).zip(&made) {
        container
            .exclusive(|root, tx| -> Result<_> { Ok(root.numbers.push(tx, Mutex::new(i))?) })
            .unwrap();
        container
            .write(|root, tx| -> Result<_> {
                let mut number = root.numbers[0].lock(tx)?;
                assert_eq!(*number, i);
                *number += 100;
                Ok(())
            })
            .unwrap();
    }
    let names = store.names();
    let error = make(&store, "one more", 4).unwrap_err();
    assert!(matches!(error, Error::Container(ContainerError::OutOfAddresses(_))), "{error}");
    assert!(error.to_string().contains("give fewer `address_bytes`"), "{error}");
    assert_eq!(store.names(), names, "nothing is left of it");
    store.close().unwrap();
}

#[test]
fn a_store_is_open_once_in_a_process() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let store = stead::open(&dir).unwrap();
    store.snapshot("then").unwrap();
    for error in [
        stead::open(&dir).unwrap_err(),
        stead::open_read_only(&dir).unwrap_err(),
        stead::open_snapshot(&dir, "then").unwrap_err(),
    ] {
        assert!(error.is_held(), "{error:?}");
        assert!(error.to_string().contains("is open in this process already"), "{error}");
    }
    drop(store);
    let reading = stead::open_read_only(&dir).unwrap();
    let error = stead::open_snapshot(&dir, "then").unwrap_err();
    assert!(
        !error.is_held() && error.to_string().contains("open only one of them at a time"),
        "{error}"
    );
    drop(reading);
}

#[test]
fn a_root_that_cannot_be_made_leaves_no_container() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let store = Store::open_with(&dir, &Options::new().interval(None)).unwrap();
    let address = make(&store, "first", 1).unwrap().address();
    store.remove("first").unwrap();
    let refused = store.container::<Numbers>("refused", |_| Err(Error::other("not today")));
    assert_eq!(refused.unwrap_err().to_string(), "not today");
    let panicked = std::panic::catch_unwind(|| {
        let _ = store.container::<Numbers>("panicked", |_| panic!("on purpose"));
    });
    assert!(panicked.is_err());
    assert_eq!(store.names(), [] as [&str; 0]);
    assert_eq!(store.site().stored_containers().len(), 1, "the system container");
    // Neither name nor addresses are used up.
    assert_eq!(make(&store, "refused", 1).unwrap().address(), address);
    // One that is there stays, whatever comes of opening it.
    let kept = store.container::<Other>("refused", |_| Err(Error::other("not asked")));
    assert!(kept.unwrap_err().to_string().contains("Numbers"));
    store.close().unwrap();
    let store = stead::open(&dir).unwrap();
    assert_eq!(store.names(), ["refused"]);
    assert!(store.site().verify_store(&mut |_| {}).unwrap().is_clean());
}

#[test]
fn with_a_limit_on_addresses_the_message_says_how_many_are_open() {
    let Some(_alone) = common::alone() else { return };
    if let Some(dir) = common::part() {
        let store = Store::open_with(&dir, &Options::new().interval(None)).unwrap();
        let mut held = std::vec::Vec::new();
        let error = loop {
            match make(&store, &format!("c{}", held.len()), 1) {
                Ok(container) => held.push(container),
                Err(error) => break error,
            }
        };
        let names: std::vec::Vec<String> = (0..held.len()).map(|i| format!("c{i}")).collect();
        assert_eq!(store.names(), names, "{error}");
        assert!(
            matches!(error, Error::Container(ContainerError::AddressSpace { .. })),
            "{error:?}"
        );
        let open = format!("beside the {} containers that it has open", held.len());
        for words in [&open, "give fewer `ContainerOptions::address_bytes`", "ulimit -v"] {
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
        assert!(!held.is_empty());
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let test = "with_a_limit_on_addresses_the_message_says_how_many_are_open";
    let child = common::child(test, temp.path().join("store").to_str().unwrap());
    // Eight TiB, in KiB: three containers, each twice, and what else the process has.
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -v 8589934592; exec \"$@\"", "sh"]);
    limited.arg(child.get_program()).args(child.get_args());
    limited.envs(child.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ended = limited.output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
}
