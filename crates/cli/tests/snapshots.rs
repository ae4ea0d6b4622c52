//! Snapshots, backups and restored stores by the real command.

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Ran, alone, bank, bank_of, run};

/// Accounts in the container `bank` of a store.
fn accounts(dir: &Path) -> u64 {
    let store = stead::open_read_only(dir).unwrap();
    let bank = store.container::<common::Bank>("bank").unwrap();
    bank.read(|root, _| root.accounts.len() as u64).unwrap()
}

/// Runs a command that must succeed, in words and, if it can be said twice, in JSON.
fn well(args: &[&str]) -> Ran {
    let ran = run(args, &["--json"]);
    assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
    let json = ran.json();
    assert_eq!(json["command"], args[0]);
    common::keys_are_documented(args[0], &json);
    ran
}

fn refused(args: &[&str], code: i32, kind: &str, words: &str) {
    let ran = run(args, &["--json"]);
    let json = ran.json();
    assert_eq!((ran.code, json["error"]["kind"].as_str()), (code, Some(kind)), "{args:?}: {ran:?}");
    assert!(ran.err.contains(words), "{words:?} is missing in {}", ran.err);
}

#[test]
fn states_are_named_used_and_forgotten() {
    let Some(_alone) = alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("store");
    let dir = path.to_str().unwrap();
    bank(&path, 100);
    well(&["snapshot", "take", dir, "monday"]);
    bank(&path, 11);
    let json = well(&["snapshot", "take", dir, "tuesday"]).json();
    assert_eq!(json["snapshots"][1]["name"], "tuesday");
    let stat = well(&["stat", dir]).json();
    assert_eq!(stat["snapshots"], 2);
    assert!(stat["pinned_bytes"].as_u64().unwrap() > 0, "what monday alone has");
    let stat = run(&["stat", dir], &[]).out;
    assert!(stat.contains("  snapshots            2, which alone hold "), "{stat}");
    assert!(
        json["snapshots"][0]["stored_bytes"].as_u64()
            <= json["snapshots"][1]["stored_bytes"].as_u64()
    );
    let listed = run(&["snapshot", "list", dir], &[]);
    assert!(listed.out.lines().nth(1).unwrap().starts_with("monday"), "{listed:?}");
    refused(
        &["snapshot", "take", dir, "monday"],
        4,
        "exists",
        "there is a snapshot \"monday\" already",
    );
    refused(
        &["snapshot", "drop", dir, "sunday"],
        3,
        "no_snapshot",
        "there is no snapshot \"sunday\"",
    );
    refused(&["snapshot", "branch", dir, "sunday", "bank", "x"], 3, "no_snapshot", "sunday");
    refused(&["snapshot", "branch", dir, "monday", "none", "x"], 3, "no_container", "none");
    refused(
        &["snapshot", "branch", dir, "monday", "(system)", "x"],
        3,
        "no_container",
        "\"(system)\"",
    );
    for (name, why) in
        [("a\u{202e}b", "cannot be seen"), (" ", "white space"), ("#1", "`#`"), ("", "empty")]
    {
        refused(&["snapshot", "take", dir, name], 4, "bad_name", why);
        refused(&["snapshot", "branch", dir, "monday", "bank", name], 4, "bad_name", why);
    }

    well(&["snapshot", "branch", dir, "monday", "bank", "old bank"]);
    for command in ["ls", "stat", "verify", "scrub"] {
        well(&[command, dir]);
    }
    let store = stead::open(&path).unwrap();
    let old = store.container::<common::Bank>("old bank", |_| unreachable!()).unwrap();
    assert_eq!(old.read(|root, _| root.accounts.len()).unwrap(), 100);
    drop(old);
    // In use, it can be looked at, and not changed.
    let bank = bank_of(&store);
    well(&["snapshot", "list", dir]);
    refused(&["snapshot", "take", dir, "now"], 3, "in_use", "is in use by process");
    // Who has it open can do it.
    refused(
        &["snapshot", "drop", dir, "monday"],
        3,
        "in_use",
        "that it has open itself (`Store::snapshot`)",
    );
    drop(bank);
    store.remove("bank").unwrap();
    drop(store);
    // What was removed comes back under any name.
    well(&["snapshot", "branch", dir, "tuesday", "bank", "bank"]);
    assert_eq!(accounts(&path), 111);
    well(&["snapshot", "go-back", dir, "monday"]);
    assert_eq!(accounts(&path), 100);
    assert_eq!(stead::open_read_only(&path).unwrap().names(), ["bank"]);
    well(&["snapshot", "drop", dir, "monday"]);
    let left = well(&["snapshot", "list", dir]).json();
    assert_eq!(left["snapshots"].as_array().unwrap().len(), 1);
    well(&["verify", dir]);
}

#[test]
fn a_store_in_use_is_backed_up_and_restored() {
    let Some(_alone) = alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    let (path, dir) = (temp.path().join("store"), at("store"));
    bank(&path, 5000);
    well(&["snapshot", "take", &dir, "base"]);
    bank(&path, 1);
    let held = stead::open(&path).unwrap();

    let full = well(&["backup", &dir, "--snapshot", "base", "-o", &at("full")]).json();
    let changes = well(&["backup", &dir, "--since", "base", "-o", &at("changes")]).json();
    assert_eq!((&full["snapshot"], &changes["since"]), (&"base".into(), &"base".into()));
    assert!(changes["backup_bytes"].as_u64().unwrap() * 2 < full["backup_bytes"].as_u64().unwrap());
    assert!(!temp.path().join("full.part").exists());
    drop(held);

    well(&["restore", &at("one"), "-i", &at("full")]);
    assert_eq!(accounts(&temp.path().join("one")), 5000);
    well(&["verify", &at("one")]);
    well(&["restore", &at("two"), "-i", &at("full"), "-i", &at("changes")]);
    assert_eq!(accounts(&temp.path().join("two")), 5001);
    // By a pipe, and no words among the bytes.
    let mut writer = Command::new(env!("CARGO_BIN_EXE_stead"))
        .args(["backup", &dir])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let reader = Command::new(env!("CARGO_BIN_EXE_stead"))
        .args(["restore", &at("three")])
        .stdin(writer.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(reader.status.success(), "{reader:?}");
    let said = writer.wait_with_output().unwrap();
    assert!(
        String::from_utf8_lossy(&said.stderr).contains("the state after stabilisation"),
        "{said:?}"
    );
    assert_eq!(accounts(&temp.path().join("three")), 5001);

    refused(
        &["restore", &at("four"), "-i", &at("changes")],
        4,
        "wrong_base",
        "since snapshot \"base\"",
    );
    refused(&["restore", &at("one"), "-i", &at("full")], 4, "exists", "is there already");
    refused(&["restore", &at("five"), "-i", &at("none")], 4, "system", "none: No such file");
    refused(&["backup", &dir, "--snapshot", "none", "-o", &at("x")], 3, "no_snapshot", "\"none\"");
    refused(&["backup", &at("none"), "-o", &at("x")], 3, "missing", "does not exist");
    assert!(!temp.path().join("x").exists() && !temp.path().join("x.part").exists());
    let mut bytes = fs::read(at("full")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(at("bad"), &bytes).unwrap();
    refused(
        &["restore", &at("four"), "-i", &at("bad")],
        1,
        "bad_backup",
        "bad: the backup is damaged at byte",
    );
    fs::write(at("cut"), &bytes[..middle]).unwrap();
    refused(&["restore", &at("four"), "-i", &at("cut")], 1, "bad_backup", "ends too early");
    assert!(!temp.path().join("four").exists() && !temp.path().join("four.restoring").exists());
    // Where the answer and the backup would be mixed.
    refused(&["backup", &dir], 2, "usage", "name a file with -o");
    let full_disk = Command::new(env!("CARGO_BIN_EXE_stead"))
        .args(["backup", &dir])
        .stdout(File::options().write(true).open("/dev/full").unwrap())
        .output()
        .unwrap();
    assert_eq!(full_disk.status.code(), Some(4), "{full_disk:?}");
}

#[test]
fn a_backup_goes_through_links_and_into_devices() {
    let Some(_alone) = alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    let dir = at("store");
    bank(&dir, 10);
    let links = [("link", "file"), ("device", "/dev/null")];
    fs::write(at("file"), "the backup of yesterday").unwrap();
    for (link, to) in links {
        std::os::unix::fs::symlink(to, at(link)).unwrap();
        well(&["backup", dir.to_str().unwrap(), "-o", at(link).to_str().unwrap()]);
        assert_eq!(fs::read_link(at(link)).unwrap(), Path::new(to));
    }
    well(&["restore", at("copy").to_str().unwrap(), "-i", at("file").to_str().unwrap()]);
    assert_eq!(accounts(&at("copy")), 10);
    std::os::unix::fs::symlink("nothing", at("dangling")).unwrap();
    let dangling = at("dangling");
    let args = ["backup", dir.to_str().unwrap(), "-o", dangling.to_str().unwrap()];
    refused(&args, 4, "system", "a link to nothing");
    assert!(at("dangling").is_symlink());
    for inside in ["log", "new"] {
        let file = dir.join(inside);
        let args = ["backup", dir.to_str().unwrap(), "-o", file.to_str().unwrap()];
        refused(&args, 4, "system", "inside the store itself");
    }
    assert_eq!(accounts(&dir), 10);
    let parts = fs::read_dir(temp.path()).unwrap();
    assert!(parts.flatten().all(|entry| !entry.file_name().to_string_lossy().ends_with(".part")));
}

#[test]
fn a_backup_that_nobody_reads_or_that_goes_nowhere_says_so() {
    let Some(_alone) = alone() else { return };
    let (_temp, dir) = common::new_bank(5000);
    let stead = env!("CARGO_BIN_EXE_stead");
    let sh = |script: &str| {
        let ran = Command::new("sh").args(["-c", script, stead, &dir]).output().unwrap();
        (ran.status.code(), String::from_utf8(ran.stderr).unwrap())
    };
    // The reader is gone when the first byte comes: it opened the pipe and closed it.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let unread = Command::new(stead).args(["backup", &dir]).stdout(writer).output().unwrap();
    assert_eq!((unread.status.code(), &unread.stderr[..]), (Some(141), &b""[..]), "{unread:?}");
    for nowhere in [">&-", "1<>/dev/null"] {
        let (code, said) = sh(&format!("\"$0\" backup \"$1\" {nowhere}"));
        assert_eq!(code, Some(4), "{nowhere}: {said}");
        assert!(said.contains("standard output is closed") && said.contains("-o"), "{said}");
    }
    // Said in so many words, it may be thrown away.
    for thrown_away in [">/dev/null", "-o /dev/null >&-"] {
        let (code, said) = sh(&format!("\"$0\" backup \"$1\" {thrown_away}"));
        assert_eq!(code, Some(0), "{thrown_away}: {said}");
    }
}

#[test]
fn an_empty_directory_is_restored_to_however_it_is_written() {
    let Some(_alone) = alone() else { return };
    let (temp, dir) = common::new_bank(10);
    let backup = temp.path().join("backup");
    let backup = backup.to_str().unwrap();
    well(&["backup", &dir, "-o", backup]);
    let restore = |from: &Path, dir: &str| {
        let stead = Command::new(env!("CARGO_BIN_EXE_stead"))
            .args(["restore", dir, "-i", backup])
            .current_dir(from)
            .output()
            .unwrap();
        (stead.status.code(), String::from_utf8(stead.stderr).unwrap())
    };
    let top = temp.path();
    let empty = |name: &str| {
        fs::create_dir(top.join(name)).unwrap();
        top.join(name)
    };
    for (i, written) in [".", "./", "././.", "../e3", "../e4/."].into_iter().enumerate() {
        let place = empty(&format!("e{i}"));
        let (code, said) = restore(&place, written);
        assert_eq!(code, Some(0), "{written}: {said}");
        assert_eq!(accounts(&place), 10);
    }
    empty("f0");
    empty("f1");
    for written in ["f0/", "f1/.", "f2/", "f3/.", "./f4", "f5//.//"] {
        let (code, said) = restore(top, written);
        assert_eq!(code, Some(0), "{written}: {said}");
        assert_eq!(accounts(&top.join(written)), 10);
    }
    fs::create_dir(empty("full").join("sub")).unwrap();
    for (written, why) in
        [("/", "is there already"), ("full/sub/..", "is there already"), ("none/..", "none/..")]
    {
        let (code, said) = restore(top, written);
        assert!(code == Some(4) && said.contains(why), "{written}: {said}");
    }
    // What a killed attempt has left beside it goes, however that was written.
    let place = empty("g");
    let left = top.join("g.restoring/store");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("log"), "half of it").unwrap();
    assert_eq!(restore(&place, ".").0, Some(0));
    assert_eq!(accounts(&place), 10);
    let names = fs::read_dir(top).unwrap().flatten().map(|entry| entry.file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains(".restoring")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_mount_point_is_not_restored_to() {
    let Some(_alone) = alone() else { return };
    let (temp, dir) = common::new_bank(10);
    let backup = temp.path().join("backup");
    well(&["backup", &dir, "-o", backup.to_str().unwrap()]);
    let place = temp.path().join("mounted");
    fs::create_dir(&place).unwrap();
    let script = "mount -t tmpfs none \"$2\" && exec \"$0\" restore --json \"$2\" -i \"$1\"";
    let ran = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_stead")])
        .args([&backup, &place])
        .output();
    let Ok(ran) = ran.inspect_err(|error| println!("NOT RUN: unshare: {error}")) else { return };
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(&ran.stdout) else {
        println!("NOT RUN: mounting: {}", String::from_utf8_lossy(&ran.stderr));
        return;
    };
    assert_eq!(json["error"]["kind"], "exists", "{json}");
    assert!(json["error"]["message"].as_str().unwrap().contains("is a mount point"), "{json}");
    assert!(!temp.path().join("mounted.restoring").exists());
}
