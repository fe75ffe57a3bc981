//! Opening a process's logs before it is made: off the loop, since a disk may not answer.

use std::rc::Weak;

use super::calls::{Running, What, gone, io_failure};
use super::loggers::process_made_by;
use super::{Shim, State};
use crate::io::process::{IoError, OpenedLog, log_targets};
use crate::lifecycle::{CallId, Failure, FailureKind, Input, ProcessId, TaskId, Work};
use crate::offload;
use crate::owned_task::OwnedTask;

impl State {
    /// Begins to open the logs of the process that `work` makes, if it has any. Safe to repeat: a log that was opened and not
    /// used is as before.
    pub(super) fn begin_opening(
        &self,
        call: CallId,
        task: &TaskId,
        work: &Work,
        me: &Weak<Shim>,
    ) -> Result<Option<What>, Failure> {
        let Some(process) = process_made_by(work) else { return Ok(None) };
        let settings = self.containers.get(task).and_then(|c| c.processes.get(&process)).ok_or_else(|| gone(task))?;
        let targets = log_targets(&settings.addresses).map_err(|e| io_failure(task, &process, &IoError::from(e)))?;
        if targets.is_empty() {
            return Ok(None);
        }
        let me = me.clone();
        let opens = OwnedTask::spawn(async move {
            let opened = offload::run(|| targets.into_iter().map(OpenedLog::open).collect()).await;
            if let Some(shim) = me.upgrade() {
                // After a panic they are opened once more, and the failure is told by that.
                shim.logs_opened(call, opened.unwrap_or_default());
            }
        });
        Ok(Some(What::Open { _opens: opens }))
    }
}

impl Shim {
    /// Now what comes after it can begin.
    fn logs_opened(&self, call: CallId, opened: Vec<OpenedLog>) {
        let mut state = self.state.borrow_mut();
        let Some(Running { task, work, what: What::Open { .. }, asked, .. }) = state.running.remove(&call) else {
            return;
        };
        let process = process_made_by(&work).unwrap_or(ProcessId::Init);
        if let Some(settings) = state.process(&task, &process) {
            settings.opened = opened;
        }
        match state.begin_process(call, &task, &work, None, &self.me) {
            Ok(what) => state.goes_on(call, &task, &work, what, asked, &self.me),
            Err(failure) => {
                state.start_failed(&task, &work, &self.me);
                drop(state);
                self.input(Input::Done { call, outcome: Err(failure) });
            }
        }
    }

    /// They are not waited for any longer.
    pub(super) fn opening_is_late(&self, call: CallId) {
        let mut state = self.state.borrow_mut();
        let Some(Running { task, work, what: What::Open { .. }, .. }) = state.running.remove(&call) else { return };
        let process = process_made_by(&work).unwrap_or(ProcessId::Init);
        state.start_failed(&task, &work, &self.me);
        drop(state);
        let text = format!("the streams of {process} of task {:?}: the disk of its log does not answer", task.0);
        self.input(Input::Done { call, outcome: Err(Failure { kind: FailureKind::Deadline, text }) });
    }
}
