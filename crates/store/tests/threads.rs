//! Many threads at once: stabilisations, upkeep, readers, on a real file. A reader never sees an error, nor
//! anything but one of the images that a page has had lately.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::{CreateOptions, Store, Stored};

const PAGES: u64 = 3000;
const WRITERS: u64 = 2;

fn id(page: u64) -> PageId {
    PageId { container: ContainerId((page % 3) as u32), page: PageNo(page) }
}

fn image(page: u64, version: u64, bytes: &mut [u8]) {
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(version << 32 | page << 12 | i as u64).to_le_bytes());
    }
}

fn version_of(page: u64, bytes: &[u8]) -> u64 {
    let version = u64::from_le_bytes(bytes[..8].try_into().unwrap()) >> 32;
    let mut want = [0; PAGE_SIZE];
    image(page, version, &mut want);
    assert!(want == bytes, "page {page} is not a whole image");
    version
}

#[test]
fn readers_writers_and_upkeep_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let options = CreateOptions { segment_blocks: Some(64), ..CreateOptions::default() };
    let store = Store::create(dir.path(), &options).unwrap();
    // Nothing of the map is kept in memory.
    store.set_map_bytes_max(0);
    let mut batch = store.batch();
    (0..PAGES).for_each(|page| batch.push(id(page), |p| image(page, 1, p)));
    store.commit(&mut batch).unwrap();
    let stop = AtomicBool::new(false);
    // Of each page, the newest version that is acknowledged: a reader finds that one or a later one.
    let acknowledged: Vec<AtomicU64> = (0..PAGES).map(|_| AtomicU64::new(1)).collect();
    let reads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (store, acknowledged) = (&store, &acknowledged);
                scope.spawn(move || {
                    let mut batch = store.batch();
                    for version in 2..40 {
                        let pages: Vec<u64> = (0..40)
                            .map(|_| fastrand::u64(0..PAGES / WRITERS) * WRITERS + writer)
                            .collect();
                        pages.iter().for_each(|&p| batch.push(id(p), |b| image(p, version, b)));
                        store.commit(&mut batch).unwrap();
                        for page in pages {
                            acknowledged[page as usize].store(version, Ordering::SeqCst);
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                store.maintain().unwrap();
                store.checkpoint().unwrap();
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let verified = store.verify(&mut |_| {}).unwrap();
                assert!(verified.is_clean(), "{verified:?}");
            }
        });
        for reader in 0..2 {
            let (store, acknowledged, stop, reads) = (&store, &acknowledged, &stop, &reads);
            scope.spawn(move || {
                let mut bytes = vec![0; 16 * PAGE_SIZE];
                while !stop.load(Ordering::SeqCst) {
                    let page = fastrand::u64(0..PAGES);
                    let least = acknowledged[page as usize].load(Ordering::SeqCst);
                    let bytes = if reader == 0 {
                        let run = store.read_run(id(page), &mut bytes).unwrap();
                        assert_eq!(run.stored, Stored::Image);
                        &bytes[..PAGE_SIZE]
                    } else {
                        let page_bytes = bytes.first_chunk_mut().unwrap();
                        let stored = store.read_page(id(page), page_bytes).unwrap();
                        assert_eq!(stored, Stored::Image);
                        &page_bytes[..]
                    };
                    assert!(version_of(page, bytes) >= least, "page {page} went back");
                    reads.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        // Those who go on for ever are stopped also if a writer panics.
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        stop.store(true, Ordering::SeqCst);
        ended.into_iter().for_each(|ended| ended.unwrap());
    });
    assert!(reads.load(Ordering::SeqCst) > 100);
    drop(store);
    let (store, _) = Store::open(dir.path()).unwrap();
    let mut bytes = [0; PAGE_SIZE];
    for page in 0..PAGES {
        store.read_page(id(page), &mut bytes).unwrap();
        assert_eq!(version_of(page, &bytes), acknowledged[page as usize].load(Ordering::SeqCst));
    }
}

/// All of the above, by io_uring.
#[test]
fn by_io_uring_it_is_the_same() {
    if std::env::var_os("STEAD_IO").is_some() {
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--nocapture"])
        .env("STEAD_IO", "ring")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
