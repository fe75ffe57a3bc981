//! Work that may stall, done off the loop: a disk that is full of requests, a filesystem that is frozen, a control group.
//!
//! ```text
//!   loop ── run(job) ──> queue ──> one thread, which ends when it has had nothing to do for a while
//!     ^                    │
//!     │                    └─ no job taken for a while ─> another thread, up to a bound
//!     └───── Outcome <──────┘
//! ```
//!
//! There is no thread at rest, and one while there is work. Only when a job is stuck and another waits behind it is a
//! further thread started: so what is stuck holds up nothing but itself. Jobs begin in the order in which they came, but
//! they may run at the same time: what they share needs a lock of its own.
//!
//! What a control group is asked has a pool of its own: disks that are stuck, however many jobs wait for them, do not keep
//! Stats and Pids from an answer.
//!
//! The pools belong to the thread that asks, which is the loop's, the only one.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

/// How long a thread waits for more work before it ends, and its stack in bytes.
const THREAD_IDLE: Duration = Duration::from_millis(100);
const THREAD_STACK: usize = 128 << 10;
/// How long no job must have been begun, while one waits, before another thread is started.
const PATIENCE: Duration = Duration::from_millis(500);
/// The most threads. Each costs a stack, and whoever keeps so many stuck has more trouble than one that waits.
const MOST_THREADS: usize = 16;

thread_local! {
    static POOL: Arc<Pool> = Arc::default();
    static CGROUPS: Arc<Pool> = Arc::default();
}

/// Has `job` done off the loop. It begins whether or not the outcome is waited for, and once begun it comes to its end.
///
/// Must be called within a Tokio `LocalSet`.
pub(crate) fn run<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
    POOL.with(|pool| pool.run(job))
}

/// As [`run`], for what asks control groups and no disk.
pub(crate) fn ask_cgroup<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
    CGROUPS.with(|pool| pool.run(job))
}

/// Returns once all that was given to [`run`] is done. Safe to cancel.
pub(crate) async fn finished() {
    let pool = POOL.with(Arc::clone);
    loop {
        let quiet = pool.quiet.notified();
        if pool.lock().is_quiet() {
            return;
        }
        quiet.await;
    }
}

/// What comes of a job. It may be dropped at any time; the job goes on.
#[derive(Debug)]
pub(crate) struct Outcome<T>(oneshot::Receiver<T>);

/// The job has panicked; what it has said of that is in the shim's log.
#[derive(Debug, thiserror::Error)]
#[error("the thread that did it has panicked")]
pub(crate) struct Panicked;

impl<T> Future for Outcome<T> {
    type Output = Result<T, Panicked>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(Pin::new(&mut self.0).poll(context)).map_err(|_| Panicked))
    }
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Pool {
    queue: Mutex<Queue>,
    work: Condvar,
    /// Told when nothing is left to do.
    quiet: Notify,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    /// The threads of these that are about to look for a job.
    free: usize,
    /// How many jobs were begun.
    begun: u64,
    /// A task looks whether jobs are begun; see [`watch`].
    watched: bool,
    /// That no thread can be had was said already.
    reported: bool,
}

impl Queue {
    /// Whether there are more jobs than threads that will take one.
    fn is_short(&self) -> bool {
        self.jobs.len() > self.free
    }

    fn is_quiet(&self) -> bool {
        self.jobs.is_empty() && self.free == self.threads
    }
}

impl Pool {
    fn run<T: Send + 'static>(self: &Arc<Self>, job: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
        let (tell, outcome) = oneshot::channel();
        let mut queue = self.lock();
        // Nobody may want to know any more.
        queue.jobs.push_back(Box::new(move || drop(tell.send(job()))));
        if queue.threads == 0 {
            self.start_thread(&mut queue);
        }
        self.work.notify_one();
        if queue.is_short() && !queue.watched {
            queue.watched = true;
            // It ends by itself as soon as nothing waits.
            tokio::task::spawn_local(watch(Watch(self.clone())));
        }
        Outcome(outcome)
    }

    /// If there can be none, the job waits for the next attempt.
    fn start_thread(self: &Arc<Self>, queue: &mut Queue) {
        let pool = self.clone();
        let thread = thread::Builder::new().stack_size(THREAD_STACK).spawn(move || pool.work());
        match thread {
            Ok(_) => {
                queue.threads += 1;
                queue.free += 1;
                queue.reported = false;
            }
            Err(e) if !queue.reported => {
                queue.reported = true;
                tracing::error!(error = %e, "cannot start a thread for what may stall, trying again until it works");
            }
            Err(_) => {}
        }
    }

    /// The whole life of a thread.
    fn work(&self) {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                queue.free -= 1;
                queue.begun += 1;
                drop(queue);
                // Its outcome says so. What it holds a lock on is its owner's to judge.
                let _ = catch_unwind(AssertUnwindSafe(job));
                queue = self.lock();
                queue.free += 1;
                if queue.is_quiet() {
                    self.quiet.notify_waiters();
                }
                continue;
            }
            let (woken, waited) = self.work.wait_timeout(queue, THREAD_IDLE).unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            if waited.timed_out() && queue.jobs.is_empty() {
                break;
            }
        }
        queue.threads -= 1;
        queue.free -= 1;
    }

    /// Nothing panics while it is held.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to watch over a pool; given back when dropped, as a task may be at any await.
struct Watch(Arc<Pool>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.lock().watched = false;
    }
}

/// As long as jobs wait: starts another thread whenever none was begun for a while.
async fn watch(watch: Watch) {
    let pool = &watch.0;
    loop {
        let begun = pool.lock().begun;
        tokio::time::sleep(PATIENCE).await;
        let mut queue = pool.lock();
        if queue.is_short() && queue.begun == begun && queue.threads < MOST_THREADS {
            pool.start_thread(&mut queue);
        }
        if !queue.is_short() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc::{self, Receiver, Sender};

    use tokio::task::{LocalSet, yield_now};
    use tokio::time::Instant;

    use super::*;

    /// Time passes only while everything waits for it, and then at once.
    fn on_a_loop(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    fn pool() -> Arc<Pool> {
        POOL.with(Arc::clone)
    }

    /// A job that has begun, and ends when the sender is dropped.
    async fn stuck() -> (Sender<()>, Outcome<()>) {
        let (release, gate): (_, Receiver<()>) = mpsc::channel();
        let (begin, begun) = oneshot::channel();
        let outcome = run(move || {
            begin.send(()).unwrap();
            assert!(gate.recv().is_err());
        });
        begun.await.unwrap();
        (release, outcome)
    }

    #[test]
    fn jobs_come_in_order_in_one_thread_which_ends_after_them() {
        on_a_loop(async {
            let (say, said) = mpsc::channel();
            let outcomes: Vec<_> = (0..50)
                .map(|n| {
                    let say = say.clone();
                    run(move || {
                        say.send(n).unwrap();
                        thread::current().id()
                    })
                })
                .collect();
            // The loop waits with us: it has no time to find that none was begun for a while.
            drop(say);
            assert_eq!(said.iter().collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
            let mut threads = Vec::new();
            for outcome in outcomes {
                threads.push(outcome.await.unwrap());
            }
            assert!(threads.iter().all(|id| *id == threads[0] && *id != thread::current().id()));
            while pool().lock().threads > 0 {
                thread::yield_now();
            }
            assert_eq!(run(|| 1).await.unwrap(), 1, "and another one comes for what comes then");
        });
    }

    #[test]
    fn what_is_stuck_holds_up_the_next_for_a_moment_and_no_other() {
        on_a_loop(async {
            let (release, outcome) = stuck().await;
            assert!(!pool().lock().watched, "nothing waits, so no timer runs");
            let asked = Instant::now();
            run(|| ()).await.unwrap();
            assert!((PATIENCE..2 * PATIENCE).contains(&asked.elapsed()), "{:?}", asked.elapsed());
            // The outcome is there a little before its thread is free again.
            while pool().lock().free == 0 {
                thread::yield_now();
            }
            let asked = Instant::now();
            run(|| ()).await.unwrap();
            assert_eq!(asked.elapsed(), Duration::ZERO, "there is a thread for it now");
            assert_eq!(pool().lock().threads, 2);
            drop(release);
            outcome.await.unwrap();
            while pool().lock().watched {
                yield_now().await;
            }
        });
    }

    #[test]
    fn there_are_never_more_threads_than_the_bound_and_what_waits_then_goes_on_when_one_is_free() {
        on_a_loop(async {
            let mut all_stuck = Vec::new();
            for _ in 0..MOST_THREADS {
                all_stuck.push(stuck().await);
            }
            let waiting = run(|| ());
            tokio::time::sleep(60 * PATIENCE).await;
            assert_eq!(pool().lock().threads, MOST_THREADS);
            assert_eq!(pool().lock().jobs.len(), 1);
            assert_eq!(ask_cgroup(|| 1).await.unwrap(), 1, "a control group answers all the same");
            let (release, outcome) = all_stuck.swap_remove(7);
            drop(release);
            outcome.await.unwrap();
            waiting.await.unwrap();
        });
    }

    #[test]
    fn a_panic_is_an_error_and_ends_nothing() {
        on_a_loop(async {
            let panics = run(|| panic!("of a test"));
            let next = run(|| 2);
            assert!(panics.await.is_err());
            assert_eq!(next.await.unwrap(), 2);
        });
    }

    #[test]
    fn a_job_that_nobody_waits_for_is_done_all_the_same_and_leaves_nothing() {
        on_a_loop(async {
            let kept = Arc::new(());
            let (release, outcome) = stuck().await;
            drop(outcome);
            let (done, was_done) = oneshot::channel();
            let copy = kept.clone();
            drop(run(move || {
                done.send(()).unwrap();
                copy
            }));
            was_done.await.unwrap();
            drop(release);
            finished().await;
            assert_eq!(Arc::strong_count(&kept), 1, "its result is dropped too");
        });
    }

    #[test]
    fn the_end_is_waited_for_with_what_was_not_begun_yet() {
        on_a_loop(async {
            finished().await;
            let (release, outcome) = stuck().await;
            let (done, was_done) = mpsc::channel();
            drop(run(move || done.send(()).unwrap()));
            drop((release, outcome));
            finished().await;
            was_done.try_recv().unwrap();
        });
    }

    #[test]
    fn a_loop_that_was_dropped_while_something_waited_leaves_the_next_one_a_pool_that_works() {
        // The timer goes with the first loop.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let first = LocalSet::new();
        let release = first.block_on(&runtime, async {
            let (release, _) = stuck().await;
            drop(run(|| ()));
            assert!(pool().lock().watched);
            release
        });
        drop(first);
        assert!(!pool().lock().watched);
        LocalSet::new().block_on(&runtime, async { run(|| ()).await.unwrap() });
        drop(release);
    }
}
