//! The real command `salvage` on a store of which two blocks are damaged that hold the same: what would be given up is told,
//! nothing is done without consent, and with it the store goes on.

mod common;

use std::fs;

use common::{alone, bank_of, place, run};

const BLOCK: usize = 4096;

#[test]
fn a_store_goes_on_from_the_newest_whole_state_with_consent_only() {
    let Some(_alone) = alone() else { return };
    let (temp, dir) = place();
    let copy = temp.path().join("copy");
    fs::create_dir(&copy).unwrap();
    let mut sequences = Vec::new();
    {
        let store = stead::open(&dir).unwrap();
        let bank = bank_of(&store);
        for i in 0..6 {
            bank.exclusive(|root, tx| -> stead::Result<_> {
                Ok(root.accounts.push(tx, stead::Mutex::new(i))?)
            })
            .unwrap();
            store.stabilise().unwrap();
            sequences.push(store.stat().store.last_sequence);
        }
        // As a crash would leave it: closing it stores a root.
        fs::copy(dir.join("log"), copy.join("log")).unwrap();
        fs::write(copy.join("lock"), "").unwrap();
    }
    let copy_text = copy.to_str().unwrap();
    let whole = run(&["salvage", copy_text, "--give-up"], &["--json"]);
    common::keys_are_documented("salvage", &whole.json());
    assert_eq!((whole.code, &whole.json()["damaged_log"]), (0, &serde_json::Value::Null));
    assert_eq!(whole.json()["last_sequence"], *sequences.last().unwrap());
    assert!(run(&["salvage", copy_text], &[]).out.contains("nothing to give up"));

    // A header in the middle, and its copy.
    let mut bytes = fs::read(copy.join("log")).unwrap();
    let lost = sequences[3];
    let hit = |block: &&mut [u8]| {
        let is_header = block.starts_with(b"STEADCHK") && block[56] != 3;
        (is_header || block.starts_with(b"STEADTWN")) && block[40..48] == lost.to_le_bytes()
    };
    let hits = bytes.chunks_mut(BLOCK).filter(hit).map(|block| block[900] ^= 1).count();
    assert_eq!(hits, 2);
    fs::write(copy.join("log"), &bytes).unwrap();
    let refused = run(&["verify", copy_text], &[]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("stead salvage"), "{refused:?}");

    let told = run(&["salvage", copy_text], &["--json"]);
    common::keys_are_documented("salvage", &told.json());
    let json = told.json();
    assert_eq!((told.code, &json["last_sequence"]), (1, &sequences[2].into()), "{json}");
    let given_up: Vec<u64> = json["given_up"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            assert!(one["unix_ns"].as_u64().unwrap() > 1 << 60, "{json}");
            one["sequence"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(given_up, sequences[4..], "{json}");
    assert_eq!(json["acknowledged_sequence"], sequences[4], "the last of all cannot be known");
    assert!(json["damages"][0]["what"].as_str().unwrap().contains("record chain"), "{json}");
    let words = run(&["salvage", copy_text], &[]);
    for part in [format!("stabilisations {lost} to {}", sequences[4]), "--give-up".to_owned()] {
        assert!(words.out.contains(&part), "{words:?}");
    }
    assert!(fs::read(copy.join("log")).unwrap() == bytes, "nothing has been changed");

    let done = run(&["salvage", copy_text, "--give-up"], &["--json"]);
    assert_eq!(done.code, 0, "{done:?}");
    let kept = copy.join("log.damaged");
    assert_eq!(done.json()["damaged_log"], kept.to_str().unwrap());
    assert!(fs::read(&kept).unwrap() == bytes, "it is kept as it was");
    assert_eq!(run(&["verify", copy_text], &[]).code, 0);
    {
        let store = stead::open(&copy).unwrap();
        let held = bank_of(&store).read(|root, _| root.accounts.len()).unwrap();
        assert_eq!(held, 3);
    }
    // Another one would write over what is kept.
    let mut again = bytes.clone();
    again.truncate(again.len() / BLOCK * BLOCK);
    fs::write(copy.join("log"), &again).unwrap();
    let refused = run(&["salvage", copy_text, "--give-up"], &["--json"]);
    assert_eq!((refused.code, &refused.json()["error"]["kind"]), (4, &"exists".into()));
    // Nothing to prove anything by.
    [1, 2].into_iter().for_each(|root| again[root * BLOCK + 50] ^= 1);
    fs::write(copy.join("log"), &again).unwrap();
    let refused = run(&["salvage", copy_text], &["--json"]);
    assert_eq!((refused.code, &refused.json()["error"]["kind"]), (1, &"damaged".into()));
    let missing = run(&["salvage", temp.path().join("nowhere").to_str().unwrap()], &["--json"]);
    assert_eq!((missing.code, &missing.json()["error"]["kind"]), (3, &"missing".into()));
}
