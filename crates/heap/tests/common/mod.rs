//! A container on simulated memory and the least that a site must do around it: sections one at a time
//! or beside each other behind a plain lock. Read [`Heap`] first.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::marker::PhantomData;
use std::sync::{Arc, RwLock};

use stead_heap::ground::plain::PlainGround;
use stead_heap::{
    Arena, Attempt, Ended, Error, Exclusive, Open, Read, Report, Root, Tx, Write, section_open,
};
use stead_model::ContainerId;

/// A container with root `R`.
pub struct Heap<R> {
    ground: Arc<PlainGround>,
    arena: Option<Arena>,
    /// Exclusive sections write-lock it, others read-lock it.
    gate: RwLock<()>,
    root: PhantomData<fn() -> R>,
}

impl<R: Root> Heap<R> {
    #[expect(unsafe_code)]
    pub fn new(
        windows: u32,
        init: impl for<'s> FnOnce(&'s Tx<'s>) -> Result<R::At<'s>, Error>,
    ) -> Self {
        let ground = PlainGround::new(windows).expect("address space");
        let arena = Arena::format(ground.clone(), ContainerId(7)).expect("a fresh ground");
        // SAFETY: no other section is open, and the ground stays mapped.
        unsafe { arena.init_root::<R, Error>(init) }.expect("a root");
        Heap { ground, arena: Some(arena), gate: RwLock::new(()), root: PhantomData }
    }

    pub fn arena(&self) -> &Arena {
        self.arena.as_ref().expect("open between calls")
    }

    pub fn ground(&self) -> &Arc<PlainGround> {
        &self.ground
    }

    /// Loses all volatile state and opens the container again.
    #[expect(unsafe_code)]
    pub fn reopen(&mut self) {
        self.arena = None;
        // SAFETY: the only arena of this ground was just dropped.
        unsafe { self.ground.forget_shadow() };
        let arena = Arena::open(self.ground.clone()).expect("it was closed well");
        arena.check_root::<R>().expect("the same type");
        self.arena = Some(arena);
    }

    #[expect(unsafe_code)]
    pub fn write<T>(
        &self,
        mut f: impl for<'s> FnMut(&'s R::At<'s>, &'s Write<'s>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut attempt = Attempt::new();
        loop {
            let gate = self.gate.read().unwrap_or_else(|e| e.into_inner());
            // SAFETY: R was checked; exclusive sections hold the gate alone.
            let ended = unsafe { self.arena().write::<R, T, Error>(&mut attempt, &mut f) };
            drop(gate);
            match ended {
                Ended::Committed(value) => return Ok(value),
                Ended::Undone(e) => return Err(e),
                Ended::Deadlock(_, lock) => self.arena().wait_lock_free(lock),
            }
        }
    }

    #[expect(unsafe_code)]
    pub fn exclusive<T>(
        &self,
        f: impl for<'s> FnMut(&'s mut R::At<'s>, &'s mut Exclusive<'s>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let _gate = self.gate.write().unwrap_or_else(|e| e.into_inner());
        // SAFETY: R was checked; the gate is held alone.
        match unsafe { self.arena().exclusive::<R, T, Error>(&mut Attempt::new(), f) } {
            Ended::Committed(value) => Ok(value),
            Ended::Undone(e) | Ended::Deadlock(e, _) => Err(e),
        }
    }

    #[expect(unsafe_code)]
    pub fn read<T>(&self, f: impl for<'s> FnOnce(&'s R::At<'s>, &'s Read<'s>) -> T) -> T {
        // Inside a section of this thread the gate is held already.
        let nested = section_open() != Open::Nothing;
        let _gate = (!nested).then(|| self.gate.read().unwrap_or_else(|e| e.into_inner()));
        // SAFETY: R was checked; exclusive sections hold the gate alone, and tests read in none.
        unsafe { self.arena().read::<R, T>(f) }
    }

    /// Verifies the container: every pointer right, no byte lost. Leaks are the caller's affair.
    pub fn check(&self) -> Report {
        let report = self.arena().verify();
        assert!(report.first_bad.is_none(), "{report}");
        assert_eq!(report.lost_bytes, 0, "{report}");
        report
    }
}
