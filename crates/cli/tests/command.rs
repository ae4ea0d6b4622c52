//! The real command, on real stores: what it answers in words and in JSON, and its exit codes. Every key of
//! every object stands in `docs/command.md`.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{alone, bank, bank_of, new_bank, run};

#[test]
fn every_command_answers_in_json_with_documented_keys() {
    let Some(_alone) = alone() else { return };
    let (_temp, dir) = new_bank(1000);
    let dir = dir.as_str();
    for args in [&["ls", dir][..], &["stat", dir], &["verify", "--leaks", dir], &["doctor", dir]] {
        let ran = run(args, &["--json"]);
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        let json = ran.json();
        assert_eq!(json["command"], args[0]);
        assert_eq!(json["json_version"], 1);
        assert_eq!(json["exit_code"], 0);
        common::keys_are_documented(args[0], &json);
        // Words say the same, and are no JSON.
        let words = run(args, &[]);
        assert_eq!(words.code, 0, "{words:?}");
        assert!(!words.out.starts_with('{') && !words.out.is_empty(), "{words:?}");
    }
}

#[test]
fn stat_tells_what_was_written_over_all_openings() {
    let Some(_alone) = alone() else { return };
    let (_temp, dir) = new_bank(1000);
    let stat = || run(&["stat", &dir], &["--json"]).json()["written"].clone();
    let first = stat();
    let store = stead::open(&dir).unwrap();
    bank_of(&store)
        .exclusive(|root, tx| Ok::<_, stead::Error>(root.accounts.push(tx, stead::Mutex::new(1))?))
        .unwrap();
    store.stabilise().unwrap();
    let told = store.stat().store.written;
    // From outside, behind the newest root.
    assert_eq!(stat()["pages"], told.pages);
    drop(store);
    let then = stat();
    let count = |of: &serde_json::Value, key: &str| of[key].as_u64().unwrap();
    assert!(count(&first, "pages") < count(&then, "pages"), "{first} {then}");
    assert!(count(&then, "record_blocks") > count(&then, "pages"), "{then}");
    let keys = ["record_blocks", "map_blocks", "cleaning_blocks", "tidying_blocks", "ahead_blocks"];
    let blocks: u64 = keys.iter().map(|key| count(&then, key)).sum();
    let factor = blocks as f64 / count(&then, "pages") as f64;
    assert_eq!((&then["amplification"], &then["since_sequence"]), (&factor.into(), &0.into()));
    let words = run(&["stat", &dir], &[]).out;
    assert!(words.contains(&format!("write amplification  {factor:.2}: ")), "{words}");
}

#[test]
fn ls_shows_each_container() {
    let Some(_alone) = alone() else { return };
    let (_temp, dir) = new_bank(1000);
    let store = stead::open(&dir).unwrap();
    let address = bank_of(&store).address().to_string();
    drop(store);
    let json = run(&["ls", &dir], &["--json"]).json();
    let [bank] = json["containers"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!(bank["name"], "bank");
    assert_eq!(bank["root"], "Bank");
    assert_eq!(bank["address"], address.as_str());
    assert_eq!(bank["address_bytes"], 128u64 << 30);
    assert!(bank["pages"].as_u64().unwrap() >= 3, "{json}");
    assert_eq!(bank["stored_bytes"].as_u64().unwrap(), bank["pages"].as_u64().unwrap() * 4096);
    let words = run(&["ls", &dir], &[]);
    for word in ["bank", "Bank", &address] {
        assert!(words.out.contains(word), "{word} is missing in {}", words.out);
    }
}

/// Asserts that a command says no, in words and in JSON, and that its words say what to do.
fn refused(args: &[&str], code: i32, kind: &str, words: &[&str]) {
    let ran = run(args, &["--json"]);
    let said = ran.json();
    common::keys_are_documented(args[0], &said);
    assert_eq!((ran.code, said["error"]["kind"].as_str()), (code, Some(kind)), "{args:?}: {said}");
    assert_eq!(said["exit_code"], code);
    let message = said["error"]["message"].as_str().unwrap();
    assert!(ran.err.contains(message), "standard error says it too: {ran:?}");
    for word in words {
        assert!(message.contains(word), "{word:?} is missing in: {message}");
    }
}

#[test]
fn what_cannot_be_opened_has_an_exit_code_and_advice() {
    let Some(_alone) = alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("file"), "text").unwrap();
    let dir = at("store");
    bank(dir.as_ref(), 10);
    for command in ["ls", "stat", "verify"] {
        refused(&[command, &at("missing")], 3, "missing", &["missing", "create"]);
        refused(&[command, &at("file")], 3, "not_a_store", &["file", "give the directory"]);
        refused(&[command, &at("empty")], 3, "not_a_store", &["empty", "give the directory"]);
        assert!(!temp.path().join("missing").exists(), "looking makes nothing");
        // A program that has the store open is not in the way.
        let held = stead::open(&dir).unwrap();
        let ran = run(&[command, &dir], &["--json"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        drop(held);
    }
    // The doctor ends as they do, and says all else as well.
    for (name, kind) in [("missing", "missing"), ("file", "not_a_store"), ("empty", "not_a_store")]
    {
        let ran = run(&["doctor", &at(name)], &["--json"]);
        let json = ran.json();
        common::keys_are_documented("doctor", &json);
        assert_eq!((ran.code, &json["store"]["kind"]), (3, &kind.into()), "{json}");
        assert!(json["store"]["error"].is_string() && json["findings"].is_array(), "{json}");
        assert_eq!(run(&["doctor", &at(name)], &[]).code, 3);
    }
    let well = run(&["doctor", &dir], &["--json"]);
    assert_eq!((well.code, &well.json()["store"]["kind"]), (0, &serde_json::Value::Null));
    let log = temp.path().join("store/log");
    // Cut off: whoever opens it is told so.
    fs::create_dir(at("cut")).unwrap();
    let bytes = fs::read(&log).unwrap();
    // Behind so little nothing is left of what it needs.
    fs::write(at("cut/log"), &bytes[..128 << 10]).unwrap();
    for command in [&["ls"][..], &["scrub"], &["snapshot", "list"], &["snapshot", "drop"]] {
        let mut args = [command, &[at("cut").leak()]].concat();
        args.extend(["n"].iter().filter(|_| command.contains(&"drop")));
        refused(&args, 1, "damaged", &["cut off"]);
    }
    // Where its header is cut off, too, as long as the superblock is there.
    for (length, kind, code) in [
        (65_536, "damaged", 1),
        (65_535, "damaged", 1),
        (16_384, "damaged", 1),
        (4096, "damaged", 1),
        (4095, "not_a_store", 3),
    ] {
        fs::write(at("cut/log"), &bytes[..length]).unwrap();
        let words = if code == 1 { ["cut off", "backup"] } else { ["fewer", "give the directory"] };
        refused(&["stat", &at("cut")], code, kind, &words);
    }
    fs::write(at("cut/log"), vec![0; 16_384]).unwrap();
    refused(&["stat", &at("cut")], 3, "not_a_store", &["fewer"]);
    // Both superblocks gone: too damaged to be opened.
    let mut bytes = fs::read(&log).unwrap();
    bytes[100] ^= 1;
    bytes[3 * 4096 + 100] ^= 1;
    fs::write(&log, bytes).unwrap();
    for command in ["ls", "stat", "verify"] {
        refused(&[command, &dir], 1, "damaged", &["log", "backup"]);
    }
    let doctor = run(&["doctor", &dir], &["--json"]);
    assert_eq!((doctor.code, &doctor.json()["store"]["kind"]), (1, &"damaged".into()));
}

#[test]
fn every_kind_of_error_is_documented() {
    let documented = fs::read_to_string(common::DOCUMENT).unwrap();
    let sources =
        ["../site/src/word.rs", "../site/src/error.rs", "../store/src/error.rs", "src/output.rs"];
    let mut found = 0;
    for source in sources {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
        let text = fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        // Words of this form stand behind an arrow, or are given to an error of the command.
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let Some((_, word)) = line.split_once("=> \"").or_else(|| line.split_once("kind: \""))
            else {
                continue;
            };
            let word = word.split('"').next().unwrap();
            if word.is_empty() || word.contains(' ') {
                continue;
            }
            assert!(
                documented.contains(&format!("| `{word}` |")),
                "{word} of {source} is not documented"
            );
            found += 1;
        }
    }
    assert!(found > 30, "{found} words");
}

#[test]
fn what_the_user_may_not_read_has_its_kind() {
    let Some(_alone) = alone() else { return };
    let (_temp, dir) = new_bank(10);
    let log = Path::new(&dir).join("log");
    let permit = |mode| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&log, fs::Permissions::from_mode(mode)).unwrap();
    };
    permit(0);
    if fs::File::open(&log).is_ok() {
        println!("NOT RUN: root may read everything");
        return;
    }
    for command in ["ls", "stat", "verify", "scrub"] {
        let words = ["Permission denied", "run as its owner"];
        refused(&[command, &dir], 3, "not_permitted", &words);
    }
}

#[test]
fn a_directory_whose_name_is_no_text_is_answered_for_in_json() {
    use std::os::unix::ffi::OsStrExt;
    let Some(_alone) = alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join(std::ffi::OsStr::from_bytes(b"st\xffore"));
    bank(&dir, 10);
    for command in ["ls", "stat", "scrub", "doctor"] {
        let ran = Command::new(env!("CARGO_BIN_EXE_stead"))
            .args([command, "--json"])
            .arg(&dir)
            .output()
            .unwrap();
        assert_eq!(ran.status.code(), Some(0), "{ran:?}");
        let json: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
        let dir = if command == "doctor" { &json["store"]["dir"] } else { &json["dir"] };
        assert!(dir.as_str().unwrap().ends_with("st\u{fffd}ore"), "{json}");
    }
}

#[test]
fn a_line_that_is_not_understood() {
    for args in [&["frobnicate"][..], &["ls"], &["verify", "--frob", "x"], &[]] {
        let ran = run(args, &[]);
        assert_eq!(ran.code, 2, "{args:?}: {ran:?}");
        assert!(ran.out.is_empty() && ran.err.contains("Usage"), "{ran:?}");
        let ran = run(args, &["--json"]);
        let json = ran.json();
        assert_eq!((ran.code, json["error"]["kind"].as_str()), (2, Some("usage")), "{ran:?}");
        common::keys_are_documented("ls", &json);
    }
    let help = run(&["--help"], &[]);
    assert_eq!(help.code, 0);
    let documented = fs::read_to_string(common::DOCUMENT).unwrap();
    for line in help.out.lines().skip_while(|line| !line.starts_with("Exit codes")).skip(1) {
        let Some((code, meaning)) = line.trim().split_once("  ") else { continue };
        assert!(
            documented.contains(&format!("| {code} | {meaning}")),
            "{line:?} is not documented"
        );
    }
    assert!(help.out.contains("Exit codes"));
}

#[test]
fn the_demo_in_json() {
    let Some(_alone) = alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("demo");
    let ran = run(&["demo", "--kills", "3", "--store", dir.to_str().unwrap()], &["--json"]);
    let json = ran.json();
    common::keys_are_documented("demo", &json);
    assert_eq!((ran.code, json["kills"].as_u64()), (0, Some(3)), "{json}");
    // Even one kill tests something, whenever it comes.
    for n in 0..3 {
        let dir = temp.path().join(format!("once{n}"));
        let once = run(&["demo", "--kills", "1", "--store", dir.to_str().unwrap()], &["--json"]);
        let json = once.json();
        assert!(json["transfers"].as_u64() > Some(0), "{json}");
        assert!(json["acknowledgements"].as_u64() > Some(0), "{json}");
    }
    let nowhere = ["demo", "--kills", "1", "--store", "/proc/x"];
    let doctor = run(&["doctor", "/proc/x"], &["--json"]).json();
    assert_eq!((&doctor["exit_code"], &doctor["store"]["kind"]), (&3.into(), &"missing".into()));
    refused(&nowhere, 3, "system", &["/proc/x"]);
    // It keeps away from what is not its own.
    let others = temp.path().join("others");
    {
        let store = stead::open(&others).unwrap();
        bank_of(&store);
        store
            .container::<common::Bank>("mine", |tx| {
                Ok(common::Bank { accounts: stead::Vec::new(tx) })
            })
            .unwrap();
    }
    refused(&["demo", "--store", others.to_str().unwrap()], 4, "system", &["containers of others"]);
    let file = temp.path().join("file");
    fs::write(&file, "text").unwrap();
    refused(&["demo", "--store", file.to_str().unwrap()], 3, "not_a_store", &["not a directory"]);
}

#[test]
fn a_branch_is_looked_at_though_it_has_its_origins_addresses() {
    let Some(_alone) = alone() else { return };
    let (_temp, dir) = new_bank(100);
    let dir = dir.as_str();
    assert_eq!(run(&["snapshot", "take", dir, "monday"], &[]).code, 0);
    assert_eq!(run(&["snapshot", "branch", dir, "monday", "bank", "old bank"], &[]).code, 0);
    for command in ["ls", "stat", "verify"] {
        let ran = run(&[command, dir], &["--json"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        common::keys_are_documented(command, &ran.json());
    }
    let ls = run(&["ls", dir], &["--json"]).json();
    assert_eq!(ls["containers"].as_array().unwrap().len(), 2);
    assert_eq!(ls["containers"][0]["root"], ls["containers"][1]["root"]);
    assert_eq!(ls["snapshots"], serde_json::json!(["monday"]));
    let verify = run(&["verify", dir], &["--json"]).json();
    for container in verify["containers"].as_array().unwrap() {
        assert!(container["not_followed"].is_null(), "{verify}");
    }
}
