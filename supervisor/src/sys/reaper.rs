//! The only waiter on children: helpers that the supervisor runs, shims that detached from them, and what a dead shim
//! left behind. A status that arrives before anybody asks is kept for a while.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::process::{Child, Command};
use std::rc::Rc;

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use tokio::sync::oneshot;

/// Unclaimed statuses kept; more than shims can die between two looks.
const KEPT: usize = 1024;

/// Shared by everybody in the one thread.
#[derive(Clone, Default)]
pub struct Reaper(Rc<RefCell<Table>>);

#[derive(Default)]
struct Table {
    claims: HashMap<i32, oneshot::Sender<u32>>,
    unclaimed: VecDeque<(i32, u32)>,
}

impl Reaper {
    /// Starts a child and claims its status (exit code, or 128 + signal).
    ///
    /// # Errors
    /// Those of spawning.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Child, oneshot::Receiver<u32>)> {
        let child = command.spawn()?;
        let status = self.claim(child.id());
        Ok((child, status))
    }

    /// The status of a child, now or later. Never comes for a process that is no child.
    pub fn claim(&self, pid: u32) -> oneshot::Receiver<u32> {
        let pid = pid.cast_signed();
        let (tx, rx) = oneshot::channel();
        let mut table = self.0.borrow_mut();
        if let Some(at) = table.unclaimed.iter().position(|(p, _)| *p == pid) {
            let (_, status) = table.unclaimed.remove(at).expect("just found");
            let _ = tx.send(status); // the receiver is in this function
        } else {
            table.claims.insert(pid, tx);
        }
        rx
    }

    /// Collects every child that has ended. To be called on each SIGCHLD.
    pub fn reap(&self) {
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code.cast_unsigned()),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + (signal as i32).cast_unsigned()),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            let mut table = self.0.borrow_mut();
            let claimed = table.claims.remove(&pid.as_raw()).is_some_and(|claim| claim.send(status).is_ok());
            if !claimed {
                if table.unclaimed.len() == KEPT {
                    table.unclaimed.pop_front();
                }
                table.unclaimed.push_back((pid.as_raw(), status));
            }
        }
    }
}
