//! The loop that serves page faults (A7): waits for them, reads what the store holds, installs it.
//!
//! It never logs, never waits for a program, and touches frames only through their files, so it cannot
//! fault on itself. What it reads and how it installs that is decided in `step::faults`. Read
//! [`serve`] first.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use stead_memory::{Fault, FaultBatch, FaultKind, FrameError, Reason};
use stead_model::{PAGE_SIZE, PageId, PageNo, PageRange};
use stead_store::Stored;

use super::Shared;
use crate::container::{Place, Served};
use crate::step::faults::{Faults, Held, Install, STREAM, installs};

/// Faults taken from the kernel at a time.
const BATCH: usize = 64;

/// Serves faults until the site is closed.
pub(crate) fn serve(shared: &Shared) {
    let mut server = Server {
        shared,
        faults: Faults::default(),
        images: vec![0; STREAM as usize * PAGE_SIZE],
        found: Vec::with_capacity(STREAM as usize),
        installs: Vec::with_capacity(STREAM as usize * 2),
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

    fn report_damage(&mut self, served: &Served, page: PageNo) {
        let first = PageId { container: served.container, page };
        if let Err(error) = self.shared.view().read_run(first, &mut self.images[..PAGE_SIZE]) {
            let address = page.address(served.base);
            say(format_args!(
                "container {:?} ({}): the page at {address} cannot be used: {error}. The process that touched it \
                 ends with SIGBUS. `stead verify {}` lists all damage.",
                served.name,
                served.container,
                self.shared.dir.display()
            ));
        }
    }
}

/// Writes a line to standard error without its lock, which the program may hold while it waits for
/// this very page.
fn say(message: std::fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; 1024], len: 0 };
    // A line that is too long is cut; there is nothing else to do with the error.
    let _ = write!(line, "stead: {message}");
    line.bytes[line.len.min(1023)] = b'\n';
    let _ = rustix::io::write(rustix::stdio::stderr(), &line.bytes[..=line.len.min(1023)]);
}

/// A page that cannot be served leaves its thread waiting for ever, or reading wrong bytes: the one sound
/// answer is to end the process. What is stable stays so.
fn end_process(message: std::fmt::Arguments<'_>) -> ! {
    say(message);
    std::process::abort()
}

struct Line {
    bytes: [u8; 1024],
    len: usize,
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, s: &str) -> std::fmt::Result {
        let room = &mut self.bytes[self.len..];
        let n = s.len().min(room.len());
        room[..n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        if n == s.len() { Ok(()) } else { Err(std::fmt::Error) }
    }
}
