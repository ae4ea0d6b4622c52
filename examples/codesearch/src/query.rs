//! Which trigrams a file must hold so that a line of it can match an expression: a formula of ANDs
//! and ORs, derived as in Russ Cox's "Regular Expression Matching with a Trigram Index". Letters
//! are folded to lower case, as the index folds them. Knows no index. Read [`Query`] first.

use std::collections::BTreeSet;

use regex_syntax::hir::{Class, Hir, HirKind, Repetition};

use crate::trigrams::Trigram;

/// More alternatives than this are no longer tracked as whole strings.
const EXACT_MAX: usize = 7;
/// More beginnings or ends than this are shortened until fewer remain.
const SET_MAX: usize = 20;
/// A class of more bytes than this counts as any byte.
const CLASS_MAX: usize = 100;
/// Repetitions are unrolled no further than this.
const UNROLLED_MAX: u32 = 8;
/// With this few candidates left, reading them is cheaper than fetching another list.
const FEW: usize = 8;

/// What must hold for a document to be worth reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Nothing is required: every document must be read.
    All,
    /// No document can match.
    None,
    /// The document holds this trigram.
    Has(Trigram),
    /// All of these hold.
    And(Vec<Query>),
    /// At least one of these holds.
    Or(Vec<Query>),
}

/// Where the documents of a trigram are found.
pub trait Lists {
    /// In how many documents the trigram occurs.
    fn count(&self, trigram: Trigram) -> usize;

    /// Their numbers, ascending.
    fn documents(&self, trigram: Trigram) -> Vec<u32>;
}

/// The documents that a query leaves over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Candidates {
    /// Every document there is.
    All,
    /// Only these, ascending.
    Only(Vec<u32>),
}

impl Query {
    /// What a match of `hir` requires. Its matches may not hold line feeds.
    #[must_use]
    pub fn from_hir(hir: &Hir) -> Query {
        let mut facts = Facts::of(hir);
        facts.simplify(true);
        facts.query
    }

    /// The documents that satisfy this query: at least those that do, perhaps some that do not.
    pub fn candidates(&self, lists: &impl Lists) -> Candidates {
        match self {
            Query::All => Candidates::All,
            Query::None => Candidates::Only(Vec::new()),
            Query::Has(trigram) => Candidates::Only(lists.documents(*trigram)),
            Query::Or(parts) => {
                let mut found = Vec::new();
                for part in parts {
                    match part.candidates(lists) {
                        Candidates::All => return Candidates::All,
                        Candidates::Only(documents) => found.extend(documents),
                    }
                }
                found.sort_unstable();
                found.dedup();
                Candidates::Only(found)
            }
            Query::And(parts) => {
                let mut parts: Vec<(usize, &Query)> =
                    parts.iter().map(|part| (part.count_max(lists), part)).collect();
                parts.sort_by_key(|(count, _)| *count);
                let mut found: Option<Vec<u32>> = None;
                for (_, part) in parts {
                    if found.as_ref().is_some_and(|found| found.len() <= FEW) {
                        break;
                    }
                    if let Candidates::Only(documents) = part.candidates(lists) {
                        found = Some(match found {
                            None => documents,
                            Some(found) => intersection(&found, &documents),
                        });
                    }
                }
                found.map_or(Candidates::All, Candidates::Only)
            }
        }
    }

    /// No more documents than this satisfy the query.
    fn count_max(&self, lists: &impl Lists) -> usize {
        match self {
            Query::All => usize::MAX,
            Query::None => 0,
            Query::Has(trigram) => lists.count(*trigram),
            Query::And(parts) => {
                parts.iter().map(|part| part.count_max(lists)).min().unwrap_or(usize::MAX)
            }
            Query::Or(parts) => {
                parts.iter().map(|part| part.count_max(lists)).fold(0, usize::saturating_add)
            }
        }
    }

    fn and(self, other: Query) -> Query {
        match (self, other) {
            (Query::All, query) | (query, Query::All) => query,
            (Query::None, _) | (_, Query::None) => Query::None,
            (left, right) => {
                let mut parts = Vec::new();
                for query in [left, right] {
                    match query {
                        Query::And(inner) => parts.extend(inner),
                        other => parts.push(other),
                    }
                }
                Query::collect(parts, Query::And)
            }
        }
    }

    fn or(self, other: Query) -> Query {
        match (self, other) {
            (Query::None, query) | (query, Query::None) => query,
            (Query::All, _) | (_, Query::All) => Query::All,
            (left, right) => {
                let mut parts = Vec::new();
                for query in [left, right] {
                    match query {
                        Query::Or(inner) => parts.extend(inner),
                        other => parts.push(other),
                    }
                }
                Query::collect(parts, Query::Or)
            }
        }
    }

    /// Drops repeated parts, and the list around a single one.
    fn collect(parts: Vec<Query>, list: fn(Vec<Query>) -> Query) -> Query {
        let mut unique: Vec<Query> = Vec::with_capacity(parts.len());
        for part in parts {
            if !unique.contains(&part) {
                unique.push(part);
            }
        }
        if unique.len() == 1 { unique.remove(0) } else { list(unique) }
    }

    /// One of `strings` occurs.
    fn any_of(strings: &Strings) -> Query {
        if strings.iter().map(Vec::len).min().unwrap_or(0) < 3 {
            return Query::All;
        }
        // A string that holds another one requires more than that one, and alternatively.
        let holds = |long: &[u8], short: &[u8]| {
            short.len() < long.len() && long.windows(short.len()).any(|part| part == short)
        };
        strings
            .iter()
            .filter(|long| !strings.iter().any(|short| holds(long, short)))
            .map(|string| {
                string
                    .windows(3)
                    .map(|three| Query::Has(Trigram::new([three[0], three[1], three[2]])))
                    .fold(Query::All, Query::and)
            })
            .fold(Query::None, Query::or)
    }
}

fn intersection(left: &[u32], right: &[u32]) -> Vec<u32> {
    let mut both = Vec::with_capacity(left.len().min(right.len()));
    let (mut i, mut j) = (0, 0);
    while i < left.len() && j < right.len() {
        match left[i].cmp(&right[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                both.push(left[i]);
                i += 1;
                j += 1;
            }
        }
    }
    both
}

type Strings = BTreeSet<Vec<u8>>;

/// What is known of the matches of a part of an expression.
#[derive(Debug)]
struct Facts {
    /// All of them, if they are few.
    exact: Option<Strings>,
    /// Every match begins with one of these. Meaningless while `exact` is known.
    beginnings: Strings,
    /// Every match ends with one of these. Meaningless while `exact` is known.
    ends: Strings,
    /// What every match requires beyond the sets above.
    query: Query,
    /// Whether the empty string is among them.
    can_be_empty: bool,
}

impl Facts {
    fn of(hir: &Hir) -> Facts {
        match hir.kind() {
            HirKind::Empty | HirKind::Look(_) => Facts::empty(),
            HirKind::Literal(literal) => Facts::exactly([literal.0.to_ascii_lowercase()]),
            HirKind::Class(class) => Facts::of_class(class),
            HirKind::Repetition(repetition) => Facts::of_repetition(repetition),
            HirKind::Capture(capture) => Facts::of(&capture.sub),
            HirKind::Concat(parts) => parts.iter().map(Facts::of).fold(Facts::empty(), Facts::then),
            HirKind::Alternation(parts) => {
                parts.iter().map(Facts::of).reduce(Facts::or).unwrap_or_else(Facts::empty)
            }
        }
    }

    fn empty() -> Facts {
        Facts::exactly([Vec::new()])
    }

    fn exactly(strings: impl IntoIterator<Item = Vec<u8>>) -> Facts {
        let exact: Strings = strings.into_iter().collect();
        let can_be_empty = exact.iter().any(Vec::is_empty);
        let mut facts = Facts {
            exact: Some(exact),
            beginnings: Strings::new(),
            ends: Strings::new(),
            query: Query::All,
            can_be_empty,
        };
        facts.simplify(false);
        facts
    }

    /// Anything may match.
    fn unknown(can_be_empty: bool) -> Facts {
        Facts {
            exact: None,
            beginnings: Strings::from([Vec::new()]),
            ends: Strings::from([Vec::new()]),
            query: Query::All,
            can_be_empty,
        }
    }

    /// Nothing matches.
    fn nothing() -> Facts {
        Facts {
            exact: None,
            beginnings: Strings::new(),
            ends: Strings::new(),
            query: Query::None,
            can_be_empty: false,
        }
    }

    fn of_class(class: &Class) -> Facts {
        let mut strings = Strings::new();
        match class {
            Class::Bytes(class) => {
                for range in class.ranges() {
                    for byte in range.start()..=range.end() {
                        strings.insert(vec![byte.to_ascii_lowercase()]);
                    }
                }
            }
            Class::Unicode(class) => {
                for range in class.ranges() {
                    for char in range.start()..=range.end() {
                        if strings.len() > CLASS_MAX {
                            return Facts::unknown(false);
                        }
                        strings.insert(char.to_string().to_ascii_lowercase().into_bytes());
                    }
                }
            }
        }
        match strings.len() {
            0 => Facts::nothing(),
            1..=CLASS_MAX => Facts::exactly(strings),
            _ => Facts::unknown(false),
        }
    }

    fn of_repetition(repetition: &Repetition) -> Facts {
        match (repetition.min, repetition.max) {
            (_, Some(0)) => Facts::empty(),
            (0, Some(1)) => Facts::of(&repetition.sub).or(Facts::empty()),
            (0, _) => Facts::unknown(true),
            (min, max) => {
                let unrolled = min.min(UNROLLED_MAX);
                let mut facts = (0..unrolled)
                    .map(|_| Facts::of(&repetition.sub))
                    .fold(Facts::empty(), Facts::then);
                if max != Some(unrolled) {
                    // More may stand between the copies at the beginning and those at the end.
                    if let Some(exact) = facts.exact.take() {
                        facts.beginnings = exact.clone();
                        facts.ends = exact;
                        facts.simplify(false);
                    }
                }
                facts
            }
        }
    }

    fn then(self, next: Facts) -> Facts {
        let can_be_empty = self.can_be_empty && next.can_be_empty;
        let mut query = self.query.and(next.query);
        let mut joined = match (self.exact, next.exact) {
            (Some(left), Some(right)) => Facts {
                exact: Some(cross(&left, &right)),
                beginnings: Strings::new(),
                ends: Strings::new(),
                query,
                can_be_empty,
            },
            (Some(left), None) => {
                let mut ends = next.ends;
                if next.can_be_empty {
                    ends.extend(left.iter().cloned());
                }
                let beginnings = cross(&left, &next.beginnings);
                Facts { exact: None, beginnings, ends, query, can_be_empty }
            }
            (None, Some(right)) => {
                let mut beginnings = self.beginnings;
                if self.can_be_empty {
                    beginnings.extend(right.iter().cloned());
                }
                let ends = cross(&self.ends, &right);
                Facts { exact: None, beginnings, ends, query, can_be_empty }
            }
            (None, None) => {
                // The seam holds trigrams that stand in neither set.
                query = query.and(Query::any_of(&cross(&self.ends, &next.beginnings)));
                let mut beginnings = self.beginnings;
                if self.can_be_empty {
                    beginnings.extend(next.beginnings.iter().cloned());
                }
                let mut ends = next.ends;
                if next.can_be_empty {
                    ends.extend(self.ends.iter().cloned());
                }
                Facts { exact: None, beginnings, ends, query, can_be_empty }
            }
        };
        joined.simplify(false);
        joined
    }

    fn or(mut self, mut other: Facts) -> Facts {
        let can_be_empty = self.can_be_empty || other.can_be_empty;
        let mut either = match (self.exact.take(), other.exact.take()) {
            (Some(mut left), Some(right)) => {
                left.extend(right);
                Facts {
                    exact: Some(left),
                    beginnings: Strings::new(),
                    ends: Strings::new(),
                    query: self.query.or(other.query),
                    can_be_empty,
                }
            }
            (left, right) => {
                // Strings known exactly turn into beginnings, ends and a requirement.
                for (facts, exact) in [(&mut self, left), (&mut other, right)] {
                    if let Some(exact) = exact {
                        let query = std::mem::replace(&mut facts.query, Query::All);
                        facts.query = query.and(Query::any_of(&exact));
                        facts.beginnings = exact.clone();
                        facts.ends = exact;
                    }
                }
                self.beginnings.extend(other.beginnings);
                self.ends.extend(other.ends);
                Facts {
                    exact: None,
                    beginnings: self.beginnings,
                    ends: self.ends,
                    query: self.query.or(other.query),
                    can_be_empty,
                }
            }
        };
        either.simplify(false);
        either
    }

    /// Moves what the sets say into the query, and keeps the sets small. With `finish` nothing
    /// stays behind in the exact strings.
    fn simplify(&mut self, finish: bool) {
        if let Some(exact) = &self.exact {
            let shortest = exact.iter().map(Vec::len).min().unwrap_or(0);
            if exact.len() > EXACT_MAX || shortest >= 4 || finish {
                let exact = self.exact.take().unwrap_or_default();
                self.require(&exact);
                self.beginnings = exact.clone();
                self.ends = exact;
            }
        }
        if self.exact.is_none() {
            let beginnings = std::mem::take(&mut self.beginnings);
            self.require(&beginnings);
            self.beginnings = shortened(beginnings, |string, len| string.truncate(len));
            let ends = std::mem::take(&mut self.ends);
            self.require(&ends);
            self.ends = shortened(ends, |string, len| {
                string.drain(..string.len().saturating_sub(len));
            });
        }
    }

    fn require(&mut self, strings: &Strings) {
        let query = std::mem::replace(&mut self.query, Query::All);
        self.query = query.and(Query::any_of(strings));
    }
}

fn cross(left: &Strings, right: &Strings) -> Strings {
    let mut all = Strings::new();
    for a in left {
        for b in right {
            all.insert([a.as_slice(), b.as_slice()].concat());
        }
    }
    all
}

/// Two bytes of each string are enough to complete a trigram at a seam; fewer if there are many.
fn shortened(mut strings: Strings, shorten: fn(&mut Vec<u8>, usize)) -> Strings {
    for len in [2, 1, 0] {
        strings = strings
            .into_iter()
            .map(|mut string| {
                shorten(&mut string, len);
                string
            })
            .collect();
        if strings.len() <= SET_MAX {
            break;
        }
    }
    strings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::pattern::Pattern;

    fn query_of(text: &str) -> String {
        show(Pattern::new(text).unwrap().query())
    }

    fn show(query: &Query) -> String {
        let list = |parts: &[Query], between: &str| {
            let parts: Vec<String> = parts.iter().map(show).collect();
            format!("({})", parts.join(between))
        };
        match query {
            Query::All => "all".to_owned(),
            Query::None => "none".to_owned(),
            Query::Has(trigram) => String::from_utf8_lossy(&trigram.bytes()).into_owned(),
            Query::And(parts) => list(parts, " "),
            Query::Or(parts) => list(parts, "|"),
        }
    }

    #[test]
    fn formulas() {
        for (text, expected) in [
            ("abc", "abc"),
            ("ABCd", "(abc bcd)"),
            ("(?i)abcd", "(abc bcd)"),
            ("ab", "all"),
            (".*", "all"),
            ("", "all"),
            ("x*", "all"),
            ("abc.*def", "(abc def)"),
            ("abc|def", "(abc|def)"),
            ("abc|de", "all"),
            ("(abc|abd)e", "((abc bce)|(abd bde))"),
            ("ab(c|d)", "(abc|abd)"),
            ("a[bc]d", "(abd|acd)"),
            ("abc?", "all"),
            ("abcx?", "abc"),
            ("(abc)+", "abc"),
            ("a{3}", "aaa"),
            ("a{3,}", "aaa"),
            ("^abc$", "abc"),
            ("[^x]yz[^q]", "all"),
            (r"abc\b", "abc"),
            ("a\nb", "all"),
            ("unsafe fn [a-z_]+", "(uns nsa saf afe fe  e f  fn fn )"),
        ] {
            assert_eq!(query_of(text), expected, "{text}");
        }
    }

    struct Fixed(BTreeMap<Trigram, Vec<u32>>);

    impl Lists for Fixed {
        fn count(&self, trigram: Trigram) -> usize {
            self.0.get(&trigram).map_or(0, Vec::len)
        }

        fn documents(&self, trigram: Trigram) -> Vec<u32> {
            self.0.get(&trigram).cloned().unwrap_or_default()
        }
    }

    /// The law that everything rests on: a text that matches is a candidate.
    #[test]
    fn no_match_is_lost() {
        let mut random = fastrand::Rng::with_seed(7);
        let atoms = ["a", "b", "ab", "A", "[ab]", "[^a]", ".", "c?", "(a|bc)", "^", "$", r"\b"];
        let forms = ["", "", "", "*", "+", "?", "{2}", "{1,3}", "{0}", "{9}"];
        let mut matched = 0;
        for round in 0..4000 {
            let mut text = String::new();
            for _ in 0..random.usize(1..7) {
                if random.u8(..8) == 0 {
                    text.push('|');
                }
                let atom = atoms[random.usize(..atoms.len())];
                text.push_str(&format!("(?:{atom}){}", forms[random.usize(..forms.len())]));
            }
            if random.bool() {
                text.insert_str(0, "(?i)");
            }
            let pattern = Pattern::new(&text).unwrap();
            for _ in 0..20 {
                let line: Vec<u8> =
                    (0..random.usize(..14)).map(|_| b"aabbcABC "[random.usize(..9)]).collect();
                if pattern.regex().is_match(&line) {
                    matched += 1;
                    let mut lists = BTreeMap::new();
                    for three in line.windows(3) {
                        let trigram = Trigram::new([three[0], three[1], three[2]]);
                        lists.insert(trigram, vec![5]);
                    }
                    let found = pattern.query().candidates(&Fixed(lists));
                    assert!(
                        matches!(&found, Candidates::All) || found == Candidates::Only(vec![5]),
                        "round {round}: {text} matches {:?} but asks for {}",
                        String::from_utf8_lossy(&line),
                        show(pattern.query())
                    );
                }
            }
        }
        assert!(matched > 1000, "the patterns hardly ever match: {matched}");
    }
}
