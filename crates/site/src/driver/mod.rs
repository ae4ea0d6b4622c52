//! Performs what `step` decides: threads, clocks, page images. Read [`Shared`] first, then
//! `faults::serve` and `rounds::run`.

mod ahead;
pub(crate) mod background;
pub(crate) mod damage;
pub(crate) mod faults;
pub(crate) mod rounds;
pub(crate) mod spare;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stead_heap::Damaged;
use stead_memory::Space;
use stead_model::ContainerId;
use stead_store::{Store, View};

use crate::container::{ClusterTable, Opened};
use crate::options::OpenOptions;

/// What the threads of a site share.
pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    pub(crate) store: Store,
    /// The snapshot that is shown, in a store that is only read; `None`: the live state.
    snapshot: Option<String>,
    pub(crate) space: Arc<Space>,
    pub(crate) table: Arc<ClusterTable>,
    pub(crate) options: OpenOptions,
    pub(crate) rounds: rounds::RoundTable,
    /// The process that opened the store; a forked child is another.
    pub(crate) process: u32,
    pub(crate) stopping: AtomicBool,
    /// Set when nothing but the fault loop is left to stop.
    pub(crate) faults_stopping: AtomicBool,
    opened: Mutex<BTreeMap<ContainerId, Arc<Opened>>>,
    /// Damaged pages that were touched.
    pub(crate) met: Mutex<Vec<Damaged>>,
    started: Instant,
    /// Set to wake the background thread before its time.
    wake: Mutex<bool>,
    woken: Condvar,
}

impl Shared {
    pub(crate) fn new(
        dir: PathBuf,
        store: Store,
        snapshot: Option<String>,
        space: Arc<Space>,
        options: OpenOptions,
    ) -> Self {
        let rounds = rounds::RoundTable::new(options.pace, store.batch());
        Shared {
            dir,
            store,
            snapshot,
            space,
            table: Arc::default(),
            options,
            rounds,
            process: std::process::id(),
            stopping: AtomicBool::new(false),
            faults_stopping: AtomicBool::new(false),
            opened: Mutex::default(),
            met: Mutex::default(),
            started: Instant::now(),
            wake: Mutex::new(false),
            woken: Condvar::new(),
        }
    }

    /// The snapshot that is shown, if it is one.
    pub(crate) fn snapshot(&self) -> Option<&str> {
        self.snapshot.as_deref()
    }

    /// The state that this site shows.
    pub(crate) fn view(&self) -> View<'_> {
        match &self.snapshot {
            None => self.store.view(),
            Some(name) => {
                let view = self.store.view_snapshot(name);
                view.expect("what is only read keeps its snapshots")
            }
        }
    }

    /// Time since the site was opened: the clock of `step`.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The open containers in the order of their numbers, which is the order in which gates close.
    pub(crate) fn containers(&self) -> Vec<Arc<Opened>> {
        self.opened().values().cloned().collect()
    }

    pub(crate) fn opened(&self) -> MutexGuard<'_, BTreeMap<ContainerId, Arc<Opened>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until woken, at most for `time`.
    fn sleep(&self, time: Duration) {
        let wake = self.wake.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok((mut wake, _)) = self.woken.wait_timeout_while(wake, time, |wake| !*wake) {
            *wake = false;
        }
    }

    pub(crate) fn wake_background(&self) {
        *self.wake.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.woken.notify_all();
    }
}
