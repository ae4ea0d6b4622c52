//! A medium that is as cruel as a disk may be, and the same each time for the same seed. It knows nothing of
//! what is stored on it. Read [`CrashMedium`] first, then [`Fault`].
//!
//! It keeps what is durable apart from what has been written since the last flush, in sectors of 512 bytes.
//! At a crash any of the unflushed sectors may be there, whole or not at all, in any combination; of one that was written
//! several times, any of what it was. The length may be any that the file has had since then, apart from what is in it.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::blocks::{Blocks, SECTORS_PER_BLOCK};
use super::{SECTOR, SplitMix};
use crate::format::BLOCK;
use crate::medium::{Medium, SharedPart, WriteUnderWay};

/// Most blocks of a write that are lost or go astray at once: not more than the smallest segment has.
const PIECE_BLOCKS: u64 = 8;

/// A disk in memory that crashes and fails when told to. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct CrashMedium {
    inner: Arc<Mutex<Inner>>,
}

/// What goes wrong at the call that is counted down to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The machine stops: this call and all later ones fail, until [`CrashMedium::restart`]. A write may have been
    /// done in part, in any order.
    Crash,
    /// The call fails with EIO; a write may have been done in part, a change of length whole.
    Eio,
    /// A write or a change of length fails with ENOSPC; a write may have been done in part.
    NoSpace,
    /// A flush fails, and everything that it should have made durable is lost though reading still shows it, as
    /// Linux does.
    LosingFlush,
    /// A read brings what once lay there, in one of its blocks, and says nothing.
    StaleRead,
    /// A piece of a write goes to another place, and nothing says so.
    Astray,
    /// A piece of a write does not happen, and nothing says so.
    LostWrite,
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
    durable: Blocks,
    durable_len: u64,
    /// What is seen now.
    seen: Blocks,
    len: u64,
    /// What `seen` and `durable` differ in.
    unflushed: BTreeMap<u64, Unflushed>,
    /// Every length since the last flush.
    lengths: Vec<u64>,
    /// The least of them, if the file has been made shorter: what was durable behind it may be gone.
    cut: Option<u64>,
    /// What was durable at some earlier time.
    older: Blocks,
    fault: Option<(u64, Fault)>,
    crashed: bool,
    full: bool,
    tally: Tally,
}

/// Sectors of a block, a bit for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Unflushed {
    /// Written since the last flush.
    written: u8,
    /// Of these, dropped by a failed flush: no later one tries again.
    lost: u8,
}

impl CrashMedium {
    /// An empty disk.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        CrashMedium {
            inner: Arc::new(Mutex::new(Inner {
                random: SplitMix(seed),
                durable: Blocks::default(),
                durable_len: 0,
                seen: Blocks::default(),
                len: 0,
                unflushed: BTreeMap::new(),
                lengths: Vec::new(),
                cut: None,
                older: Blocks::default(),
                fault: None,
                crashed: false,
                full: false,
                tally: Tally::default(),
            })),
        }
    }

    /// A disk with these bytes on it, all of them durable.
    #[must_use]
    pub fn with_bytes(seed: u64, bytes: &[u8]) -> Self {
        let medium = CrashMedium::new(seed);
        {
            let inner = &mut *medium.inner();
            for (index, block) in bytes.chunks(BLOCK).enumerate() {
                if block.iter().any(|&byte| byte != 0) {
                    inner.seen.block_mut(index as u64)[..block.len()].copy_from_slice(block);
                }
            }
            inner.durable = inner.seen.clone();
            inner.older = inner.seen.clone();
            inner.len = bytes.len() as u64;
            inner.durable_len = inner.len;
        }
        medium
    }

    /// All that is seen on it.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let inner = self.inner();
        let mut bytes = vec![0; inner.len as usize];
        inner.seen.read(0, &mut bytes);
        bytes
    }

    pub(super) fn seen(&self) -> (Blocks, u64) {
        let inner = self.inner();
        (inner.seen.clone(), inner.len)
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

    /// Takes back a fault that has not come to pass; whether there was one.
    pub fn no_fault(&self) -> bool {
        self.inner().fault.take().is_some()
    }

    /// Whether a fault is still to come.
    #[must_use]
    pub fn fault_is_due(&self) -> bool {
        self.inner().fault.is_some()
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
        let which = inner.random.below(2 + inner.lengths.len() as u64);
        let len = match which {
            0 => inner.durable_len,
            1 => inner.len,
            _ => inner.lengths[which as usize - 2],
        };
        if let Some(cut) = inner.cut.take().filter(|&cut| cut < inner.durable_len) {
            // What was given back to the file system, and perhaps taken again.
            for sector in cut.div_ceil(SECTOR as u64)..inner.durable_len.div_ceil(SECTOR as u64) {
                if inner.random.below(100) < keep {
                    inner.durable.sector_mut(sector).fill(0);
                }
            }
        }
        for (block, unflushed) in std::mem::take(&mut inner.unflushed) {
            for bit in 0..SECTORS_PER_BLOCK {
                let may_come = (unflushed.written & !unflushed.lost) >> bit & 1 == 1;
                if may_come && inner.random.below(100) < keep {
                    let sector = block * SECTORS_PER_BLOCK + bit;
                    *inner.durable.sector_mut(sector) = *inner.seen.sector(sector);
                }
            }
        }
        inner.durable.truncate(len);
        inner.seen = inner.durable.clone();
        (inner.len, inner.durable_len) = (len, len);
        inner.lengths.clear();
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
            to.older = from.older.clone();
            to.len = from.len;
            to.durable_len = from.len;
        }
        copy
    }

    /// What a block was at some earlier time.
    #[must_use]
    pub fn older_block(&self, index: u64) -> [u8; BLOCK] {
        *self.inner().older.block(index)
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
            Fault::Crash | Fault::Eio => true,
            Fault::NoSpace => matches!(call, Call::Write | Call::SetLen),
            Fault::LosingFlush => call == Call::Sync,
            Fault::StaleRead => call == Call::Read,
            Fault::Astray | Fault::LostWrite => call == Call::Write,
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
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (block, start) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let (these, others) = rest.split_at(rest.len().min(BLOCK - start));
            let first = start / SECTOR;
            let bits = (0xFFu32 >> (SECTORS_PER_BLOCK as usize - these.len() / SECTOR)) << first;
            self.write_back(block, bits as u8);
            match these.first_chunk() {
                Some(whole) => self.seen.set_block(block, whole),
                None => {
                    self.seen.block_mut(block)[start..start + these.len()].copy_from_slice(these)
                }
            }
            let unflushed = self.unflushed.entry(block).or_default();
            unflushed.written |= bits as u8;
            unflushed.lost &= !(bits as u8);
            rest = others;
            at += these.len() as u64;
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    /// What is about to be written over without having been flushed may have reached the disk meanwhile.
    fn write_back(&mut self, block: u64, bits: u8) {
        let Some(unflushed) = self.unflushed.get(&block).copied() else { return };
        let waiting = unflushed.written & !unflushed.lost & bits;
        for bit in (0..SECTORS_PER_BLOCK).filter(|bit| waiting >> bit & 1 == 1) {
            if self.random.below(2) == 0 {
                let sector = block * SECTORS_PER_BLOCK + bit;
                *self.durable.sector_mut(sector) = *self.seen.sector(sector);
            }
        }
    }

    fn put_in_part(&mut self, offset: u64, bytes: &[u8]) {
        // In the order of the sectors or in none.
        let sectors = (bytes.len() / SECTOR) as u64;
        let in_order = self.random.below(2) == 0;
        let short = self.random.below(sectors + 1);
        for (i, sector) in bytes.chunks(SECTOR).enumerate() {
            let written = if in_order { (i as u64) < short } else { self.random.below(2) == 0 };
            let at = offset + (i * SECTOR) as u64;
            if written && at < self.len {
                self.put(at, sector);
            }
        }
    }

    fn change_len(&mut self, len: u64) {
        if len < self.len {
            self.seen.truncate(len);
            let kept = len.div_ceil(BLOCK as u64);
            drop(self.unflushed.split_off(&kept));
            self.cut = Some(self.cut.map_or(len, |cut| cut.min(len)));
        }
        self.lengths.push(self.len);
        self.len = len;
    }

    fn make_durable(&mut self) {
        // Now and then, so that what is older is of different ages.
        if self.random.below(8) == 0 {
            self.older = self.durable.clone();
        }
        if let Some(cut) = self.cut.take() {
            self.durable.truncate(cut);
        }
        for (&block, unflushed) in &self.unflushed {
            if unflushed.lost == 0 {
                self.durable.share_block(block, &self.seen);
                continue;
            }
            for bit in 0..SECTORS_PER_BLOCK {
                if (unflushed.written & !unflushed.lost) >> bit & 1 == 1 {
                    let sector = block * SECTORS_PER_BLOCK + bit;
                    *self.durable.sector_mut(sector) = *self.seen.sector(sector);
                }
            }
        }
        // What a failed flush has dropped stays seen and is not durable.
        self.unflushed.retain(|_, unflushed| {
            unflushed.written = unflushed.lost;
            unflushed.lost != 0
        });
        self.durable_len = self.len;
        self.lengths.clear();
    }
}

fn stopped() -> io::Error {
    io::Error::other("the machine has stopped")
}

fn error_of(fault: Fault) -> io::Error {
    match fault {
        Fault::Crash => stopped(),
        Fault::NoSpace => io::Error::from_raw_os_error(28),
        _ => io::Error::from_raw_os_error(5),
    }
}

/// A write under way: it happens at once, or at last.
#[derive(Debug)]
struct Behind {
    medium: CrashMedium,
    offset: u64,
    parts: Vec<SharedPart>,
    outcome: Option<io::Result<()>>,
}

impl Behind {
    fn make(&self) -> io::Result<()> {
        let parts: Vec<IoSlice<'_>> =
            self.parts.iter().map(|part| IoSlice::new(part.bytes())).collect();
        self.medium.write(self.offset, &parts)
    }
}

impl WriteUnderWay for Behind {
    fn finish(mut self: Box<Self>) -> io::Result<()> {
        let outcome = self.outcome.take();
        outcome.unwrap_or_else(|| self.make())
    }
}

impl Medium for CrashMedium {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let inner = &mut *self.inner();
        let fault = inner.call(Call::Read)?;
        if let Some(fault) = fault.filter(|fault| *fault != Fault::StaleRead) {
            return Err(error_of(fault));
        }
        if offset.checked_add(into.len() as u64).is_none_or(|end| end > inner.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        inner.seen.read(offset, into);
        if fault.is_some() {
            let blocks = into.len().div_ceil(BLOCK) as u64;
            let i = inner.random.below(blocks.max(1));
            if let Some(block) = into.chunks_mut(BLOCK).nth(i as usize) {
                inner.older.read(offset + i * BLOCK as u64, block);
            }
        }
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
        match fault {
            None => {}
            Some(Fault::LostWrite | Fault::Astray) => {
                // Large writes reach the disk in pieces: one of them.
                let blocks = bytes.len() / BLOCK;
                let first = inner.random.below(blocks as u64) as usize;
                let end = blocks.min(first + 1 + inner.random.below(PIECE_BLOCKS) as usize);
                inner.put(offset, &bytes[..first * BLOCK]);
                inner.put(offset + (end * BLOCK) as u64, &bytes[end * BLOCK..]);
                if fault == Some(Fault::Astray) {
                    let piece = &bytes[first * BLOCK..end * BLOCK];
                    let blocks = inner.len.saturating_sub(piece.len() as u64) / BLOCK as u64 + 1;
                    let elsewhere = inner.random.below(blocks) * BLOCK as u64;
                    inner.put(elsewhere, piece);
                }
                return Ok(());
            }
            Some(fault) => {
                inner.put_in_part(offset, &bytes);
                return Err(error_of(fault));
            }
        }
        if offset + bytes.len() as u64 > inner.len && inner.full {
            return Err(error_of(Fault::NoSpace));
        }
        inner.tally.bytes += bytes.len() as u64;
        inner.put(offset, &bytes);
        Ok(())
    }

    fn begin_write(
        &self,
        offset: u64,
        parts: Vec<SharedPart>,
    ) -> Result<Box<dyn WriteUnderWay>, Vec<SharedPart>> {
        let mut write = Behind { medium: self.clone(), offset, parts, outcome: None };
        let chance = self.inner().random.below(3);
        match chance {
            0 => return Err(write.parts),
            1 => {}
            _ => write.outcome = Some(write.make()),
        }
        Ok(Box::new(write))
    }

    fn sync(&self) -> io::Result<()> {
        let inner = &mut *self.inner();
        let fault = inner.call(Call::Sync)?;
        inner.tally.flushes += 1;
        match fault {
            None => {
                inner.make_durable();
                Ok(())
            }
            Some(Fault::LosingFlush) => {
                for unflushed in inner.unflushed.values_mut() {
                    unflushed.lost = unflushed.written;
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
            // Of a full disk it is known that the length is as before.
            if fault != Fault::NoSpace && inner.random.below(2) == 0 {
                inner.change_len(len);
            }
            return Err(error_of(fault));
        }
        if len > inner.len && inner.full {
            return Err(error_of(Fault::NoSpace));
        }
        inner.change_len(len);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(medium: &CrashMedium, block: u64, value: u8) {
        medium.write(block * BLOCK as u64, &[IoSlice::new(&[value; BLOCK])]).unwrap();
    }

    fn sectors(medium: &CrashMedium, block: u64) -> Vec<u8> {
        let mut bytes = [0xEE; BLOCK];
        medium.read(block * BLOCK as u64, &mut bytes).unwrap();
        bytes.chunks(SECTOR).map(|sector| sector[7]).collect()
    }

    #[test]
    fn a_crash_keeps_any_of_what_was_not_flushed_and_all_of_the_rest() {
        let (mut torn, mut lengths) = (0, [0; 2]);
        for seed in 0..200 {
            let medium = CrashMedium::new(seed);
            put(&medium, 0, 1);
            put(&medium, 1, 1);
            medium.sync().unwrap();
            put(&medium, 1, 2);
            put(&medium, 2, 3);
            medium.restart();
            assert_eq!(sectors(&medium, 0), [1; 8]);
            let found = sectors(&medium, 1);
            assert!(found.iter().all(|byte| [1, 2].contains(byte)));
            torn += u32::from(found.iter().any(|byte| *byte != found[0]));
            lengths[(medium.len().unwrap() / BLOCK as u64) as usize - 2] += 1;
        }
        assert!(torn > 50 && lengths.iter().all(|&l| l > 50), "{torn} torn, lengths {lengths:?}");
    }

    #[test]
    fn what_was_written_over_may_be_there_still() {
        let mut found = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let medium = CrashMedium::new(seed);
            put(&medium, 0, 1);
            medium.sync().unwrap();
            put(&medium, 0, 2);
            put(&medium, 0, 3);
            medium.restart();
            found.extend(sectors(&medium, 0));
        }
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_shortened_file_may_come_back_in_parts() {
        let mut found = std::collections::BTreeSet::new();
        for seed in 0..300 {
            let medium = CrashMedium::new(seed);
            (0..4).for_each(|block| put(&medium, block, 1));
            medium.sync().unwrap();
            medium.set_len(BLOCK as u64).unwrap();
            medium.set_len(3 * BLOCK as u64).unwrap();
            assert_eq!(sectors(&medium, 2), [0; 8]);
            if seed % 2 == 0 {
                put(&medium, 2, 2);
            }
            medium.restart();
            let blocks = medium.len().unwrap() / BLOCK as u64;
            let third = (blocks > 2).then(|| sectors(&medium, 2));
            if let Some(third) = &third {
                assert!(third.iter().all(|byte| *byte <= 2));
            }
            assert_eq!(sectors(&medium, 0), [1; 8]);
            found.insert((blocks, third.map(|third| (third.contains(&0), third.contains(&1)))));
        }
        assert!([1, 3, 4].iter().all(|blocks| found.iter().any(|(found, _)| found == blocks)));
        assert!(found.contains(&(3, Some((true, true)))), "{found:?}");
    }

    #[test]
    fn a_losing_flush_shows_what_it_lost() {
        let medium = CrashMedium::new(1);
        put(&medium, 0, 1);
        medium.sync().unwrap();
        put(&medium, 0, 2);
        medium.fail_at(1, Fault::LosingFlush);
        assert!(medium.sync().is_err());
        assert_eq!(sectors(&medium, 0), [2; 8]);
        medium.sync().unwrap();
        assert_eq!(sectors(&medium, 0), [2; 8]);
        medium.restart();
        assert_eq!(sectors(&medium, 0), [1; 8]);
    }

    #[test]
    fn silent_faults_say_nothing() {
        let medium = CrashMedium::new(3);
        for block in 0..16 {
            put(&medium, block, 1);
        }
        for _ in 0..40 {
            medium.sync().unwrap();
        }
        put(&medium, 5, 2);
        medium.sync().unwrap();
        let mut stale = 0;
        for _ in 0..20 {
            medium.fail_at(1, Fault::StaleRead);
            stale += u32::from(sectors(&medium, 5) == [1; 8]);
        }
        assert_eq!(stale, 20);
        medium.fail_at(1, Fault::LostWrite);
        put(&medium, 5, 3);
        assert_eq!(sectors(&medium, 5), [2; 8]);
        medium.fail_at(1, Fault::Astray);
        put(&medium, 5, 4);
        let hit = (0..16).filter(|&block| sectors(&medium, block) == [4; 8]).count();
        assert_eq!(hit, 1);
    }
}
