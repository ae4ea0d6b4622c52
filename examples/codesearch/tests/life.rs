//! The index outlives the runs that make it: killed while indexing, changed files, other trees.

use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime};

use codesearch::index::Tree;
use codesearch::update::update;
use codesearch::walk::walk;
use codesearch::{ordinary, pipeline};
use support::{Bench, figure, has_grep, has_stead, nasty_tree, sorted, text};

mod support;

#[test]
fn the_second_run_reads_no_tree() {
    if !has_stead() {
        return;
    }
    let bench = Bench::new();
    bench.file("tree/a", "one\n");
    bench.file("tree/b", "two\n");
    let first = bench.search(["--stats", "one", "tree"]);
    assert_eq!(figure(&first, "already there", "documents"), 0);
    assert_eq!(figure(&first, "indexed now", "new"), 2);

    // It does not look for new files, but what it reads, it reads from the files.
    bench.file("tree/c", "one more\n");
    bench.file("tree/a", "zero\none\n");
    let second = bench.search(["--stats", "one", "tree"]);
    assert_eq!(figure(&second, "already there", "documents"), 2);
    assert!(!text(&second.stderr).contains("indexed now"), "{}", text(&second.stderr));
    assert_eq!(text(&second.stdout), "tree/a:2:one\n");
}

#[test]
fn refresh_sees_new_changed_and_gone_files() {
    if !has_stead() {
        return;
    }
    let bench = Bench::new();
    for name in ["changed", "gone", "same", "touched", "dir/was_a_file"] {
        bench.file(PathBuf::from("tree").join(name), "one\n");
    }
    assert_eq!(bench.search(["one", "tree"]).status.code(), Some(0));

    bench.file("tree/a_new", "one new\n");
    bench.file("tree/changed", "two, formerly 1\n");
    fs::remove_file(bench.path().join("tree/gone")).unwrap();
    let touched = fs::File::options().write(true).open(bench.path().join("tree/touched")).unwrap();
    touched.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
    fs::remove_file(bench.path().join("tree/dir/was_a_file")).unwrap();
    bench.file("tree/dir/was_a_file/below", "one\n");

    // Until it is told to look, it does not know of them; what is no more is not printed.
    assert_eq!(
        text(&bench.search(["one", "tree"]).stdout),
        "tree/same:1:one\ntree/touched:1:one\n"
    );

    let output = bench.search(["--refresh", "--stats", "one|two", "tree"]);
    assert_eq!(figure(&output, "already there", "documents"), 1);
    assert_eq!(figure(&output, "indexed now", "new"), 2);
    assert_eq!(figure(&output, "indexed now", "changed"), 2);
    assert_eq!(figure(&output, "indexed now", "gone"), 2);
    assert_eq!(
        text(&output.stdout),
        "tree/a_new:1:one new\ntree/changed:1:two, formerly 1\n\
         tree/dir/was_a_file/below:1:one\ntree/same:1:one\ntree/touched:1:one\n",
        "in the order of the paths, new files too"
    );
    let again = bench.search(["--refresh", "--stats", "one|two", "tree"]);
    assert_eq!(figure(&again, "already there", "documents"), 5);
    assert_eq!(figure(&again, "indexed now", "new"), 0);
    assert_eq!(again.stdout, output.stdout);
}

/// Many changes: the index is compacted, and answers as one made anew does.
#[test]
fn an_index_with_many_dead_documents_is_compacted() {
    if !has_stead() {
        return;
    }
    let bench = Bench::new();
    let name = |number: u32| PathBuf::from(format!("tree/{}/{number}", number % 7));
    let word = |number: u32| format!("word{:03}\ncommon\n", number % 50);
    for number in 0..600 {
        bench.file(name(number), word(number));
    }
    assert_eq!(bench.search(["common", "tree"]).status.code(), Some(0));
    for number in 0..300 {
        fs::remove_file(bench.path().join(name(number))).unwrap();
    }
    for number in 550..700 {
        bench.file(name(number), format!("{}and more\n", word(number + 1)));
    }
    let output = bench.search(["--refresh", "--stats", "common", "tree"]);
    assert_eq!(figure(&output, "index", "documents"), 400);
    assert!(!text(&output.stderr).contains("gone, 0 unreadable"), "{}", text(&output.stderr));

    for pattern in ["common", "word01[0-9]", "word0", "more", "", "word0(01|49)"] {
        let old = bench.search([pattern, "tree"]);
        let mut new = std::process::Command::new(env!("CARGO_BIN_EXE_codesearch"));
        new.arg("--store").arg(bench.path().join("anew")).current_dir(bench.path());
        let new = new.args([pattern, "tree"]).output().unwrap();
        assert_eq!(text(&old.stdout), text(&new.stdout), "{pattern:?}");
        assert!(!old.stdout.is_empty(), "{pattern:?}");
    }
}

#[test]
fn each_tree_has_an_index_of_its_own_under_any_name() {
    if !has_stead() {
        return;
    }
    let bench = Bench::new();
    bench.file("first/a", "one\n");
    bench.file("second/a", "one\n");
    assert_eq!(text(&bench.search(["one", "first"]).stdout), "first/a:1:one\n");
    let both = bench.search(["--stats", "one", "second", "first/"]);
    assert_eq!(text(&both.stdout), "second/a:1:one\nfirst/a:1:one\n");
    assert_eq!(figure(&both, "indexed now", "new"), 1);
    assert_eq!(figure(&both, "already there", "documents"), 1);

    // The same tree by another way, with the index that is there.
    std::os::unix::fs::symlink("first", bench.path().join("link")).unwrap();
    let link = bench.search(["--stats", "one", "link"]);
    assert_eq!(text(&link.stdout), "link/a:1:one\n");
    assert_eq!(figure(&link, "already there", "documents"), 1);
}

#[test]
fn a_directory_in_an_indexed_tree_is_searched_with_the_trees_index() {
    if !has_stead() {
        return;
    }
    let bench = Bench::new();
    for path in ["tree/a/b/one", "tree/a/b/two", "tree/a/three", "tree/a-b/four", "tree/five"] {
        bench.file(path, "common\n");
    }
    assert_eq!(bench.search(["common", "tree"]).status.code(), Some(0));
    let part = bench.search(["--stats", "common", "tree/a/"]);
    assert_eq!(
        text(&part.stdout),
        "tree/a/b/one:1:common\ntree/a/b/two:1:common\ntree/a/three:1:common\n"
    );
    assert_eq!(figure(&part, "already there", "documents"), 5);
    let empty_pattern = bench.search(["", "tree/a/b"]);
    assert_eq!(text(&empty_pattern.stdout), "tree/a/b/one:1:common\ntree/a/b/two:1:common\n");

    // Refreshing a part leaves the rest alone.
    fs::remove_file(bench.path().join("tree/a/b/one")).unwrap();
    fs::remove_file(bench.path().join("tree/five")).unwrap();
    bench.file("tree/a/new", "common\n");
    let part = bench.search(["--refresh", "--stats", "common", "tree/a"]);
    assert_eq!(
        text(&part.stdout),
        "tree/a/b/two:1:common\ntree/a/new:1:common\ntree/a/three:1:common\n"
    );
    assert_eq!(figure(&part, "indexed now", "gone"), 1);
    assert_eq!(figure(&part, "already there", "documents"), 2);

    // A directory that the tree's index has never seen gets one of its own.
    bench.file("tree/later/six", "common\n");
    assert_eq!(text(&bench.search(["common", "tree/later"]).stdout), "tree/later/six:1:common\n");
}

/// What codesearch-bench compares is the same structure.
#[test]
fn the_twin_in_ordinary_memory_is_the_same_index() {
    if !has_stead() {
        return;
    }
    let bench = Bench::new();
    nasty_tree(&bench, "tree");
    let root = bench.path().join("tree").canonicalize().unwrap();
    let store = stead::open(bench.store()).unwrap();
    let tree = Tree::open(&store, &root).unwrap();
    update(&tree, None, |_| {}).unwrap();
    let mut twin = ordinary::Index::default();
    let Ok(()) = pipeline::run(&root, &walk(&root, &root, None, |_| {}), |batch| {
        twin.add(&batch);
        Ok::<(), Infallible>(())
    });
    let size = tree.size().unwrap();
    assert!(size.trigrams > 300, "{size:?}");
    assert_eq!(twin.counts(), [size.documents, size.trigrams, size.list_bytes]);
}

/// Killed again and again while it indexes, it keeps what was stable, and in the end knows all.
#[test]
fn killed_while_indexing_it_goes_on() {
    if !has_stead() || !has_grep() {
        return;
    }
    const LINKS: u64 = 800;
    // Much to read that takes little room: many names for few files.
    let bench = Bench::new();
    let mut random = fastrand::Rng::with_seed(11);
    for number in 0..32 {
        let text: String = (0..6000)
            .map(|at| {
                let end = if at % 6 == 5 { '\n' } else { ' ' };
                format!("{:x}{end}", random.u32(..) >> random.u32(0..24))
            })
            .collect();
        let file = bench.file(format!("sources/{number}"), format!("{text}needle{number:02}\n"));
        for copy in 0..LINKS {
            let dir = bench.path().join(format!("tree/{}", copy % 10));
            fs::create_dir_all(&dir).unwrap();
            fs::hard_link(&file, dir.join(format!("{number}-{copy}"))).unwrap();
        }
    }

    // What is stable after a kill is found by opening the store, so that nothing depends on how fast
    // this machine is.
    let canonical = bench.path().join("tree").canonicalize().unwrap();
    let mut delay = Duration::from_millis(400);
    let mut kills = 0;
    let mut stable = 0;
    let mut attempts = 0;
    while stable == 0 || kills < 3 {
        attempts += 1;
        if attempts > 30 {
            eprintln!("NOT RUN: this machine indexes everything before anything is stable");
            return;
        }
        let mut child = bench.codesearch().args(["needle07", "tree"]).spawn().unwrap();
        thread::sleep(delay);
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;

        let store = stead::open(bench.store()).unwrap();
        let tree = Tree::open(&store, &canonical).unwrap();
        let documents = tree.size().unwrap().documents;
        assert!(documents >= stable, "{stable} documents were stable, now only {documents} are");
        assert_eq!(tree.known().unwrap().len() as u64, documents);
        stable = documents;
        if tree.is_complete().unwrap() {
            // Too late: once more from the beginning, and faster.
            drop((tree, store));
            fs::remove_dir_all(bench.store()).unwrap();
            (delay, kills, stable) = (delay / 3, 0, 0);
        } else if stable == 0 {
            delay *= 2;
        }
    }
    let output = bench.search(["--stats", "needle07", "tree"]);
    eprintln!("after {kills} kills {stable} documents of {} were there", 32 * LINKS);
    assert_eq!(figure(&output, "already there", "documents"), stable);
    assert_eq!(figure(&output, "indexed now", "new"), 32 * LINKS - stable);
    assert_eq!(figure(&output, "index", "documents"), 32 * LINKS);
    assert_eq!(sorted(&output.stdout).len() as u64, LINKS);
    let theirs = bench.grep(["needle07", "tree"]);
    assert_eq!(sorted(&output.stdout), sorted(&theirs.stdout));
}
