//! The work by which an emulated machine is compared with a real one: what a boot is made of.
//!
//! Prints `calibrate: begin` and `calibrate: end` around it; who runs it measures processor time in between, which other
//! programs on the machine do not change. As PID 1 its end is the guest's. Compiled by scripts/bench-appliance with `rustc`
//! alone.

use std::hint::black_box;
use std::io::Write;

/// Half a second of a real processor.
const STEPS: u64 = 20_000_000;
/// Larger than the first caches, smaller than the last one.
const TABLE: usize = 1 << 20;

/// Arithmetic, branches that depend on data, loads and stores all over a table: no vectors, which emulation is worse at
/// than a boot is.
fn work(table: &mut [u8]) -> u64 {
    let mut state = 1_u64;
    let mut sum = 0_u64;
    for _ in 0..STEPS {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (state >> 33) as usize % table.len();
        match table[at] & 3 {
            0 => sum = sum.wrapping_add(state >> 7),
            1 => sum ^= state.rotate_left(11),
            2 => table[(at * 7) % TABLE] = sum as u8,
            _ => sum = sum.wrapping_sub(at as u64),
        }
        table[at] = table[at].wrapping_add(state as u8 | 1);
    }
    sum
}

fn say(word: &str) {
    println!("calibrate: {word}");
    // A guest ends with PID 1, and the line must be out before.
    let _ = std::io::stdout().flush();
}

fn main() {
    // Touched before it counts: the first touch of a page is the kernel's work.
    let mut table = vec![1; TABLE];
    say("begin");
    black_box(work(black_box(&mut table)));
    say("end");
}
