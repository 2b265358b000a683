//! Debug aid for seccomp: names the system call that a filter in trap mode refused.
//!
//! Used only by debug builds while an allow-list is being written; the real filters kill.

use std::io;

/// Installs a SIGSYS handler that prints the number of the refused system call and ends the process with status 159 (128 + SIGSYS).
pub fn name_the_call() -> io::Result<()> {
    // SAFETY: `action` is plain old data for which all zeroes is a valid value; it is filled before use. The handler below uses
    // only async-signal-safe calls (write, _exit) and its own stack.
    let rc = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigsys as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut())
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_sigsys(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    /// Offset of si_syscall in siginfo_t on 64-bit Linux: si_signo, si_errno, si_code, padding, _call_addr (8), then _syscall.
    const SYSCALL_AT: usize = 24;
    // SAFETY: the kernel passes a valid siginfo_t of 128 bytes for a SA_SIGINFO handler; the offset is within it and aligned.
    let number = unsafe { info.cast::<u8>().add(SYSCALL_AT).cast::<i32>().read() };
    let mut text = *b"seccomp refused system call        \n";
    let mut rest = number.unsigned_abs();
    for at in (28..34).rev() {
        text[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    // SAFETY: `text` is valid for reads of its length; write and _exit are async-signal-safe.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::_exit(128 + libc::SIGSYS);
    }
}

/// Asks to be traced by the parent: what a filter against ptrace is tried with.
#[doc(hidden)]
pub fn ptrace_traceme() -> io::Result<()> {
    // SAFETY: PTRACE_TRACEME takes no other argument and touches no memory of this process.
    let rc = unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
