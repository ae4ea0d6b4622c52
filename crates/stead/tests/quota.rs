//! Quotas as a program meets them: an allocation beyond its container's quota fails and its section is undone; a
//! stabilisation beyond it says so and loses nothing; a store at its own quota goes on when room is made; all of it is
//! still so after a kill.

mod common;

use std::ops::RangeInclusive;
use std::time::Duration;

use stead::{
    AllocError, ContainerOptions, Error, Options, Persist, QuotaError, Result, StabiliseError,
    Store, Vec,
};

const MIB: u64 = 1 << 20;

#[derive(Persist)]
#[repr(C)]
struct Blocks<'s> {
    blocks: Vec<'s, Vec<'s, u64>>,
}

type Container = stead::Container<Blocks<'static>>;

fn open(dir: &std::path::Path, options: Options) -> Store {
    Store::open_with(dir, &options.interval(None)).unwrap()
}

fn container(store: &Store, name: &str, quota: Option<u64>) -> Container {
    let options = ContainerOptions::new().quota(quota);
    store
        .container_with::<Blocks>(name, &options, |tx| Ok(Blocks { blocks: Vec::new(tx) }))
        .unwrap()
}

/// Adds a block of 64 KiB, every word of which is `value`.
fn add(container: &Container, value: u64) -> Result<usize> {
    container.exclusive(|root, tx| -> Result<_> {
        let mut block = Vec::with_capacity(tx, 8192)?;
        for _ in 0..8192 {
            block.push(tx, value)?;
        }
        root.blocks.push(tx, block)?;
        Ok(root.blocks.len())
    })
}

fn add_all(container: &Container, values: RangeInclusive<u64>) {
    for value in values {
        add(container, value).unwrap();
    }
}

fn blocks(container: &Container) -> usize {
    container
        .read(|root, _| {
            assert!(
                root.blocks.iter().enumerate().all(|(i, b)| b.iter().all(|&v| v == i as u64 + 1))
            );
            root.blocks.len()
        })
        .unwrap()
}

fn stored(store: &Store, name: &str) -> u64 {
    store.stat().containers.into_iter().find(|c| c.name == name).unwrap().stored_bytes
}

#[test]
fn allocations_beyond_the_quota_fail_and_their_sections_are_undone() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let store = open(&dir, Options::new());
    let c = container(&store, "c", Some(4 * MIB));
    assert_eq!(c.quota(), Some(4 * MIB));
    let fill = || {
        let mut added = 0;
        loop {
            match add(&c, blocks(&c) as u64 + 1) {
                Ok(_) => added += 1,
                Err(Error::Alloc(error @ AllocError::Full { .. })) => {
                    let words = error.to_string();
                    assert!(words.contains("\"c\" may hold 4194304 bytes"), "{words}");
                    assert!(words.contains("raise its quota"), "{words}");
                    return added;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    let first = fill();
    assert!((50..64).contains(&first), "{first}");
    assert_eq!(blocks(&c), first, "the last one was undone");
    store.stabilise().unwrap();
    assert!(stored(&store, "c") <= 4 * MIB);
    // Overwriting goes on, and what is freed is room again.
    c.exclusive(|root, tx| -> Result<()> {
        for block in root.blocks.as_mut_slice(tx) {
            block.as_mut_slice(tx).iter_mut().for_each(|v| *v = !*v);
            block.as_mut_slice(tx).iter_mut().for_each(|v| *v = !*v);
        }
        root.blocks.truncate(tx, 10);
        Ok(())
    })
    .unwrap();
    store.stabilise().unwrap();
    assert_eq!(fill(), first - 10);
    store.stabilise().unwrap();
    // Found free again by whoever opens it anew, who knows nothing of it at first.
    c.exclusive(|root, tx| -> Result<()> {
        root.blocks.truncate(tx, 5);
        Ok(())
    })
    .unwrap();
    store.stabilise().unwrap();
    drop((c, store));
    let store = open(&dir, Options::new());
    let c = container(&store, "c", None);
    assert_eq!(c.quota(), Some(4 * MIB), "it was made with one");
    let fill =
        |most: usize| (0..most).take_while(|_| add(&c, blocks(&c) as u64 + 1).is_ok()).count();
    assert_eq!(fill(100), first - 5);
    // Raised.
    c.set_quota(Some(8 * MIB)).unwrap();
    assert!(fill(100) > 50);
    c.set_quota(None).unwrap();
    assert_eq!(fill(100), 100);
    store.stabilise().unwrap();
    assert!(store.site().verify_store(&mut |_| {}).unwrap().is_clean());
}

#[test]
fn a_stabilisation_beyond_a_quota_says_so_and_loses_nothing() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let store = open(&dir, Options::new());
    let (c, other) = (container(&store, "c", None), container(&store, "other", None));
    add_all(&c, 1..=20);
    add(&other, 1).unwrap();
    store.stabilise().unwrap();
    let held = stored(&store, "c");
    add_all(&c, 21..=40);
    add(&other, 2).unwrap();
    // Laid down when it is too late for allocations.
    c.set_quota(Some(held + MIB / 2)).unwrap();
    let error = store.stabilise().unwrap_err();
    let StabiliseError::ContainerFull { name, quota_bytes, held_bytes, asked_bytes } = &error
    else {
        panic!("{error}");
    };
    assert_eq!((name.as_str(), *quota_bytes, *held_bytes), ("c", held + MIB / 2, held));
    assert!(*asked_bytes >= held + MIB, "{asked_bytes}");
    assert!(error.to_string().contains("free something in it, or raise its quota"), "{error}");
    assert_eq!((blocks(&c), blocks(&other)), (40, 2), "memory is as it was");
    let stat = store.stat();
    let c_stat = stat.containers.iter().find(|c| c.name == "c").unwrap();
    assert_eq!((c_stat.stored_bytes, c_stat.quota_bytes), (held, Some(held + MIB / 2)));
    // Freed: it goes on, with all that there was.
    c.exclusive(|root, tx| -> Result<()> {
        root.blocks.truncate(tx, 25);
        Ok(())
    })
    .unwrap();
    store.stabilise().unwrap();
    assert_eq!((blocks(&c), blocks(&other)), (25, 2));
    // The program may also take the store back.
    c.set_quota(None).unwrap();
    add_all(&c, 26..=60);
    c.set_quota(Some(held)).unwrap();
    assert!(store.stabilise().is_err());
    // Or give the container up.
    drop(c);
    store.remove("c").unwrap();
    add(&other, 3).unwrap();
    store.stabilise().unwrap();
    drop((other, store));
    let store = open(&dir, Options::new());
    assert_eq!(store.names(), ["other"]);
    assert_eq!(blocks(&container(&store, "other", None)), 3);
    // The next container has nothing of the old one's quota.
    assert_eq!(container(&store, "new", None).quota(), None);
}

#[test]
fn a_store_at_its_quota_goes_on_when_room_is_made() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let quota = 48 * MIB;
    let store = open(&dir, Options::new().quota(Some(quota)));
    let (kept, ballast) = (container(&store, "kept", None), container(&store, "ballast", None));
    add_all(&kept, 1..=16);
    let file = || std::fs::metadata(dir.join("log")).unwrap().len();
    let mut refused = 0;
    while refused < 5 {
        for _ in 0..16 {
            if blocks(&ballast) < 800 {
                add(&ballast, blocks(&ballast) as u64 + 1).unwrap();
            }
        }
        match store.stabilise() {
            Ok(_) => {}
            Err(error) => {
                let words = error.to_string();
                assert!(words.contains("quota of 50331648 bytes"), "{words}");
                assert!(words.contains("remove containers"), "{words}");
                assert_eq!(error.word(), "quota");
                refused += 1;
            }
        }
        assert!(file() <= quota);
    }
    assert!(stored(&store, "ballast") > 16 * MIB, "{}", stored(&store, "ballast"));
    drop(ballast);
    store.remove("ballast").unwrap();
    add_all(&kept, 17..=200);
    store.stabilise().unwrap();
    assert!(file() <= quota);
    drop((kept, store));
    let store = open(&dir, Options::new().quota(None));
    assert_eq!(store.stat().store.quota_bytes, Some(quota), "it was made with one");
    assert_eq!(blocks(&container(&store, "kept", None)), 200);
    store.set_quota(None).unwrap();
    let more = container(&store, "more", None);
    add_all(&more, 1..=1000);
    store.stabilise().unwrap();
    assert!(matches!(store.set_quota(Some(MIB)), Err(QuotaError::Store(_))));
}

/// Makes containers, gives them quotas, says which are durable, and is killed.
fn live(dir: &std::path::Path) {
    let store = open(dir, Options::new());
    for i in 0.. {
        let name = format!("c{i}");
        let c = container(&store, &name, Some((i + 100) * MIB));
        store.stabilise().unwrap();
        println!("> {i} {}.", i + 100);
        c.set_quota(Some((i + 200) * MIB)).unwrap();
        println!("> {i} {}.", i + 200);
        c.set_quota(Some((i + 300) * MIB)).unwrap();
    }
}

#[test]
fn quotas_outlive_a_kill() {
    if let Some(part) = common::part() {
        return live(std::path::Path::new(&part));
    }
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    for round in 0..6 {
        let _ = std::fs::remove_dir_all(&dir);
        let child = common::child("quotas_outlive_a_kill", dir.to_str().unwrap());
        let lines = common::run_and_kill(child, Duration::from_millis(150 + 60 * round));
        let mut said = std::collections::BTreeMap::new();
        for line in &lines {
            let Some(line) = line.strip_prefix("> ").and_then(|l| l.strip_suffix('.')) else {
                continue;
            };
            let (i, quota) = line.split_once(' ').unwrap();
            said.insert(i.parse::<u64>().unwrap(), quota.parse::<u64>().unwrap());
        }
        let Ok(store) = Store::open_with(&dir, &Options::new().create(false).interval(None)) else {
            assert!(said.is_empty());
            continue;
        };
        for (i, quota) in &said {
            let found = container(&store, &format!("c{i}"), None).quota();
            let found = found.unwrap() / MIB;
            let next = if quota - i == 100 { i + 200 } else { i + 300 };
            assert!(found == *quota || found == next, "c{i}: {found}, {quota} was acknowledged");
        }
        // One that came to nothing leaves nothing behind.
        assert_eq!(container(&store, "new", None).quota(), None);
        println!("{} containers", said.len());
    }
}

#[test]
fn how_large_the_file_may_be_and_what_its_maps_may_take() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let store = open(&dir, Options::new().space_percent(Some(300)));
    let c = container(&store, "c", None);
    add_all(&c, 1..=1000);
    store.stabilise().unwrap();
    assert_eq!(store.stat().store.space_percent, 300);
    for refused in [149, 10_001] {
        let error = store.set_space_percent(Some(refused)).unwrap_err();
        assert!(error.to_string().contains("150 at the least"), "{error}");
    }
    drop((c, store));
    // The leaves for 64 MiB take a quarter of a MiB.
    let most = 100 << 10;
    let store = open(&dir, Options::new().space_percent(None).map_bytes_max(most));
    assert_eq!(store.stat().store.space_percent, 300, "it was made with that");
    let c = container(&store, "c", None);
    for _ in 0..2 {
        assert_eq!(blocks(&c), 1000);
        let taken = store.stat().store.map_memory_bytes;
        assert!((1..=most + (32 << 10)).contains(&taken), "{taken} of {most}");
    }
    store.set_space_percent(Some(150)).unwrap();
    assert_eq!(store.stat().store.space_percent, 150);
    drop((c, store));
    assert_eq!(open(&dir, Options::new()).stat().store.space_percent, 150);
}
