//! Counts what this process asks its allocator for: the stages of a job apart from the thread that has the network.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static STAGES: AtomicU64 = AtomicU64::new(0);
static NETWORK: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_NETWORK: Cell<bool> = const { Cell::new(false) };
}

/// This thread is the one that has the network.
pub(crate) fn this_is_the_network() {
    IS_NETWORK.set(true);
}

/// Allocations so far, of all other threads and of the network's.
pub(crate) fn so_far() -> (u64, u64) {
    (STAGES.load(Ordering::Relaxed), NETWORK.load(Ordering::Relaxed))
}

fn count() {
    // A thread that is ending has no such variable any more.
    let network = IS_NETWORK.try_with(Cell::get).unwrap_or(false);
    let counter = if network { &NETWORK } else { &STAGES };
    counter.fetch_add(1, Ordering::Relaxed);
}

// SAFETY: every call is the system allocator's, with the same arguments; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promised.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(memory, layout) }
    }
}
