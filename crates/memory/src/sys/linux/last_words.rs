//! What is said when a thread dies of a page that is fatal to touch: texts prepared beforehand, and the handler of
//! SIGBUS that writes them and hands on to whoever had the signal before. It decides nothing. Read
//! [`prepare`] first.
//!
//! The handler is installed when the first text is prepared, so that a program that never meets a damaged page
//! never has it. Between a signal and the end of its process almost nothing is allowed: the handler walks a list
//! of immutable texts and calls `write`, no more.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use stead_model::{Address, PAGE_SIZE};

/// A text for a page. Never freed: a handler may be reading it.
struct Words {
    /// First byte of the page; 0 once the text is of no use.
    page: AtomicUsize,
    text: Box<[u8]>,
    next: *const Words,
}

/// The newest text; each leads to the one before.
static NEWEST: AtomicPtr<Words> = AtomicPtr::new(null_mut());

/// Who had the signal before.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(null_mut());

/// Prepares what is written to standard error when a load or store of this page ends in SIGBUS; a newline is
/// added. Whether it will be: not if the program has installed a handler of its own since.
#[must_use]
pub fn prepare(page: Address, text: &str) -> bool {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(install);
    let mut text = text.as_bytes().to_vec();
    text.push(b'\n');
    let words = Box::leak(Box::new(Words {
        page: AtomicUsize::new(page.0),
        text: text.into_boxed_slice(),
        next: NEWEST.load(Ordering::Acquire),
    }));
    loop {
        let next = words.next.cast_mut();
        match NEWEST.compare_exchange(next, words, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => break,
            Err(newer) => words.next = newer,
        }
    }
    current().is_some_and(|action| action.sa_sigaction == on_bus_error as *const () as usize)
}

/// Forgets the texts for pages in these addresses, which may come to hold something else.
pub fn forget(start: Address, byte_len: usize) {
    let mut at: *const Words = NEWEST.load(Ordering::Acquire);
    // SAFETY: every text was leaked before it became reachable, and is never changed but for the atomic.
    while let Some(words) = unsafe { at.as_ref() } {
        if words.page.load(Ordering::Relaxed).wrapping_sub(start.0) < byte_len {
            words.page.store(0, Ordering::Relaxed);
        }
        at = words.next;
    }
}

fn current() -> Option<libc::sigaction> {
    let mut action = MaybeUninit::uninit();
    // SAFETY: asks only; the answer is written to a sigaction of ours.
    let asked = unsafe { libc::sigaction(libc::SIGBUS, null(), action.as_mut_ptr()) };
    // SAFETY: filled in, since the call succeeded.
    (asked == 0).then(|| unsafe { action.assume_init() })
}

fn install() {
    let Some(before) = current() else { return };
    BEFORE.store(Box::leak(Box::new(before)), Ordering::Release);
    // SAFETY: a sigaction of zeros is a valid one; its fields are set below.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_bus_error as *const () as usize;
    // The stack and mask are those that it wants to whom we hand on.
    let theirs = libc::SA_ONSTACK | libc::SA_NODEFER;
    action.sa_flags = libc::SA_SIGINFO | (before.sa_flags & theirs);
    action.sa_mask = before.sa_mask;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and does only what a handler may.
    unsafe { libc::sigaction(libc::SIGBUS, &action, null_mut()) };
}

extern "C" fn on_bus_error(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo, whose address is set for SIGBUS from a fault; from kill(2) it
    // is another number, for which no text is found, or at worst a text is written.
    let page = unsafe { (*info).si_addr() }.addr() & !(PAGE_SIZE - 1);
    // SAFETY: the address of this thread's errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above; read and written back, as the interrupted code does not expect it to change.
    let errno_before = unsafe { *errno };
    let mut at: *const Words = NEWEST.load(Ordering::Acquire);
    // SAFETY: every text was leaked before it became reachable, and is never changed but for the atomic.
    while let Some(words) = unsafe { at.as_ref() } {
        if page != 0 && words.page.load(Ordering::Relaxed) == page {
            let (text, len) = (words.text.as_ptr().cast(), words.text.len());
            // SAFETY: the text is alive for ever; write is allowed in handlers. If it fails there is nothing
            // else to do.
            unsafe { libc::write(libc::STDERR_FILENO, text, len) };
            break;
        }
        at = words.next;
    }
    // SAFETY: as above.
    unsafe { *errno = errno_before };
    hand_on(signal, info, context);
}

/// Does what would have been done without our handler.
fn hand_on(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: null, or leaked when the handler was installed and never changed.
    let before = unsafe { BEFORE.load(Ordering::Acquire).as_ref() };
    let handler = before.map_or(libc::SIG_DFL, |before| before.sa_sigaction);
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // Back to the load that failed, which fails again and ends the process as such a load does: with its own
        // status, and a dump of the core at the right place.
        // SAFETY: sets the default; allowed in handlers.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    } else if before.is_some_and(|before| before.sa_flags & libc::SA_SIGINFO != 0) {
        type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void);
        // SAFETY: not one of the two special values, and installed as a handler with three arguments.
        let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: not one of the two special values, and installed as a handler with one argument.
        let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(i32)>(handler) };
        handler(signal);
    }
}
