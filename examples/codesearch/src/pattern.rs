//! What the user is looking for: one regular expression over the bytes of a line, and the trigrams
//! that a file must hold to have such a line. Knows no file and no index. Read [`Pattern`] first.

use regex::bytes::Regex;
use regex_syntax::ParserBuilder;
use regex_syntax::hir::{
    Capture, Class, ClassBytes, ClassBytesRange, ClassUnicode, ClassUnicodeRange, Hir, HirKind,
    Look, Repetition,
};

use crate::query::Query;

/// A pattern, ready to be looked for.
#[derive(Debug)]
pub struct Pattern {
    regex: Regex,
    query: Query,
}

/// Why a string is no pattern.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    /// It does not parse; the text shows where.
    #[error("{0}")]
    Syntax(#[from] Box<regex_syntax::Error>),
    /// It parses, but what it describes is too large to be looked for.
    #[error("{0}")]
    TooLarge(#[from] regex::Error),
}

impl Pattern {
    /// Reads a pattern. As with grep, each line of `text` is a pattern of its own, and a line of a
    /// file matches if it matches any of them.
    ///
    /// # Errors
    /// If one of them does not parse, or describes something too large.
    pub fn new(text: &str) -> Result<Pattern, PatternError> {
        let mut parsers = ParserBuilder::new();
        parsers.unicode(false).utf8(false).multi_line(true);
        let mut alternatives = Vec::new();
        for line in text.split('\n') {
            let hir = parsers.build().parse(line).map_err(Box::new)?;
            alternatives.push(within_a_line(&hir));
        }
        let hir = Hir::alternation(alternatives);
        let query = Query::from_hir(&hir);
        let regex = Regex::new(&hir.to_string())?;
        Ok(Pattern { regex, query })
    }

    /// The expression. None of its matches holds a line feed, so it may be run over a whole file
    /// at once; `^` and `$` match at the ends of lines.
    #[must_use]
    pub fn regex(&self) -> &Regex {
        &self.regex
    }

    /// What a file must hold to have a matching line.
    #[must_use]
    pub fn query(&self) -> &Query {
        &self.query
    }
}

/// The same expression without any match that crosses the end of a line. A line is all that a
/// pattern ever sees, so the ends of the text are the ends of the line.
fn within_a_line(hir: &Hir) -> Hir {
    match hir.kind() {
        HirKind::Empty => Hir::empty(),
        HirKind::Literal(literal) if literal.0.contains(&b'\n') => Hir::fail(),
        HirKind::Literal(literal) => Hir::literal(literal.0.clone()),
        HirKind::Class(Class::Bytes(class)) => {
            let mut class = class.clone();
            class.difference(&ClassBytes::new([ClassBytesRange::new(b'\n', b'\n')]));
            Hir::class(Class::Bytes(class))
        }
        HirKind::Class(Class::Unicode(class)) => {
            let mut class = class.clone();
            class.difference(&ClassUnicode::new([ClassUnicodeRange::new('\n', '\n')]));
            Hir::class(Class::Unicode(class))
        }
        HirKind::Look(Look::Start) => Hir::look(Look::StartLF),
        HirKind::Look(Look::End) => Hir::look(Look::EndLF),
        HirKind::Look(look) => Hir::look(*look),
        HirKind::Repetition(repetition) => Hir::repetition(Repetition {
            min: repetition.min,
            max: repetition.max,
            greedy: repetition.greedy,
            sub: Box::new(within_a_line(&repetition.sub)),
        }),
        HirKind::Capture(capture) => Hir::capture(Capture {
            index: capture.index,
            name: capture.name.clone(),
            sub: Box::new(within_a_line(&capture.sub)),
        }),
        HirKind::Concat(parts) => Hir::concat(parts.iter().map(within_a_line).collect()),
        HirKind::Alternation(parts) => Hir::alternation(parts.iter().map(within_a_line).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_match_crosses_a_line() {
        for text in ["a[^x]*b", r"a\s+b", r"a\nb", "a(.|\\W)b", "(?s)a.b"] {
            let pattern = Pattern::new(text).unwrap();
            assert!(!pattern.regex().is_match(b"a\nb"), "{text}");
        }
        assert!(Pattern::new(r"a\s+b").unwrap().regex().is_match(b"x\na \t b\n"));
    }

    #[test]
    fn the_ends_of_the_text_are_the_ends_of_the_line() {
        for text in ["^b$", r"\Ab\z", "(?-m)^b$"] {
            assert!(Pattern::new(text).unwrap().regex().is_match(b"a\nb\nc"), "{text}");
        }
    }

    #[test]
    fn lines_of_a_pattern_are_alternatives() {
        let pattern = Pattern::new("one\ntwo").unwrap();
        assert!(pattern.regex().is_match(b"two"));
        assert!(!pattern.regex().is_match(b"three"));
    }

    #[test]
    fn bytes_that_are_no_text_match_as_bytes() {
        assert!(Pattern::new("a.b").unwrap().regex().is_match(b"a\xffb"));
        assert!(!Pattern::new("^a.b$").unwrap().regex().is_match("aéb".as_bytes()));
        assert!(Pattern::new("é").unwrap().regex().is_match("aéb".as_bytes()));
    }

    #[test]
    fn a_bad_pattern_says_where() {
        let said = Pattern::new("a(b").unwrap_err().to_string();
        assert!(said.contains("unclosed group"), "{said}");
        assert!(matches!(
            Pattern::new("((a{200}){200}){200}").unwrap_err(),
            PatternError::TooLarge(_)
        ));
    }
}
