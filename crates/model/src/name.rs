//! What containers and snapshots may be called. Names are kept in the system container and in the store's table; this
//! file only says which strings are names. Read [`check_new_name`] first.

use core::fmt;

/// What stands for the system container where containers are listed, so that no other is called so.
pub const SYSTEM_NAME: &str = "(system)";

/// A container's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ContainerName<'a>(&'a str);

/// Why a string is no name.
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
    /// It holds a character that shows nothing itself: a mark of direction, of no width, the end of a line.
    Invisible {
        /// Where, in bytes from the start.
        at: usize,
        /// Which.
        char: char,
    },
    /// It begins or ends with white space.
    Margin,
    /// It begins with `#`, which stands before numbers.
    Number,
    /// It is [`SYSTEM_NAME`].
    System,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Empty => write!(f, "a name may not be empty"),
            NameError::TooLong { bytes } => write!(
                f,
                "a name may have at most {} bytes; this one has {bytes}",
                ContainerName::MAX_BYTES
            ),
            NameError::Control { at, char } => {
                write!(f, "a name may not hold control characters; there is {char:?} at byte {at}")
            }
            NameError::Invisible { at, char } => write!(
                f,
                "a name may not hold characters that cannot be seen; there is {char:?} at byte {at}"
            ),
            NameError::Margin => write!(f, "a name may not begin or end with white space"),
            NameError::Number => {
                write!(
                    f,
                    "a name may not begin with `#`, which stands before numbers of containers"
                )
            }
            NameError::System => write!(
                f,
                "the name {SYSTEM_NAME:?} stands for the directory of containers itself: choose another"
            ),
        }
    }
}

impl core::error::Error for NameError {}

/// Checks the name of something new.
///
/// # Errors
/// If it is empty, too long, cannot be told from another one by looking at it (invisible characters, white space at its
/// ends), or means something else (`#` and a number, [`SYSTEM_NAME`]).
pub fn check_new_name(name: &str) -> Result<(), NameError> {
    ContainerName::existing(name)?;
    if let Some((at, char)) = name.char_indices().find(|&(_, c)| is_invisible(c)) {
        return Err(NameError::Invisible { at, char });
    }
    if name.trim() != name {
        return Err(NameError::Margin);
    }
    if name.starts_with('#') {
        return Err(NameError::Number);
    }
    if name == SYSTEM_NAME { Err(NameError::System) } else { Ok(()) }
}

impl<'a> ContainerName<'a> {
    /// Longest name in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Checks the name of a container that is to be made: see [`check_new_name`].
    ///
    /// # Errors
    /// As [`check_new_name`].
    pub fn new(name: &'a str) -> Result<Self, NameError> {
        check_new_name(name)?;
        Ok(ContainerName(name))
    }

    /// Checks the name of a container that may be there. Some have names that no new one can have.
    ///
    /// # Errors
    /// If it is empty, too long, or holds a control character.
    pub fn existing(name: &'a str) -> Result<Self, NameError> {
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

/// Whether a character leaves no trace of its own: Unicode's format characters and what ends a line or a paragraph, and
/// letters that are blank.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}'
            | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}'
            | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e00ff}'
    )
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

    #[test]
    fn new_names_can_be_told_from_each_other_by_looking_at_them() {
        for fine in ["a b", "größe", "日本", "#", "❤\u{fe0f}", "(systems)", "n#1"] {
            assert_eq!(ContainerName::new(fine).is_ok(), fine != "#", "{fine:?}");
        }
        for (bad, why) in [
            ("a\u{202e}b", NameError::Invisible { at: 1, char: '\u{202e}' }),
            ("\u{200b}", NameError::Invisible { at: 0, char: '\u{200b}' }),
            ("ab\u{2028}", NameError::Invisible { at: 2, char: '\u{2028}' }),
            ("\u{feff}x", NameError::Invisible { at: 0, char: '\u{feff}' }),
            (" ", NameError::Margin),
            ("a ", NameError::Margin),
            ("\u{a0}a", NameError::Margin),
            ("#7", NameError::Number),
            (SYSTEM_NAME, NameError::System),
        ] {
            assert_eq!(ContainerName::new(bad), Err(why), "{bad:?}");
            assert_eq!(
                ContainerName::existing(bad).unwrap().as_str(),
                bad,
                "made by earlier versions"
            );
        }
    }
}
