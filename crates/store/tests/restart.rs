//! Opening after the process has gone (catalogue B10): what is read does not grow with what is stored. Bytes are
//! asserted, never times. `STEAD_LARGE=10240` does it with so many MiB: about a minute for each 4 GiB, and as
//! much room on the disk of the temporary directory.

use std::time::Instant;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::{CreateOptions, Store, Stored};

const CONTAINERS: u64 = 100;

/// What opening, and a page of each container, may read.
const READ_MOST: u64 = 20_000_000;

fn id(container: u64, page: u64) -> PageId {
    PageId { container: ContainerId(container as u32), page: PageNo(page) }
}

fn image(id: PageId, bytes: &mut [u8]) {
    bytes.fill(0x5a);
    bytes[..8].copy_from_slice(&(u64::from(id.container.0) << 40 | id.page.0).to_le_bytes());
}

#[test]
fn a_hundred_containers_are_there_at_once() {
    let mib: u64 = std::env::var("STEAD_LARGE").map_or(256, |mib| mib.parse().unwrap());
    let pages = mib * 256 / CONTAINERS;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::create(&path, &CreateOptions::default()).unwrap();
    let mut batch = store.batch();
    let commit = |batch: &mut _| {
        store.commit(batch).unwrap();
        while store.wants_maintenance() {
            store.maintain().unwrap();
        }
    };
    for first in (0..pages).step_by(40) {
        for container in 0..CONTAINERS {
            for page in first..(first + 40).min(pages) {
                let id = id(container, page);
                batch.push(id, |bytes| image(id, bytes));
            }
        }
        commit(&mut batch);
    }
    // As much behind the last root as upkeep leaves there.
    for round in 0..60 {
        for container in 0..CONTAINERS {
            let id = id(container, round * 7 % pages);
            batch.push(id, |bytes| image(id, bytes));
        }
        commit(&mut batch);
    }
    let file_bytes = store.stat().file_bytes;
    // Nothing is written by this, as by the end of a process that is killed.
    drop(batch);
    drop(store);
    let began = Instant::now();
    let (store, report) = Store::open(&path).unwrap();
    let mut found = [0; PAGE_SIZE];
    let mut want = [0; PAGE_SIZE];
    for container in 0..CONTAINERS {
        let id = id(container, pages / 2);
        assert_eq!(store.read_page(id, &mut found).unwrap(), Stored::Image);
        image(id, &mut want);
        assert!(found == want, "{id} has wrong bytes");
    }
    let read = store.stat().counters.read_bytes;
    eprintln!(
        "{file_bytes} bytes in {CONTAINERS} containers: opened, and a page of each read, in {:.1} ms; {} bytes read by \
         opening, {read} in all",
        began.elapsed().as_secs_f64() * 1e3,
        report.bytes_read
    );
    assert!(read <= READ_MOST, "{read} bytes were read");
}
