//! Memory aligned to a block, as O_DIRECT asks for, without unsafe code: a `Vec` with room to spare, cut at
//! the first aligned byte. Read [`AlignedBuf`] first.

use std::fmt;

use stead_model::PAGE_SIZE;

/// A fixed run of bytes whose first byte stands at an address that is a multiple of [`PAGE_SIZE`].
pub struct AlignedBuf {
    /// Never grown: growing would move it and lose the alignment.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + PAGE_SIZE - 1];
        let start = bytes.as_ptr().align_offset(PAGE_SIZE);
        assert!(start < PAGE_SIZE, "an address can always be aligned to a page");
        AlignedBuf { bytes, start, len }
    }

    /// Whether `bytes` can be handed to O_DIRECT as they are: address and length are whole blocks.
    #[must_use]
    pub fn is_aligned(bytes: &[u8]) -> bool {
        bytes.len().is_multiple_of(PAGE_SIZE) && bytes.as_ptr().align_offset(PAGE_SIZE) == 0
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    /// The bytes, to be changed.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_at_a_block() {
        for len in [0, 1, 4096, 12_345, 1 << 20] {
            let mut buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_slice().as_ptr().align_offset(PAGE_SIZE), 0);
            buf.as_mut_slice().fill(7);
            assert!(buf.as_slice().iter().all(|&b| b == 7));
        }
        assert!(!AlignedBuf::is_aligned(&AlignedBuf::zeroed(8192).as_slice()[1..4097]));
        assert!(AlignedBuf::is_aligned(&AlignedBuf::zeroed(8192).as_slice()[4096..]));
    }
}
