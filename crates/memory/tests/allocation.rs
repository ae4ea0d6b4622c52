//! Serving a fault allocates nothing: the thread that waits for its page may hold any lock of the
//! program, the allocator's among them.

mod ground;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use ground::{Ground, load, serve, stamp, stamp_word, store};
use stead_memory::{FaultBatch, Reason};
use stead_model::{PageNo, PageRange};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// The ordinary allocator, counting what each thread asks of it.
struct Counting;

// SAFETY: everything is passed on to the ordinary allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_fault_path_does_not_allocate() {
    const FAULTS: u64 = 500;
    let Some(ground) = Ground::unserved(2) else { return };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..FAULTS {
                // Reads and writes, in neighbourhoods empty and half full, in two windows.
                let page = i * 13 % 3000 + (i % 2) * stead_model::PAGES_PER_WINDOW;
                if i % 3 == 0 {
                    store(ground.address(page) + 8, i);
                } else {
                    load(ground.address(page));
                }
                assert_eq!(load(ground.address(page)), stamp_word(page));
            }
            ground.space.wake_poll();
        });
        let mut batch = FaultBatch::new(16);
        let mut buf = vec![0; 16 << 12];
        let mut served = 0;
        let before = COUNT.get();
        loop {
            ground.space.poll(&mut batch, Some(Duration::from_secs(5))).unwrap();
            for fault in batch.faults() {
                serve(&ground.cluster, fault, 16, &mut buf, &stamp);
                served += 1;
            }
            if batch.woken() {
                break;
            }
        }
        // What a program's own thread does ahead of its faults.
        let cluster = &ground.cluster;
        cluster.install_zero(PageRange::new(9000, 9100), Reason::AheadWritable).unwrap();
        cluster.resume(PageNo(9000)).unwrap();
        cluster.wake(PageRange::new(9000, 9100)).unwrap();
        assert_eq!(COUNT.get(), before);
        assert!(served > 100, "{served}");
    });
}
