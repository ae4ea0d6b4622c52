#![allow(unused)]
use stead_derive::Persist;
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

fn main() {
    let c = Container;
    let _ = c.exclusive(|r, x| {
        let p = r.head.get(x).unwrap();
        let old = p.next.get(x);
        *p.next.get_mut(x) = None;
        println!("{}", old.is_some());
        Ok(())
    });
}
