//! The only waiter on children: helpers that the supervisor runs, shims that detached from them, and what a dead shim
//! left behind. A status that arrives before anybody asks is kept for a while. Children are told apart by pid and start
//! time: a pid is given again, and the status of who had it before is not that of who has it now.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::process::{Child, Command};
use std::rc::Rc;

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use tokio::sync::oneshot;

use super::proc;

/// Unclaimed statuses kept; more than shims can die between two looks.
const KEPT: usize = 1024;

/// Shared by everybody in the one thread.
#[derive(Clone, Default)]
pub struct Reaper(Rc<RefCell<Table>>);

/// Pid and start time.
type Name = (u32, u64);

#[derive(Default)]
struct Table {
    claims: HashMap<Name, oneshot::Sender<u32>>,
    unclaimed: VecDeque<(Name, u32)>,
}

impl Reaper {
    /// Starts a child and claims its status (exit code, or 128 + signal).
    ///
    /// # Errors
    /// Those of spawning.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Child, oneshot::Receiver<u32>)> {
        let child = command.spawn()?;
        // Nobody but us reaps it, so it is there to be looked at, even if it has ended.
        let status = self.claim(child.id(), proc::start_time(child.id()));
        Ok((child, status))
    }

    /// The status of a child, now or later. Never comes for a process that is no child.
    pub fn claim(&self, pid: u32, start_time: u64) -> oneshot::Receiver<u32> {
        let name = (pid, start_time);
        let (tx, rx) = oneshot::channel();
        let mut table = self.0.borrow_mut();
        if let Some(at) = table.unclaimed.iter().position(|(n, _)| *n == name) {
            let (_, status) = table.unclaimed.remove(at).expect("just found");
            let _ = tx.send(status); // the receiver is in this function
        } else {
            table.claims.retain(|_, claim| !claim.is_closed());
            table.claims.insert(name, tx);
        }
        rx
    }

    /// Collects every child that has ended. To be called on each SIGCHLD.
    pub fn reap(&self) {
        // Looked at first, and then collected: afterwards there is nothing left to tell its start time by.
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Ok(ended) = waitid(Id::All, look)
            && let Some(pid) = ended.pid()
        {
            let name = (pid.as_raw().cast_unsigned(), proc::start_time(pid.as_raw().cast_unsigned()));
            let status = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => code.cast_unsigned(),
                Ok(WaitStatus::Signaled(_, signal, _)) => 128 + (signal as i32).cast_unsigned(),
                Ok(_) | Err(_) => return,
            };
            let mut table = self.0.borrow_mut();
            let claimed = table.claims.remove(&name).is_some_and(|claim| claim.send(status).is_ok());
            if !claimed {
                if table.unclaimed.len() == KEPT {
                    table.unclaimed.pop_front();
                }
                table.unclaimed.push_back((name, status));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// One test for all: it reaps every child of the process that runs the tests.
    #[test]
    fn a_status_is_its_own_childs_not_that_of_another_with_the_same_pid() {
        let reaper = Reaper::default();
        let (child, mut status) = reaper.spawn(Command::new("/bin/sh").args(["-c", "exit 7"])).unwrap();
        let pid = child.id();
        let received = loop {
            reaper.reap();
            if let Ok(status) = status.try_recv() {
                break status;
            }
            std::thread::yield_now();
        };
        assert_eq!(received, 7);
        // One that nobody has claimed, and then another of that pid.
        reaper.0.borrow_mut().unclaimed.push_back(((pid, 1), 3));
        assert!(reaper.claim(pid, 2).try_recv().is_err());
        assert_eq!(reaper.claim(pid, 1).try_recv(), Ok(3));
        assert!(reaper.claim(pid, 1).try_recv().is_err(), "it is told once");
    }
}
