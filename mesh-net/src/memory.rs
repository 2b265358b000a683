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
