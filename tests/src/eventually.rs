//! Waiting for a condition: with a deadline, and with the last thing seen in the complaint.

use std::fmt::Debug;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use std::{env, thread};

/// How long a condition may take before a test gives up. Generous: it only ever passes when something is broken.
///
/// 30 s on a machine; `HOLDFAST_TEST_PATIENCE` gives another number of seconds, as an emulated machine needs it.
///
/// # Panics
/// If that is not a number.
pub fn patience() -> Duration {
    static SECONDS: LazyLock<u64> = LazyLock::new(|| match env::var("HOLDFAST_TEST_PATIENCE") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("HOLDFAST_TEST_PATIENCE is no number of seconds: {text:?}")),
        Err(_) => 30,
    });
    Duration::from_secs(*SECONDS)
}

/// How long at least a condition is not looked at. Conditions that can be waited for properly (a socket, a FIFO) are, elsewhere.
const REST: Duration = Duration::from_millis(2);

/// And at most: a look that takes long, as one that starts a program, rests as long as it took, so that those who look leave
/// the processor to those who are waited for.
const LONGEST_REST: Duration = Duration::from_millis(250);

/// Waits until `look` gives `Ok` and returns its value.
///
/// # Panics
/// After [`patience`], with `what` and the last `Err`.
#[track_caller]
pub fn eventually<T, E: Debug>(what: &str, look: impl FnMut() -> Result<T, E>) -> T {
    match within(patience(), look) {
        Ok(value) => value,
        Err(seen) => panic!("{what}: not within {:?}; last seen: {seen:?}", patience()),
    }
}

/// As [`eventually`], for what has nothing to tell as long as it is not there.
///
/// # Panics
/// After [`patience`], with `what`.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    eventually(what, || look().ok_or("nothing"))
}

/// As [`eventually`] with a deadline of its own, and the last `Err` returned.
pub fn within<T, E>(deadline: Duration, mut look: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let end = Instant::now() + deadline;
    loop {
        let begin = Instant::now();
        match look() {
            Ok(value) => return Ok(value),
            Err(seen) if Instant::now() >= end => return Err(seen),
            Err(_) => thread::sleep(begin.elapsed().clamp(REST, LONGEST_REST)),
        }
    }
}

/// Turns a plain condition into what [`eventually`] takes.
pub fn holds(condition: bool) -> Result<(), &'static str> {
    if condition { Ok(()) } else { Err("the condition does not hold") }
}
