//! The files of a tree, as `grep -r` would visit them: every regular file, hidden and ignored ones
//! too; links below the root are not followed. Opens directories, no file. Read [`walk`] first.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ignore::WalkBuilder;

/// When a file was last changed, and how large it was then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Its size in bytes.
    pub size: u64,
    /// Nanoseconds since 1970; only good for comparison with another stamp.
    pub mtime_ns: i64,
}

impl Stamp {
    /// The stamp that a file's metadata gives.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Stamp {
        let mtime_ns =
            metadata.mtime().wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec());
        Stamp { size: metadata.size(), mtime_ns }
    }
}

/// Something found in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path below the root, without a slash in front; empty for the root itself.
    pub path: Vec<u8>,
    /// What it is.
    pub what: What,
}

/// What was found at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A regular file.
    File(Stamp),
    /// A directory that could not be read.
    UnreadableDirectory,
}

/// Lists the tree at `start`, which is `root` or a directory below it, in the order of [`compare`],
/// without what stands at `except`. Calls `seen` for every entry.
#[must_use]
pub fn walk(
    root: &Path,
    start: &Path,
    except: Option<&Path>,
    mut seen: impl FnMut(&Entry),
) -> Vec<Entry> {
    let mut builder = WalkBuilder::new(start);
    builder.standard_filters(false).follow_links(false).sort_by_file_name(OsStr::cmp);
    if let Some(except) = except.map(Path::to_owned) {
        builder.filter_entry(move |entry| entry.path() != except);
    }
    let below = |path: &Path| -> Vec<u8> {
        path.strip_prefix(root).unwrap_or(path).as_os_str().as_bytes().to_owned()
    };
    let mut entries = Vec::new();
    for found in builder.build() {
        let entry = match found {
            Ok(found) if found.file_type().is_some_and(|kind| kind.is_file()) => {
                // A file that has gone since its directory was read is no file of the tree.
                let Ok(metadata) = found.path().symlink_metadata() else { continue };
                let what = What::File(Stamp::of(&metadata));
                Entry { path: below(found.path()), what }
            }
            Ok(_) => continue,
            Err(error) => {
                let (Some(path), Some(cause)) = (path_of(&error), error.io_error()) else {
                    continue;
                };
                if cause.kind() == io::ErrorKind::NotFound {
                    continue;
                }
                Entry { path: below(&path), what: What::UnreadableDirectory }
            }
        };
        seen(&entry);
        entries.push(entry);
    }
    entries
}

fn path_of(error: &ignore::Error) -> Option<PathBuf> {
    match error {
        ignore::Error::WithPath { path, .. } => Some(path.clone()),
        ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => {
            path_of(err)
        }
        _ => None,
    }
}

/// The order in which a walk meets paths: name by name, each by its bytes. A directory's files
/// stand together.
#[must_use]
pub fn compare(left: &[u8], right: &[u8]) -> Ordering {
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    left.iter().map(rank).cmp(right.iter().map(rank))
}

/// Whether a path is that of a directory, or of something below it. Everything is below the root,
/// whose path is empty.
#[must_use]
pub fn is_at_or_below(path: &[u8], directory: &[u8]) -> bool {
    match path.strip_prefix(directory) {
        Some(rest) => directory.is_empty() || rest.is_empty() || rest.starts_with(b"/"),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_in_order_but_no_links() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a/b", "a/.hidden", "a-b", "a/c/d", ".gitignore", "target/x", "a.b/c"] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "target\n").unwrap();
        }
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("a-b", dir.path().join("link2")).unwrap();
        let mut seen = 0;
        let entries = walk(dir.path(), dir.path(), Some(&dir.path().join("target")), |_| seen += 1);
        let paths: Vec<&str> =
            entries.iter().map(|entry| std::str::from_utf8(&entry.path).unwrap()).collect();
        assert_eq!(paths, [".gitignore", "a/.hidden", "a/b", "a/c/d", "a-b", "a.b/c"]);
        assert!(entries.is_sorted_by(|a, b| compare(&a.path, &b.path) == Ordering::Less));
        assert_eq!(seen, entries.len());
        let What::File(stamp) = entries[1].what else { panic!("a file") };
        assert_eq!(stamp.size, 7);
        assert!(stamp.mtime_ns > 0);

        let part = walk(dir.path(), &dir.path().join("a"), None, |_| {});
        assert_eq!(part[..], entries[1..4]);
    }
}
