//! Memory of this process that the allocator keeps although nobody uses it.

/// Gives free memory of every arena back to the kernel. glibc keeps what is free between blocks that are not, and everything in the
/// arenas of other threads, for as long as the process lives. Costs a walk over all free blocks, so: after much was freed.
pub fn give_back() {
    // SAFETY: takes each arena's lock itself and touches free blocks only (malloc_trim(3): MT-safe); the argument is the number of
    // bytes to leave free at the top of the heap.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Every thread allocates from one heap: for a process of many threads that do little, whose memory would otherwise lie in as many
/// heaps, each with its own gaps. To be called before there are threads.
pub fn one_heap() {
    // SAFETY: mallopt(3) before there are threads; it stores a number.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Lets jemalloc give free pages back 10 s after their last use (`opt.dirty_decay_ms`) also when nothing is allocated any more: without
/// a thread of its own it looks only when it is called. One thread, which sleeps while there is nothing to give.
///
/// To be called once the filters and limits of the process are in place: threads that are there before do not have them.
///
/// # Errors
/// Those of `mallctl` (jemalloc(3)): `EAGAIN` when there can be no thread.
#[cfg(feature = "jemalloc")]
pub fn give_back_when_idle() -> std::io::Result<()> {
    set(c"max_background_threads", &1_usize)?;
    set(c"background_thread", &true)
}

/// Sets one of jemalloc's values, whose type is that which jemalloc(3) gives.
#[cfg(feature = "jemalloc")]
fn set<T: Copy>(name: &std::ffi::CStr, value: &T) -> std::io::Result<()> {
    let new = std::ptr::from_ref(value).cast_mut().cast();
    // SAFETY: the name ends with a zero; nothing is read (null, null); `new` is read, for as many bytes as the value has. A size that
    // is not that of the named value's type is refused with EINVAL.
    let error = unsafe {
        tikv_jemalloc_sys::mallctl(name.as_ptr(), std::ptr::null_mut(), std::ptr::null_mut(), new, size_of::<T>())
    };
    if error == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(error)) }
}

#[cfg(test)]
mod tests {
    /// Resident memory in pages: `/proc/self/statm`, field 2.
    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").expect("own statm");
        text.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("a number of pages")
    }

    #[test]
    fn what_lies_free_between_blocks_in_use_goes_back_to_the_kernel() {
        // Blocks far below the size from which each would be a mapping of its own; every hundredth stays.
        let mut blocks: Vec<Vec<u8>> = (0..20_000).map(|_| vec![1; 2000]).collect();
        let mut n = 0;
        blocks.retain(|_| {
            n += 1;
            n % 100 == 0
        });
        let before = resident();
        super::give_back();
        assert!(resident() + 4000 < before, "{before} pages before, {} after", resident());
        assert_eq!(blocks.len(), 200);
    }
}
