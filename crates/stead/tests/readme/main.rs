//! The programs of the README are run, and are those of the README.

#[path = "../common/mod.rs"]
mod common;
mod options;
mod program;
mod sections;

use stead::{Container, HashMap, Vec};

/// The programs of the README, in its order.
fn blocks() -> std::vec::Vec<String> {
    let readme = include_str!("../../../../README.md");
    let blocks = readme.split("```rust").skip(1);
    blocks
        .map(|block| block.split_once('\n').unwrap().1.split("```").next().unwrap().to_owned())
        .collect()
}

#[test]
fn they_are_those_of_the_readme() {
    let files =
        [include_str!("program.rs"), include_str!("sections.rs"), include_str!("options.rs")];
    // Here the parts are visible to each other, and lines are broken accordingly.
    let plain = |code: &str| {
        let code = code.replace("pub(crate) ", "");
        code.split_whitespace().collect::<String>().replace(",)", ")")
    };
    let of_readme: std::vec::Vec<String> = blocks().iter().map(|block| plain(block)).collect();
    let run = files.map(|file| plain(file.split_once("\n\n").unwrap().1));
    assert_eq!(of_readme, run);
}

#[test]
fn they_do_what_is_said_of_them() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    std::env::set_current_dir(temp.path()).unwrap();
    for _ in 0..3 {
        program::main().unwrap();
    }
    let missing = options::main().unwrap_err();
    assert!(missing.to_string().contains("does not exist"), "{missing}");
    drop(stead::open("./totals").unwrap());
    options::main().unwrap();
    let totals = stead::open_read_only("./totals").unwrap();
    assert_eq!(totals.snapshots()[0].name, "evening");
    let container = totals.container::<options::Totals>("totals").unwrap();
    assert_eq!(container.read(|root, _| root.of_day.to_vec()).unwrap(), [11]);
    drop((container, totals));

    let store = stead::open("./bank").unwrap();
    let bank: Container<sections::Bank<'static>> = store
        .container("bank", |tx| {
            Ok(sections::Bank { accounts: Vec::new(tx), by_name: HashMap::new(tx) })
        })
        .unwrap();
    for name in ["one", "two"] {
        sections::open_account(&bank, name).unwrap();
    }
    sections::transfer(&bank, 0, 1, 5).unwrap();
    assert_eq!(sections::number_of(&bank, "two").unwrap(), Some(1));
    assert_eq!(sections::number_of(&bank, "three").unwrap(), None);
}
