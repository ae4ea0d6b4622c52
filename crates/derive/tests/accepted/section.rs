#![forbid(unsafe_code)]
#![allow(unused)]
use stead_derive::{Persist, StableHash};
use stead_heap::*;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct Node<'s> {
    value: u64,
    next: Slot<'s, Option<Ptr<'s, Node<'s>>>>,
    tags: Mutex<'s, Vec<'s, u64>>,
}

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct Top<'s> {
    hits: Counter<'s>,
    head: Slot<'s, Option<Ptr<'s, Node<'s>>>>,
    list: Vec<'s, u64>,
    count: u64,
    lock: Mutex<'s, Vec<'s, u64>>,
}

struct Container;

impl Container {
    fn read<T>(&self, _: impl for<'s> FnOnce(&'s Top<'s>, &'s Read<'s>) -> T) -> T {
        loop {}
    }
    fn write<T>(
        &self,
        _: impl for<'s> FnMut(&'s Top<'s>, &'s Write<'s>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        loop {}
    }
    fn exclusive<T>(
        &self,
        _: impl for<'s> FnMut(&'s mut Top<'s>, &'s mut Exclusive<'s>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        loop {}
    }
}

#[derive(Persist, StableHash, PartialEq, Eq)]
#[persist(crate = stead_heap, name = "shop::Key")]
#[repr(C)]
struct Key<'s> {
    name: Text<'s>,
    kind: Kind,
    _pad: [u8; 7],
}

#[derive(Persist, StableHash, PartialEq, Eq, Clone, Copy)]
#[persist(crate = stead_heap)]
#[repr(u8)]
enum Kind {
    Small = 3,
    Large,
}

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C, u32)]
enum Thing<'s, T> {
    Nothing,
    One(T),
    Named { name: Box<'s, Text<'s>>, n: u32 },
}

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct Grid<T, const N: usize> {
    cells: [T; N],
}

fn section(c: &Container) -> Result<u64, Error> {
    let n = c.write(|r, tx| {
        r.hits.add(tx, 1);
        let mut at = *r.head.get(tx);
        let mut n = 0;
        while let Some(node) = at {
            n += node.value;
            node.tags.lock(tx)?.push(tx, n)?;
            at = *node.next.get(tx);
        }
        // Scoped threads read along.
        let list: &Vec<u64> = &*r.lock.lock(tx)?;
        let sum: u64 = std::thread::scope(|s| {
            let hits = s.spawn(|| r.hits.get());
            let sum = s.spawn(|| list.iter().sum::<u64>());
            hits.join().unwrap() + sum.join().unwrap()
        });
        Ok(n + sum)
    })?;
    c.exclusive(|r, x| {
        let node = x.alloc(Node {
            value: n,
            next: Slot::new(*r.head.get(x)),
            tags: Mutex::new(Vec::new(x)),
        })?;
        *r.head.get_mut(x) = Some(node);
        r.list.push(x, 1)?;
        r.count += 1;
        let mut map = HashMap::new(x);
        let key = Key { name: Text::from_str(x, "a")?, kind: Kind::Small, _pad: [0; 7] };
        map.insert(x, key, Grid { cells: [1u64; 4] })?;
        let thing = x.alloc(Thing::One(5u64))?;
        let name = Box::new(x, Text::new(x))?;
        let named: Ptr<Thing<u64>> = x.alloc(Thing::Named { name, n: 1 })?;
        Ok(matches!(&*thing, Thing::One(5)) as u64 + map.len() as u64)
    })
}

fn main() {}
