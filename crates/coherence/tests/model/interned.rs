//! Values that many states share, kept once: a state of the explored world is then a few pointers, and
//! is compared and hashed by them. Read [`Interned`] first.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// A value that is kept once in each thread that makes it, with its hash.
pub(crate) struct Interned<T>(Arc<(u64, T)>);

/// All values of one type; those that no state has any more go when it has doubled.
struct Arena<T> {
    values: HashMap<u64, Interned<T>>,
    clean_at: usize,
}

thread_local! {
    static ARENAS: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

impl<T: Hash + Eq + 'static> Interned<T> {
    pub(crate) fn new(value: T) -> Interned<T> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(&value);
        ARENAS.with_borrow_mut(|arenas| {
            let at = arenas.iter().position(|a| a.is::<Arena<T>>()).unwrap_or_else(|| {
                arenas.push(Box::new(Arena::<T> { values: HashMap::new(), clean_at: 10_000 }));
                arenas.len() - 1
            });
            arenas[at].downcast_mut::<Arena<T>>().expect("found by its type").get(hash, value)
        })
    }

    /// The value, to be changed and interned anew.
    pub(crate) fn value(&self) -> T
    where
        T: Clone,
    {
        self.0.1.clone()
    }
}

impl<T: Eq> Arena<T> {
    fn get(&mut self, hash: u64, value: T) -> Interned<T> {
        if self.values.len() > self.clean_at {
            self.values.retain(|_, v| Arc::strong_count(&v.0) > 1);
            self.clean_at = 10_000 + 2 * self.values.len();
        }
        let mut place = hash;
        loop {
            match self.values.get(&place) {
                Some(known) if known.0.1 == value => return known.clone(),
                Some(_) => place = place.wrapping_add(1),
                None => break,
            }
        }
        let interned = Interned(Arc::new((hash, value)));
        self.values.insert(place, interned.clone());
        interned
    }
}

impl<T> Clone for Interned<T> {
    fn clone(&self) -> Self {
        Interned(self.0.clone())
    }
}

impl<T> Deref for Interned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.1
    }
}

impl<T> Hash for Interned<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.0.hash(state);
    }
}

// Equal values that two threads made are two.

impl<T: PartialEq> PartialEq for Interned<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || *self.0 == *other.0
    }
}

impl<T: Eq> Eq for Interned<T> {}

impl<T: Ord> PartialOrd for Interned<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// By hash: any order will do that is the same in all states.
impl<T: Ord> Ord for Interned<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.0.cmp(&other.0.0).then_with(|| self.0.1.cmp(&other.0.1))
    }
}

impl<T: fmt::Debug> fmt::Debug for Interned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.1.fmt(f)
    }
}
