//! A simulated twin of the system: pages as a state machine, with a simulated processor that touches
//! them. It answers as Linux may, not only as it usually does: calls make part of their progress, scans
//! stop early, and pages leave the mapping while they stay in memory. Threads, times and real memory
//! are absent. Read [`Sim`] first.

mod cpu;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use stead_model::{ADDRESS_END, Address, PAGE_SIZE};

use super::{LogRead, Mode, Progress, RawFault, Scanned, Sys, WrittenRun};
use crate::support::Unsupported;

pub use cpu::Touch;

/// A machine with one process. Clones are handles of the same machine.
#[derive(Clone, Default)]
pub struct Sim {
    machine: Arc<Mutex<Machine>>,
    hook: Arc<Mutex<Option<Hook>>>,
}

/// What other threads do between two system calls of the code under test.
type Hook = Box<dyn FnMut(&Sim) + Send>;

#[derive(Default, Debug)]
struct Machine {
    /// Reserved ranges, by their start.
    areas: BTreeMap<usize, usize>,
    /// Mapped ranges, by their start. Part of an area each.
    maps: BTreeMap<usize, Map>,
    /// Pages that have an entry in the page table, by address.
    entries: BTreeMap<usize, Entry>,
    events: VecDeque<RawFault>,
    /// Pages for which an event was sent and not yet answered.
    awaited: BTreeSet<usize>,
    bell: bool,
    next_volatile: usize,
    /// Frames that may still be made; `None` for as many as one likes.
    frames_left: Option<u64>,
    /// Scans that still work before one fails.
    scans_left: Option<u32>,
    chance: Chance,
    /// `None` until it is started.
    log: Option<Log>,
    /// Faults that a log has room for; `None` where the machine keeps none.
    log_room: Option<usize>,
}

/// The fault log.
#[derive(Debug, Default)]
struct Log {
    faults: VecDeque<usize>,
    /// Something happened that is not in `faults`.
    holed: bool,
}

#[derive(Debug)]
struct Map {
    end: usize,
    frames: Frames,
    offset: u64,
    mode: Mode,
}

/// An entry of the page table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    Present {
        protected: bool,
    },
    /// Not mapped, but remembered as protected.
    Marker,
    Poisoned,
}

/// The frames of a cluster, each by its number.
#[derive(Clone, Debug, Default)]
pub struct Frames(Arc<Mutex<BTreeMap<u64, Box<[u8]>>>>);

/// A reserved range.
#[derive(Debug)]
pub struct Area {
    base: usize,
    machine: Arc<Mutex<Machine>>,
}

/// Chance without surprise: the same seed, the same answers. 0 never takes a chance.
#[derive(Default, Debug)]
struct Chance(u64);

impl Chance {
    /// A number below `end`, 0 if chance is off.
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        if self.0 == 0 { 0 } else { (self.0 >> 11) % end }
    }

    /// True once in `times`, never if chance is off.
    fn once_in(&mut self, times: u64) -> bool {
        self.0 != 0 && self.below(times) == 0
    }
}

impl Sim {
    /// A machine that answers in ways which differ by seed; seed 0 answers plainly.
    #[must_use]
    pub fn new(seed: u64) -> Sim {
        let sim = Sim::default();
        sim.lock().chance = Chance(seed);
        sim.lock().next_volatile = ADDRESS_END;
        sim
    }

    /// Runs `hook` before each system call: what other threads do meanwhile.
    pub fn meanwhile(&self, hook: impl FnMut(&Sim) + Send + 'static) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
    }

    /// Whether other threads run meanwhile.
    #[must_use]
    pub fn has_company(&self) -> bool {
        self.hook.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Lets no more than this many further frames be made.
    pub fn limit_frames(&self, frame_count: Option<u64>) {
        self.lock().frames_left = frame_count;
    }

    /// Lets a scan fail, after this many that work, when it has protected all it should.
    pub fn fail_scan(&self, scans_before: u32) {
        self.lock().scans_left = Some(scans_before);
    }

    /// Keeps a log of faults with room for so many between two readings, once it is asked to start.
    pub fn allow_log(&self, room: usize) {
        self.lock().log_room = Some(room);
    }

    /// Takes a page out of the mapping while its frame stays in memory, as a kernel does that is short
    /// of memory. False if it was not mapped.
    pub fn unmap_page(&self, address: usize) -> bool {
        let mut machine = self.lock();
        let page = page_of(address);
        match machine.entries.get(&page) {
            Some(Entry::Present { protected: true }) => {
                machine.entries.insert(page, Entry::Marker);
                true
            }
            Some(Entry::Present { protected: false }) => {
                machine.entries.remove(&page);
                true
            }
            _ => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The start of each system call: others may run first.
    fn call(&self) -> MutexGuard<'_, Machine> {
        // Taken out while it runs, as it may make calls itself.
        let hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut hook) = hook {
            hook(self);
            *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(hook);
        }
        self.lock()
    }
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim").finish_non_exhaustive()
    }
}

impl Machine {
    fn map_at(&self, address: usize) -> Option<(&Map, u64)> {
        let (start, map) = self.maps.range(..=address).next_back()?;
        let frame = (map.offset + (address - start) as u64) / PAGE_SIZE as u64;
        (address < map.end).then_some((map, frame))
    }

    /// Takes every page of these frames in the range out of the mapping.
    fn zap(&mut self, frames: &Frames, first: u64, end: u64) {
        let pages: Vec<usize> = self
            .entries
            .keys()
            .copied()
            .filter(|page| {
                self.map_at(*page).is_some_and(|(map, frame)| {
                    Arc::ptr_eq(&map.frames.0, &frames.0) && (first..end).contains(&frame)
                })
            })
            .collect();
        for page in pages {
            match self.entries[&page] {
                Entry::Present { protected: true } => self.entries.insert(page, Entry::Marker),
                Entry::Present { protected: false } => self.entries.remove(&page),
                Entry::Marker | Entry::Poisoned => None,
            };
        }
    }

    /// How many of `wanted` frames memory allows.
    fn take_frames(&mut self, wanted: u64) -> u64 {
        match &mut self.frames_left {
            None => wanted,
            Some(left) => {
                let got = wanted.min(*left);
                *left -= got;
                got
            }
        }
    }

    /// What the kernel records, or counts only, when a write makes a page writable.
    fn log_fault(&mut self, page: usize, recorded: bool) {
        let room = self.log_room.unwrap_or(0);
        if let Some(log) = &mut self.log {
            if recorded && log.faults.len() < room {
                log.faults.push_back(page);
            } else {
                log.holed = true;
            }
        }
    }

    fn map_page(&mut self, page: usize, protect: bool) -> Result<(), Errno> {
        let Some((map, frame)) = self.map_at(page) else { return Err(Errno::NOENT) };
        if matches!(self.entries.get(&page), Some(Entry::Present { .. })) {
            return Err(Errno::EXIST);
        }
        if !lock(&map.frames).contains_key(&frame) {
            return Err(Errno::FAULT);
        }
        self.entries.insert(page, Entry::Present { protected: protect });
        self.awaited.remove(&page);
        Ok(())
    }
}

impl Sys for Sim {
    type Area = Area;
    type Frames = Frames;

    fn reserve(&self, base: Address, byte_len: usize) -> Result<Area, Errno> {
        let mut machine = self.call();
        let before = machine.areas.range(..base.0 + byte_len).next_back();
        if before.is_some_and(|(start, len)| start + len > base.0) {
            return Err(Errno::EXIST);
        }
        machine.areas.insert(base.0, byte_len);
        Ok(Area { base: base.0, machine: Arc::clone(&self.machine) })
    }

    fn reserve_volatile(&self, byte_len: usize) -> Result<(Area, Address), Errno> {
        let base = {
            let mut machine = self.lock();
            let base = machine.next_volatile;
            machine.next_volatile += byte_len;
            base
        };
        Ok((self.reserve(Address(base), byte_len)?, Address(base)))
    }

    fn occupant(&self, base: Address, byte_len: usize) -> String {
        let machine = self.call();
        let areas = machine.areas.range(..base.0 + byte_len);
        let overlapping = areas.filter(|(start, len)| **start + **len > base.0);
        overlapping
            .map(|(start, len)| format!("{start:x}-{:x}", start + len))
            .next()
            .unwrap_or_default()
    }

    fn new_frames(&self, _byte_len: u64) -> Result<Frames, Errno> {
        drop(self.call());
        Ok(Frames::default())
    }

    fn extend_frames(&self, _frames: &Frames, _byte_len: u64) -> Result<(), Errno> {
        drop(self.call());
        Ok(())
    }

    fn map(
        &self,
        area: &Area,
        at: Address,
        byte_len: usize,
        frames: &Frames,
        offset: u64,
        mode: Mode,
    ) -> Result<(), Errno> {
        let mut machine = self.call();
        let area_end = area.base + machine.areas[&area.base];
        assert!(at.0 >= area.base && at.0 + byte_len <= area_end, "range outside its area");
        let map = Map { end: at.0 + byte_len, frames: frames.clone(), offset, mode };
        assert!(machine.map_at(at.0).is_none(), "mapped twice");
        machine.maps.insert(at.0, map);
        Ok(())
    }

    fn unmap(&self, _area: &Area, at: Address, byte_len: usize) {
        let mut machine = self.call();
        let end = at.0 + byte_len;
        machine.maps.retain(|start, _| !(at.0..end).contains(start));
        machine.entries.retain(|page, _| !(at.0..end).contains(page));
        machine.awaited.retain(|page| !(at.0..end).contains(page));
    }

    fn wait(
        &self,
        _scratch: &mut [u8],
        found: &mut Vec<RawFault>,
        _timeout: Option<Duration>,
    ) -> Result<bool, Errno> {
        let mut machine = self.call();
        while found.len() < found.capacity() {
            let Some(event) = machine.events.pop_front() else { break };
            // The kernel takes back an event whose thread has been woken.
            if machine.awaited.contains(&event.address) {
                found.push(event);
            }
        }
        Ok(std::mem::take(&mut machine.bell))
    }

    fn ring(&self) {
        self.call().bell = true;
    }

    fn map_pages(&self, at: Address, byte_len: usize, protect: bool) -> Progress {
        let mut machine = self.call();
        let mut byte_count = 0;
        let mut stopped = None;
        while byte_count < byte_len {
            if machine.chance.once_in(12) {
                stopped = Some(Errno::AGAIN);
                break;
            }
            match machine.map_page(at.0 + byte_count, protect) {
                Ok(()) => byte_count += PAGE_SIZE,
                Err(errno) => {
                    stopped = Some(if byte_count > 0 { Errno::AGAIN } else { errno });
                    break;
                }
            }
        }
        Progress { byte_count, stopped }
    }

    fn protect(&self, at: Address, byte_len: usize) -> Result<(), Errno> {
        let mut machine = self.call();
        for page in (at.0..at.0 + byte_len).step_by(PAGE_SIZE) {
            let entry = match machine.entries.get(&page) {
                Some(Entry::Present { .. }) => Entry::Present { protected: true },
                Some(Entry::Poisoned) => Entry::Poisoned,
                Some(Entry::Marker) | None => Entry::Marker,
            };
            machine.entries.insert(page, entry);
        }
        Ok(())
    }

    fn unprotect(&self, at: Address, byte_len: usize) -> Result<(), Errno> {
        let mut machine = self.call();
        for page in (at.0..at.0 + byte_len).step_by(PAGE_SIZE) {
            match machine.entries.get_mut(&page) {
                Some(Entry::Present { protected }) => *protected = false,
                Some(Entry::Marker) => drop(machine.entries.remove(&page)),
                Some(Entry::Poisoned) | None => {}
            }
        }
        Ok(())
    }

    fn wake(&self, at: Address, byte_len: usize) -> Result<(), Errno> {
        let mut machine = self.call();
        machine.awaited.retain(|page| !(at.0..at.0 + byte_len).contains(page));
        Ok(())
    }

    fn poison(&self, at: Address) -> Result<(), Errno> {
        let mut machine = self.call();
        if machine.entries.contains_key(&at.0) {
            return Err(Errno::EXIST);
        }
        machine.entries.insert(at.0, Entry::Poisoned);
        machine.awaited.remove(&at.0);
        Ok(())
    }

    fn scan(
        &self,
        at: Address,
        byte_len: usize,
        protect: bool,
        runs: &mut [WrittenRun],
    ) -> Result<Scanned, Errno> {
        let mut machine = self.call();
        let end = at.0 + byte_len;
        let room = runs.len();
        let mut run_count: usize = 0;
        let mut page = at.0;
        while page < end {
            // A scan may stop anywhere, as long as it has done something.
            if page > at.0 && machine.chance.once_in(100) {
                break;
            }
            // Nothing in the table counts as written, as it does in the kernel.
            let written = matches!(
                machine.entries.get(&page),
                None | Some(Entry::Present { protected: false })
            );
            if written {
                match runs[..run_count].last_mut() {
                    Some(run) if run.end == page => run.end += PAGE_SIZE,
                    _ if run_count == room => break,
                    _ => {
                        runs[run_count] = WrittenRun { start: page, end: page + PAGE_SIZE };
                        run_count += 1;
                    }
                }
                if protect {
                    let entry = match machine.entries.get(&page) {
                        None => Entry::Marker,
                        Some(_) => Entry::Present { protected: true },
                    };
                    machine.entries.insert(page, entry);
                }
            }
            page += PAGE_SIZE;
        }
        match &mut machine.scans_left {
            Some(0) => {
                machine.scans_left = None;
                return Err(Errno::NOMEM);
            }
            Some(left) => *left -= 1,
            None => {}
        }
        // `walk_end` may name an earlier page than the end of the last run.
        let last = runs[..run_count].last().map_or(at.0, |run| run.end);
        let early = run_count > 0 && last == page && machine.chance.once_in(3);
        Ok(Scanned { run_count, walk_end: if early { at.0 } else { page } })
    }

    fn start_log(&self) -> Result<(), Unsupported> {
        let mut machine = self.call();
        if machine.log_room.is_none() {
            return Err(Unsupported::fault_log("this machine keeps none".to_owned()));
        }
        machine.log.get_or_insert_default();
        Ok(())
    }

    fn stop_log(&self) {
        self.call().log = None;
    }

    fn read_log(&self, each: &mut dyn FnMut(usize)) -> LogRead {
        let mut machine = self.call();
        let any = machine.log.as_ref().is_some_and(|log| !log.faults.is_empty());
        // A reading may have holes for no reason that can be seen.
        let holed = any && machine.chance.once_in(20);
        let Some(log) = &mut machine.log else { return LogRead::NotKept };
        log.faults.drain(..).for_each(each);
        if std::mem::take(&mut log.holed) || holed { LogRead::Holed } else { LogRead::Whole }
    }

    fn read(&self, frames: &Frames, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let mut machine = self.call();
        if machine.chance.once_in(20) {
            return Err(Errno::INTR);
        }
        let page_count = buf.len() / PAGE_SIZE;
        let short = machine.chance.below(page_count as u64) as usize;
        let frames = lock(frames);
        let pages = buf[..(page_count - short) * PAGE_SIZE].chunks_exact_mut(PAGE_SIZE);
        for (frame, page) in (offset / PAGE_SIZE as u64..).zip(pages) {
            match frames.get(&frame) {
                Some(image) => page.copy_from_slice(image),
                None => page.fill(0),
            }
        }
        Ok((page_count - short) * PAGE_SIZE)
    }

    fn write(&self, frames: &Frames, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        let mut machine = self.call();
        if machine.chance.once_in(20) {
            return Err(Errno::INTR);
        }
        let page_count = bytes.len() / PAGE_SIZE;
        let short = machine.chance.below(page_count as u64) as usize;
        let mut byte_count = 0;
        let mut frames = lock(frames);
        for image in bytes[..(page_count - short) * PAGE_SIZE].chunks_exact(PAGE_SIZE) {
            let frame = (offset + byte_count as u64) / PAGE_SIZE as u64;
            if !frames.contains_key(&frame) && machine.take_frames(1) == 0 {
                break;
            }
            frames.insert(frame, image.into());
            byte_count += PAGE_SIZE;
        }
        if byte_count == 0 { Err(Errno::NOSPC) } else { Ok(byte_count) }
    }

    fn allocate(&self, frames: &Frames, offset: u64, byte_len: u64) -> Result<(), Errno> {
        let mut machine = self.call();
        if machine.chance.once_in(20) {
            return Err(Errno::INTR);
        }
        let first = offset / PAGE_SIZE as u64;
        let end = first + byte_len / PAGE_SIZE as u64;
        let mut frames = lock(frames);
        let absent: Vec<u64> = (first..end).filter(|frame| !frames.contains_key(frame)).collect();
        // All or nothing, as the kernel undoes what it could not finish.
        if machine.frames_left.is_some_and(|left| left < absent.len() as u64) {
            return Err(Errno::NOSPC);
        }
        machine.take_frames(absent.len() as u64);
        for frame in absent {
            frames.insert(frame, vec![0; PAGE_SIZE].into());
        }
        Ok(())
    }

    fn next_present(
        &self,
        frames: &Frames,
        offset: u64,
        end: u64,
    ) -> Result<Option<(u64, u64)>, Errno> {
        drop(self.call());
        let page = PAGE_SIZE as u64;
        let frames = lock(frames);
        let Some((first, _)) = frames.range(offset / page..end / page).next() else {
            return Ok(None);
        };
        let mut last = first + 1;
        while last < end / page && frames.contains_key(&last) {
            last += 1;
        }
        Ok(Some((first * page, last * page)))
    }

    fn punch(&self, frames: &Frames, offset: u64, byte_len: u64) -> Result<(), Errno> {
        let mut machine = self.call();
        let first = offset / PAGE_SIZE as u64;
        let end = first + byte_len / PAGE_SIZE as u64;
        machine.zap(frames, first, end);
        let mut frames = lock(frames);
        let before = frames.len();
        frames.retain(|frame, _| !(first..end).contains(frame));
        if let Some(left) = &mut machine.frames_left {
            *left += (before - frames.len()) as u64;
        }
        Ok(())
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        machine.areas.remove(&self.base);
    }
}

fn page_of(address: usize) -> usize {
    address & !(PAGE_SIZE - 1)
}

fn lock(frames: &Frames) -> MutexGuard<'_, BTreeMap<u64, Box<[u8]>>> {
    frames.0.lock().unwrap_or_else(PoisonError::into_inner)
}
