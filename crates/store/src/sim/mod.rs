//! A medium that is as cruel as a disk may be, and the same each time for the same seed. Read
//! [`CrashMedium`] first; [`torture`] puts a whole store on it.
//!
//! It keeps what is durable apart from what has been written since the last flush, in sectors of 512 bytes.
//! At a crash any of the unflushed sectors may be there, whole or not at all, in any combination, and the
//! length may be the old one or the new one.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::medium::Medium;

pub mod groups;
pub mod snapshots;
pub mod torture;

/// Bytes that a disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// A disk in memory that crashes and fails when told to. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct CrashMedium {
    inner: Arc<Mutex<Inner>>,
}

/// What goes wrong at the call that is counted down to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The machine stops: this call and all later ones fail, until [`CrashMedium::restart`].
    Crash,
    /// A read, write or flush fails with EIO; a write may have been done in part.
    Eio,
    /// A write or a change of length fails with ENOSPC; a write may have been done in part.
    NoSpace,
    /// A flush fails, and everything that it should have made durable is lost though reading still shows it, as
    /// Linux does.
    LosingFlush,
}

/// What has been done to a [`CrashMedium`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Calls of all kinds.
    pub calls: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Flushes.
    pub flushes: u64,
}

#[derive(Debug)]
struct Inner {
    random: SplitMix,
    /// What a crash leaves for certain.
    durable: Sparse,
    durable_len: u64,
    /// What is seen now.
    seen: Sparse,
    len: u64,
    /// Sectors in which `seen` may be newer than `durable`.
    unflushed: BTreeMap<u64, Lost>,
    fault: Option<(u64, Fault)>,
    crashed: bool,
    full: bool,
    tally: Tally,
}

/// Whether a flush still would make the sector durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lost {
    No,
    /// A failed flush has dropped it and no later one tries again.
    Yes,
}

impl CrashMedium {
    /// An empty disk.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        CrashMedium {
            inner: Arc::new(Mutex::new(Inner {
                random: SplitMix(seed),
                durable: Sparse::default(),
                durable_len: 0,
                seen: Sparse::default(),
                len: 0,
                unflushed: BTreeMap::new(),
                fault: None,
                crashed: false,
                full: false,
                tally: Tally::default(),
            })),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the `calls`-th call from now (1 is the next) go wrong. A fault that does not fit the call waits for one
    /// that it fits.
    pub fn fail_at(&self, calls: u64, fault: Fault) {
        let mut inner = self.inner();
        inner.fault = Some((inner.tally.calls + calls, fault));
    }

    /// Takes back a fault that has not come to pass.
    pub fn no_fault(&self) {
        self.inner().fault = None;
    }

    /// Whether the disk has no room for growing, until told otherwise.
    pub fn set_full(&self, full: bool) {
        self.inner().full = full;
    }

    /// Whether the machine has stopped.
    #[must_use]
    pub fn is_crashed(&self) -> bool {
        self.inner().crashed
    }

    /// Stops the machine, if it has not stopped, and starts it again: of what was not flushed, chance decides.
    pub fn restart(&self) {
        let inner = &mut *self.inner();
        // Now and then all or nothing, which chance alone would hardly ever bring.
        let keep = match inner.random.below(6) {
            0 => 0,
            1 => 100,
            2 => 95,
            3 => 5,
            _ => 50,
        };
        let new_len = inner.random.below(2) == 0;
        let len = if new_len { inner.len } else { inner.durable_len };
        for (sector, lost) in std::mem::take(&mut inner.unflushed) {
            if lost == Lost::No && inner.random.below(100) < keep {
                let bytes = *inner.seen.sector(sector);
                *inner.durable.sector_mut(sector) = bytes;
            }
        }
        inner.durable.truncate(len);
        inner.seen = inner.durable.clone();
        (inner.len, inner.durable_len) = (len, len);
        inner.crashed = false;
        inner.fault = None;
    }

    /// Changes bytes behind the store's back: rot, or a write that went astray.
    pub fn rot(&self, offset: u64, change: impl FnOnce(&mut [u8; SECTOR])) {
        let inner = &mut *self.inner();
        let sector = offset / SECTOR as u64;
        let mut bytes = *inner.seen.sector(sector);
        change(&mut bytes);
        *inner.seen.sector_mut(sector) = bytes;
        *inner.durable.sector_mut(sector) = bytes;
    }

    /// What has been done so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.inner().tally
    }

    /// Another disk with what is seen on this one, all of it durable.
    #[must_use]
    pub fn copy(&self, seed: u64) -> Self {
        let copy = CrashMedium::new(seed);
        {
            let (from, mut to) = (self.inner(), copy.inner());
            to.seen = from.seen.clone();
            to.durable = from.seen.clone();
            to.len = from.len;
            to.durable_len = from.len;
        }
        copy
    }
}

/// The kinds of call, for deciding which faults fit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Read,
    Write,
    Sync,
    SetLen,
}

impl Inner {
    /// Counts a call; the fault that befalls it, if one does.
    fn call(&mut self, call: Call) -> io::Result<Option<Fault>> {
        if self.crashed {
            return Err(stopped());
        }
        self.tally.calls += 1;
        let Some((at, fault)) = self.fault else { return Ok(None) };
        let fits = match fault {
            Fault::Crash => true,
            Fault::Eio => call != Call::SetLen,
            Fault::NoSpace => matches!(call, Call::Write | Call::SetLen),
            Fault::LosingFlush => call == Call::Sync,
        };
        if self.tally.calls < at || !fits {
            return Ok(None);
        }
        self.fault = None;
        if fault == Fault::Crash {
            self.crashed = true;
        }
        Ok(Some(fault))
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        for (i, chunk) in bytes.chunks(SECTOR).enumerate() {
            let sector = offset / SECTOR as u64 + i as u64;
            self.unflushed.insert(sector, Lost::No);
            self.seen.sector_mut(sector).copy_from_slice(chunk);
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }
}

fn stopped() -> io::Error {
    io::Error::other("the machine has stopped")
}

fn error_of(fault: Fault) -> io::Error {
    match fault {
        Fault::Crash => stopped(),
        Fault::Eio | Fault::LosingFlush => io::Error::from_raw_os_error(5),
        Fault::NoSpace => io::Error::from_raw_os_error(28),
    }
}

impl Medium for CrashMedium {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let inner = &mut *self.inner();
        if let Some(fault) = inner.call(Call::Read)? {
            return Err(error_of(fault));
        }
        if offset + into.len() as u64 > inner.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        inner.seen.read(offset, into);
        Ok(())
    }

    fn write(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let inner = &mut *self.inner();
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
        for part in parts {
            bytes.extend_from_slice(part);
        }
        assert!(
            offset.is_multiple_of(SECTOR as u64) && bytes.len().is_multiple_of(SECTOR),
            "a disk writes whole sectors"
        );
        let fault = inner.call(Call::Write)?;
        inner.tally.writes += 1;
        if let Some(fault) = fault {
            // A part of it, in the order of the sectors or in none, has been written.
            let sectors = bytes.len() / SECTOR;
            let short = inner.random.below(sectors as u64 + 1);
            for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                let written = match fault {
                    Fault::Crash => inner.random.below(2) == 0,
                    _ => (i as u64) < short,
                };
                let at = offset + (i * SECTOR) as u64;
                if written && at < inner.len {
                    inner.put(at, sector);
                }
            }
            return Err(error_of(fault));
        }
        if offset + bytes.len() as u64 > inner.len && inner.full {
            return Err(error_of(Fault::NoSpace));
        }
        inner.tally.bytes += bytes.len() as u64;
        inner.put(offset, &bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let inner = &mut *self.inner();
        let fault = inner.call(Call::Sync)?;
        inner.tally.flushes += 1;
        match fault {
            None => {
                inner.unflushed.retain(|_, lost| *lost == Lost::Yes);
                let lost: Vec<u64> = inner.unflushed.keys().copied().collect();
                // What a failed flush has dropped stays seen and is not durable.
                inner.durable.take_over(&inner.seen, &lost);
                inner.durable_len = inner.len;
                Ok(())
            }
            Some(Fault::LosingFlush) => {
                for lost in inner.unflushed.values_mut() {
                    *lost = Lost::Yes;
                }
                Err(error_of(Fault::LosingFlush))
            }
            Some(fault) => Err(error_of(fault)),
        }
    }

    fn len(&self) -> io::Result<u64> {
        let inner = self.inner();
        if inner.crashed { Err(stopped()) } else { Ok(inner.len) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let inner = &mut *self.inner();
        if let Some(fault) = inner.call(Call::SetLen)? {
            if fault == Fault::Crash && inner.random.below(2) == 0 {
                inner.len = len.max(inner.len);
            }
            return Err(error_of(fault));
        }
        if len > inner.len && inner.full {
            return Err(error_of(Fault::NoSpace));
        }
        assert!(len >= inner.len, "the store does not shorten its file");
        inner.len = len;
        Ok(())
    }
}

const PAGE_SECTORS: u64 = 64;

/// Sectors, zero where nothing has been written; a copy shares what neither changes.
#[derive(Clone, Debug, Default)]
struct Sparse {
    pages: BTreeMap<u64, Arc<[[u8; SECTOR]; PAGE_SECTORS as usize]>>,
}

static ZERO: [u8; SECTOR] = [0; SECTOR];

impl Sparse {
    fn sector(&self, sector: u64) -> &[u8; SECTOR] {
        self.pages
            .get(&(sector / PAGE_SECTORS))
            .map_or(&ZERO, |page| &page[(sector % PAGE_SECTORS) as usize])
    }

    fn sector_mut(&mut self, sector: u64) -> &mut [u8; SECTOR] {
        let page = self
            .pages
            .entry(sector / PAGE_SECTORS)
            .or_insert_with(|| Arc::new([[0; SECTOR]; PAGE_SECTORS as usize]));
        &mut Arc::make_mut(page)[(sector % PAGE_SECTORS) as usize]
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let start = (at % SECTOR as u64) as usize;
            let bytes = rest.len().min(SECTOR - start);
            let (these, others) = rest.split_at_mut(bytes);
            these.copy_from_slice(&self.sector(at / SECTOR as u64)[start..start + bytes]);
            rest = others;
            at += bytes as u64;
        }
    }

    /// Becomes like `other`, but for some sectors.
    fn take_over(&mut self, other: &Sparse, except: &[u64]) {
        let kept: Vec<(u64, [u8; SECTOR])> =
            except.iter().map(|&sector| (sector, *self.sector(sector))).collect();
        self.pages.clone_from(&other.pages);
        for (sector, bytes) in kept {
            *self.sector_mut(sector) = bytes;
        }
    }

    fn truncate(&mut self, len: u64) {
        let sectors = len.div_ceil(SECTOR as u64);
        let beyond = self.pages.split_off(&(sectors / PAGE_SECTORS));
        for (page, bytes) in beyond {
            for (i, bytes) in bytes.iter().enumerate() {
                let sector = page * PAGE_SECTORS + i as u64;
                if sector < sectors && *bytes != ZERO {
                    *self.sector_mut(sector) = *bytes;
                }
            }
        }
    }
}

/// A small random number generator of our own, so that a seed means the same for ever.
#[derive(Clone, Debug)]
pub struct SplitMix(pub u64);

impl SplitMix {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit
    }
}
