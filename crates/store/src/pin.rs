//! Pins: how a process that only reads keeps the owner of a store from writing over what it reads. Locks on
//! single bytes of `log`, far behind anything that is stored there: whoever reads from root `g` holds the byte
//! of `g`. Nothing here reads or writes the file. Read [`oldest`] first.
//!
//! Why owner and reader cannot miss each other: the owner gives segments free only after it has written the
//! slot of the root that needed them, and asks for pins behind that write; the reader takes its pin first and looks
//! at the slot behind it. Either the owner meets the pin, or the reader meets another root.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::planted::{self, Bug};

/// The byte of generation 0. Bytes before it are the owner's.
const FIRST: i64 = 1 << 62;

fn range(kind: libc::c_int, start: i64, bytes: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: bytes,
        l_pid: 0,
    }
}

fn byte_of(generation: u64) -> i64 {
    // A generation that no store reaches shares the last byte: that pins too much, never too little.
    FIRST + i64::try_from(generation).unwrap_or(i64::MAX).min(i64::MAX - FIRST - 1)
}

/// Takes the owner's part of `log`: an fcntl lock of this process, which a forked child does not inherit.
/// `Ok(false)` if another process has it.
pub(crate) fn own(log: &File) -> io::Result<bool> {
    match fcntl(log, FcntlArg::F_SETLK(&range(libc::F_WRLCK, 0, FIRST))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether another process has the owner's part of `log`; who cannot ask must take it that one has.
pub(crate) fn is_owned(log: &File) -> bool {
    owner_lock(log).is_none_or(|found| i32::from(found.l_type) != libc::F_UNLCK)
}

/// The process that has the owner's part of `log`, as far as the system tells.
pub(crate) fn owner(log: &File) -> Option<u32> {
    let found = owner_lock(log).filter(|found| i32::from(found.l_type) != libc::F_UNLCK)?;
    u32::try_from(found.l_pid).ok().filter(|&pid| pid != 0)
}

fn owner_lock(log: &File) -> Option<libc::flock> {
    let mut found = range(libc::F_RDLCK, 0, FIRST);
    fcntl(log, FcntlArg::F_GETLK(&mut found)).ok()?;
    Some(found)
}

/// The oldest generation that a reader holds; `u64::MAX` if there is no reader.
pub(crate) fn oldest(log: &File) -> u64 {
    if planted::is(Bug::PinsIgnored) {
        return u64::MAX;
    }
    let mut oldest = i64::MAX;
    while oldest > FIRST {
        // The kernel names one of them: go on below it.
        let mut found = range(libc::F_WRLCK, FIRST, oldest - FIRST);
        match fcntl(log, FcntlArg::F_OFD_GETLK(&mut found)) {
            Ok(_) if i32::from(found.l_type) == libc::F_UNLCK => break,
            Ok(_) => oldest = found.l_start.max(FIRST),
            // Who cannot ask must take it that everything is being read.
            Err(_) => return 0,
        }
    }
    if oldest == i64::MAX { u64::MAX } else { (oldest - FIRST) as u64 }
}

/// Pins a generation, for as long as this descriptor is open and [`release`] is not called.
pub(crate) fn take(log: &File, generation: u64) -> io::Result<()> {
    fcntl(log, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte_of(generation), 1)))?;
    Ok(())
}

/// Lets go of every generation that this descriptor pins.
pub(crate) fn release(log: &File) {
    // Closing the descriptor does it as well.
    let _ = fcntl(log, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, FIRST, 0)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_many_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let owner = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        assert!(own(&owner).unwrap());
        assert_eq!(oldest(&owner), u64::MAX);
        let readers: Vec<File> = [900, 7, 7, 40, 8]
            .into_iter()
            .map(|generation| {
                let reader = File::open(&path).unwrap();
                take(&reader, generation).unwrap();
                reader
            })
            .collect();
        assert_eq!(oldest(&owner), 7);
        release(&readers[1]);
        assert_eq!(oldest(&owner), 7, "the other one is still there");
        release(&readers[2]);
        assert_eq!(oldest(&owner), 8);
        drop(readers);
        assert_eq!(oldest(&owner), u64::MAX);
        let reader = File::open(&path).unwrap();
        take(&reader, u64::MAX).unwrap();
        assert!(oldest(&owner) > 1 << 61);
        take(&reader, 0).unwrap();
        assert_eq!(oldest(&owner), 0);
    }
}
