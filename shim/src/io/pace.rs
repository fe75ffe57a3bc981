//! When a flow that has work all the time looks for it: not at every write of the process, which may be of a few bytes,
//! but a few thousand times a second.
//!
//! ```text
//!   watching ──(often has work again at once, or much)──> resting       looks, rests, looks, …
//!       ^                                              │
//!       └──────────(a look was in vain)────────────────┘
//! ```
//!
//! A flow that watches is woken by its fds, so the first byte after a silence, and a byte now and then, is passed on at
//! once. One that rests passes a byte on at most one [`LONG_REST`] late. It makes as few calls as it can: each takes the
//! lock of a pipe, which the process or the reader holds while it copies, and spins until it has it.
//!
//! What is here may be lost at any time: a flow that goes on from a freeze watches.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::sys::timer::Timer;

/// Between two looks. The longer, the less of the shim's time, until a pipe of a megabyte is full before the next look; and
/// who fills it then waits, and is not in the way of the look.
const REST: Duration = Duration::from_micros(400);
/// If the last look found few bytes, many small writes are likely, and each takes the lock that the look has to wait for.
const LONG_REST: Duration = Duration::from_micros(500);
/// So many are few: even at twice that rate a long rest fills no pipe.
const FEW: usize = 64 << 10;
/// A wait that is shorter than this is no silence.
const SHORT: Duration = Duration::from_micros(250);
/// Nor is one, however long, after so many bytes: on a loaded machine who reads or writes has to wait for its turn.
const MUCH: usize = 256 << 10;
/// So many such waits one after the other: it goes on like this.
const OFTEN: u32 = 4;
/// Both pipes must hold as many bytes, lest a flow that rests holds up who fills the one or empties the other: so much in
/// one rest is 1.3 GB/s, and the pipes usually hold twice as much.
const ROOMY: usize = 512 << 10;

/// Of one flow.
#[derive(Default)]
pub(super) struct Pace {
    /// When it last came to a wait.
    last: Option<Instant>,
    busy_waits: u32,
    /// Bytes since then.
    moved: usize,
    /// The last of them were probably not all there were.
    more: bool,
    resting: Option<Resting>,
    /// The pipes are too small.
    cramped: bool,
}

struct Resting {
    timer: Rc<Timer>,
    /// Bytes that the last look found.
    found: usize,
}

impl Pace {
    /// Bytes were passed on; `more` if probably not all there were.
    pub(super) fn moved(&mut self, count: usize, more: bool) {
        self.moved += count;
        self.more = more;
    }

    /// How many bytes the last look found, if the flow rests between looks: this one will find about as many.
    pub(super) fn found(&self) -> Option<usize> {
        self.resting.as_ref().map(|resting| resting.found)
    }

    /// Whether it rests between looks, and has passed on all that this one has found.
    pub(super) fn has_looked(&self) -> bool {
        self.resting.is_some() && self.moved > 0 && !self.more
    }

    /// The flow cannot go on, or gives way: how it waits. None: for its fds. `capacity` gives how many bytes the smaller of
    /// its pipes holds; it is asked only of one that begins to rest, and may enlarge them for it.
    pub(super) fn rest(&mut self, now: Instant, capacity: impl FnOnce() -> usize) -> Option<Rc<Timer>> {
        let moved = std::mem::take(&mut self.moved);
        let waited = self.last.replace(now).map(|last| now - last);
        if moved == 0 {
            self.resting = None;
            self.busy_waits = 0;
            return None;
        }
        match &mut self.resting {
            Some(resting) => resting.found = moved,
            None => {
                let busy = moved >= MUCH || waited.is_some_and(|waited| waited < SHORT);
                self.busy_waits = if busy { self.busy_waits + 1 } else { 0 };
                if self.busy_waits < OFTEN || self.cramped {
                    return None;
                }
                self.cramped = capacity() < ROOMY;
                self.resting = if self.cramped { None } else { Resting::begin(moved) };
            }
        }
        let timer = &self.resting.as_ref()?.timer;
        let rest = if moved < FEW { LONG_REST } else { REST };
        timer.set(rest).ok().map(|()| timer.clone())
    }
}

impl Resting {
    /// None if the kernel grants no timer: then the flow goes on watching.
    fn begin(found: usize) -> Option<Self> {
        Some(Self { timer: Rc::new(Timer::new().ok()?), found })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A flow that passes `moved` bytes on and then waits, each time at one of these times, in microseconds: whether it
    /// rests.
    fn rests(pace: &mut Pace, capacity: usize, waits: impl IntoIterator<Item = (u64, usize)>) -> Vec<bool> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let begin = Instant::now();
        let mut rest = |(at, moved)| {
            pace.moved(moved, false);
            pace.rest(begin + Duration::from_micros(at), || capacity).is_some()
        };
        waits.into_iter().map(&mut rest).collect()
    }

    #[test]
    fn bytes_now_and_then_are_never_late() {
        let often = (0..100).map(|n| (n * 300, 10_000));
        assert!(!rests(&mut Pace::default(), 1 << 20, often).contains(&true));
    }

    #[test]
    fn a_flow_that_has_always_work_rests_until_a_look_is_in_vain() {
        let mut waits = vec![(0, 100), (10, 100), (20, 100), (30, 100), (40, 100), (140, 9000), (240, 0), (900, 100)];
        let expected = [false, false, false, false, true, true, false, false];
        assert_eq!(rests(&mut Pace::default(), 1 << 20, waits.clone()), expected);
        // A silence in between, and it begins anew.
        waits.insert(3, (400, 100));
        waits.iter_mut().skip(4).for_each(|(at, _)| *at += 400);
        assert!(!rests(&mut Pace::default(), 1 << 20, waits[..7].iter().copied()).contains(&true));
    }

    #[test]
    fn a_flow_of_much_rests_however_slow_the_machine_is() {
        let busy = (0..6).map(|n| (n * 5000, MUCH));
        assert_eq!(rests(&mut Pace::default(), 1 << 20, busy), [false, false, false, true, true, true]);
    }

    #[test]
    fn small_pipes_are_watched_and_asked_about_once() {
        let mut pace = Pace::default();
        assert!(!rests(&mut pace, 64 << 10, (0..10).map(|n| (n * 10, 100))).contains(&true));
        let now = Instant::now();
        for n in 0..10 {
            pace.moved(100, false);
            assert!(pace.rest(now + Duration::from_micros(n * 10), || unreachable!("asked again")).is_none());
        }
    }

    #[test]
    fn a_look_is_over_when_it_has_passed_something_on_and_nothing_is_known_to_be_left() {
        let mut pace = Pace::default();
        pace.moved(10, false);
        assert!(!pace.has_looked(), "it watches");
        rests(&mut pace, 1 << 20, (0..5).map(|n| (n * 10, 100)));
        assert_eq!(pace.found(), Some(100));
        assert!(!pace.has_looked(), "it has not looked yet");
        pace.moved(1 << 20, true);
        assert!(!pace.has_looked(), "there is more");
        pace.moved(5, false);
        assert!(pace.has_looked());
    }
}
