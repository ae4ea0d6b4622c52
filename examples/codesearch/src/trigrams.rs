//! Three bytes in a row, and the sets of them that texts hold. Knows no file and no index. Read
//! [`Trigram`] first.

/// Three bytes in a row, ASCII letters folded to lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Trigram(u32);

impl Trigram {
    /// Folds three bytes.
    #[must_use]
    pub fn new(bytes: [u8; 3]) -> Trigram {
        let [a, b, c] = bytes.map(|byte| u32::from(byte.to_ascii_lowercase()));
        Trigram(a << 16 | b << 8 | c)
    }

    /// A number below 2^24.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    /// The trigram of a number below 2^24.
    #[must_use]
    pub(crate) fn from_number(number: u32) -> Trigram {
        debug_assert!(number < 1 << 24, "a trigram is three bytes");
        Trigram(number)
    }

    /// The folded bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; 3] {
        [(self.0 >> 16) as u8, (self.0 >> 8) as u8, self.0 as u8]
    }
}

/// Finds the distinct trigrams of one text after the other.
#[derive(Debug)]
pub struct Finder {
    /// One bit for each trigram there could be, all zero between texts.
    seen: Vec<u64>,
}

impl Default for Finder {
    fn default() -> Finder {
        Finder { seen: vec![0; (1 << 24) / 64] }
    }
}

impl Finder {
    /// Appends the distinct trigrams of `text` to `found`, in order of first occurrence. Those that
    /// hold a line feed are left out: no match crosses the end of a line.
    pub fn find(&mut self, text: &[u8], found: &mut Vec<Trigram>) {
        let before = found.len();
        for line in text.split(|byte| *byte == b'\n') {
            let [a, b, rest @ ..] = line else { continue };
            let mut number = u32::from(a.to_ascii_lowercase()) << 8;
            number |= u32::from(b.to_ascii_lowercase());
            for byte in rest {
                number = (number << 8 | u32::from(byte.to_ascii_lowercase())) & 0xff_ffff;
                let word = &mut self.seen[(number / 64) as usize];
                let bit = 1 << (number % 64);
                if *word & bit == 0 {
                    *word |= bit;
                    found.push(Trigram(number));
                }
            }
        }
        for trigram in &found[before..] {
            self.seen[(trigram.0 / 64) as usize] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_folded_and_within_lines() {
        let mut finder = Finder::default();
        let mut found = Vec::new();
        finder.find(b"abcABC\nxy\nz\n\nabcd\r\n", &mut found);
        let texts: Vec<[u8; 3]> = found.iter().map(|trigram| trigram.bytes()).collect();
        assert_eq!(texts, [*b"abc", *b"bca", *b"cab", *b"bcd", *b"cd\r"]);

        found.clear();
        finder.find(b"bca", &mut found);
        assert_eq!(found, [Trigram::new(*b"BCA")], "a text starts with a clean slate");
    }
}
