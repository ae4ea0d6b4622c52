//! Faults in the system calls of a real process, without changing a byte of it: the kernel asks its parent about
//! each call that writes, flushes or makes room (seccomp, user notification), and the parent lets it pass, has
//! it fail, does half of it, or ruins what it was to make durable. Read [`Supervisor`] first.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What befalls one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// It fails with this error, and nothing is done.
    Error(i32),
    /// A write: about half of it is done, and says so.
    Short,
    /// A flush: it fails with EIO, and what has been written since the last one that did not is gone from the disk.
    Loss,
}

/// A kind of call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    Write,
    Flush,
    Room,
    Ring,
}

const WATCHED: [(i64, Call); 8] = [
    (libc::SYS_pwrite64, Call::Write),
    (libc::SYS_pwritev, Call::Write),
    (libc::SYS_pwritev2, Call::Write),
    (libc::SYS_fdatasync, Call::Flush),
    (libc::SYS_fsync, Call::Flush),
    (libc::SYS_fallocate, Call::Room),
    (libc::SYS_ftruncate, Call::Room),
    (libc::SYS_io_uring_enter, Call::Ring),
];

// From <linux/seccomp.h>; they hold on every architecture.
const SECCOMP_SET_MODE_FILTER: u64 = 1;
const SECCOMP_FILTER_FLAG_NEW_LISTENER: u64 = 1 << 3;
const SECCOMP_RET_USER_NOTIF: u32 = 0x7FC0_0000;
const SECCOMP_RET_ALLOW: u32 = 0x7FFF_0000;
const SECCOMP_USER_NOTIF_FLAG_CONTINUE: u32 = 1;
const SECCOMP_IOCTL_NOTIF_RECV: libc::c_ulong = 0xC050_2100;
const SECCOMP_IOCTL_NOTIF_SEND: libc::c_ulong = 0xC018_2101;

/// `struct seccomp_notif`, with `struct seccomp_data` at its end.
#[repr(C)]
#[derive(Default, Debug)]
struct Asked {
    id: u64,
    pid: u32,
    flags: u32,
    call: i32,
    arch: u32,
    instruction: u64,
    args: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
#[derive(Default, Debug)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// Has this thread, and those that it starts, be supervised from now on. Prints what [`Supervisor::new`] needs to
/// know; the first call that is watched waits for it.
pub(crate) fn submit() -> io::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    // Offset 0 is the call's number. This process makes calls of its own architecture only.
    let mut filter = vec![statement(load, 0)];
    for (i, (call, _)) in WATCHED.iter().enumerate() {
        let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        let jt = (WATCHED.len() - i) as u8;
        filter.push(libc::sock_filter { code, jt, jf: 0, k: *call as u32 });
    }
    filter.push(statement(libc::BPF_RET | libc::BPF_K, SECCOMP_RET_ALLOW));
    filter.push(statement(libc::BPF_RET | libc::BPF_K, SECCOMP_RET_USER_NOTIF));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: The program and its statements live until the calls have ended; neither call touches other memory.
    let listener = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::syscall(
            libc::SYS_seccomp,
            SECCOMP_SET_MODE_FILTER,
            SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // Left open: without a listener every watched call would fail.
    println!("listener {listener}");
    Ok(())
}

/// One process's supervisor.
#[derive(Debug)]
pub(crate) struct Supervisor {
    listener: OwnedFd,
    memory: File,
    log: File,
    /// Where has been written since the last flush that succeeded.
    unflushed: Vec<(u64, u64)>,
    /// The calls so far.
    pub(crate) calls: Vec<Call>,
}

impl Supervisor {
    /// Of the child `pid`, which has printed that its listener is `listener`, and writes the file `log`.
    pub(crate) fn new(pid: u32, listener: i32, log: &Path) -> io::Result<Self> {
        // SAFETY: Both calls take numbers; what they return is a new descriptor or an error.
        let listener = unsafe {
            let process = libc::syscall(libc::SYS_pidfd_open, pid, 0);
            if process < 0 {
                return Err(io::Error::last_os_error());
            }
            let process = OwnedFd::from_raw_fd(process as i32);
            let listener = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), listener, 0);
            if listener < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(listener as i32)
        };
        let log = File::options().read(true).write(true).open(log)?;
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        Ok(Supervisor { listener, memory, log, unflushed: Vec::new(), calls: Vec::new() })
    }

    /// Watches the process to its end. Call number `at` (from 0), if there is one, meets with `fault`, if
    /// that fits the call; whether it did.
    pub(crate) fn watch(&mut self, at: usize, fault: Fault) -> io::Result<bool> {
        let mut met = false;
        while let Some(asked) = self.next()? {
            let call = WATCHED.iter().find(|(number, _)| *number == i64::from(asked.call));
            let (_, call) = call.expect("only these are watched");
            let number = self.calls.len();
            self.calls.push(*call);
            let mut answer = Answer {
                id: asked.id,
                flags: SECCOMP_USER_NOTIF_FLAG_CONTINUE,
                ..Answer::default()
            };
            let fits = match fault {
                Fault::Error(_) => true,
                Fault::Short => *call == Call::Write,
                Fault::Loss => *call == Call::Flush,
            };
            if number == at && fits {
                met = true;
                answer.flags = 0;
                match fault {
                    Fault::Error(errno) => answer.error = -errno,
                    Fault::Short => answer.value = self.write_half(&asked)?,
                    Fault::Loss => {
                        answer.error = -libc::EIO;
                        self.lose()?;
                    }
                }
            } else {
                match call {
                    Call::Write => {
                        let bytes = self.slices(&asked)?.iter().map(|(_, len)| *len).sum();
                        self.unflushed.push((asked.args[3], bytes));
                    }
                    Call::Flush => self.unflushed.clear(),
                    Call::Room | Call::Ring => {}
                }
            }
            self.answer(&answer)?;
        }
        Ok(met)
    }

    /// The next call; `None` when the process has ended.
    fn next(&self) -> io::Result<Option<Asked>> {
        loop {
            let mut poll =
                libc::pollfd { fd: self.listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: One entry, which lives for the call.
            if unsafe { libc::poll(&mut poll, 1, -1) } < 0 {
                continue;
            }
            if poll.revents & libc::POLLIN == 0 {
                return Ok(None);
            }
            let mut asked = Asked::default();
            // SAFETY: `asked` has the layout of `struct seccomp_notif`, is zeroed as the call demands, and
            // is the caller's alone.
            let got = unsafe {
                libc::ioctl(self.listener.as_raw_fd(), SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked)
            };
            if got == 0 {
                return Ok(Some(asked));
            }
            let error = io::Error::last_os_error();
            // The process has been killed meanwhile, or a signal came.
            if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) {
                return Err(error);
            }
        }
    }

    fn answer(&self, answer: &Answer) -> io::Result<()> {
        // SAFETY: `answer` has the layout of `struct seccomp_notif_resp` and lives for the call.
        let sent = unsafe {
            libc::ioctl(self.listener.as_raw_fd(), SECCOMP_IOCTL_NOTIF_SEND, &raw const *answer)
        };
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            _ if sent == 0 => Ok(()),
            // It has ended meanwhile.
            Some(libc::ENOENT) => Ok(()),
            _ => Err(error),
        }
    }

    /// Address and length of what a write writes.
    fn slices(&self, asked: &Asked) -> io::Result<Vec<(u64, u64)>> {
        if i64::from(asked.call) == libc::SYS_pwrite64 {
            return Ok(vec![(asked.args[1], asked.args[2])]);
        }
        let mut bytes = vec![0; asked.args[2] as usize * 16];
        self.memory.read_exact_at(&mut bytes, asked.args[1])?;
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        Ok(bytes.chunks(16).map(|slice| (word(&slice[..8]), word(&slice[8..]))).collect())
    }

    /// Does the first half of a write, in whole sectors; how many bytes.
    fn write_half(&mut self, asked: &Asked) -> io::Result<i64> {
        let slices = self.slices(asked)?;
        let half = slices.iter().map(|(_, len)| *len).sum::<u64>() / 2 / 512 * 512;
        let mut bytes = Vec::new();
        for (address, len) in slices {
            let mut part = vec![0; len.min(half - bytes.len() as u64) as usize];
            self.memory.read_exact_at(&mut part, address)?;
            bytes.extend_from_slice(&part);
        }
        self.log.write_all_at(&bytes, asked.args[3])?;
        self.log.sync_data()?;
        self.unflushed.push((asked.args[3], half));
        Ok(half as i64)
    }

    /// Has the disk forget what has been written since the last flush.
    fn lose(&mut self) -> io::Result<()> {
        for (offset, len) in std::mem::take(&mut self.unflushed) {
            self.log.write_all_at(&vec![0xDB; len as usize], offset)?;
        }
        self.log.sync_data()
    }
}
