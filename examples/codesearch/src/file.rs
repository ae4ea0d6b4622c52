//! Reads one file after the other into the same memory and says how much of each is text. Knows
//! no pattern and no index. Read [`Reader`] first.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;

use crate::text;
use crate::walk::Stamp;

/// Reads files, one at a time.
#[derive(Debug, Default)]
pub struct Reader {
    content: Vec<u8>,
}

/// A file that was read.
#[derive(Debug)]
pub struct Content<'a> {
    /// The part of it that is text, from its start; see [`text::text_len`].
    pub text: &'a [u8],
    /// What its stamp was before it was read.
    pub stamp: Stamp,
    /// Device and inode number.
    pub identity: (u64, u64),
}

impl Reader {
    /// Reads a file found in a tree. `None` if there is no regular file at the path (any more).
    ///
    /// # Errors
    /// If there is one, but it cannot be read.
    pub fn read_in_tree(&mut self, path: &Path) -> io::Result<Option<Content<'_>>> {
        // What was a file when the tree was walked may be a pipe by now: do not wait for a writer.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)
        {
            Ok(file) => file,
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.kind() == io::ErrorKind::NotADirectory
                    || error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
                    || error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        self.read(file).map(Some)
    }

    /// Reads what the user named: links are followed, and pipes and devices are read to their end.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read_named(&mut self, path: &Path) -> io::Result<Content<'_>> {
        self.read(File::open(path)?)
    }

    fn read(&mut self, mut file: File) -> io::Result<Content<'_>> {
        let metadata = file.metadata()?;
        self.content.clear();
        file.read_to_end(&mut self.content)?;
        let has_hole_beyond = |at: u64| matches!(rustix::fs::seek(&file, SeekFrom::Hole(at)), Ok(hole) if hole < metadata.size());
        let len = text::text_len(&self.content, has_hole_beyond);
        Ok(Content {
            text: &self.content[..len],
            stamp: Stamp::of(&metadata),
            identity: (metadata.dev(), metadata.ino()),
        })
    }
}
