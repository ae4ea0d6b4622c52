//! The twin of [`crate::index`] in ordinary memory: the same structure and the same steps with
//! std's collections, gone when the program ends. It exists to be compared with. Read [`Index`]
//! first.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::pipeline::{Batch, Document};
use crate::postings;

/// A trigram index that its process takes along when it goes.
#[derive(Debug, Default)]
pub struct Index {
    documents: Vec<Document>,
    lists: HashMap<u32, List, BuildHasherDefault<NumberHasher>>,
}

#[derive(Debug, Default)]
struct List {
    /// One more than the last document in it.
    next: u32,
    /// How many documents are in it.
    count: u32,
    bytes: Vec<u8>,
}

impl Index {
    /// Adds a batch.
    pub fn add(&mut self, batch: &Batch) {
        let first = self.documents.len() as u32;
        self.documents.extend(batch.documents.iter().cloned());
        let mut encoded = Vec::new();
        for (trigram, numbers) in batch.lists() {
            let list = self.lists.entry(trigram.number()).or_default();
            list.count += numbers.len() as u32;
            encoded.clear();
            list.next = postings::append(&mut encoded, list.next, numbers.map(|n| first + n));
            list.bytes.extend_from_slice(&encoded);
        }
    }

    /// How many documents, trigrams and bytes of lists there are.
    #[must_use]
    pub fn counts(&self) -> [u64; 3] {
        let bytes = self.lists.values().map(|list| list.bytes.len() as u64).sum();
        [self.documents.len() as u64, self.lists.len() as u64, bytes]
    }
}

/// A hash of a number by one multiplication: std's own would make the twin slower than need be.
#[derive(Debug, Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        let product = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }
}
