//! Keeping the shim small: there may be ten thousand of it.
#![allow(unsafe_code)]

/// Keeps the allocator small: one arena also while a second thread runs, memory given back early. To be called before any
/// other thread exists.
pub fn bound_the_allocator() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_TRIM_THRESHOLD, 64 << 10), (libc::M_MMAP_THRESHOLD, 64 << 10)]
    {
        // SAFETY: mallopt takes two integers and is called before any other thread exists.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// The variable, and its value, with which a server must be started so that glibc keeps no freed pieces for use again: it
/// keeps some of every size, each holds a page, and over thousands of execs these become more than all that is in use. No
/// call can change that later.
pub const TUNABLES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0");

/// Keeps [`TUNABLES`] from the programs that this process runs. To be called before any other thread exists.
pub fn keep_tunables_to_oneself() {
    let (variable, ours) = TUNABLES;
    if std::env::var_os(variable).is_some_and(|value| value == ours) {
        // SAFETY: no other thread reads or writes the environment, for there is none.
        unsafe { std::env::remove_var(variable) };
    }
}

/// Gives back what a resting shim does not need: free heap, the stack below its caller, and the mapped pages of its own
/// program, most of which served the start or a request that is over. The few that are needed again are found in the page
/// cache. For the main thread, whose stack nothing else is near to.
pub fn rest() {
    drop_unused_stack();
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time.
    unsafe {
        libc::malloc_trim(0)
    };
    let page = 4096;
    let start = (&raw const __executable_start).addr().next_multiple_of(page);
    let end = (&raw const etext).addr() & !(page - 1);
    if let Some(length) = end.checked_sub(start) {
        // SAFETY: the range is this program's own read-only mapping of its file, headers to text, never written to, so a
        // page that is dropped and needed again is read from the file with the same content, madvise(2).
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// How much of the stack is given back at most, in bytes: as much of it as is mapped from the start, which few calls exceed.
const UNUSED_STACK: usize = 128 << 10;

/// Gives back what calls that are over have used of the stack. A frame of its own, so that it lies below all that are in use.
#[inline(never)]
fn drop_unused_stack() {
    let page = 4096;
    let here = 0_u8;
    // The page below this one is for the frames of the calls that follow here.
    let end = (std::hint::black_box(&raw const here).addr() & !(page - 1)) - page;
    let start = end - UNUSED_STACK;
    // SAFETY: the range is below the frames of all calls that are under way, and the next ones expect nothing there. The
    // stack grows down to it, and the kernel keeps more room than that between a stack and what else is mapped, so that a part
    // that is not the stack is not mapped: that is the error which is ignored, after the rest was given back.
    unsafe { libc::madvise(start as *mut libc::c_void, UNUSED_STACK, libc::MADV_DONTNEED) };
}

// SAFETY: the linker defines both symbols in every program; only their addresses are used.
unsafe extern "C" {
    static __executable_start: u8;
    static etext: u8;
}
