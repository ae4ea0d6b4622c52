//! Where lines and complaints go. Knows no pattern and no index. Read [`Output`] first.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

/// Standard output, with what has to be known about it.
#[derive(Debug)]
pub struct Output {
    to: BufWriter<Stdout>,
    is_terminal: bool,
    /// Device and inode number, if it is a regular file.
    identity: Option<(u64, u64)>,
    first_line_at: Option<Instant>,
}

impl Default for Output {
    fn default() -> Output {
        let stdout = io::stdout();
        let identity = rustix::fs::fstat(&stdout)
            .ok()
            .filter(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file())
            .map(|stat| (stat.st_dev, stat.st_ino));
        Output {
            is_terminal: stdout.is_terminal(),
            identity,
            to: BufWriter::with_capacity(1 << 16, stdout),
            first_line_at: None,
        }
    }
}

impl Output {
    /// Prints a line of a file: `path:number:line`, or without the path if there is none.
    ///
    /// # Errors
    /// If nothing can be written.
    pub fn line(&mut self, path: Option<&[u8]>, number: u64, line: &[u8]) -> io::Result<()> {
        if let Some(path) = path {
            self.to.write_all(path)?;
            self.to.write_all(b":")?;
        }
        write!(self.to, "{number}:")?;
        self.to.write_all(line)?;
        self.to.write_all(b"\n")
    }

    /// To be called after the matching lines of a file: whoever waits for them sees the first ones
    /// at once, and on a terminal all of them.
    ///
    /// # Errors
    /// If nothing can be written.
    pub fn end_of_file(&mut self) -> io::Result<()> {
        if self.is_terminal || self.first_line_at.is_none() {
            self.to.flush()?;
            self.first_line_at.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// Hands on what is still held back.
    ///
    /// # Errors
    /// If nothing can be written.
    pub fn finish(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    /// When the first lines were handed on; `None` if there was none. A line matched if so.
    #[must_use]
    pub fn first_line_at(&self) -> Option<Instant> {
        self.first_line_at
    }

    /// Whether the file of this device and inode number is where the output goes.
    #[must_use]
    pub fn is(&self, identity: (u64, u64)) -> bool {
        self.identity == Some(identity)
    }
}

/// What went wrong so far, said on standard error.
#[derive(Debug, Default)]
pub struct Complaints {
    any: bool,
}

impl Complaints {
    /// Says what is wrong with a path, as grep does.
    pub fn about(&mut self, path: &[u8], problem: &dyn Display) {
        let mut message = b"codesearch: ".to_vec();
        message.extend_from_slice(path);
        message.extend_from_slice(format!(": {problem}\n").as_bytes());
        self.say(&message);
    }

    /// Says what is wrong apart from any path.
    pub fn general(&mut self, problem: &dyn Display) {
        self.say(format!("codesearch: {problem}\n").as_bytes());
    }

    fn say(&mut self, message: &[u8]) {
        self.any = true;
        // If there is no standard error, the exit code has to do.
        let _ = io::stderr().write_all(message);
    }

    /// Whether anything was said.
    #[must_use]
    pub fn any(&self) -> bool {
        self.any
    }
}

/// The system's words for an error, without its number.
#[must_use]
pub fn words(error: &io::Error) -> String {
    let mut words = error.to_string();
    if let Some(at) = words.find(" (os error ") {
        words.truncate(at);
    }
    words
}

/// What is printed in front of the paths below a directory that the user spelled like this.
#[must_use]
pub fn prefix(spelled: &Path) -> Vec<u8> {
    let mut bytes = spelled.as_os_str().as_bytes().to_vec();
    // Of two and more slashes at the end one stays, as in grep, except for "//" itself.
    if bytes.len() > 2 {
        while bytes.ends_with(b"//") && bytes.len() > 1 {
            bytes.pop();
        }
    }
    if !bytes.ends_with(b"/") {
        bytes.push(b'/');
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_as_the_user_spelled_them() {
        for (spelled, expected) in [
            ("a", "a/"),
            ("a/", "a/"),
            ("a//", "a/"),
            (".", "./"),
            ("/", "/"),
            ("./a/../b", "./a/../b/"),
        ] {
            assert_eq!(prefix(Path::new(spelled)), expected.as_bytes(), "{spelled}");
        }
    }

    #[test]
    fn errors_without_numbers() {
        assert_eq!(words(&io::Error::from_raw_os_error(2)), "No such file or directory");
    }
}
