//! Writes that go on while their thread does something else: the kernel's asynchronous I/O (`io_submit`), which Linux has
//! had for long and containers allow where they forbid io_uring. Only direct writes are asynchronous with it. The kernel
//! reads memory that it shares, and the memory is kept until it has let go of it. Read [`Aio::begin`] first.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::medium::SharedPart;

/// Writes that the kernel has at a time.
const DEPTH: usize = 64;

/// Parts of one write; Linux allows 1024.
const PARTS_MOST: usize = 1024;

/// `struct iocb`, little-endian.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffers: u64,
    count: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    request: u64,
    result: i64,
    result_too: i64,
}

const _: () = assert!(size_of::<Request>() == 64 && size_of::<Event>() == 32);

/// A queue of writes under way.
pub(crate) struct Aio {
    inner: Mutex<Inner>,
    /// A forked child has none of its parent's queues.
    process: u32,
}

struct Inner {
    /// `aio_context_t`.
    context: u64,
    under_way: HashMap<u64, UnderWay>,
    last: u64,
}

struct UnderWay {
    /// What the kernel may still be reading.
    parts: Vec<SharedPart>,
    outcome: Option<i64>,
}

impl std::fmt::Debug for Aio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Aio").field("process", &self.process).finish_non_exhaustive()
    }
}

impl Aio {
    /// A new queue.
    ///
    /// # Errors
    /// Why the kernel gives none: forbidden, or too many are open (`fs.aio-max-nr`).
    pub(crate) fn new() -> io::Result<Aio> {
        if cfg!(target_endian = "big") {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut context = 0u64;
        // SAFETY: the kernel writes a number into the word that is lent for the call, which is zero as it asks.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, DEPTH, &raw mut context) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let inner = Inner { context, under_way: HashMap::new(), last: 0 };
        Ok(Aio { inner: Mutex::new(inner), process: process::id() })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to write the parts, one after the other, to a file opened for direct writing. The number of the write, which
    /// must be handed to [`Aio::finish`]; or the parts, if it has not been begun.
    pub(crate) fn begin(
        &self,
        file: &File,
        offset: u64,
        parts: Vec<SharedPart>,
    ) -> Result<u64, Vec<SharedPart>> {
        if self.process != process::id() || parts.len() > PARTS_MOST {
            return Err(parts);
        }
        let mut inner = self.inner();
        if inner.under_way.len() == DEPTH {
            return Err(parts);
        }
        let buffers: Vec<libc::iovec> = parts
            .iter()
            .map(|part| libc::iovec {
                iov_base: part.bytes().as_ptr().cast_mut().cast(),
                iov_len: part.bytes().len(),
            })
            .collect();
        let number = inner.last + 1;
        let mut request = Request {
            data: number,
            opcode: 8, // IOCB_CMD_PWRITEV
            fd: file.as_raw_fd() as u32,
            buffers: buffers.as_ptr() as u64,
            count: buffers.len() as u64,
            offset: offset.try_into().expect("a file's offset"),
            ..Request::default()
        };
        let mut requests = [&raw mut request];
        // SAFETY: The one request, and the vector of buffers that it names, are borrowed for the call; the kernel copies
        // both before it returns. The bytes that the buffers name are only read. They belong to `parts`, which share
        // them, so that nobody can change them, and which are kept in `under_way` from here until the kernel has said
        // that the write has ended, or for ever if it never says so. The file is open for the call, and then held by the kernel.
        let begun = unsafe {
            libc::syscall(libc::SYS_io_submit, inner.context, 1usize, requests.as_mut_ptr())
        };
        if begun != 1 {
            return Err(parts);
        }
        inner.last = number;
        inner.under_way.insert(number, UnderWay { parts, outcome: None });
        Ok(number)
    }

    /// Waits until the write has ended; gives back its parts, and whether all of it was written. If not, it has to be
    /// written anew.
    ///
    /// # Errors
    /// What the disk says; how much has been written is then unknown.
    pub(crate) fn finish(&self, number: u64) -> io::Result<(Vec<SharedPart>, bool)> {
        let mut inner = self.inner();
        if self.process != process::id() {
            // The parent's write. Its memory here is a copy that nobody reads.
            inner.under_way.remove(&number);
            return Err(io::Error::other("a write of the process that this one was forked from"));
        }
        while inner.under_way.get(&number).is_some_and(|write| write.outcome.is_none()) {
            inner.wait()?;
        }
        let write = inner.under_way.remove(&number).expect("a write is finished once");
        let result = write.outcome.expect("waited for");
        match usize::try_from(result) {
            Ok(bytes) => {
                let all = write.parts.iter().map(|part| part.bytes().len()).sum::<usize>();
                Ok((write.parts, bytes == all))
            }
            Err(_) => match Errno::from_raw_os_error(-result as i32) {
                // These say nothing about the disk.
                Errno::INTR | Errno::AGAIN | Errno::INVAL => Ok((write.parts, false)),
                errno => Err(errno.into()),
            },
        }
    }
}

impl Inner {
    /// Takes note of writes that have ended, at least one.
    fn wait(&mut self) -> io::Result<()> {
        let mut events = [Event::default(); 16];
        // SAFETY: the kernel fills at most as many events as it is told there is room for, borrowed for the call; there is
        // no time limit.
        let count = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                1usize,
                events.len(),
                events.as_mut_ptr(),
                std::ptr::null_mut::<libc::timespec>(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        };
        for event in &events[..count] {
            let write = self.under_way.get_mut(&event.data).expect("each write ends once");
            write.outcome = Some(event.result);
        }
        Ok(())
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        if self.process != process::id() {
            return;
        }
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the queue is this value's alone. The kernel returns when all its writes have ended, so that what they read
        // is let go of afterwards.
        let result = unsafe { libc::syscall(libc::SYS_io_destroy, inner.context) };
        debug_assert_eq!(result, 0);
    }
}

/// A write of a queue, until it has been finished.
#[derive(Debug)]
pub(crate) struct Number {
    aio: Arc<Aio>,
    number: Option<u64>,
}

impl Number {
    pub(crate) fn begin(
        aio: &Arc<Aio>,
        file: &File,
        offset: u64,
        parts: Vec<SharedPart>,
    ) -> Result<Number, Vec<SharedPart>> {
        let number = aio.begin(file, offset, parts)?;
        Ok(Number { aio: Arc::clone(aio), number: Some(number) })
    }

    /// As [`Aio::finish`].
    pub(crate) fn finish(mut self) -> io::Result<(Vec<SharedPart>, bool)> {
        let number = self.number.take().expect("finished once");
        self.aio.finish(number)
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        if let Some(number) = self.number.take() {
            // Its memory is wanted back.
            drop(self.aio.finish(number));
        }
    }
}
