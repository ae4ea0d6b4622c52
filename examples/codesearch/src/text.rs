//! Which part of a file is text, and which of its lines match: the rules of `grep -I`, over bytes
//! in memory. Opens no file. Read [`text_len`] first.

use std::ops::Range;

use crate::pattern::Pattern;

/// grep looks for binary data in one piece of this many bytes after the other.
pub const PIECE: usize = 96 * 1024;

/// How many bytes from the start of a file grep would search with `-I`: up to the last line that is
/// complete before the first piece with a zero byte. A whole file without one; nothing of a file
/// with a zero byte in its first piece. `has_hole_beyond(at)` is asked only where it matters, and
/// says whether the file has a hole after `at`: grep takes that for zero bytes seen at once.
pub fn text_len(content: &[u8], has_hole_beyond: impl FnOnce(u64) -> bool) -> usize {
    let Some(zero) = memchr::memchr(0, content) else { return content.len() };
    let piece_start = zero / PIECE * PIECE;
    if piece_start == 0 || has_hole_beyond(PIECE as u64) {
        return 0;
    }
    memchr::memrchr(b'\n', &content[..piece_start]).map_or(0, |at| at + 1)
}

/// The lines of a text that match a pattern, in order.
#[derive(Debug)]
pub struct MatchingLines<'a> {
    pattern: &'a Pattern,
    text: &'a [u8],
    /// The start of the next line to look at.
    at: usize,
    /// The number of the line at `counted_to`, from 1.
    number: u64,
    counted_to: usize,
}

/// A line that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number, from 1.
    pub number: u64,
    /// Its bytes, without the line feed.
    pub range: Range<usize>,
}

impl<'a> MatchingLines<'a> {
    /// The lines of `text` that match `pattern`.
    #[must_use]
    pub fn new(pattern: &'a Pattern, text: &'a [u8]) -> Self {
        MatchingLines { pattern, text, at: 0, number: 1, counted_to: 0 }
    }
}

impl Iterator for MatchingLines<'_> {
    type Item = Line;

    fn next(&mut self) -> Option<Line> {
        // The end of a text that ends with a line feed is not one more, empty line.
        if self.at >= self.text.len() {
            return None;
        }
        let found = self.pattern.regex().find_at(self.text, self.at)?.start();
        if found == self.text.len() && self.text.ends_with(b"\n") {
            return None;
        }
        let start = memchr::memrchr(b'\n', &self.text[..found]).map_or(0, |at| at + 1);
        let end =
            memchr::memchr(b'\n', &self.text[found..]).map_or(self.text.len(), |at| found + at);
        self.number +=
            memchr::memchr_iter(b'\n', &self.text[self.counted_to..start]).count() as u64;
        self.counted_to = start;
        self.at = end + 1;
        Some(Line { number: self.number, range: start..end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pattern: &str, text: &str) -> Vec<(u64, String)> {
        let pattern = Pattern::new(pattern).unwrap();
        MatchingLines::new(&pattern, text.as_bytes())
            .map(|line| (line.number, text[line.range].to_owned()))
            .collect()
    }

    #[test]
    fn lines_are_counted_and_cut() {
        let text = "one\ntwo two\n\nfour\r\nfive";
        assert_eq!(
            lines("o", text),
            [(1, "one".into()), (2, "two two".into()), (4, "four\r".into())]
        );
        assert_eq!(lines("^$", text), [(3, String::new())]);
        assert_eq!(lines("e$", text), [(1, "one".into()), (5, "five".into())]);
        assert_eq!(lines("", text).len(), 5);
        assert_eq!(lines("x*", "a\n\n").len(), 2);
        assert_eq!(lines("", "").len(), 0);
        assert_eq!(lines("$", "\n").len(), 1);
    }

    #[test]
    fn a_zero_byte_ends_the_text_as_in_grep() {
        let never = |_| -> bool { unreachable!("no need to look for holes") };
        assert_eq!(text_len(b"", never), 0);
        assert_eq!(text_len(b"a\nb", never), 3);
        assert_eq!(text_len(b"a\n\0b\n", never), 0);

        let mut late = b"0123456\n".repeat(PIECE / 8 + 10);
        late[PIECE - 1] = b'x';
        late[PIECE + 3] = 0;
        assert_eq!(
            text_len(&late, |_| false),
            PIECE - 8,
            "the last complete line before the piece"
        );
        assert_eq!(text_len(&late, |_| true), 0);
    }
}
