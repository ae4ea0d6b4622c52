//! The loop that serves page faults (A7): waits for them, reads what the store holds, installs it.
//!
//! It never logs, never waits for a program, and touches frames only through their files, so it cannot
//! fault on itself. What it reads and how it installs that is decided in `step::faults`. Read
//! [`serve`] first.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use stead_memory::{Fault, FaultBatch, FaultKind, FrameError, Reason, last_words};
use stead_model::{PAGE_SIZE, PageId, PageNo, PageRange};
use stead_store::Stored;

use super::{Shared, damage};
use crate::container::{Place, Served};
use crate::step::faults::{Faults, Held, Install, STREAM_MOST, installs};

/// Faults taken from the kernel at a time.
const BATCH: usize = 64;

/// Serves faults until the site is closed.
pub(crate) fn serve(shared: &Shared) {
    let mut server = Server {
        shared,
        faults: Faults::default(),
        images: vec![0; STREAM_MOST as usize * PAGE_SIZE],
        found: Vec::with_capacity(STREAM_MOST as usize),
        installs: Vec::with_capacity(STREAM_MOST as usize * 2),
    };
    let mut batch = FaultBatch::new(BATCH);
    while !shared.faults_stopping.load(Ordering::Acquire) {
        if let Err(error) = shared.space.poll(&mut batch, None) {
            end_process(format_args!("page faults can no longer be read: {error}"));
        }
        for fault in batch.faults() {
            server.fault(fault);
        }
    }
}

struct Server<'a> {
    shared: &'a Shared,
    faults: Faults,
    images: Vec<u8>,
    found: Vec<(PageRange, Held)>,
    installs: Vec<Install>,
}

impl Server<'_> {
    fn fault(&mut self, fault: &Fault) {
        let Some(served) = self.shared.table.get(fault.cluster) else { return };
        self.shared.table.count_touch(&served);
        let done = match fault.kind {
            FaultKind::Protected => {
                served.cluster.wake(PageRange::new(fault.page.0, fault.page.0 + 1)).map(drop)
            }
            _ if served.cluster.is_resident(fault.page) => {
                served.cluster.resume(fault.page).map(drop)
            }
            _ => self.bring_in(&served, fault),
        };
        if let Err(error) = done {
            let address = fault.page.address(served.base);
            end_process(format_args!(
                "container {:?} ({}): the page at {address} cannot be mapped: {error}",
                served.name, served.container
            ));
        }
    }

    fn bring_in(&mut self, served: &Served, fault: &Fault) -> Result<(), FrameError> {
        let cluster = &served.cluster;
        let bounds = Place::window_bounds(fault.page);
        let range = self
            .faults
            .fault(fault.container, fault.page, bounds, |page| !cluster.is_resident(page));
        self.read(served, range);
        installs(fault.page, fault.write, &self.found, &mut self.installs);
        for i in 0..self.installs.len() {
            let Install { range: run, held, protect, asked } = self.installs[i];
            let reason = match (asked, protect) {
                (true, true) => Reason::ReadFault(fault.page),
                (true, false) => Reason::WriteFault(fault.page),
                (false, true) => Reason::Ahead,
                (false, false) => Reason::AheadWritable,
            };
            let installed = match held {
                Held::Images => {
                    let at = (run.start - range.start) as usize * PAGE_SIZE;
                    let images = &self.images[at..][..run.page_count() as usize * PAGE_SIZE];
                    cluster.install(PageNo(run.start), images, reason).map(drop)
                }
                Held::Nothing => cluster.install_zero(run, reason).map(drop),
                Held::Damaged if damage::was_free(self.shared, served.page_id(fault.page)) => {
                    cluster.install_zero(run, reason).map(drop)
                }
                Held::Damaged => {
                    self.report_damage(served, fault.page);
                    cluster.poison(fault.page)
                }
            };
            match installed {
                // Who asked goes on without these neighbours.
                Err(_) if !asked => break,
                other => other?,
            }
        }
        Ok(())
    }

    /// Reads what the store holds of a run of pages into `images`, and notes what that is.
    fn read(&mut self, served: &Served, range: PageRange) {
        let store = self.shared.view();
        self.found.clear();
        let mut at = range.start;
        while at < range.end {
            let first = PageId { container: served.container, page: PageNo(at) };
            let into = &mut self.images[(at - range.start) as usize * PAGE_SIZE..]
                [..(range.end - at) as usize * PAGE_SIZE];
            let (held, page_count) = match store.read_run(first, into) {
                Ok(run) if run.stored == Stored::Image => (Held::Images, run.pages as u64),
                Ok(run) => (Held::Nothing, run.pages as u64),
                // One page of the run is damaged: find out whether it is this one.
                Err(_) => match store.read_run(first, &mut into[..PAGE_SIZE]) {
                    Ok(run) if run.stored == Stored::Image => (Held::Images, 1),
                    Ok(_) => (Held::Nothing, 1),
                    Err(_) => (Held::Damaged, 1),
                },
            };
            self.found.push((PageRange::new(at, at + page_count), held));
            at += page_count;
        }
    }

    /// Prepares what is said to whoever dies of touching this page.
    fn report_damage(&mut self, served: &Served, page: PageNo) {
        let first = served.page_id(page);
        let Err(error) = self.shared.view().read_run(first, &mut self.images[..PAGE_SIZE]) else {
            return;
        };
        let damaged =
            damage::name(self.shared, served.container, &served.name, served.base, page, &error);
        let text = format!(
            "stead: {damaged}. It was touched, and a load cannot return an error: SIGBUS. (store {})",
            self.shared.dir.display()
        );
        if !last_words::prepare(damaged.address, &text) {
            // The program has taken the signal: it is said before it learns of it.
            say_line(&text);
        }
        let mut met = self.shared.met.lock().unwrap_or_else(PoisonError::into_inner);
        if !met.iter().any(|known| known.address == damaged.address) {
            met.push(damaged);
        }
    }
}

/// Writes a line to standard error without its lock, which the program may hold while it waits for
/// this very page.
fn say_line(text: &str) {
    // There is nothing else to do with the error.
    let _ = rustix::io::write(rustix::stdio::stderr(), format!("{text}\n").as_bytes());
}

/// A page that cannot be served leaves its thread waiting for ever, or reading wrong bytes: the one sound
/// answer is to end the process. What is stable stays so.
fn end_process(message: std::fmt::Arguments<'_>) -> ! {
    say_line(&format!("stead: {message}"));
    std::process::abort()
}
