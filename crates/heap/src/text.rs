//! Text in the container, UTF-8. Read [`Text`] first.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;

use crate::error::AllocError;
use crate::hash::{StableHash, StableHasher};
use crate::section::{Cluster, Tx};
use crate::types::{Describer, Persist, Shape, TypeDescription, name_id};
use crate::vec::Vec;

/// A growing string that owns its bytes; reads like a `str`.
#[repr(transparent)]
pub struct Text<'s>(Vec<'s, u8>);

impl<'s> Text<'s> {
    /// An empty text, which will allocate in the default cluster.
    #[must_use]
    pub fn new(tx: &Tx<'s>) -> Self {
        Text(Vec::new(tx))
    }

    /// An empty text, which will allocate in this cluster.
    #[must_use]
    pub fn new_in(cluster: Cluster<'s>) -> Self {
        Text(Vec::new_in(cluster))
    }

    /// A copy of `s`.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn from_str(tx: &Tx<'s>, s: &str) -> Result<Self, AllocError> {
        let mut text = Self::new(tx);
        text.push_str(tx, s)?;
        Ok(text)
    }

    /// Appends `s`.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn push_str(&mut self, tx: &Tx<'s>, s: &str) -> Result<(), AllocError> {
        self.0.extend_from_slice(tx, s.as_bytes())
    }

    /// Appends a character.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn push(&mut self, tx: &Tx<'s>, c: char) -> Result<(), AllocError> {
        self.push_str(tx, c.encode_utf8(&mut [0; 4]))
    }

    /// Takes the last character off.
    pub fn pop(&mut self, tx: &Tx<'s>) -> Option<char> {
        let last = self.chars().next_back()?;
        self.0.truncate(tx, self.0.len() - last.len_utf8());
        Some(last)
    }

    /// Keeps the first `bytes` bytes.
    ///
    /// # Panics
    /// If that is inside a character.
    pub fn truncate(&mut self, tx: &Tx<'s>, bytes: usize) {
        if bytes <= self.len() {
            assert!(self.is_char_boundary(bytes), "byte {bytes} is inside a character");
            self.0.truncate(tx, bytes);
        }
    }

    /// Takes everything out.
    pub fn clear(&mut self, tx: &Tx<'s>) {
        self.0.clear(tx);
    }

    /// Makes room for `additional` bytes more.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn reserve(&mut self, tx: &Tx<'s>, additional: usize) -> Result<(), AllocError> {
        self.0.reserve(tx, additional)
    }

    /// The text as a `str`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self
    }
}

impl Deref for Text<'_> {
    type Target = str;

    #[inline]
    fn deref(&self) -> &str {
        debug_assert!(std::str::from_utf8(&self.0).is_ok());
        // SAFETY: all that was ever put in came from a `str`, and cuts are at characters.
        unsafe { std::str::from_utf8_unchecked(&self.0) }
    }
}

impl Borrow<str> for Text<'_> {
    fn borrow(&self) -> &str {
        self
    }
}

impl AsRef<str> for Text<'_> {
    fn as_ref(&self) -> &str {
        self
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text<'_> {}

impl PartialEq<str> for Text<'_> {
    fn eq(&self, other: &str) -> bool {
        **self == *other
    }
}

impl PartialEq<&str> for Text<'_> {
    fn eq(&self, other: &&str) -> bool {
        **self == **other
    }
}

impl PartialOrd for Text<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl StableHash for Text<'_> {
    #[inline]
    fn stable_hash(&self, hasher: &mut StableHasher) {
        (**self).stable_hash(hasher);
    }
}

// SAFETY: transparent around a vector of bytes.
unsafe impl<'s> Persist<'s> for Text<'s> {
    const ID: u64 = name_id("Text");
    const POINTERS: bool = true;
    const TAGGED: bool = false;
    fn name() -> String {
        "Text".into()
    }
    fn describe(d: &mut Describer) -> TypeDescription {
        let byte = d.refer::<u8>();
        d.shaped::<Self>(Shape::Text(byte))
    }
}
