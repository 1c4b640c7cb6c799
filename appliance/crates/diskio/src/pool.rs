//! The buffer pool: one region of aligned memory, cut into equal buffers that come back when they are dropped.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Alignment of every buffer: what `O_DIRECT` asks for at most (a 4096-byte logical block).
pub(crate) const ALIGNMENT: usize = 4096;

/// A fixed number of buffers. Clones share them.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

/// One buffer on loan, with `len` bytes of content. Dropping gives it back.
pub struct Buffer {
    shared: Arc<Shared>,
    index: usize,
    len: usize,
}

struct Shared {
    memory: NonNull<u8>,
    layout: Layout,
    buffer_size: usize,
    count: usize,
    free: Mutex<Vec<usize>>,
    returned: Condvar,
    /// Nanoseconds that were spent waiting in [`Pool::take`].
    waited: AtomicU64,
}

// SAFETY: the memory is owned by Shared and freed only with it; a part of it is touched only through the one Buffer
// whose index was taken out of `free`, so no two threads share a part.
unsafe impl Send for Shared {}
// SAFETY: as above; everything else in Shared is either immutable or behind the mutex.
unsafe impl Sync for Shared {}

impl Pool {
    /// A pool of as many buffers of `buffer_size` bytes as fit into `budget` bytes, at least one.
    ///
    /// # Panics
    /// If `buffer_size` is 0 or not a multiple of 4096.
    pub fn new(budget: usize, buffer_size: usize) -> Self {
        assert!(buffer_size > 0 && buffer_size.is_multiple_of(ALIGNMENT), "buffers are whole pages");
        let count = (budget / buffer_size).max(1);
        let size = count.checked_mul(buffer_size).expect("a budget is far below the address space");
        let layout = Layout::from_size_align(size, ALIGNMENT).expect("size and alignment were checked");
        // SAFETY: the layout has a size above 0.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(layout) };
        let free = Mutex::new((0..count).rev().collect());
        let shared = Shared {
            memory,
            layout,
            buffer_size,
            count,
            free,
            returned: Condvar::new(),
            waited: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Bytes that each buffer has room for.
    pub fn buffer_size(&self) -> usize {
        self.shared.buffer_size
    }

    /// How many buffers there are, on loan or not.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// How many are not on loan just now.
    pub fn free(&self) -> usize {
        self.shared.lock().len()
    }

    /// A buffer, or `None` if all are on loan.
    pub fn try_take(&self) -> Option<Buffer> {
        let index = self.shared.lock().pop()?;
        Some(self.lend(index))
    }

    /// A buffer; waits until one comes back.
    pub fn take(&self) -> Buffer {
        let mut free = self.shared.lock();
        let mut began = None;
        loop {
            if let Some(index) = free.pop() {
                drop(free);
                let waited = began.map_or(Duration::ZERO, |began: Instant| began.elapsed());
                let nanoseconds = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
                self.shared.waited.fetch_add(nanoseconds, Ordering::Relaxed);
                return self.lend(index);
            }
            began.get_or_insert_with(Instant::now);
            free = self.shared.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How long [`take`](Self::take) has waited for buffers so far, over all threads.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.shared.waited.load(Ordering::Relaxed))
    }

    fn lend(&self, index: usize) -> Buffer {
        Buffer { shared: self.shared.clone(), index, len: 0 }
    }

    /// Start of every buffer, in the order of their indexes.
    pub(crate) fn starts(&self) -> impl Iterator<Item = NonNull<u8>> + '_ {
        (0..self.shared.count).map(|index| self.shared.start(index))
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<usize>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, index: usize) -> NonNull<u8> {
        assert!(index < self.count, "an index of this pool");
        // SAFETY: index is below count, so the offset stays inside the allocation.
        unsafe { self.memory.add(index * self.buffer_size) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in Pool::new; no Buffer is left, each holds an Arc of self.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

impl Buffer {
    /// Its index in the pool.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Where the byte at `at` lies.
    pub(crate) fn pointer(&mut self, at: usize) -> NonNull<u8> {
        assert!(at < self.shared.buffer_size, "inside the buffer");
        // SAFETY: `at` is inside the buffer, which is inside the allocation.
        unsafe { self.shared.start(self.index).add(at) }
    }

    /// The bytes from `from` up to `to`, whatever they hold.
    pub(crate) fn room(&mut self, from: usize, to: usize) -> &mut [u8] {
        assert!(from <= to && to <= self.shared.buffer_size, "inside the buffer");
        // SAFETY: the memory was zeroed when made, so it is initialised; this Buffer is the only one with its index
        // and is borrowed mutably for as long as the slice lives.
        let all = unsafe {
            std::slice::from_raw_parts_mut(self.shared.start(self.index).as_ptr(), self.shared.buffer_size)
        };
        &mut all[from..to]
    }

    /// Says how many bytes of content there are.
    pub(crate) fn set_len(&mut self, len: usize) {
        assert!(len <= self.shared.buffer_size, "inside the buffer");
        self.len = len;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: initialised since Pool::new, len is at most the buffer's size, and nobody writes to it while this
        // Buffer is borrowed: engines hand buffers out only after the kernel is done with them.
        unsafe { std::slice::from_raw_parts(self.shared.start(self.index).as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.shared.lock().push(self.index);
        self.shared.returned.notify_one();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} of {} bytes, {} free)", self.count(), self.buffer_size(), self.free())
    }
}

/// Never shows disk contents.
impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_never_exceeded_and_buffers_come_back() {
        let pool = Pool::new(3 * 8192 + 4096, 8192);
        assert_eq!((pool.count(), pool.free()), (3, 3));
        let loans: Vec<_> = (0..3).map(|_| pool.take()).collect();
        assert!(pool.try_take().is_none());
        assert_eq!(pool.waited(), Duration::ZERO, "nobody had to wait");
        let waiting = pool.clone();
        let waiter = std::thread::spawn(move || waiting.take().index());
        drop(loans);
        assert!(waiter.join().expect("a buffer came back") < 3);
        assert_eq!(pool.free(), 3);
        assert_eq!(Pool::new(0, 4096).count(), 1);
    }

    #[test]
    fn buffers_are_aligned_and_do_not_overlap() {
        let pool = Pool::new(4 * 4096, 4096);
        let mut loans: Vec<_> = (0..4u8).map(|_| pool.take()).collect();
        for (loan, value) in loans.iter_mut().zip(1u8..) {
            assert_eq!(loan.pointer(0).as_ptr() as usize % ALIGNMENT, 0);
            loan.room(0, 4096).fill(value);
            loan.set_len(4096);
        }
        for (loan, value) in loans.iter().zip(1u8..) {
            assert!(loan.iter().all(|byte| *byte == value));
        }
    }
}
