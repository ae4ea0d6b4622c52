//! What it costs to enter and leave a section, and to follow a pointer.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use stead::{Counter, Persist, Ptr, Result, Slot};

use crate::{Row, median};

const ROUNDS: usize = 5;
const SECTIONS: u64 = 20_000_000;
const NODES: usize = 1 << 16;

#[derive(Persist)]
#[repr(C)]
struct Root<'s> {
    count: Counter<'s>,
    head: Slot<'s, Option<Ptr<'s, Node<'s>>>>,
}

#[derive(Persist)]
#[repr(C)]
struct Node<'s> {
    value: u64,
    next: Slot<'s, Option<Ptr<'s, Node<'s>>>>,
}

struct PlainNode {
    value: u64,
    next: Option<&'static PlainNode>,
}

pub(crate) fn measure(dir: &Path) -> Result<Vec<Row>, Box<dyn std::error::Error>> {
    let store = stead::open(dir.join("sections"))?;
    let c = store.container::<Root<'_>>("c", |_| {
        Ok(Root { count: Counter::new(0), head: Slot::new(None) })
    })?;
    let mut rows = Vec::new();
    for threads in [1, 2] {
        for mutating in [false, true] {
            let times = (0..ROUNDS).map(|_| sections(&c, threads, mutating)).collect();
            let kind = if mutating { "write" } else { "read" };
            let s = if threads == 1 { "" } else { "s" };
            rows.push(
                Row::new(
                    format!("{kind} section, entry and exit, {threads} thread{s}"),
                    median(times),
                    "ns",
                )
                .note("closure, root read; no change made"),
            );
        }
    }
    // Two lists of the same nodes in the same shuffled order.
    let mut order: Vec<usize> = (0..NODES).collect();
    fastrand::Rng::with_seed(7).shuffle(&mut order);
    let plain: Vec<Box<PlainNode>> =
        (0..NODES).map(|i| Box::new(PlainNode { value: i as u64, next: None })).collect();
    let plain: &'static mut [Box<PlainNode>] = plain.leak();
    let mut next: Option<&'static PlainNode> = None;
    let mut slots: Vec<Option<&'static mut Box<PlainNode>>> = plain.iter_mut().map(Some).collect();
    for &i in &order {
        let node = slots[i].take().expect("each node is linked once");
        node.next = next;
        next = Some(&**node);
    }
    c.exclusive(|root, tx| -> Result<()> {
        let nodes = (0..NODES)
            .map(|i| tx.alloc(Node { value: i as u64, next: Slot::new(None) }))
            .collect::<Result<Vec<_>, _>>()?;
        let mut next = None;
        for &i in &order {
            nodes[i].next.set(tx, next);
            next = Some(nodes[i]);
        }
        root.head.set(tx, next);
        Ok(())
    })?;
    let (mut persistent, mut ordinary) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ordinary.push(chase(|| {
            let (mut at, mut sum) = (next, 0u64);
            while let Some(node) = at {
                sum = sum.wrapping_add(node.value);
                at = node.next;
            }
            sum
        }));
        persistent.push(c.read(|root, token| {
            let head = *root.head.get(token);
            chase(|| {
                let (mut at, mut sum) = (head, 0u64);
                while let Some(node) = at {
                    sum = sum.wrapping_add(node.value);
                    at = *node.next.get(token);
                }
                sum
            })
        })?);
    }
    rows.push(
        Row::new("pointer hop, 65,536 nodes", median(persistent), "ns")
            .against("heap", median(ordinary)),
    );
    Ok(rows)
}

fn sections(c: &stead::Container<Root<'static>>, threads: usize, mutating: bool) -> f64 {
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(move || {
                    let began = Instant::now();
                    for _ in 0..SECTIONS {
                        if mutating {
                            let n = c.write(|root, _| -> Result<u64> { Ok(root.count.get()) });
                            black_box(n.unwrap_or(0));
                        } else {
                            black_box(c.read(|root, _| root.count.get()).unwrap_or(0));
                        }
                    }
                    began.elapsed().as_secs_f64() * 1e9 / SECTIONS as f64
                })
            })
            .collect();
        let times = handles.into_iter().map(|h| h.join().expect("measuring does not panic"));
        times.fold(0.0, f64::max)
    })
}

/// Nanoseconds a hop, over twenty walks.
fn chase(walk: impl Fn() -> u64) -> f64 {
    let began = Instant::now();
    for _ in 0..20 {
        black_box(walk());
    }
    began.elapsed().as_secs_f64() * 1e9 / (20 * NODES) as f64
}
