//! The same, many times, several at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Does something for each number below `count`, in their order, never more than `at_a_time` of them at once; ends when all
/// are done.
///
/// # Panics
/// If one of them does.
pub fn several_at_a_time(at_a_time: usize, count: usize, act: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= count {
                return;
            }
            act(n);
        }
    };
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(work);
        }
    });
}
