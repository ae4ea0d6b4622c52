//! From a pattern to printed lines: asks an index which files are worth reading, reads those, and
//! prints their matching lines file by file. Read [`Search`] first.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::file::{Content, Reader};
use crate::index::{Found, Tree};
use crate::output::{self, Complaints, Output};
use crate::pattern::Pattern;
use crate::text::MatchingLines;

/// A search under way.
#[derive(Debug)]
pub struct Search<'a> {
    pattern: &'a Pattern,
    output: &'a mut Output,
    complaints: &'a mut Complaints,
    reader: Reader,
    tally: Tally,
}

/// What a search did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Files that the index could not rule out.
    pub candidates: u64,
    /// Files with a matching line.
    pub files: u64,
    /// Matching lines.
    pub lines: u64,
    /// Candidates that are not what they were when they were indexed.
    pub stale: u64,
}

/// Why a search ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// Nothing more can be written.
    #[error("write error: {}", output::words(.0))]
    Output(#[from] io::Error),
    /// The index cannot be read.
    #[error(transparent)]
    Index(#[from] stead::Error),
}

impl<'a> Search<'a> {
    /// A search for `pattern`.
    pub fn new(
        pattern: &'a Pattern,
        output: &'a mut Output,
        complaints: &'a mut Complaints,
    ) -> Search<'a> {
        Search { pattern, output, complaints, reader: Reader::default(), tally: Tally::default() }
    }

    /// What was done so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Searches a tree; `spelled` is what the user calls it.
    ///
    /// # Errors
    /// If the index or the output fails. Files that cannot be read are complained about only.
    pub fn tree(&mut self, tree: &Tree, spelled: &Path) -> Result<(), SearchError> {
        let prefix = output::prefix(spelled);
        let prefix = prefix.as_slice();
        let shortlist = tree.shortlist(self.pattern.query())?;
        self.tally.candidates += shortlist.len() as u64;
        // Paths are fetched a few at a time, so that the first line need not wait for all.
        let mut from = 0;
        let mut step = 16;
        while from < shortlist.len() {
            for found in tree.found(&shortlist, from, from + step)? {
                let name = match &found.path[tree.part().len()..] {
                    // The directory itself, if it cannot be read.
                    [] => spelled.as_os_str().as_bytes().to_owned(),
                    path => [prefix, path.strip_prefix(b"/").unwrap_or(path)].concat(),
                };
                self.found(tree.root(), &found, &name)?;
            }
            from += step;
            step = 256;
        }
        Ok(())
    }

    fn found(&mut self, root: &Path, found: &Found, name: &[u8]) -> io::Result<()> {
        let path = root.join(OsStr::from_bytes(&found.path));
        match self.reader.read_in_tree(&path) {
            Ok(Some(content)) => {
                if found.stamp != Some(content.stamp) {
                    self.tally.stale += 1;
                }
                let Search { pattern, output, complaints, tally, .. } = self;
                lines(pattern, &content, Some(name), name, output, complaints, tally)?;
            }
            Ok(None) => self.tally.stale += 1,
            Err(error) => self.complaints.about(name, &output::words(&error)),
        }
        Ok(())
    }

    /// Searches a file that the user named, without an index.
    ///
    /// # Errors
    /// If the output fails. A file that cannot be read is complained about only.
    pub fn file(&mut self, path: &Path, with_name: bool) -> io::Result<()> {
        let name = path.as_os_str().as_bytes();
        match self.reader.read_named(path) {
            Ok(content) => {
                self.tally.candidates += 1;
                let Search { pattern, output, complaints, tally, .. } = self;
                let shown = with_name.then_some(name);
                lines(pattern, &content, shown, name, output, complaints, tally)?;
            }
            Err(error) => self.complaints.about(name, &output::words(&error)),
        }
        Ok(())
    }
}

/// Prints the matching lines of one file.
fn lines(
    pattern: &Pattern,
    content: &Content<'_>,
    shown: Option<&[u8]>,
    name: &[u8],
    output: &mut Output,
    complaints: &mut Complaints,
    tally: &mut Tally,
) -> io::Result<()> {
    if output.is(content.identity) {
        complaints.about(name, &"input file is also the output");
        return Ok(());
    }
    let before = tally.lines;
    for line in MatchingLines::new(pattern, content.text) {
        output.line(shown, line.number, &content.text[line.range])?;
        tally.lines += 1;
    }
    if tally.lines > before {
        tally.files += 1;
        output.end_of_file()?;
    }
    Ok(())
}
