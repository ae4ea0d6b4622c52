//! What the tests on real memory share: a space with one cluster, a thread that serves its faults from
//! a function, and plain touches of memory. Read [`Ground`] first.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use stead_memory::{
    Cluster, Fault, FaultBatch, Mode, Plan, Reason, Reservation, Space, Unsupported,
};
use stead_model::windows::WindowRun;
use stead_model::{Address, ContainerId, PAGE_SIZE, PageNo, PageRange, WINDOW_COUNT};

/// Windows that no other test of this process uses.
pub fn fresh_windows(count: u32) -> WindowRun {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Round and round: property tests use more than there are, but not at once.
    const ROOM: u32 = 32;
    let turn = NEXT.fetch_add(1, Ordering::Relaxed);
    let first = turn % (WINDOW_COUNT / ROOM) * ROOM;
    assert!(count < ROOM);
    WindowRun { first, count }
}

/// A space, or the reason why this test cannot run here.
pub fn open() -> Option<Space> {
    match Space::open() {
        Ok(space) => Some(space),
        Err(refusal) => {
            not_run(&refusal);
            None
        }
    }
}

pub fn not_run(refusal: &Unsupported) {
    eprintln!("NOT RUN: {refusal}");
}

pub struct Ground {
    pub space: Space,
    pub reservation: Reservation,
    pub cluster: Arc<Cluster>,
    server: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Ground {
    /// One cluster over `windows` fresh windows; faults are left to the test.
    pub fn unserved(windows: u32) -> Option<Ground> {
        let space = open()?;
        let reservation = space.reserve(ContainerId(5), fresh_windows(windows)).unwrap();
        let all: Vec<u32> = (0..windows).collect();
        let cluster = Arc::new(space.map_cluster(&reservation, &all, Mode::Faulted).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        Some(Ground { space, reservation, cluster, server: None, stop })
    }

    /// As `unserved`, with a thread that installs `around` pages for each fault, filled by `image`.
    pub fn served(
        windows: u32,
        around: u64,
        image: impl Fn(PageNo, &mut [u8]) + Send + 'static,
    ) -> Option<Ground> {
        let mut ground = Ground::unserved(windows)?;
        let (space, cluster) = (ground.space.clone(), Arc::clone(&ground.cluster));
        let stop = Arc::clone(&ground.stop);
        ground.server = Some(std::thread::spawn(move || {
            let mut batch = FaultBatch::new(64);
            let mut buf = vec![0; around as usize * PAGE_SIZE];
            while !stop.load(Ordering::Relaxed) {
                space.poll(&mut batch, None).unwrap();
                for fault in batch.faults() {
                    serve(&cluster, fault, around, &mut buf, &image);
                }
            }
        }));
        Some(ground)
    }

    pub fn base(&self) -> Address {
        self.reservation.base()
    }

    pub fn address(&self, page: u64) -> usize {
        PageNo(page).address(self.base()).0
    }

    pub fn dirty(&self, scan: stead_memory::Scan) -> Vec<PageRange> {
        let mut out = Vec::new();
        self.cluster.scan_all(scan, &mut out).unwrap();
        out
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.space.wake_poll();
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
    }
}

pub fn serve(
    cluster: &Cluster,
    fault: &Fault,
    around: u64,
    buf: &mut [u8],
    image: &impl Fn(PageNo, &mut [u8]),
) {
    assert_eq!(fault.cluster, cluster.key());
    match cluster.plan(fault.page, around) {
        Plan::Resident => {
            cluster.resume(fault.page).unwrap();
        }
        Plan::Absent(range) => {
            let buf = &mut buf[..range.page_count() as usize * PAGE_SIZE];
            for (page, image_buf) in range.pages().zip(buf.chunks_exact_mut(PAGE_SIZE)) {
                image(page, image_buf);
            }
            cluster.install(PageNo(range.start), buf, Reason::of(fault)).unwrap();
        }
    }
}

/// Serves what comes until `timeout` passes without a fault.
pub fn serve_until_quiet(ground: &Ground, around: u64, timeout: Duration) -> usize {
    let mut batch = FaultBatch::new(64);
    let mut buf = vec![0; around as usize * PAGE_SIZE];
    let mut count = 0;
    loop {
        ground.space.poll(&mut batch, Some(timeout)).unwrap();
        if batch.faults().is_empty() {
            return count;
        }
        for fault in batch.faults() {
            serve(&ground.cluster, fault, around, &mut buf, &stamp);
            count += 1;
        }
    }
}

/// A page image that says which page it is.
pub fn stamp(page: PageNo, image: &mut [u8]) {
    for word in image.chunks_exact_mut(8) {
        word.copy_from_slice(&(page.0 ^ 0x5a5a_0000_0000).to_ne_bytes());
    }
}

pub fn stamp_word(page: u64) -> u64 {
    page ^ 0x5a5a_0000_0000
}

pub fn load(address: usize) -> u64 {
    // SAFETY: the tests pass aligned addresses of clusters that stay mapped for the call.
    unsafe { std::ptr::with_exposed_provenance::<u64>(address).read_volatile() }
}

pub fn store(address: usize, value: u64) {
    // SAFETY: as for `load`; no reference to the memory exists anywhere.
    unsafe { std::ptr::with_exposed_provenance_mut::<u64>(address).write_volatile(value) }
}

/// Has the kernel write a word by a call that resolves the fault itself, as direct input does: no record of
/// it enters a fault log.
pub fn store_by_call(address: usize, value: u64) {
    let part = |base: *mut libc::c_void| libc::iovec { iov_base: base, iov_len: 8 };
    let from = part(std::ptr::from_ref(&value).cast_mut().cast());
    let into = part(std::ptr::with_exposed_provenance_mut(address));
    // SAFETY: both parts are eight bytes of this process, the one borrowed, the other of a cluster that stays
    // mapped; nobody holds a reference to it.
    let written = unsafe {
        libc::process_vm_writev(libc::getpid(), &raw const from, 1, &raw const into, 1, 0)
    };
    assert_eq!(written, 8, "{}", std::io::Error::last_os_error());
}

pub fn ranges(pairs: &[(u64, u64)]) -> Vec<PageRange> {
    pairs.iter().map(|(start, end)| PageRange::new(*start, *end)).collect()
}
