//! `stead quota` on real stores: limits are laid down, shown by every command that looks, and kept; what is wrong is refused
//! with words.

mod common;

use common::{alone, bank_of, new_bank, run};

#[test]
fn quotas_are_laid_down_shown_and_kept() {
    let Some(_alone) = alone() else { return };
    let (temp, dir) = new_bank(1000);
    let at = dir.as_str();
    let none = run(&["quota", at], &["--json"]).json();
    common::keys_are_documented("quota", &none);
    assert!(none["quota_bytes"].is_null() && none["containers"][0]["quota_bytes"].is_null());
    assert!(!run(&["ls", at], &[]).out.contains("QUOTA"));
    let set = run(&["quota", at, "--store", "40MiB", "--container", "bank", "1.5MiB"], &["--json"]);
    assert_eq!(set.code, 0, "{set:?}");
    let (store, container) = (40u64 << 20, 3u64 << 19);
    let shown = set.json();
    assert_eq!(
        (&shown["quota_bytes"], &shown["containers"][0]["name"]),
        (&store.into(), &"bank".into())
    );
    let stat = run(&["stat", at], &["--json"]).json();
    assert_eq!(stat["quota_bytes"], store);
    assert_eq!(stat["containers"][1]["quota_bytes"], container);
    assert_eq!(run(&["ls", at], &["--json"]).json()["containers"][0]["quota_bytes"], container);
    for command in ["quota", "ls", "stat"] {
        let words = run(&[command, at], &[]).out;
        assert!(words.contains("1.5 MiB"), "{words}");
        assert!(command == "ls" || words.contains("40.0 MiB"), "{words}");
    }
    let set = run(&["quota", at, "--space-percent", "350"], &["--json"]).json();
    assert_eq!((&set["space_percent"], &set["quota_bytes"]), (&350.into(), &store.into()));
    assert_eq!(run(&["stat", at], &["--json"]).json()["space_percent"], 350);
    for command in ["quota", "stat"] {
        let words = run(&[command, at], &[]).out;
        assert!(words.contains("350 hundredths"), "{words}");
    }
    // A program meets them.
    let opened = stead::open(&dir).unwrap();
    assert_eq!(bank_of(&opened).quota(), Some(container));
    assert_eq!(opened.stat().store.quota_bytes, Some(store));
    let busy = run(&["quota", at, "--store", "none"], &["--json"]).json();
    assert_eq!(busy["error"]["kind"], "in_use");
    drop(opened);
    // They go with a backup.
    let copy = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    assert_eq!(run(&["backup", at, "-o", &copy("backup")], &[]).code, 0);
    assert_eq!(run(&["restore", &copy("copy"), "-i", &copy("backup")], &[]).code, 0);
    let restored = run(&["quota", &copy("copy")], &["--json"]).json();
    assert_eq!(
        (&restored["quota_bytes"], &restored["space_percent"]),
        (&store.into(), &350.into())
    );
    assert_eq!(restored["containers"][0]["quota_bytes"], container);
    let lift = ["--store", "none", "--container", "bank", "none", "--space-percent", "none"];
    let lifted = run(&[&["quota", at][..], &lift].concat(), &["--json"]).json();
    assert_eq!(lifted["space_percent"], 200);
    assert!(lifted["quota_bytes"].is_null() && lifted["containers"][0]["quota_bytes"].is_null());
}

#[test]
fn what_cannot_be_is_refused_with_words() {
    let Some(_alone) = alone() else { return };
    let (_temp, dir) = new_bank(10);
    let at = dir.as_str();
    for (args, code, kind, words) in [
        (&["--store", "1MiB"][..], 4, "quota", "33619968 at the least"),
        (&["--store", "much"], 2, "usage", "or none"),
        (&["--space-percent", "149"], 4, "quota", "150 at the least"),
        (&["--space-percent", "1.5"], 2, "usage", "or none"),
        (&["--container", "bank", "much"], 2, "usage", "or none"),
        (&["--store", "9999999999999999999999TiB"], 2, "usage", "more than 2^64 - 1 bytes"),
        (&["--container", "bank", "16777216TiB"], 2, "usage", "more than 2^64 - 1 bytes"),
        (&["--container", "bank"], 2, "usage", "2 values"),
        (&["--container", "nobody", "1MiB"], 3, "no_container", "\"nobody\""),
    ] {
        let mut all = vec!["quota", at];
        all.extend(args);
        let ran = run(&all, &["--json"]);
        let said = ran.json();
        assert_eq!((ran.code, said["error"]["kind"].as_str()), (code, Some(kind)), "{said}");
        assert!(said["error"]["message"].as_str().unwrap().contains(words), "{said}");
    }
}

#[test]
fn several_are_laid_down_all_or_none() {
    let Some(_alone) = alone() else { return };
    let (_temp, dir) = new_bank(10);
    let at = dir.as_str();
    let set = run(&["quota", at, "--store", "50GiB", "--space-percent", "250"], &["--json"]);
    assert_eq!(set.code, 0, "{set:?}");
    let laid_down = || {
        let json = run(&["quota", at], &["--json"]).json();
        (
            json["quota_bytes"].clone(),
            json["space_percent"].clone(),
            json["containers"][0]["quota_bytes"].clone(),
        )
    };
    let before = laid_down();
    assert_eq!(before, ((50u64 << 30).into(), 250.into(), serde_json::Value::Null));
    for (args, code, kind) in [
        (
            &["--store", "none", "--container", "bank", "1GiB", "--container", "nope", "2GiB"][..],
            3,
            "no_container",
        ),
        (&["--container", "bank", "1GiB", "--container", "", "2GiB"], 4, "bad_name"),
        (&["--store", "60GiB", "--space-percent", "149"], 4, "quota"),
        (&["--space-percent", "300", "--container", "bank", "1GiB", "--store", "1MiB"], 4, "quota"),
    ] {
        let ran = run(&[&["quota", at], args].concat(), &["--json"]);
        assert_eq!((ran.code, &ran.json()["error"]["kind"]), (code, &kind.into()), "{ran:?}");
        assert_eq!(laid_down(), before, "{args:?} has changed something");
    }
    let args = ["--store", "60GiB", "--space-percent", "300", "--container", "bank", "1GiB"];
    assert_eq!(run(&[&["quota", at], &args[..]].concat(), &[]).code, 0);
    assert_eq!(laid_down(), ((60u64 << 30).into(), 300.into(), (1u64 << 30).into()));
}
