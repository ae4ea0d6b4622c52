//! What a container may be called. Names are kept in the system container; this file only says
//! which strings are names. Read [`ContainerName`] first.

use core::fmt;

/// A container's name: 1 to [`ContainerName::MAX_BYTES`] bytes of UTF-8 without control characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ContainerName<'a>(&'a str);

/// Why a string is no container name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameError {
    /// It has no characters.
    Empty,
    /// It has more than [`ContainerName::MAX_BYTES`] bytes.
    TooLong {
        /// How many it has.
        bytes: usize,
    },
    /// It holds a control character.
    Control {
        /// Where, in bytes from the start.
        at: usize,
        /// Which.
        char: char,
    },
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Empty => write!(f, "a container's name may not be empty"),
            NameError::TooLong { bytes } => write!(
                f,
                "a container's name may have at most {} bytes; this one has {bytes}",
                ContainerName::MAX_BYTES
            ),
            NameError::Control { at, char } => write!(
                f,
                "a container's name may not hold control characters; there is {char:?} at byte {at}"
            ),
        }
    }
}

impl core::error::Error for NameError {}

impl<'a> ContainerName<'a> {
    /// Longest name in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Checks a string.
    ///
    /// # Errors
    /// If it is empty, too long, or holds a control character.
    pub fn new(name: &'a str) -> Result<Self, NameError> {
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > Self::MAX_BYTES {
            return Err(NameError::TooLong { bytes: name.len() });
        }
        if let Some((at, char)) = name.char_indices().find(|(_, c)| c.is_control()) {
            return Err(NameError::Control { at, char });
        }
        Ok(ContainerName(name))
    }

    /// The name as a string.
    #[must_use]
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;

    #[test]
    fn only_plain_names_pass() {
        assert_eq!(ContainerName::new("accounts/2026 é").unwrap().as_str(), "accounts/2026 é");
        assert_eq!(ContainerName::new(""), Err(NameError::Empty));
        let long: String = core::iter::repeat_n('x', 256).collect();
        assert_eq!(ContainerName::new(&long), Err(NameError::TooLong { bytes: 256 }));
        assert!(ContainerName::new(&long[..255]).is_ok());
        assert_eq!(ContainerName::new("a\nb"), Err(NameError::Control { at: 1, char: '\n' }));
        assert_eq!(
            ContainerName::new("del\u{7f}"),
            Err(NameError::Control { at: 3, char: '\u{7f}' })
        );
    }
}
