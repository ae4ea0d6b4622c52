//! Holds `SPEC.md` to the code: every invariant is cited in `src/` and in a test, and nothing cites a
//! number that the page does not have.

use std::collections::BTreeSet;
use std::path::Path;

/// Numbers like `I7` or `R2` that stand alone in a text.
fn cited(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    let is_number = |word: &&str| {
        let (kind, digits) = word.split_at(usize::from(!word.is_empty()));
        matches!(kind, "I" | "R")
            && !digits.is_empty()
            && digits.len() <= 2
            && digits.bytes().all(|b| b.is_ascii_digit())
    };
    words.filter(is_number).map(str::to_owned).collect()
}

/// The text of all Rust files below a folder.
fn read_all(folder: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            text.push_str(&read_all(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            text.push_str(&std::fs::read_to_string(&path).expect("a file"));
        }
    }
    text
}

#[test]
fn every_invariant_is_kept_and_guarded() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let spec = std::fs::read_to_string(root.join("SPEC.md")).expect("SPEC.md");
    let stated: BTreeSet<String> = spec
        .lines()
        .filter_map(|line| line.strip_prefix("- **")?.split_once("**"))
        .flat_map(|(number, _)| cited(number))
        .collect();
    assert_eq!(stated.len(), 25, "22 invariants and three rules: {stated:?}");
    let code = cited(&read_all(&root.join("src")));
    let simulator = root.join("../../simulator");
    let tests = read_all(&root.join("tests"))
        + &read_all(&simulator.join("src"))
        + &read_all(&simulator.join("tests"));
    let tests = cited(&tests);
    let none = BTreeSet::new();
    assert_eq!(&stated - &code, none, "stated and not cited in src");
    assert_eq!(&stated - &tests, none, "stated and not cited by a test");
    assert_eq!(&(&code | &tests) - &stated, none, "cited and not stated");
}
