//! Signals to a client that shows a container: passed on, or the reason to leave it in good order.

use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use holdfast_proto::supervisor as pb;
use procfs::process::Process;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::connection::Connection;
use super::{CliError, say, terminal};
use crate::chain;

/// Those by which somebody wants an end of us.
const ENDING: [i32; 4] = [nix::libc::SIGINT, nix::libc::SIGTERM, nix::libc::SIGHUP, nix::libc::SIGQUIT];

/// Those that only mean something to the container.
const OTHER: [i32; 2] = [nix::libc::SIGUSR1, nix::libc::SIGUSR2];

/// Whoever asks as often as this for an end, in vain, wants one of the client: as with Docker.
const PATIENCE: u32 = 3;

/// How often a supervisor that is away is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// What becomes of signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// They go to the container.
    Forward,
    /// They end the client, and only that.
    Leave,
}

/// The signals that are caught, from its making on.
pub(super) struct Signals {
    policy: Policy,
    caught: Vec<(i32, Signal)>,
    resized: Option<Signal>,
}

/// What has come.
enum Came {
    Signal(i32),
    Size,
}

impl Signals {
    /// Begins to catch. With `tty` the changes of the window's size as well.
    pub(super) fn catch(policy: Policy, tty: bool) -> Self {
        // What is ignored from the start, as by nohup or for a job in the background, was decided by whoever started us.
        let mask = Process::myself().and_then(|this| this.status()).map_or(0, |status| status.sigign);
        let ignored = |number: i32| is_among(mask, number);
        let other: &[i32] = if policy == Policy::Forward { &OTHER } else { &[] };
        let wanted = ENDING.iter().chain(other).filter(|number| !ignored(**number));
        let caught = wanted.filter_map(|number| Some((*number, signal(SignalKind::from_raw(*number)).ok()?)));
        let resized = if tty { signal(SignalKind::window_change()).ok() } else { None };
        Self { policy, caught: caught.collect(), resized }
    }

    /// Passes signals and sizes on to a container, or to one of its execs; returns the signal by which to leave.
    ///
    /// Signals are looked at while others are on their way. That takes as long as the supervisor is away, and then a second
    /// one of those by which somebody wants an end is one of the client.
    pub(super) async fn pass_on(&mut self, connection: &Connection, id: &str, exec_id: &str) -> i32 {
        let pass = async |number: i32, after: Duration| {
            tokio::time::sleep(after).await;
            let request = pb::KillRequest { ref_: id.to_owned(), signal: number.to_string(), ..Default::default() };
            (number, connection.kill(&request).await)
        };
        let mut passing = FuturesUnordered::new();
        let mut sizing = None;
        let (mut asked, mut is_away) = (0, false);
        loop {
            // Every branch may be dropped: what is under way stays where it is.
            tokio::select! {
                biased;
                came = self.next() => match came {
                    Came::Size => sizing = Some(Box::pin(resize(connection, id, exec_id))),
                    Came::Signal(number) => {
                        asked += u32::from(matches!(number, nix::libc::SIGINT | nix::libc::SIGTERM));
                        let again = is_away && ENDING.contains(&number);
                        if self.policy == Policy::Leave || asked == PATIENCE || again {
                            return number;
                        }
                        passing.push(pass(number, Duration::ZERO));
                    }
                },
                Some((number, result)) = passing.next() => {
                    is_away = matches!(result, Err(CliError::Unreachable { .. } | CliError::Broken { .. }));
                    let Err(e) = result else { continue };
                    if !is_away {
                        say::tell_error(&chain(&e), None);
                    } else if matches!(number, nix::libc::SIGHUP | nix::libc::SIGQUIT) {
                        // Nobody may be left to send another one.
                        return number;
                    } else {
                        passing.push(pass(number, RETRY));
                    }
                }
                () = async { sizing.as_mut().expect("looked at before").await }, if sizing.is_some() => sizing = None,
            }
        }
    }

    async fn next(&mut self) -> Came {
        std::future::poll_fn(|cx| {
            for (number, signal) in &mut self.caught {
                if signal.poll_recv(cx).is_ready() {
                    return Poll::Ready(Came::Signal(*number));
                }
            }
            match &mut self.resized {
                Some(resized) => resized.poll_recv(cx).map(|_| Came::Size),
                None => Poll::Pending,
            }
        })
        .await
    }
}

async fn resize(connection: &Connection, id: &str, exec_id: &str) {
    if let Some((columns, rows)) = terminal::size() {
        let (ref_, exec_id) = (id.to_owned(), exec_id.to_owned());
        let request = pb::ResizeRequest { ref_, exec_id, columns, rows, ..Default::default() };
        connection.resize(&request).await;
    }
}

/// Whether a signal is in a mask as proc_pid_status(5) has it.
fn is_among(mask: u64, number: i32) -> bool {
    mask >> (number - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_found_in_a_mask() {
        let of = [1, 2, 3, 13, 4, 15].map(|number| is_among(0x1007, number));
        assert_eq!(of, [true, true, true, true, false, false]);
        assert!(!is_among(0, 1));
    }
}
