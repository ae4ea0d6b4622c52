//! Proves that a container is what it says (catalogue A3): every pointer that can be reached from the
//! root, and every one in a live object, lands on a live object of the described type in the same
//! container; every page of every segment is accounted for. Trusts nothing that it reads: the bytes may
//! be damaged. Changes nothing. Read [`Arena::verify`] first.

mod report;

use std::collections::HashMap;
use std::ops::Range;
use std::ptr::with_exposed_provenance;
use std::sync::atomic::Ordering::Relaxed;

use stead_model::{Address, PAGE_SIZE, PAGES_PER_WINDOW, PageRange, WINDOW_SIZE};

use crate::alloc::Shared;
use crate::arena::Arena;
use crate::group::{DELETED, EMPTY, WIDTH};
use crate::layout::{
    DESCRIPTOR_SIZE, EMPTY_GROUP, FIRST_PAGE, MAGIC, SMALL_MAX, UNASSIGNED, WINDOW_PAGES,
    descriptor, header, kind, window_base,
};
use crate::map::room;
use crate::planted::{self, Bug};
use crate::registry::Registry;
use crate::types::{FieldDescription, Shape, TypeDescription};

pub use report::{Finding, Leak, Report};

impl Arena {
    /// Checks the whole container. No mutating section may be open in it meanwhile; if one is, the
    /// report may name things that are merely in the making. Never crashes on damaged bytes.
    ///
    /// Takes memory in proportion to the number of live allocations.
    #[must_use]
    pub fn verify(&self) -> Report {
        let shared = &*self.shared;
        // SAFETY: window 0 is mapped while the arena is open.
        let zero = unsafe { header(shared.base) };
        let registry = shared.registry.lock().unwrap_or_else(|e| e.into_inner());
        let mut v = Verifier {
            shared,
            registry: &registry,
            steps: steps(&registry),
            filled: shared.ground.filled(),
            allocations: HashMap::new(),
            queue: Vec::new(),
            report: Report {
                container: shared.container,
                first_bad: None,
                bad_count: 0,
                live_allocations: 0,
                live_bytes: 0,
                free_bytes: 0,
                waste_bytes: 0,
                own_bytes: 0,
                lost_bytes: 0,
                leaked_allocations: 0,
                leaked_bytes: 0,
                leaks: Vec::new(),
                pointers: 0,
            },
        };
        for w in 0..(shared.span / WINDOW_SIZE) as u32 {
            if zero.clusters[w as usize].load(Relaxed) != UNASSIGNED {
                v.window(w);
            }
        }
        let root = zero.root.load(Relaxed) as usize;
        if root != 0 {
            let number = zero.root_type.load(Relaxed);
            match registry.get(number) {
                Some(ty) => v.pointer(root, ty, Holder::Root, shared.base, "root"),
                None => v.bad(
                    shared.base,
                    "the container",
                    "root",
                    format!("type number {number} is unknown"),
                ),
            }
            v.follow();
        }
        v.leaks();
        v.report
    }
}

/// What kind of pointer leads to an allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holder {
    Root,
    /// Any number of pointers may name the object.
    Shared,
    /// Only one may.
    Owner,
}

/// A live allocation.
struct Allocation {
    bytes: usize,
    kind: u8,
    type_number: u32,
    capacity_log2: u8,
    reached: bool,
    owned: bool,
}

struct Verifier<'a> {
    shared: &'a Shared,
    registry: &'a Registry,
    /// For each type, how many values one of it is made of.
    steps: Vec<u64>,
    /// The container's pages that may hold anything but zeros, in order.
    filled: Vec<PageRange>,
    allocations: HashMap<usize, Allocation>,
    /// Allocations reached whose contents are still to be looked at.
    queue: Vec<(usize, Contents)>,
    report: Report,
}

/// What is to be looked at in an allocation.
#[derive(Clone, Copy)]
enum Contents {
    /// This many values of the type, one after the other.
    Values { ty: u64, count: usize },
    /// The full slots of a hash table, of which this is the address of the control bytes.
    Table { entry: u64, ctrl: usize, slots: usize },
}

/// Fields within fields that are looked at before a description is taken for damaged.
const DEPTH_MAX: usize = 64;

/// Values that one value is made of, for each of its bytes, before its description is taken for damaged.
const STEPS_MAX: u64 = 64;

/// For each type, how many values one of it is made of, itself included; far too many where that does not end.
fn steps(registry: &Registry) -> Vec<u64> {
    fn of(registry: &Registry, number: u32, known: &mut [Option<u64>], depth: usize) -> u64 {
        if let Some(steps) = known[number as usize] {
            return steps;
        }
        let Some(ty) = registry.get(number).filter(|_| depth <= DEPTH_MAX) else {
            return u64::MAX;
        };
        // What comes back to itself does not end.
        known[number as usize] = Some(u64::MAX);
        let mut inner = |id| match registry.number(id) {
            Some(number) => of(registry, number, known, depth + 1),
            // That it is not described is said where it is met.
            None => 1,
        };
        let mut fields = |fields: &[FieldDescription]| {
            fields.iter().fold(0, |sum: u64, field| sum.saturating_add(inner(field.ty)))
        };
        let within = match &ty.shape {
            Shape::Struct(all) => fields(all),
            Shape::Enum { variants, .. } => {
                variants.iter().map(|variant| fields(&variant.fields)).max().unwrap_or(0)
            }
            Shape::Array { element, count } => inner(*element).saturating_mul(*count),
            Shape::Maybe(value) | Shape::Slot(value) | Shape::Lock { value, .. } => inner(*value),
            Shape::Scalar(_)
            | Shape::Counter
            | Shape::Ptr(_)
            | Shape::Box(_)
            | Shape::Vec(_)
            | Shape::Text(_)
            | Shape::Map(_) => 0,
        };
        let steps = within.saturating_add(1);
        known[number as usize] = Some(steps);
        steps
    }
    let mut known = vec![None; registry.len() as usize];
    (0..registry.len()).map(|number| of(registry, number, &mut known, 0)).collect()
}

/// Bytes of a value of this shape that are looked at themselves.
fn bytes_looked_at(shape: &Shape) -> u64 {
    match shape {
        Shape::Enum { tag_bytes, .. } => u64::from(*tag_bytes),
        Shape::Ptr(_) | Shape::Box(_) | Shape::Lock { .. } => 8,
        Shape::Vec(_) | Shape::Text(_) => 24,
        Shape::Map(_) => 32,
        Shape::Scalar(_)
        | Shape::Counter
        | Shape::Struct(_)
        | Shape::Array { .. }
        | Shape::Maybe(_)
        | Shape::Slot(_) => 0,
    }
}

impl<'a> Verifier<'a> {
    fn bad(&mut self, address: usize, ty: &str, field: &str, what: String) {
        self.report.bad_count += 1;
        if self.report.first_bad.is_none() {
            self.report.first_bad = Some(Finding {
                container: self.shared.container,
                address: Address(address),
                ty: ty.into(),
                field: field.into(),
                what,
            });
        }
    }

    // ------------------------------------------------------------------------------ pages

    fn window(&mut self, w: u32) {
        let base = self.shared.window(w);
        // SAFETY: an assigned window is mapped while the arena is open.
        let h = unsafe { header(base) };
        let pages = h.segment_pages.load(Relaxed);
        if h.magic != MAGIC || h.window != w || pages > u64::from(WINDOW_PAGES - FIRST_PAGE) {
            self.bad(base, "the header of a window", "", "is damaged".into());
            return;
        }
        if h.empty_group != [0xff; 64] {
            self.bad(
                base + EMPTY_GROUP,
                "the header of a window",
                "empty_group",
                "is damaged".into(),
            );
        }
        let end = FIRST_PAGE + pages as u32;
        let mut page = FIRST_PAGE;
        for described in self.described(w, end) {
            // Descriptors that are zero, and so the pages are free.
            let blank = described.start.saturating_sub(page);
            self.report.free_bytes += u64::from(blank) * PAGE_SIZE as u64;
            page += blank;
            while page < described.end {
                page += self.page(base, page, end);
            }
        }
        self.report.free_bytes += u64::from(end.saturating_sub(page)) * PAGE_SIZE as u64;
    }

    /// The pages of a window below `end` of which the descriptors may hold anything.
    fn described(&self, w: u32, end: u32) -> Vec<Range<u32>> {
        const IN_PAGE: u64 = (PAGE_SIZE / DESCRIPTOR_SIZE) as u64;
        let table = u64::from(w) * PAGES_PER_WINDOW + 1;
        let (first, last) =
            (table + u64::from(FIRST_PAGE) / IN_PAGE, table + u64::from(end) / IN_PAGE);
        let behind = self.filled.partition_point(|run| run.end <= first);
        let runs = self.filled[behind..].iter().take_while(|run| run.start <= last);
        let page = |at: u64| {
            let described = at.clamp(first, last + 1) - table;
            ((described * IN_PAGE) as u32).clamp(FIRST_PAGE, end)
        };
        runs.map(|run| page(run.start)..page(run.end)).collect()
    }

    /// Accounts for a page or run; returns the number of pages.
    fn page(&mut self, base: usize, page: u32, end: u32) -> u32 {
        let address = base + page as usize * PAGE_SIZE;
        // SAFETY: a page of an assigned window.
        let d = unsafe { descriptor(base, page) };
        let (k, slot_size) = (d.kind.load(Relaxed), d.slot_size.load(Relaxed) as usize);
        if k == kind::FREE {
            self.report.free_bytes += PAGE_SIZE as u64;
            return 1;
        }
        let type_number = d.type_number.load(Relaxed);
        let capacity_log2 = d.capacity_log2.load(Relaxed);
        let lost = |v: &mut Self, what: String| {
            v.bad(address, "the descriptor of a page", "", what);
            v.report.lost_bytes += PAGE_SIZE as u64;
            1
        };
        if k > kind::TYPES {
            return lost(self, format!("it is of an unknown kind, {k}"));
        }
        if k != kind::TYPES && self.registry.get(type_number).is_none() {
            return lost(self, format!("its type number {type_number} is unknown"));
        }
        let allocation = |bytes| Allocation {
            bytes,
            kind: k,
            type_number,
            capacity_log2,
            reached: false,
            owned: false,
        };
        if slot_size == 0 {
            let run = d.run_pages.load(Relaxed);
            if d.run_start.load(Relaxed) != page || run == 0 || run > end - page {
                return lost(self, format!("its run of {run} pages does not fit here"));
            }
            for inside in page..page + run {
                // SAFETY: a page of the segment.
                let i = unsafe { descriptor(base, inside) };
                if i.run_start.load(Relaxed) != page || i.kind.load(Relaxed) != k {
                    self.bad(
                        base + inside as usize * PAGE_SIZE,
                        "the descriptor of a page",
                        "",
                        "it does not belong to the run around it".into(),
                    );
                    // One is enough: the run may be as long as a damaged length says.
                    break;
                }
            }
            let bytes = run as usize * PAGE_SIZE;
            if k == kind::TYPES {
                self.report.own_bytes += bytes as u64;
            } else {
                self.report.live_allocations += 1;
                self.report.live_bytes += bytes as u64;
                self.allocations.insert(address, allocation(bytes));
            }
            return run;
        }
        let count = d.slot_count.load(Relaxed) as usize;
        if !slot_size.is_multiple_of(16)
            || slot_size > SMALL_MAX
            || count != PAGE_SIZE / slot_size
            || d.run_start.load(Relaxed) != page
            || k == kind::TYPES
        {
            return lost(self, format!("{count} slots of {slot_size} bytes are impossible"));
        }
        for slot in 0..256 {
            if d.live[slot / 64].load(Relaxed) & 1 << (slot % 64) == 0 {
                self.report.free_bytes += if slot < count { slot_size as u64 } else { 0 };
            } else if slot < count {
                self.report.live_allocations += 1;
                self.report.live_bytes += slot_size as u64;
                self.allocations.insert(address + slot * slot_size, allocation(slot_size));
            } else {
                self.bad(
                    address,
                    "the descriptor of a page",
                    "live",
                    format!("slot {slot} does not exist"),
                );
            }
        }
        self.report.waste_bytes += (PAGE_SIZE - count * slot_size) as u64;
        1
    }

    // ------------------------------------------------------------------------------ pointers

    fn follow(&mut self) {
        while let Some((address, contents)) = self.queue.pop() {
            match contents {
                Contents::Values { ty, count } => {
                    let Some(ty) = self.ty(ty) else { continue };
                    // All that have no bytes are alike.
                    let count = if ty.size == 0 { count.min(1) } else { count };
                    for i in 0..count {
                        self.value(address + i * ty.size as usize, ty, &Path::Start, 0);
                    }
                }
                Contents::Table { entry, ctrl, slots } => self.table(entry, ctrl, slots),
            }
        }
    }

    fn table(&mut self, entry: u64, ctrl: usize, slots: usize) {
        let Some(entry) = self.ty(entry) else { return };
        for i in 0..slots {
            // SAFETY: the caller found that the table lies in a live allocation.
            let byte = unsafe { with_exposed_provenance::<u8>(ctrl + i).read() };
            if byte < 0x80 {
                self.value(ctrl - (i + 1) * entry.size as usize, entry, &Path::Start, 0);
            }
        }
    }

    fn ty(&self, id: u64) -> Option<&'a TypeDescription> {
        self.registry.get(self.registry.number(id)?)
    }

    fn word(&self, address: usize) -> u64 {
        // SAFETY: callers look at values that lie whole in live allocations; the bytes need not be
        // aligned if a description is damaged.
        unsafe { with_exposed_provenance::<u64>(address).read_unaligned() }
    }

    /// Looks at a value that lies in a live allocation.
    fn value(&mut self, address: usize, ty: &'a TypeDescription, path: &Path<'_>, depth: usize) {
        let steps = self.registry.number(ty.id).map_or(u64::MAX, |n| self.steps[n as usize]);
        if depth > DEPTH_MAX || steps > STEPS_MAX.saturating_mul(ty.size.saturating_add(STEPS_MAX))
        {
            self.bad(address, &ty.name, &path.text(), "its description does not end".into());
            return;
        }
        if bytes_looked_at(&ty.shape) > ty.size {
            self.bad(address, &ty.name, &path.text(), "its description is too small".into());
            return;
        }
        let inner = |v: &mut Self, id: u64, offset: u64, path: &Path<'_>| {
            let Some(inner) = v.ty(id) else {
                v.bad(address, &ty.name, &path.text(), format!("type {id:016x} is not described"));
                return;
            };
            if offset.checked_add(inner.size).is_none_or(|end| end > ty.size) {
                v.bad(address, &ty.name, &path.text(), format!("{} does not fit", inner.name));
                return;
            }
            v.value(address + offset as usize, inner, path, depth + 1);
        };
        let fields = |v: &mut Self, fields: &'a [FieldDescription]| {
            for field in fields {
                inner(v, field.ty, field.offset, &Path::Field(path, &field.name));
            }
        };
        match &ty.shape {
            Shape::Scalar(scalar) => self.scalar(address, ty, *scalar, path),
            Shape::Counter => {}
            Shape::Struct(all) => fields(self, all),
            Shape::Enum { tag_bytes, variants } => {
                let tag = self.word_of(address, usize::from(*tag_bytes));
                match variants.iter().find(|v| v.tag == tag) {
                    Some(variant) => fields(self, &variant.fields),
                    None => self.bad(
                        address,
                        &ty.name,
                        &path.text(),
                        format!("no variant has tag {tag}"),
                    ),
                }
            }
            Shape::Array { element, count } => {
                let Some(described) = self.ty(*element) else {
                    self.bad(
                        address,
                        &ty.name,
                        &path.text(),
                        "its elements are not described".into(),
                    );
                    return;
                };
                if described.size.checked_mul(*count).is_none_or(|n| n > ty.size) {
                    self.bad(address, &ty.name, &path.text(), "its elements do not fit".into());
                    return;
                }
                for i in 0..*count {
                    inner(self, *element, i * described.size, &Path::Index(path, i));
                }
            }
            Shape::Slot(value) => inner(self, *value, 0, path),
            Shape::Lock { value, offset } => {
                if self.word(address) != 0 {
                    self.bad(
                        address,
                        &ty.name,
                        &path.text(),
                        "a lock's own bytes are not zero".into(),
                    );
                }
                inner(self, *value, *offset, path);
            }
            Shape::Maybe(value) => {
                let size = ty.size as usize;
                // SAFETY: the value lies whole in a live allocation.
                let bytes = unsafe {
                    std::slice::from_raw_parts(with_exposed_provenance::<u8>(address), size)
                };
                if bytes.iter().any(|b| *b != 0) {
                    inner(self, *value, 0, path);
                }
            }
            Shape::Ptr(target) | Shape::Box(target) => {
                let holder =
                    if matches!(ty.shape, Shape::Ptr(_)) { Holder::Shared } else { Holder::Owner };
                let to = self.word(address) as usize;
                match self.ty(*target) {
                    Some(target) => self.pointer_at(to, target, holder, address, ty, path),
                    None => self.bad(
                        address,
                        &ty.name,
                        &path.text(),
                        "its target is not described".into(),
                    ),
                }
            }
            Shape::Vec(element) | Shape::Text(element) => self.vec(address, ty, *element, path),
            Shape::Map(entry) => self.map(address, ty, *entry, path),
        }
    }

    fn word_of(&self, address: usize, bytes: usize) -> u64 {
        (0..bytes.min(8)).fold(0, |n, i| {
            // SAFETY: as in `word`.
            let byte = unsafe { with_exposed_provenance::<u8>(address + i).read() };
            n | u64::from(byte) << (8 * i)
        })
    }

    fn scalar(
        &mut self,
        address: usize,
        ty: &TypeDescription,
        scalar: crate::types::Scalar,
        path: &Path<'_>,
    ) {
        use crate::types::Scalar;
        let n = self.word_of(address, ty.size as usize);
        let right = match scalar {
            Scalar::Bool => n < 2,
            Scalar::Char => u32::try_from(n).is_ok_and(|n| char::from_u32(n).is_some()),
            // The upper half of 16 bytes is not looked at.
            Scalar::NonZero => n != 0 || ty.size > 8,
            Scalar::Unsigned | Scalar::Signed | Scalar::Float => true,
        };
        if !right {
            self.bad(address, &ty.name, &path.text(), format!("{n:#x} is no value of this type"));
        }
    }

    fn pointer_at(
        &mut self,
        to: usize,
        target: &'a TypeDescription,
        holder: Holder,
        address: usize,
        ty: &TypeDescription,
        path: &Path<'_>,
    ) {
        if let Err(what) = self.reach(to, target, holder) {
            self.bad(address, &ty.name, &path.text(), what);
        }
    }

    fn pointer(
        &mut self,
        to: usize,
        target: &'a TypeDescription,
        holder: Holder,
        address: usize,
        field: &str,
    ) {
        if let Err(what) = self.reach(to, target, holder) {
            self.bad(address, "the container", field, what);
        }
    }

    /// Finds the object that a pointer names.
    fn reach(
        &mut self,
        to: usize,
        target: &'a TypeDescription,
        holder: Holder,
    ) -> Result<(), String> {
        self.report.pointers += 1;
        let allocation = self.allocation(to, kind::OBJECTS, target)?;
        if target.size as usize > allocation.bytes {
            return Err(format!("the object at {to:#x} is smaller than {}", target.name));
        }
        let owner = holder == Holder::Owner;
        if allocation.reached {
            return match owner || allocation.owned {
                true => Err(format!(
                    "the {} at {to:#x} has an owner and is named elsewhere",
                    target.name
                )),
                false => Ok(()),
            };
        }
        allocation.reached = true;
        allocation.owned = owner;
        self.queue.push((to, Contents::Values { ty: target.id, count: 1 }));
        Ok(())
    }

    /// The live allocation that begins at `to`, if it is of this kind and type.
    fn allocation(
        &mut self,
        to: usize,
        kind: u8,
        ty: &TypeDescription,
    ) -> Result<&mut Allocation, String> {
        if !self.shared.contains(to) {
            return Err(format!("{to:#x} is outside the container"));
        }
        let number = self.registry.number(ty.id);
        let Some(found) = self.allocations.get_mut(&to) else {
            return Err(format!("no live object begins at {to:#x}"));
        };
        if found.kind != kind || Some(found.type_number) != number {
            let name = self.registry.get(found.type_number).map_or("?", |t| &t.name);
            return Err(format!(
                "at {to:#x} is {name} (kind {}), not {} (kind {kind})",
                found.kind, ty.name
            ));
        }
        Ok(found)
    }

    /// The address of a header, which stands for "no memory yet".
    fn is_header(&self, address: usize) -> bool {
        let base = window_base(address);
        if address != base || !self.shared.contains(base) {
            return false;
        }
        let w = (base - self.shared.base) / WINDOW_SIZE;
        // SAFETY: window 0 is mapped while the arena is open.
        unsafe { header(self.shared.base) }.clusters[w].load(Relaxed) != UNASSIGNED
    }

    fn vec(&mut self, address: usize, ty: &TypeDescription, element: u64, path: &Path<'_>) {
        let (to, len, capacity) =
            (self.word(address) as usize, self.word(address + 8), self.word(address + 16));
        if capacity == 0 {
            if len != 0 || !self.is_header(to) {
                self.bad(
                    address,
                    &ty.name,
                    &path.text(),
                    format!("an empty one at {to:#x} with {len} elements"),
                );
            }
            return;
        }
        let result = (|| {
            let element = self.ty(element).ok_or("its elements are not described")?;
            if matches!(ty.shape, Shape::Text(_)) && element.size != 1 {
                return Err("its elements are no bytes".into());
            }
            let bytes = element.size.checked_mul(capacity).ok_or("its capacity is impossible")?;
            if len > capacity {
                return Err(format!("{len} elements in room for {capacity}"));
            }
            let allocation = self.allocation(to, kind::ARRAY, element)?;
            if bytes > allocation.bytes as u64 {
                return Err(format!(
                    "room for {capacity} elements is more than there is at {to:#x}"
                ));
            }
            if std::mem::replace(&mut allocation.reached, true) {
                return Err(format!("its elements at {to:#x} have another owner"));
            }
            Ok((element.id, len as usize))
        })();
        match result {
            Ok((ty, count)) => self.queue.push((to, Contents::Values { ty, count })),
            Err(what) => return self.bad(address, &ty.name, &path.text(), what),
        }
        self.report.pointers += 1;
        if matches!(ty.shape, Shape::Text(_)) {
            // SAFETY: len bytes of a live allocation, as was just found.
            let bytes = unsafe {
                std::slice::from_raw_parts(with_exposed_provenance::<u8>(to), len as usize)
            };
            if std::str::from_utf8(bytes).is_err() {
                self.bad(address, &ty.name, &path.text(), "its bytes are not UTF-8".into());
            }
        }
    }

    fn map(&mut self, address: usize, ty: &TypeDescription, entry: u64, path: &Path<'_>) {
        let ctrl = self.word(address) as usize;
        let (mask, items, left) =
            (self.word(address + 8), self.word(address + 16), self.word(address + 24));
        if mask == 0 {
            if items != 0 || left != 0 || !self.is_header(ctrl.wrapping_sub(EMPTY_GROUP)) {
                self.bad(
                    address,
                    &ty.name,
                    &path.text(),
                    format!("an empty one at {ctrl:#x} with {items} entries"),
                );
            }
            return;
        }
        self.report.pointers += 1;
        let result = (|| {
            let entry = self.ty(entry).ok_or("its entries are not described")?;
            let slots = mask.checked_add(1).filter(|s| s.is_power_of_two() && *s <= 1 << 40);
            let slots = slots.ok_or_else(|| format!("its mask {mask:#x} is impossible"))? as usize;
            let before = slots.checked_mul(entry.size as usize).ok_or("its size is impossible")?;
            let start = ctrl.checked_sub(before).ok_or("its address is impossible")?;
            let allocation = self.allocation(start, kind::TABLE, entry)?;
            if usize::from(allocation.capacity_log2) != slots.trailing_zeros() as usize
                || before + slots + WIDTH > allocation.bytes
            {
                return Err(format!("{slots} slots are not what the table at {start:#x} has"));
            }
            if std::mem::replace(&mut allocation.reached, true) {
                return Err(format!("its table at {start:#x} has another owner"));
            }
            Ok((start, entry.id, slots))
        })();
        let (start, entry, slots) = match result {
            Ok(found) => found,
            Err(what) => return self.bad(address, &ty.name, &path.text(), what),
        };
        // SAFETY: slots + 16 control bytes lie in the live allocation, as was just found.
        let bytes = unsafe {
            std::slice::from_raw_parts(with_exposed_provenance::<u8>(ctrl), slots + WIDTH)
        };
        let count =
            |wanted: fn(&u8) -> bool| bytes[..slots].iter().filter(|b| wanted(b)).count() as u64;
        let (full, deleted) = (count(|b| *b < 0x80), count(|b| *b == DELETED));
        let odd = bytes[..slots].iter().any(|b| *b > DELETED && *b != EMPTY);
        let between = bytes[slots..slots.max(WIDTH)].iter().all(|b| *b == EMPTY);
        let repeats = (0..slots.min(WIDTH)).all(|i| bytes[slots.max(WIDTH) + i] == bytes[i]);
        // So there is an empty one, at which searches end.
        let counted = full.checked_add(deleted).and_then(|n| n.checked_add(left));
        let counts = full == items && counted == Some(room(slots) as u64);
        let agrees = counts && !odd && between && repeats;
        if !agrees && !planted::on(Bug::TableBelieved) {
            self.bad(
                address,
                &ty.name,
                &path.text(),
                format!("its control bytes at {ctrl:#x} do not agree with its {items} entries"),
            );
        }
        self.queue.push((start, Contents::Table { entry, ctrl, slots }));
    }

    fn leaks(&mut self) {
        let mut leaks: Vec<_> = self.allocations.iter().filter(|(_, a)| !a.reached).collect();
        leaks.sort_by_key(|(address, _)| **address);
        for (address, allocation) in leaks {
            self.report.leaked_allocations += 1;
            self.report.leaked_bytes += allocation.bytes as u64;
            if self.report.leaks.len() < Report::LEAKS_SHOWN {
                let name = self.registry.get(allocation.type_number).map_or("?", |t| &t.name);
                self.report.leaks.push(Leak {
                    address: Address(*address),
                    bytes: allocation.bytes as u64,
                    ty: name.into(),
                });
            }
        }
    }
}

/// Where in a value one is, without allocating until it is asked for.
enum Path<'p> {
    Start,
    Field(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, u64),
}

impl Path<'_> {
    fn text(&self) -> String {
        let (before, this) = match self {
            Path::Start => return String::new(),
            Path::Field(before, name) => (before, (*name).to_owned()),
            Path::Index(before, i) => (before, i.to_string()),
        };
        match before {
            Path::Start => this,
            _ => format!("{}.{this}", before.text()),
        }
    }
}
