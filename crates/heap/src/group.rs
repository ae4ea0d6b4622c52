//! Sixteen control bytes of a hash table looked at together: by SSE2 where there is, otherwise by plain
//! arithmetic with the same results, for the layout is the same everywhere. Read [`Group`] first.
#![allow(unexpected_cfgs, reason = "stead_portable_groups is set by hand")]

/// Control bytes that are looked at together.
pub(crate) const WIDTH: usize = 16;

/// Never held anything since the table was made, or as good as that.
pub(crate) const EMPTY: u8 = 0xff;

/// Held something: a search goes on behind it.
pub(crate) const DELETED: u8 = 0x80;

/// A set of places in a group, lowest first.
#[derive(Clone, Copy)]
pub(crate) struct Places(u32);

impl Places {
    #[inline(always)]
    pub(crate) fn first(self) -> Option<usize> {
        (self.0 != 0).then(|| self.0.trailing_zeros() as usize)
    }

    #[inline(always)]
    pub(crate) fn any(self) -> bool {
        self.0 != 0
    }

    /// Places before the first one in the set, of all sixteen.
    #[inline(always)]
    pub(crate) fn leading_out(self) -> usize {
        (self.0 | 1 << WIDTH).trailing_zeros() as usize
    }

    /// Places behind the last one in the set, of all sixteen.
    #[inline(always)]
    pub(crate) fn trailing_out(self) -> usize {
        (self.0 << 16).leading_zeros() as usize
    }
}

impl Iterator for Places {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        let first = self.first()?;
        self.0 &= self.0 - 1;
        Some(first)
    }
}

#[cfg(all(target_arch = "x86_64", not(stead_portable_groups)))]
mod imp {
    use super::{EMPTY, Places};
    use std::arch::x86_64::{
        __m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_set1_epi8,
    };

    #[derive(Clone, Copy)]
    pub(crate) struct Group(__m128i);

    impl Group {
        /// # Safety
        /// Sixteen bytes can be read at `at`.
        #[inline(always)]
        pub(crate) unsafe fn load(at: *const u8) -> Group {
            // SAFETY: as the caller vouches; the load needs no alignment.
            Group(unsafe { _mm_loadu_si128(at.cast()) })
        }

        #[inline(always)]
        pub(crate) fn equal_to(self, byte: u8) -> Places {
            // SAFETY: SSE2 is part of x86-64.
            let mask = unsafe {
                _mm_movemask_epi8(_mm_cmpeq_epi8(self.0, _mm_set1_epi8(byte.cast_signed())))
            };
            Places(mask as u32)
        }

        #[inline(always)]
        pub(crate) fn empty(self) -> Places {
            self.equal_to(EMPTY)
        }

        /// Empty or deleted: those with the top bit.
        #[inline(always)]
        pub(crate) fn vacant(self) -> Places {
            // SAFETY: SSE2 is part of x86-64.
            Places(unsafe { _mm_movemask_epi8(self.0) } as u32)
        }
    }
}

#[cfg(any(not(target_arch = "x86_64"), stead_portable_groups, test))]
#[cfg_attr(all(test, target_arch = "x86_64", not(stead_portable_groups)), allow(dead_code))]
mod portable {
    use super::{EMPTY, Places, WIDTH};

    #[derive(Clone, Copy)]
    pub(crate) struct Group([u8; WIDTH]);

    impl Group {
        /// # Safety
        /// Sixteen bytes can be read at `at`.
        #[inline(always)]
        pub(crate) unsafe fn load(at: *const u8) -> Group {
            // SAFETY: as the caller vouches; bytes need no alignment.
            Group(unsafe { at.cast::<[u8; WIDTH]>().read() })
        }

        #[inline(always)]
        fn places(self, is: impl Fn(u8) -> bool) -> Places {
            let bits = self.0.iter().enumerate().map(|(i, b)| u32::from(is(*b)) << i);
            Places(bits.fold(0, |all, bit| all | bit))
        }

        #[inline(always)]
        pub(crate) fn equal_to(self, byte: u8) -> Places {
            self.places(|b| b == byte)
        }

        #[inline(always)]
        pub(crate) fn empty(self) -> Places {
            self.equal_to(EMPTY)
        }

        #[inline(always)]
        pub(crate) fn vacant(self) -> Places {
            self.places(|b| b & 0x80 != 0)
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(stead_portable_groups)))]
pub(crate) use imp::Group;
#[cfg(any(not(target_arch = "x86_64"), stead_portable_groups))]
pub(crate) use portable::Group;

impl Group {
    /// Those that hold something.
    #[inline(always)]
    pub(crate) fn full(self) -> Places {
        Places(!self.vacant().0 & 0xffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_see_the_same() {
        for seed in 0..5000u64 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let bytes: [u8; WIDTH] = std::array::from_fn(|_| match rng.u8(0..4) {
                0 => EMPTY,
                1 => DELETED,
                _ => rng.u8(0..4),
            });
            // SAFETY: sixteen bytes are there.
            let (a, b) =
                unsafe { (Group::load(bytes.as_ptr()), portable::Group::load(bytes.as_ptr())) };
            assert_eq!(a.vacant().0, b.vacant().0);
            assert_eq!(a.empty().0, b.empty().0);
            for byte in 0..4 {
                assert_eq!(a.equal_to(byte).0, b.equal_to(byte).0);
            }
            let expected: Vec<usize> = (0..WIDTH).filter(|i| bytes[*i] < 0x80).collect();
            assert_eq!(a.full().collect::<Vec<_>>(), expected);
        }
    }
}
