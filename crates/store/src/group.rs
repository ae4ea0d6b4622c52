//! Stabilising from several threads at once: who comes while one is at it waits, and all who wait then share
//! one write and one flush. No thread is started for it: one of those who wait does it for all. Read
//! [`Store::commit_with_others`] first.

use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::batch::Batch;
use crate::commit::{Committed, Meanwhile};
use crate::error::CommitError;
use crate::store::Store;

/// Those who want to stabilise.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<Waiting>,
    /// Told when one who was at it is done.
    done: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Whether somebody is at it, for himself and perhaps for others.
    leading: bool,
    /// Those who wait, in the order in which they came.
    tickets: Vec<Arc<Ticket>>,
}

/// One who waits, and what has become of his batch.
#[derive(Debug)]
struct Ticket {
    /// Lent for as long as he waits.
    batch: Mutex<Batch>,
    outcome: Mutex<Option<Result<Committed, CommitError>>>,
}

impl Ticket {
    fn take_outcome(&self) -> Option<Result<Committed, CommitError>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn batch(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Being the one who is at it, until dropped: by a panic as well.
pub(crate) struct Lead<'a>(&'a Queue);

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.0.state().leading = false;
        self.0.done.notify_all();
    }
}

impl Store {
    /// Commits the batch, with those of others who wait, or by one of them.
    pub(crate) fn commit_with_others(
        &self,
        batch: &mut Batch,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<Committed, CommitError> {
        let queue = &self.queue;
        let mut waiting = queue.state();
        if waiting.leading {
            drop(waiting);
            meanwhile.now();
            waiting = queue.state();
        }
        if waiting.leading {
            let ticket = Arc::new(Ticket {
                batch: Mutex::new(mem::replace(batch, self.batch())),
                outcome: Mutex::new(None),
            });
            waiting.tickets.push(Arc::clone(&ticket));
            let outcome = loop {
                waiting = queue.done.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                let outcome = ticket.take_outcome();
                if outcome.is_some() || !waiting.leading {
                    break outcome;
                }
            };
            *batch = mem::replace(&mut ticket.batch(), self.batch());
            if let Some(outcome) = outcome {
                return outcome;
            }
            // Nobody is at it, and nobody has done it for us.
            waiting.tickets.retain(|other| !Arc::ptr_eq(other, &ticket));
        }
        waiting.leading = true;
        drop(waiting);
        self.lead(batch, meanwhile)
    }

    /// Whoever comes waits from now on, if nobody is at it.
    pub(crate) fn lead_alone(&self) -> Option<Lead<'_>> {
        let mut waiting = self.queue.state();
        let idle = !std::mem::replace(&mut waiting.leading, true);
        idle.then_some(Lead(&self.queue))
    }

    fn lead(
        &self,
        batch: &mut Batch,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<Committed, CommitError> {
        let lead = Lead(&self.queue);
        let mut writer = self.writer_or(|| meanwhile.now());
        let tickets = self.take_followers(batch);
        let mut lent: Vec<MutexGuard<'_, Batch>> =
            tickets.iter().map(|ticket| ticket.batch()).collect();
        let mut batches: Vec<&mut Batch> = Vec::with_capacity(1 + lent.len());
        batches.push(batch);
        batches.extend(lent.iter_mut().map(|lent| &mut **lent));
        let mut outcomes = self.commit_together(&mut writer, &mut batches, meanwhile).into_iter();
        let own = outcomes.next().expect("there is one for each batch");
        drop(lent);
        for (ticket, outcome) in tickets.iter().zip(outcomes) {
            *ticket.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        }
        drop(writer);
        drop(lead);
        own
    }

    /// Those who go together with this batch: up to the first whose record is heavy.
    fn take_followers(&self, batch: &Batch) -> Vec<Arc<Ticket>> {
        let mut waiting = self.queue.state();
        if waiting.tickets.is_empty() {
            return Vec::new();
        }
        let heavy = |batch: &Batch| self.is_heavy(batch.entries_most());
        let count = if heavy(batch) {
            0
        } else {
            let first = waiting.tickets.iter().position(|ticket| heavy(&ticket.batch()));
            first.map_or(waiting.tickets.len(), |first| first + 1)
        };
        let later = waiting.tickets.split_off(count);
        mem::replace(&mut waiting.tickets, later)
    }
}
