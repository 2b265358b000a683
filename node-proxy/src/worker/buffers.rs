//! Copy buffers, lent per thread: an idle connection holds none.
//!
//! Three sizes. Measured: 4 KiB keeps many small connections cheap, 256 KiB moves bulk at the least cost per byte (page faults make
//! larger ones dearer again). A thread keeps a few of each, so that a busy connection does not allocate per read.

use std::cell::RefCell;

/// Size of each level.
const SIZES: [usize; 3] = [4 * 1024, 64 * 1024, 256 * 1024];
/// How many a thread keeps of each: at most 1.8 MB in all.
const KEPT: [usize; 3] = [64, 8, 4];

thread_local! {
    static FREE: RefCell<[Vec<Vec<u8>>; 3]> = const { RefCell::new([Vec::new(), Vec::new(), Vec::new()]) };
}

/// How large the next buffer of a direction should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    size: u8,
    small_reads: u8,
}

impl Level {
    /// After so many reads in a row that would have fitted a smaller buffer, the level goes down (guessed).
    const PATIENCE: u8 = 32;

    /// Bytes of a buffer of this level.
    pub fn bytes(self) -> usize {
        SIZES[usize::from(self.size)]
    }

    /// Learns from a read of `read` bytes.
    pub fn learn(&mut self, read: usize) {
        if read == self.bytes() {
            self.size = (self.size + 1).min(SIZES.len() as u8 - 1);
            self.small_reads = 0;
        } else if self.size > 0 && read <= SIZES[usize::from(self.size) - 1] {
            self.small_reads += 1;
            if self.small_reads >= Self::PATIENCE {
                self.size -= 1;
                self.small_reads = 0;
            }
        } else {
            self.small_reads = 0;
        }
    }

    /// An empty buffer of this level.
    pub fn take(self) -> Vec<u8> {
        FREE.with_borrow_mut(|free| free[usize::from(self.size)].pop())
            .unwrap_or_else(|| Vec::with_capacity(self.bytes()))
    }
}

/// Gives a buffer back to this thread.
pub fn give_back(mut buffer: Vec<u8>) {
    let Some(size) = SIZES.iter().position(|size| *size == buffer.capacity()) else { return };
    buffer.clear();
    // At thread exit the pool may be gone already; then the buffer is simply freed.
    let _ = FREE.try_with(|free| {
        if let Ok(mut free) = free.try_borrow_mut()
            && free[size].len() < KEPT[size]
        {
            free[size].push(buffer);
        }
    });
}

/// Frees half of what this thread keeps: called now and then, so that a burst does not stay in memory.
pub fn trim() {
    FREE.with_borrow_mut(|free| {
        for buffers in free {
            buffers.truncate(buffers.len() / 2);
            if buffers.is_empty() {
                buffers.shrink_to_fit();
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_reads_raise_the_level_and_small_ones_lower_it_slowly() {
        let mut level = Level::default();
        level.learn(4 * 1024);
        assert_eq!(level.bytes(), 64 * 1024);
        level.learn(64 * 1024);
        level.learn(256 * 1024);
        assert_eq!(level.bytes(), 256 * 1024);
        for _ in 0..Level::PATIENCE - 1 {
            level.learn(100);
        }
        assert_eq!(level.bytes(), 256 * 1024);
        level.learn(100);
        assert_eq!(level.bytes(), 64 * 1024);
    }

    #[test]
    fn a_buffer_given_back_is_lent_again_and_no_more_than_the_limit_are_kept() {
        let level = Level::default();
        let many: Vec<_> = (0..KEPT[0] + 10).map(|_| level.take()).collect();
        many.into_iter().for_each(give_back);
        assert_eq!(FREE.with_borrow(|free| free[0].len()), KEPT[0]);
        trim();
        assert_eq!(FREE.with_borrow(|free| free[0].len()), KEPT[0] / 2);
    }
}
