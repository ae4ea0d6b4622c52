//! Hashing that is part of the format: the same key has the same hash in every build and on every
//! machine. Read [`StableHash`] first.

/// Feeds a key to a [`StableHasher`]. Equal keys must feed the same; keys that are looked up in
/// borrowed form (`Text` by `str`) feed the same in both forms. Never an address.
pub trait StableHash {
    /// Feeds the key.
    fn stable_hash(&self, hasher: &mut StableHasher);
}

/// The state of one hash computation. One folded multiplication for each eight bytes of integers and
/// each sixteen bytes of text.
#[derive(Debug, Clone)]
pub struct StableHasher {
    state: u64,
}

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
const OFFSET: u64 = 0x243f_6a88_85a3_08d3;

#[inline(always)]
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    (product as u64) ^ ((product >> 64) as u64)
}

impl StableHasher {
    /// Starts with the seed of a map.
    #[inline(always)]
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        StableHasher { state: seed ^ OFFSET }
    }

    /// Feeds eight bytes.
    #[inline(always)]
    pub const fn write_u64(&mut self, value: u64) {
        self.state = fold(self.state ^ value, MULTIPLIER);
    }

    /// Feeds bytes and their number.
    #[inline]
    pub fn write_bytes(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(16);
        let word = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
        for chunk in &mut chunks {
            let (low, high) = (word(&chunk[..8]), word(&chunk[8..]));
            self.state = fold(self.state ^ low, MULTIPLIER ^ high.rotate_left(32));
        }
        let rest = chunks.remainder();
        let (low, high) = match rest.len() {
            8..=15 => (word(&rest[..8]), word(&rest[rest.len() - 8..])),
            4..=7 => {
                let half =
                    |b: &[u8]| u64::from(u32::from_le_bytes(b.try_into().expect("four bytes")));
                (half(&rest[..4]), half(&rest[rest.len() - 4..]))
            }
            1..=3 => (
                u64::from(rest[0]),
                u64::from(rest[rest.len() / 2]) << 8 | u64::from(rest[rest.len() - 1]),
            ),
            _ => (0, 0),
        };
        self.state = fold(self.state ^ low, MULTIPLIER ^ high.rotate_left(32));
        self.write_u64(bytes.len() as u64);
    }

    /// The hash of what was fed.
    #[inline(always)]
    #[must_use]
    pub const fn finish(&self) -> u64 {
        self.state
    }
}

/// The hash of one key under a seed.
#[inline(always)]
pub(crate) fn stable_hash<T: StableHash + ?Sized>(seed: u64, key: &T) -> u64 {
    let mut hasher = StableHasher::new(seed);
    key.stable_hash(&mut hasher);
    hasher.finish()
}

macro_rules! integers {
    ($($t:ty)*) => { $(
        impl StableHash for $t {
            #[inline(always)]
            fn stable_hash(&self, hasher: &mut StableHasher) {
                hasher.write_u64(*self as u64);
            }
        }
    )* };
}
integers! { u8 u16 u32 u64 usize i8 i16 i32 i64 isize bool char }

impl StableHash for u128 {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        hasher.write_u64(*self as u64);
        hasher.write_u64((*self >> 64) as u64);
    }
}

impl StableHash for i128 {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        (*self as u128).stable_hash(hasher);
    }
}

impl StableHash for str {
    #[inline]
    fn stable_hash(&self, hasher: &mut StableHasher) {
        hasher.write_bytes(self.as_bytes());
    }
}

impl<T: StableHash> StableHash for [T] {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        hasher.write_u64(self.len() as u64);
        for element in self {
            element.stable_hash(hasher);
        }
    }
}

/// As the slice of its elements, by which a key can be looked up.
impl<T: StableHash, const N: usize> StableHash for [T; N] {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        self[..].stable_hash(hasher);
    }
}

impl<T: StableHash + ?Sized> StableHash for &T {
    #[inline(always)]
    fn stable_hash(&self, hasher: &mut StableHasher) {
        (**self).stable_hash(hasher);
    }
}

impl<T: StableHash> StableHash for Option<T> {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        hasher.write_u64(u64::from(self.is_some()));
        if let Some(value) = self {
            value.stable_hash(hasher);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These numbers are in containers: they may never change.
    #[test]
    fn hashes_are_a_format() {
        assert_eq!(stable_hash(0, &0u64), stable_hash(0, &0u8));
        assert_eq!(stable_hash(1, &7u64), 0x2237_91c1_443b_3e74);
        assert_eq!(stable_hash(1, &[1u16, 2, 3]), stable_hash(1, &[1u16, 2, 3][..]));
        assert_eq!(stable_hash(1, "stead"), 0x9c26_a92f_a009_d15f);
        assert_eq!(stable_hash(1, "a longer key of some length"), 0x4a8b_2fe9_073e_aff3);
    }

    #[test]
    fn short_texts_differ() {
        let mut seen = std::collections::HashSet::new();
        for n in 0..40 {
            assert!(seen.insert(stable_hash(3, &*"a".repeat(n))), "length {n}");
            for at in 0..n {
                let mut s = "a".repeat(n);
                s.replace_range(at..=at, "b");
                assert!(seen.insert(stable_hash(3, &*s)), "length {n}, b at {at}");
            }
        }
    }
}
