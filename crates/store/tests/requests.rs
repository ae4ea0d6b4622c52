//! A disk of which a single write or flush goes wrong, met through io_uring and through plain calls: a file system in this
//! process (FUSE) that knows what is durable and what is lost. Each request in turn fails once. What was acknowledged
//! is on the disk then, whole, or what was under way; and when the cause is gone the store stabilises again.

use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyWrite, Request, TimeOrNow, WriteFlags, spawn_mount,
};
use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::planted::{self, Bug};
use stead_store::sim::CrashMedium;
use stead_store::{Calls, CreateOptions, FileMedium, Store};

const PAGES: u64 = 5;
const STEPS: u64 = 9;

/// What a request asks of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    Write,
    Flush,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// This error; half of what was to be written is there. What a flush was to make durable never is, although it is
    /// read from the cache.
    Error(i32),
    /// Half is written, and that is said.
    Short,
}

/// The file, and what has been asked about it.
#[derive(Debug, Default)]
struct Disk {
    /// As it is read.
    bytes: Vec<u8>,
    /// As it is behind a crash.
    durable: Vec<u8>,
    /// Written since the last flush: where, and how much.
    unflushed: Vec<(usize, usize)>,
    asked: Vec<Asked>,
    fault: Option<(usize, Fault)>,
    /// Files have names of their own, so that nothing of one is kept for the next.
    number: u64,
}

/// The file system: one directory, with one file of which the name is a number.
#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<Disk>>);

impl Shared {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }
}

impl Disk {
    /// What is to go wrong with the request that is made now.
    fn ask(&mut self, what: Asked) -> Option<Fault> {
        let at = self.asked.len();
        self.asked.push(what);
        self.fault.filter(|(wanted, _)| *wanted == at).map(|(_, fault)| fault)
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        let end = at + data.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[at..end].copy_from_slice(data);
        self.unflushed.push((at, data.len()));
    }

    fn flush(&mut self) {
        self.durable.resize(self.bytes.len(), 0);
        for (at, len) in self.unflushed.drain(..) {
            self.durable[at..at + len].copy_from_slice(&self.bytes[at..at + len]);
        }
    }

    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let is_root = ino == INodeNo::ROOT;
        let time = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino,
            size: self.bytes.len() as u64,
            blocks: self.bytes.len() as u64 / 512,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: if is_root { FileType::Directory } else { FileType::RegularFile },
            perm: if is_root { 0o755 } else { 0o644 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: PAGE_SIZE as u32,
            flags: 0,
        }
    }
}

/// Nothing is to be kept of what is told about files.
const NOT_KEPT: Duration = Duration::ZERO;

impl Filesystem for Shared {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let disk = self.disk();
        if name.to_str() == Some(&disk.number.to_string()) {
            let ino = INodeNo(disk.number);
            reply.entry(&NOT_KEPT, &disk.attributes(ino), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&NOT_KEPT, &self.disk().attributes(ino));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut disk = self.disk();
        if let Some(size) = size {
            disk.bytes.resize(size as usize, 0);
            disk.durable.resize(size as usize, 0);
            disk.unflushed.retain(|(at, len)| at + len <= size as usize);
        }
        reply.attr(&NOT_KEPT, &disk.attributes(ino));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let disk = self.disk();
        let start = disk.bytes.len().min(offset as usize);
        let end = disk.bytes.len().min(start + size as usize);
        reply.data(&disk.bytes[start..end]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut disk = self.disk();
        let half = (data.len() / 2).next_multiple_of(512).min(data.len());
        match disk.ask(Asked::Write) {
            None => {
                disk.write(offset as usize, data);
                reply.written(data.len() as u32);
            }
            Some(fault) => {
                disk.write(offset as usize, &data[..half]);
                match fault {
                    Fault::Error(errno) => reply.error(Errno::from_i32(errno)),
                    Fault::Short => reply.written(half as u32),
                }
            }
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut disk = self.disk();
        match disk.ask(Asked::Flush) {
            Some(Fault::Error(errno)) => {
                disk.unflushed.clear();
                reply.error(Errno::from_i32(errno));
            }
            None | Some(Fault::Short) => {
                disk.flush();
                reply.ok();
            }
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}

/// The disk, mounted; unmounted when it is dropped.
struct Mounted {
    shared: Shared,
    _session: BackgroundSession,
    place: tempfile::TempDir,
}

/// `None` where nothing can be mounted.
fn mounted() -> Option<Mounted> {
    // SAFETY: Plain system calls. Only this thread's view of mounts changes, and the views of those that it begins: what
    // is left mounted goes with them.
    let apart = unsafe {
        let (no, root) = (std::ptr::null::<libc::c_char>(), c"/".as_ptr());
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(no, root, no, libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()) == 0
    };
    if !apart {
        println!("NOT RUN: to mount a file system, run as root");
        return None;
    }
    let place = tempfile::tempdir().unwrap();
    let shared = Shared::default();
    match spawn_mount(shared.clone(), place.path(), &Config::default()) {
        Ok(session) => Some(Mounted { shared, _session: session, place }),
        Err(why) => {
            println!("NOT RUN: no file system of a process can be mounted here: {why}");
            None
        }
    }
}

/// How the file is written.
#[derive(Clone, Copy, Debug)]
struct Manner {
    direct: bool,
    calls: Calls,
}

fn id(page: u64) -> PageId {
    PageId { container: ContainerId(1), page: PageNo(page) }
}

/// What became of a store.
#[derive(Debug)]
struct Life {
    asked: Vec<Asked>,
    durable: u64,
    tried: u64,
    /// The numbers of stabilisations that failed, and why.
    failed: Vec<(u64, String)>,
    /// What is on the disk behind a crash.
    left: Vec<u8>,
}

/// Lets a store live on the disk, with one fault; `None` if the kernel gives no ring.
fn live(
    mounted: &Mounted,
    empty: &[u8],
    manner: Manner,
    fault: Option<(usize, Fault)>,
    stops: bool,
) -> Option<Life> {
    let number = mounted.shared.disk().number.max(10) + 1;
    *mounted.shared.disk() =
        Disk { bytes: empty.to_vec(), durable: empty.to_vec(), number, ..Disk::default() };
    let log = mounted.place.path().join(number.to_string());
    let medium = Arc::new(FileMedium::open_with(&log, manner.direct, manner.calls).unwrap());
    if manner.calls == Calls::Ring && !medium.uses_ring() {
        println!("NOT RUN: {}", stead_store::Medium::describe(&*medium));
        return None;
    }
    assert_eq!(medium.is_direct(), manner.direct);
    {
        let mut disk = mounted.shared.disk();
        disk.asked.clear();
        disk.fault = fault;
    }
    let (mut tried, mut durable, mut failed) = (0, 0, Vec::new());
    let (store, _) = Store::open_on(medium.clone()).unwrap();
    let mut batch = store.batch();
    // One more for whatever fails at the end.
    for number in 1..=STEPS + 1 {
        if number > STEPS && durable == STEPS {
            break;
        }
        let fill = |bytes: &mut [u8]| {
            bytes.chunks_exact_mut(8).for_each(|w| w.copy_from_slice(&number.to_le_bytes()));
        };
        // One heavy, one that needs more room than there is.
        let pages = [PAGES, 60, 130][usize::from(number == 3) + 2 * usize::from(number == 6)];
        (0..pages).for_each(|page| batch.push(id(page), fill));
        tried = number;
        match store.commit(&mut batch) {
            Ok(_) => durable = number,
            // What failed is in the next one, with newer images.
            Err(error) => failed.push((number, error.to_string())),
        }
        let upkeep = match number {
            4 => store.checkpoint(),
            5 | 7 => store.maintain().map(drop),
            _ => Ok(()),
        };
        if stops && (upkeep.is_err() || !failed.is_empty()) {
            break;
        }
    }
    let disk = std::mem::take(&mut *mounted.shared.disk());
    mounted.shared.disk().number = disk.number;
    assert!(manner.calls != Calls::Ring || medium.uses_ring(), "the ring is broken");
    Some(Life { asked: disk.asked, durable, tried, failed, left: disk.durable })
}

/// What is wrong with what is left on the disk.
fn check(life: &Life) -> Result<(), String> {
    let medium = CrashMedium::with_bytes(0, &life.left);
    let (store, report) = Store::open_on(Arc::new(medium)).map_err(|error| error.to_string())?;
    let mut numbers = Vec::new();
    for page in 0..PAGES {
        let mut bytes = [0; PAGE_SIZE];
        store.read_page(id(page), &mut bytes).map_err(|error| error.to_string())?;
        let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        numbers.extend(words);
    }
    numbers.dedup();
    if numbers != [life.durable] && numbers != [life.tried] {
        return Err(format!("{numbers:?} found; {report:?}"));
    }
    Ok(())
}

/// The image of a store in which there is nothing.
fn empty() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let options = CreateOptions { segment_blocks: Some(32), ..CreateOptions::default() };
    drop(Store::create(dir.path(), &options).unwrap());
    std::fs::read(dir.path().join("log")).unwrap()
}

fn faults(asked: Asked) -> &'static [Fault] {
    match asked {
        Asked::Write => &[Fault::Error(libc::EIO), Fault::Error(libc::ENOSPC), Fault::Short],
        Asked::Flush => &[Fault::Error(libc::EIO), Fault::Error(libc::ENOSPC)],
    }
}

/// Has each request in turn go wrong; the first thing that is not as it must be.
fn each_request_in_turn(manner: Manner) -> Result<(), String> {
    let Some(mounted) = mounted() else { return Ok(()) };
    let empty = empty();
    let Some(undisturbed) = live(&mounted, &empty, manner, None, false) else { return Ok(()) };
    assert_eq!((undisturbed.durable, undisturbed.failed.len()), (STEPS, 0), "{undisturbed:?}");
    check(&undisturbed)?;
    let (mut lives, mut failures) = (0, 0);
    for (at, asked) in undisturbed.asked.iter().enumerate() {
        for (i, &fault) in faults(*asked).iter().enumerate() {
            let stops = (at + i).is_multiple_of(2);
            let life = live(&mounted, &empty, manner, Some((at, fault)), stops);
            let life = life.expect("it was possible before");
            let wrong = |what: String| {
                let Life { durable, tried, failed, .. } = &life;
                format!(
                    "{fault:?} at request {at} ({asked:?}), {manner:?}: {what}; {durable} durable, {tried} tried, \
                     failed: {failed:?}"
                )
            };
            assert_eq!(life.asked[at], *asked, "request {at} is another now");
            check(&life).map_err(wrong)?;
            // The cause is gone at once.
            if !stops && (life.durable != life.tried || life.failed.len() > 1) {
                return Err(wrong("it does not stabilise again".into()));
            }
            lives += 1;
            failures += u64::from(!life.failed.is_empty());
        }
    }
    println!("{manner:?}: {lives} faults, {failures} stores had stabilisations that failed");
    assert!(failures > lives / 4, "the faults hit nothing");
    Ok(())
}

#[test]
fn a_request_that_fails_is_never_followed_by_a_false_acknowledgement() {
    for calls in [Calls::Ring, Calls::Plain] {
        for direct in [true, false] {
            each_request_in_turn(Manner { direct, calls }).unwrap();
        }
    }
}

#[test]
fn who_takes_a_failed_flush_for_done_is_found_out() {
    for bug in [Bug::SwallowedEio, Bug::RetriedFlush] {
        planted::set(Some(bug));
        let found = each_request_in_turn(Manner { direct: true, calls: Calls::Ring });
        planted::set(None);
        if mounted().is_some() {
            println!("{bug:?}: {}", found.expect_err("it is not found"));
        }
    }
}
