//! One container with every collection in it, and the same in std's collections: what the property
//! tests compare. A section is a list of operations and an end; undone sections leave no trace. Read
//! [`run`] first.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::{BTreeMap, HashMap as StdMap};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};

use proptest::prelude::*;
use stead_derive::Persist;
use stead_heap::{AllocError, Box, Error, HashMap, LockError, Mutex, RwLock, Slot, Text, Tx, Vec};

use crate::common::Heap;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
pub struct Node<'s> {
    value: u64,
    left: Option<Box<'s, Node<'s>>>,
    right: Option<Box<'s, Node<'s>>>,
}

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C, u32)]
pub enum Item<'s> {
    Number(u64),
    Name(Text<'s>),
    Many(Box<'s, Vec<'s, Text<'s>>>),
}

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
pub struct World<'s> {
    list: Mutex<'s, Vec<'s, u64>>,
    large: Mutex<'s, Vec<'s, [u64; 100]>>,
    text: RwLock<'s, Text<'s>>,
    map: Mutex<'s, HashMap<'s, u64, u64>>,
    names: RwLock<'s, HashMap<'s, Text<'s>, Vec<'s, Text<'s>>>>,
    tree: Mutex<'s, Option<Box<'s, Node<'s>>>>,
    items: Mutex<'s, Vec<'s, Item<'s>>>,
    nested: Mutex<'s, HashMap<'s, u32, HashMap<'s, u64, Text<'s>>>>,
    cells: Slot<'s, Vec<'s, u64>>,
    plain: u64,
}

/// The same, in this program's memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    list: std::vec::Vec<u64>,
    large: std::vec::Vec<[u64; 100]>,
    text: String,
    map: StdMap<u64, u64>,
    names: StdMap<String, std::vec::Vec<String>>,
    tree: std::collections::BTreeSet<u64>,
    items: std::vec::Vec<ModelItem>,
    nested: StdMap<u32, BTreeMap<u64, String>>,
    cells: std::vec::Vec<u64>,
    plain: u64,
}

#[derive(Clone, Debug, PartialEq)]
enum ModelItem {
    Number(u64),
    Name(String),
    Many(std::vec::Vec<String>),
}

#[derive(Clone, Debug)]
pub enum Op {
    ListPush(u64),
    ListPushMany(u16),
    ListPop,
    ListInsert(u16, u64),
    ListRemove(u16),
    ListSwapRemove(u16),
    ListTruncate(u16),
    ListClear,
    ListRetain(u64),
    ListSet(u16, u64),
    ListSort,
    LargePush(u64),
    LargePop,
    LargeSet(u16, u64),
    LargeClear,
    TextPush(String),
    TextPop,
    TextClear,
    MapInsert(u64, u64),
    MapInsertMany(u16),
    MapRemove(u64),
    MapRemoveMany(u16),
    MapAdd(u64, u64),
    MapRetain(u64),
    MapClear,
    MapReserve(u16),
    NamesPush(u8, String),
    NamesRemove(u8),
    NamesUpdateAll(String),
    TreeInsert(u64),
    TreeRemoveRoot,
    ItemPush(u8, String),
    ItemRemove(u16),
    ItemReplace(u16, String),
    NestedInsert(u32, u64, String),
    NestedRemove(u32, u64),
    NestedDrop(u32),
    /// Values made and dropped without ever being in the container's reach.
    Scratch(u8),
    /// Two collections change places.
    Swap(u32, u32),
    /// A closure of a collection panics in the midst; the section catches it and goes on.
    RetainPanics(u64),
}

#[derive(Clone, Debug)]
pub enum End {
    Commit,
    Error,
    Panic,
    /// Panics after so many operations.
    PanicAt(usize),
}

#[derive(Clone, Debug)]
pub struct Section {
    pub ops: std::vec::Vec<Op>,
    pub exclusive: bool,
    pub end: End,
    pub reopen: bool,
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0u64..40;
    let word = || "[a-zé]{0,30}";
    prop_oneof![
        4 => any::<u64>().prop_map(Op::ListPush),
        1 => (0u16..2000).prop_map(Op::ListPushMany),
        3 => Just(Op::ListPop),
        2 => any::<(u16, u64)>().prop_map(|(i, v)| Op::ListInsert(i, v)),
        2 => any::<u16>().prop_map(Op::ListRemove),
        2 => any::<u16>().prop_map(Op::ListSwapRemove),
        1 => any::<u16>().prop_map(Op::ListTruncate),
        1 => Just(Op::ListClear),
        1 => (1u64..5).prop_map(Op::ListRetain),
        2 => any::<(u16, u64)>().prop_map(|(i, v)| Op::ListSet(i, v)),
        1 => Just(Op::ListSort),
        2 => any::<u64>().prop_map(Op::LargePush),
        1 => Just(Op::LargePop),
        1 => any::<(u16, u64)>().prop_map(|(i, v)| Op::LargeSet(i, v)),
        1 => Just(Op::LargeClear),
        3 => word().prop_map(Op::TextPush),
        1 => Just(Op::TextPop),
        1 => Just(Op::TextClear),
        6 => (key(), any::<u64>()).prop_map(|(k, v)| Op::MapInsert(k, v)),
        1 => (0u16..1500).prop_map(Op::MapInsertMany),
        4 => key().prop_map(Op::MapRemove),
        1 => (0u16..1500).prop_map(Op::MapRemoveMany),
        3 => (key(), any::<u64>()).prop_map(|(k, v)| Op::MapAdd(k, v)),
        1 => (1u64..5).prop_map(Op::MapRetain),
        1 => Just(Op::MapClear),
        1 => (0u16..500).prop_map(Op::MapReserve),
        5 => (0u8..12, word()).prop_map(|(k, v)| Op::NamesPush(k, v)),
        3 => (0u8..12).prop_map(Op::NamesRemove),
        1 => word().prop_map(Op::NamesUpdateAll),
        4 => (0u64..1000).prop_map(Op::TreeInsert),
        1 => Just(Op::TreeRemoveRoot),
        3 => (0u8..3, word()).prop_map(|(k, v)| Op::ItemPush(k, v)),
        2 => any::<u16>().prop_map(Op::ItemRemove),
        2 => (any::<u16>(), word()).prop_map(|(i, v)| Op::ItemReplace(i, v)),
        4 => (0u32..4, 0u64..20, word()).prop_map(|(a, b, v)| Op::NestedInsert(a, b, v)),
        3 => (0u32..4, 0u64..20).prop_map(|(a, b)| Op::NestedRemove(a, b)),
        1 => (0u32..4).prop_map(Op::NestedDrop),
        2 => (0u8..20).prop_map(Op::Scratch),
        1 => (0u32..4, 0u32..4).prop_map(|(a, b)| Op::Swap(a, b)),
        1 => (1u64..30).prop_map(Op::RetainPanics),
    ]
}

pub fn section() -> impl Strategy<Value = Section> {
    let end = prop_oneof![
        3 => Just(End::Commit),
        1 => Just(End::Error),
        1 => Just(End::Panic),
        1 => (0usize..40).prop_map(End::PanicAt),
    ];
    (prop::collection::vec(op(), 0..40), prop::bool::weighted(0.3), end, prop::bool::weighted(0.2))
        .prop_map(|(ops, exclusive, end, reopen)| Section { ops, exclusive, end, reopen })
}

pub fn world() -> Heap<World<'static>> {
    Heap::new(1, |tx| {
        Ok(World {
            list: Mutex::new(Vec::new(tx)),
            large: Mutex::new(Vec::new(tx)),
            text: RwLock::new(Text::new(tx)),
            map: Mutex::new(HashMap::new(tx)),
            names: RwLock::new(HashMap::new(tx)),
            tree: Mutex::new(None),
            items: Mutex::new(Vec::new(tx)),
            nested: Mutex::new(HashMap::new(tx)),
            cells: Slot::new(Vec::new(tx)),
            plain: 0,
        })
    })
}

/// Runs sections on both sides; says what is different, or wrong with the container.
pub fn run(sections: &[Section]) -> Result<(), String> {
    let mut heap = world();
    let mut model = Model::default();
    for (i, section) in sections.iter().enumerate() {
        one(&heap, &mut model, section).map_err(|e| format!("section {i}: {e}"))?;
        if section.reopen {
            heap.reopen();
        }
        compare(&heap, &model)
            .map_err(|e| format!("after section {i} ({:?}): {e}", section.end))?;
    }
    Ok(())
}

struct OnPurpose;

fn one(heap: &Heap<World<'static>>, model: &mut Model, section: &Section) -> Result<(), String> {
    let mut after = model.clone();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut wrong = None;
        let perhaps_panic = |n: usize| {
            if matches!(section.end, End::PanicAt(at) if at == n) {
                panic_any(OnPurpose);
            }
        };
        let result = if section.exclusive {
            heap.exclusive(|r, x| {
                let mut m = model.clone();
                r.plain += 1;
                m.plain += 1;
                r.cells.with_mut(x, |v, tx| v.push(tx, m.plain))?;
                m.cells.push(m.plain);
                for (n, op) in section.ops.iter().enumerate() {
                    perhaps_panic(n);
                    if let Err(e) = apply(r, &mut m, x, op)? {
                        wrong = Some(e);
                    }
                }
                after = m;
                finish(section)
            })
        } else {
            heap.write(|r, tx| {
                let mut m = model.clone();
                for (n, op) in section.ops.iter().enumerate() {
                    perhaps_panic(n);
                    if let Err(e) = apply(r, &mut m, tx, op)? {
                        wrong = Some(e);
                    }
                }
                after = m;
                finish(section)
            })
        };
        match wrong {
            Some(e) => Err(e),
            None => Ok(result.is_ok()),
        }
    }));
    match outcome {
        Ok(Ok(committed)) => {
            if committed {
                *model = after;
            }
            Ok(())
        }
        Ok(Err(e)) => Err(e),
        Err(payload) if payload.is::<OnPurpose>() => Ok(()),
        Err(payload) => {
            let text = payload
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(format!("panicked: {}", text.unwrap_or_default()))
        }
    }
}

fn finish(section: &Section) -> Result<(), Error> {
    match section.end {
        End::Panic => panic_any(OnPurpose),
        End::Error => Err(Error::Lock(LockError::AlreadyLent)),
        End::Commit | End::PanicAt(_) => Ok(()),
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, heap: T, model: T) -> Result<(), String> {
    if heap == model { Ok(()) } else { Err(format!("{what}: heap {heap:?}, model {model:?}")) }
}

fn at(i: u16, len: usize) -> usize {
    usize::from(i) % len.max(1)
}

fn name(k: u8) -> String {
    format!("name number {k}")
}

/// The inner result says whether both sides agree.
fn apply<'s>(
    r: &World<'s>,
    m: &mut Model,
    tx: &Tx<'s>,
    op: &Op,
) -> Result<Result<(), String>, Error> {
    let agree = match op {
        Op::ListPush(v) => {
            r.list.lock(tx)?.push(tx, *v)?;
            m.list.push(*v);
            Ok(())
        }
        Op::ListPushMany(n) => {
            r.list.lock(tx)?.extend(tx, (0..*n).map(u64::from))?;
            m.list.extend((0..*n).map(u64::from));
            Ok(())
        }
        Op::ListPop => same("pop", r.list.lock(tx)?.pop(tx), m.list.pop()),
        Op::ListInsert(i, v) => {
            let i = at(*i, m.list.len() + 1);
            r.list.lock(tx)?.insert(tx, i, *v)?;
            m.list.insert(i, *v);
            Ok(())
        }
        Op::ListRemove(i) if !m.list.is_empty() => {
            let i = at(*i, m.list.len());
            same("remove", r.list.lock(tx)?.remove(tx, i), m.list.remove(i))
        }
        Op::ListSwapRemove(i) if !m.list.is_empty() => {
            let i = at(*i, m.list.len());
            same("swap_remove", r.list.lock(tx)?.swap_remove(tx, i), m.list.swap_remove(i))
        }
        Op::ListRemove(_) | Op::ListSwapRemove(_) => Ok(()),
        Op::ListTruncate(n) => {
            let n = at(*n, m.list.len() + 1);
            r.list.lock(tx)?.truncate(tx, n);
            m.list.truncate(n);
            Ok(())
        }
        Op::ListClear => {
            r.list.lock(tx)?.clear(tx);
            m.list.clear();
            Ok(())
        }
        Op::ListRetain(n) => {
            r.list.lock(tx)?.retain(tx, |v| v % n == 0);
            m.list.retain(|v| v % n == 0);
            Ok(())
        }
        Op::ListSet(i, v) => {
            let i = at(*i, m.list.len());
            let mut list = r.list.lock(tx)?;
            match (list.get_mut(tx, i), m.list.get_mut(i)) {
                (Some(a), Some(b)) => {
                    *a = *v;
                    *b = *v;
                    Ok(())
                }
                (None, None) => Ok(()),
                _ => Err("get_mut".into()),
            }
        }
        Op::ListSort => {
            r.list.lock(tx)?.as_mut_slice(tx).sort_unstable();
            m.list.sort_unstable();
            Ok(())
        }
        Op::LargePush(v) => {
            r.large.lock(tx)?.push(tx, [*v; 100])?;
            m.large.push([*v; 100]);
            Ok(())
        }
        Op::LargePop => same("large pop", r.large.lock(tx)?.pop(tx), m.large.pop()),
        Op::LargeSet(i, v) => {
            let i = at(*i, m.large.len());
            if let Some(a) = r.large.lock(tx)?.get_mut(tx, i) {
                a[7] = *v;
                m.large[i][7] = *v;
            }
            Ok(())
        }
        Op::LargeClear => {
            r.large.lock(tx)?.clear(tx);
            m.large.clear();
            Ok(())
        }
        Op::TextPush(s) => {
            r.text.write(tx)?.push_str(tx, s)?;
            m.text.push_str(s);
            Ok(())
        }
        Op::TextPop => same("text pop", r.text.write(tx)?.pop(tx), m.text.pop()),
        Op::TextClear => {
            r.text.write(tx)?.clear(tx);
            m.text.clear();
            Ok(())
        }
        Op::MapInsert(k, v) => {
            same("insert", r.map.lock(tx)?.insert(tx, *k, *v)?, m.map.insert(*k, *v))
        }
        Op::MapInsertMany(n) => {
            let mut map = r.map.lock(tx)?;
            for k in 0..u64::from(*n) {
                map.insert(tx, k * 3, k)?;
                m.map.insert(k * 3, k);
            }
            Ok(())
        }
        Op::MapRemove(k) => same("remove", r.map.lock(tx)?.remove(tx, k), m.map.remove(k)),
        Op::MapRemoveMany(n) => {
            let mut map = r.map.lock(tx)?;
            let mut agree = Ok(());
            for k in 0..u64::from(*n) {
                agree = agree.and(same("remove", map.remove(tx, &(k * 3)), m.map.remove(&(k * 3))));
            }
            agree
        }
        Op::MapAdd(k, v) => {
            let mut map = r.map.lock(tx)?;
            let value = map.get_or_insert_with(tx, *k, || Ok::<_, AllocError>(5))?;
            *value = value.wrapping_add(*v);
            let value = m.map.entry(*k).or_insert(5);
            *value = value.wrapping_add(*v);
            Ok(())
        }
        Op::MapRetain(n) => {
            r.map.lock(tx)?.retain(tx, |k, v| {
                *v = v.wrapping_add(1);
                k % n != 0
            });
            m.map.retain(|k, v| {
                *v = v.wrapping_add(1);
                k % n != 0
            });
            Ok(())
        }
        Op::MapClear => {
            r.map.lock(tx)?.clear(tx);
            m.map.clear();
            Ok(())
        }
        Op::MapReserve(n) => {
            r.map.lock(tx)?.reserve(tx, usize::from(*n))?;
            Ok(())
        }
        Op::NamesPush(k, v) => {
            let mut names = r.names.write(tx)?;
            let key = Text::from_str(tx, &name(*k))?;
            let list = names.get_or_insert_with(tx, key, || Ok::<_, Error>(Vec::new(tx)))?;
            list.push(tx, Text::from_str(tx, v)?)?;
            m.names.entry(name(*k)).or_default().push(v.clone());
            Ok(())
        }
        Op::NamesRemove(k) => {
            let removed = r.names.write(tx)?.remove(tx, name(*k).as_str());
            let removed = removed.map(|v| v.iter().map(|t| t.to_string()).collect());
            same("names", removed, m.names.remove(&name(*k)))
        }
        Op::NamesUpdateAll(s) => {
            for (_, list) in r.names.write(tx)?.iter_mut(tx) {
                if let Some(last) = list.last_mut(tx) {
                    last.push_str(tx, s)?;
                }
            }
            for list in m.names.values_mut() {
                if let Some(last) = list.last_mut() {
                    last.push_str(s);
                }
            }
            Ok(())
        }
        Op::TreeInsert(v) => {
            let mut tree = r.tree.lock(tx)?;
            let mut place: &mut Option<Box<Node>> = &mut tree;
            let mut new = m.tree.insert(*v);
            loop {
                match place {
                    None => {
                        *place = Some(Box::new(tx, Node { value: *v, left: None, right: None })?);
                        break same("tree insert", true, new);
                    }
                    Some(node) => {
                        let node = node.get_mut(tx);
                        if node.value == *v {
                            break same("tree insert", false, std::mem::take(&mut new));
                        }
                        place = if *v < node.value { &mut node.left } else { &mut node.right };
                    }
                }
            }
        }
        Op::TreeRemoveRoot => {
            let mut tree = r.tree.lock(tx)?;
            if let Some(root) = tree.take() {
                // The left branch moves up, the right one goes.
                let Node { left, right, .. } = root.into_inner(tx);
                *tree = left;
                drop(right);
            }
            let mut values = std::collections::BTreeSet::new();
            collect(tree.as_deref(), &mut values);
            m.tree = values;
            Ok(())
        }
        Op::ItemPush(k, s) => {
            let item = match k {
                0 => Item::Number(s.len() as u64),
                1 => Item::Name(Text::from_str(tx, s)?),
                _ => {
                    let mut many = Vec::new(tx);
                    many.push(tx, Text::from_str(tx, s)?)?;
                    many.push(tx, Text::from_str(tx, "second")?)?;
                    Item::Many(Box::new(tx, many)?)
                }
            };
            r.items.lock(tx)?.push(tx, item)?;
            m.items.push(match k {
                0 => ModelItem::Number(s.len() as u64),
                1 => ModelItem::Name(s.clone()),
                _ => ModelItem::Many(vec![s.clone(), "second".into()]),
            });
            Ok(())
        }
        Op::ItemRemove(i) => {
            if !m.items.is_empty() {
                let i = at(*i, m.items.len());
                drop(r.items.lock(tx)?.swap_remove(tx, i));
                m.items.swap_remove(i);
            }
            Ok(())
        }
        Op::ItemReplace(i, s) => {
            let i = at(*i, m.items.len());
            if let Some(item) = r.items.lock(tx)?.get_mut(tx, i) {
                *item = Item::Name(Text::from_str(tx, s)?);
                m.items[i] = ModelItem::Name(s.clone());
            }
            Ok(())
        }
        Op::NestedInsert(a, b, s) => {
            let mut nested = r.nested.lock(tx)?;
            let inner = nested.get_or_insert_with(tx, *a, || Ok::<_, Error>(HashMap::new(tx)))?;
            let old = inner.insert(tx, *b, Text::from_str(tx, s)?)?;
            let model = m.nested.entry(*a).or_default().insert(*b, s.clone());
            same("nested", old.map(|t| t.to_string()), model)
        }
        Op::NestedRemove(a, b) => {
            let mut nested = r.nested.lock(tx)?;
            let old = nested.get_mut(tx, a).and_then(|inner| inner.remove(tx, b));
            let model = m.nested.get_mut(a).and_then(|inner| inner.remove(b));
            same("nested", old.map(|t| t.to_string()), model)
        }
        Op::NestedDrop(a) => {
            let old = r.nested.lock(tx)?.remove(tx, a).is_some();
            same("nested drop", old, m.nested.remove(a).is_some())
        }
        Op::Scratch(n) => {
            let mut scratch = HashMap::new(tx);
            for i in 0..u64::from(*n) {
                let mut v = Vec::with_capacity(tx, usize::from(*n))?;
                v.push(tx, Box::new(tx, i)?)?;
                scratch.insert(tx, Text::from_str(tx, &i.to_string())?, v)?;
            }
            Ok(())
        }
        Op::Swap(a, b) => {
            let mut nested = r.nested.lock(tx)?;
            if a != b && nested.contains_key(a) && nested.contains_key(b) {
                let x = nested.remove(tx, a).expect("it is there");
                let y = std::mem::replace(nested.get_mut(tx, b).expect("it is there"), x);
                nested.insert(tx, *a, y)?;
                let (x, y) = (m.nested.remove(a).unwrap(), m.nested.remove(b).unwrap());
                m.nested.insert(*a, y);
                m.nested.insert(*b, x);
            }
            Ok(())
        }
        Op::RetainPanics(n) => {
            let mut list = r.list.lock(tx)?;
            let mut left = *n;
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                list.retain(tx, |v| {
                    left -= 1;
                    if left == 0 {
                        panic_any(OnPurpose);
                    }
                    v % 2 == 0
                });
            }));
            let mut left = *n;
            if panicked.is_err() {
                m.list.retain(|v| {
                    left = left.saturating_sub(1);
                    left == 0 || v % 2 == 0
                });
            } else {
                m.list.retain(|v| v % 2 == 0);
            }
            Ok(())
        }
    };
    Ok(agree)
}

fn collect(node: Option<&Node<'_>>, into: &mut std::collections::BTreeSet<u64>) {
    if let Some(node) = node {
        collect(node.left.as_deref(), into);
        into.insert(node.value);
        collect(node.right.as_deref(), into);
    }
}

fn compare(heap: &Heap<World<'static>>, model: &Model) -> Result<(), String> {
    let found = heap
        .write(|r, tx| {
            let mut tree = std::collections::BTreeSet::new();
            collect(r.tree.lock(tx)?.as_deref(), &mut tree);
            Ok(Model {
                list: r.list.lock(tx)?.to_vec(),
                large: r.large.lock(tx)?.to_vec(),
                text: r.text.read(tx)?.to_string(),
                map: r.map.lock(tx)?.iter().map(|(k, v)| (*k, *v)).collect(),
                names: r
                    .names
                    .read(tx)?
                    .iter()
                    .map(|(k, v)| (k.to_string(), v.iter().map(|t| t.to_string()).collect()))
                    .collect(),
                tree,
                items: r
                    .items
                    .lock(tx)?
                    .iter()
                    .map(|item| match item {
                        Item::Number(n) => ModelItem::Number(*n),
                        Item::Name(t) => ModelItem::Name(t.to_string()),
                        Item::Many(v) => ModelItem::Many(v.iter().map(|t| t.to_string()).collect()),
                    })
                    .collect(),
                nested: r
                    .nested
                    .lock(tx)?
                    .iter()
                    .map(|(k, v)| (*k, v.iter().map(|(k, t)| (*k, t.to_string())).collect()))
                    .collect(),
                cells: r.cells.get(tx).to_vec(),
                plain: r.plain,
            })
        })
        .map_err(|e| e.to_string())?;
    if found != *model {
        return Err(format!("contents differ: heap {found:?}\nmodel {model:?}"));
    }
    let lookups = heap
        .write(|r, tx| {
            let map = r.map.lock(tx)?;
            let names = r.names.read(tx)?;
            Ok(model.map.iter().all(|(k, v)| map.get(k) == Some(v))
                && (0..12).all(|k| {
                    let name = name(k);
                    names.get(name.as_str()).is_some() == model.names.contains_key(&name)
                }))
        })
        .map_err(|e| e.to_string())?;
    if !lookups {
        return Err("a key is not found under its hash".into());
    }
    let report = heap.arena().verify();
    if !report.is_clean() {
        return Err(format!("not clean: {report}"));
    }
    if report.leaked_allocations != 0 {
        return Err(format!("leaks: {report} {:?}", report.leaks));
    }
    Ok(())
}
