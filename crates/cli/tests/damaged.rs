//! The real command on stores that are damaged: `scrub`, `verify`, `stat` and `ls` name it, exit with 1, and tell of
//! everything else as usual.

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{alone, place, run};
use stead::{Persist, Store, Vec};

#[derive(Persist)]
#[repr(C)]
struct Numbers<'s> {
    list: Vec<'s, u64>,
}

const N: u64 = 20_000;

fn numbers(store: &Store, name: &str) -> stead::Container<Numbers<'static>> {
    store.container(name, |tx| Ok(Numbers { list: Vec::new(tx) })).unwrap()
}

/// Two containers; the address of the page in the first that holds number 10,000.
fn filled(dir: &Path) -> usize {
    let store = stead::open(dir).unwrap();
    let fill = |name: &str, factor: u64| {
        numbers(&store, name)
            .exclusive(|root, tx| -> stead::Result<_> {
                for i in 0..N {
                    root.list.push(tx, i * factor)?;
                }
                Ok(std::ptr::from_ref(&root.list[10_000]).addr() & !4095)
            })
            .unwrap()
    };
    fill("others", 3);
    fill("numbers", 1)
}

/// Spoils the blocks of the log that hold number 10,000 among its neighbours; how many there are, and the first.
fn spoil(dir: &Path) -> (usize, u64) {
    let log = dir.join("log");
    let needle: std::vec::Vec<u8> = (10_000u64..10_003).flat_map(u64::to_le_bytes).collect();
    let bytes = fs::read(&log).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&log).unwrap();
    let mut blocks = std::vec::Vec::new();
    for (block, bytes) in bytes.chunks(4096).enumerate() {
        if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) {
            file.write_all_at(&[0x55], (block * 4096 + at + 3) as u64).unwrap();
            blocks.push(block as u64 * 4096);
        }
    }
    (blocks.len(), blocks[0])
}

#[test]
fn a_damaged_page_is_named_and_all_else_is_told_as_usual() {
    let Some(_alone) = alone() else { return };
    let (_temp, dir) = place();
    let address = filled(&dir);
    let dir_text = dir.to_str().unwrap();
    let whole = run(&["scrub", dir_text], &["--json"]);
    common::keys_are_documented("scrub", &whole.json());
    assert_eq!((whole.code, whole.json()["damages"].as_array().unwrap().len()), (0, 0));
    assert!(whole.json()["images"].as_u64().unwrap() > 2 * N * 8 / 4096);
    assert_eq!(run(&["scrub", dir_text], &[]).code, 0);
    let (count, _) = spoil(&dir);
    assert_eq!(count, 1);

    let address = format!("{address:#x}");
    let ran = run(&["scrub", dir_text, "--rate", "1GiB/s"], &["--json"]);
    let json = ran.json();
    common::keys_are_documented("scrub", &json);
    let [damage] = json["damages"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!(ran.code, 1);
    assert_eq!(damage["container"], "numbers");
    assert_eq!(damage["address"], address.as_str());
    assert_eq!((&damage["holds"], &damage["ty"]), (&"elements".into(), &"u64".into()));
    assert_eq!(damage["page_count"], 1);
    let words = run(&["scrub", dir_text], &[]);
    assert_eq!(words.code, 1);
    for word in ["DAMAGED", "\"numbers\"", &address, "type u64", "offset", "backup"] {
        assert!(words.out.contains(word), "{word} is missing in {}", words.out);
    }

    // The damaged container is not walked, the other one is.
    let verify = run(&["verify", dir_text], &["--json"]);
    let json = verify.json();
    common::keys_are_documented("verify", &json);
    assert_eq!((verify.code, json["is_well"].as_bool()), (1, Some(false)));
    assert_eq!(json["damages"].as_array().unwrap().len(), 1, "{json}");
    for container in json["containers"].as_array().unwrap() {
        let why = container["not_followed"].as_str();
        match container["name"].as_str().unwrap() {
            "numbers" => assert!(why.unwrap().contains(&address), "{json}"),
            _ => assert!(why.is_none() && container["pointers"].is_u64(), "{json}"),
        }
    }
    let stat = run(&["stat", dir_text], &["--json"]);
    assert_eq!((stat.code, stat.json()["is_sound"].as_bool()), (1, Some(false)));
    for container in stat.json()["containers"].as_array().unwrap() {
        let is_known = container["live_bytes"].is_u64();
        assert_eq!(is_known, container["name"] == "others", "{container}");
    }
    // Opening them touches no damaged page.
    assert_eq!(run(&["ls", dir_text], &[]).code, 0);
    // A program reads what is whole.
    let store = stead::open(&dir).unwrap();
    let sum: u64 = numbers(&store, "others").read(|root, _| root.list.iter().sum()).unwrap();
    assert_eq!(sum, 3 * N * (N - 1) / 2);
}

#[test]
fn a_damaged_header_is_told_by_ls() {
    let Some(_alone) = alone() else { return };
    let (_temp, dir) = place();
    filled(&dir);
    // The first pages of containers begin with these letters; the second container made is number 2.
    let log = dir.join("log");
    let bytes = fs::read(&log).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&log).unwrap();
    for (block, bytes) in bytes.chunks(4096).enumerate() {
        if bytes[..8] == *b"STEADHP1" && bytes[12..16] == 2u32.to_le_bytes() {
            file.write_all_at(&[0x55], block as u64 * 4096 + 300).unwrap();
        }
    }
    let ls = run(&["ls", dir.to_str().unwrap()], &["--json"]);
    let json = ls.json();
    assert_eq!(ls.code, 1, "{json}");
    for container in json["containers"].as_array().unwrap() {
        let problem = container["problem"].as_str();
        match container["name"].as_str().unwrap() {
            "numbers" => assert!(problem.unwrap().contains("page 0"), "{json}"),
            _ => assert_eq!((problem, &container["root"]), (None, &"Numbers".into()), "{json}"),
        }
    }
}

#[test]
fn a_rate_is_kept() {
    let Some(_alone) = alone() else { return };
    let (_temp, dir) = place();
    filled(&dir);
    // Never faster than it was told: slower may be the machine.
    let json = run(&["scrub", dir.to_str().unwrap(), "--rate", "1MiB/s"], &["--json"]).json();
    let (bytes, ms) = (json["read_bytes"].as_u64().unwrap(), json["time_ms"].as_u64().unwrap());
    assert!(bytes > 300_000, "{json}");
    assert!(bytes * 1000 <= (ms + 1) << 20, "{json}");
    let wrong = run(&["scrub", dir.to_str().unwrap(), "--rate", "fast"], &[]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("100MiB/s"), "{wrong:?}");
}

#[test]
fn a_stabilisation_cut_short_is_told_by_verify() {
    let Some(_alone) = alone() else { return };
    let (temp, dir) = place();
    filled(&dir);
    // The store as it was just after a stabilisation, as a crash leaves it: closing it would store a root.
    let copy = temp.path().join("copy");
    fs::create_dir(&copy).unwrap();
    {
        let store = stead::open(&dir).unwrap();
        let container = numbers(&store, "numbers");
        for i in 0..2 {
            container
                .exclusive(|root, tx| -> stead::Result<_> { Ok(root.list.push(tx, i)?) })
                .unwrap();
            store.stabilise().unwrap();
        }
        let sequence = store.stat().store.last_sequence;
        let mut bytes = fs::read(dir.join("log")).unwrap();
        // The header of the last record has arrived, a page of it has not.
        let header = bytes
            .chunks(4096)
            .rposition(|b| b[..8] == *b"STEADCHK" && b[40..48] == sequence.to_le_bytes())
            .unwrap();
        bytes[(header + 1) * 4096..][..4096].fill(0);
        fs::write(copy.join("log"), bytes).unwrap();
        fs::write(copy.join("lock"), "").unwrap();
        let verify = run(&["verify", copy.to_str().unwrap()], &["--json"]).json();
        assert_eq!(verify["unfinished"], sequence, "{verify}");
        assert_eq!(verify["is_well"], true);
        let words = run(&["verify", copy.to_str().unwrap()], &[]).out;
        assert!(words.contains(&format!("stabilisation {sequence} was begun")), "{words}");
    }
}

#[test]
fn damage_in_a_snapshot_is_told_as_such_with_its_cure() {
    let Some(_alone) = alone() else { return };
    let (temp, dir) = place();
    filled(&dir);
    let dir_text = dir.to_str().unwrap();
    assert_eq!(run(&["snapshot", "take", dir_text, "after"], &[]).code, 0);
    // The live state and the snapshot have the same page.
    assert_eq!(spoil(&dir).0, 1);
    let json = run(&["scrub", dir_text], &["--json"]).json();
    let [damage] = json["damages"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!((&damage["live"], &damage["snapshots"][0]), (&true.into(), &"after".into()));
    // Nobody but the snapshot has it.
    stead::open(&dir).unwrap().remove("numbers").unwrap();
    let scrub = run(&["scrub", dir_text], &["--json"]);
    let json = scrub.json();
    common::keys_are_documented("scrub", &json);
    let [damage] = json["damages"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!((&damage["live"], &damage["snapshots"]), (&false.into(), &["after"][..].into()));
    assert_eq!((&damage["container"], &damage["ty"]), (&"numbers".into(), &"u64".into()), "{json}");
    assert!(damage["address"].is_string(), "{json}");
    let cure = "drop snapshot \"after\" to be rid of it, or restore the store from a backup";
    for command in ["scrub", "verify"] {
        let ran = run(&[command, dir_text], &[]);
        assert_eq!(ran.code, 1, "{ran:?}");
        for word in ["snapshot \"after\", container \"numbers\"", "type u64", cure] {
            assert!(ran.out.contains(word), "{word} is missing in {}", ran.out);
        }
        assert!(!ran.out.contains("free memory") && !ran.out.contains("pages are lost"), "{ran:?}");
    }
    // Who reads the snapshot is told so, too.
    {
        let store = stead::open_snapshot(&dir, "after").unwrap();
        let container = store.site().existing("numbers").unwrap();
        let error = container.check_all().unwrap_err().to_string();
        assert!(error.contains("in snapshot \"after\""), "{error}");
    }
    let backup = temp.path().join("backup");
    let backup = backup.to_str().unwrap();
    let refused = run(&["backup", dir_text, "--snapshot", "after", "-o", backup], &["--json"]);
    let json = refused.json();
    assert_eq!((refused.code, json["error"]["kind"].as_str()), (1, Some("damaged")), "{json}");
    let message = json["error"]["message"].as_str().unwrap();
    assert!(message.contains("only snapshot \"after\" has it; drop that"), "{message}");
    assert_eq!(run(&["backup", dir_text, "-o", backup], &[]).code, 0, "the last state is whole");
    assert_eq!(run(&["snapshot", "drop", dir_text, "after"], &[]).code, 0);
    for command in ["scrub", "verify"] {
        assert_eq!(run(&[command, dir_text], &[]).code, 0, "it is gone");
    }
}

#[test]
fn with_a_part_that_is_there_twice_nothing_is_lost() {
    let Some(_alone) = alone() else { return };
    let (_temp, dir) = place();
    filled(&dir);
    let file = fs::OpenOptions::new().write(true).open(dir.join("log")).unwrap();
    // The second superblock.
    file.write_all_at(&[0x55; 8], 3 * 4096 + 100).unwrap();
    for command in ["scrub", "verify"] {
        let ran = run(&[command, dir.to_str().unwrap()], &[]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.out.contains("the store opens by the other one; nothing is lost"), "{ran:?}");
        assert!(!ran.out.contains("backup"), "{ran:?}");
    }
}
