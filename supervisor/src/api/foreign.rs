//! Other managers' containers and the sandboxes of their pods: what their records, the kernel and their bundles say of them. Not for the loop: it reads
//! as many files as there are containers.

use std::path::Path;

use holdfast_proto::record::{self, ProcessState, Record};
use holdfast_proto::{regular, supervisor as pb};

use crate::container::{OUT_OF_MEMORY, UNKNOWN_STATUS};
use crate::output::Whom;
use crate::paths::Paths;
use crate::registry::{Refusal, Status};
use crate::scan;
use crate::sys::proc;

/// One of them, as it was when it was looked at.
pub(crate) struct Foreign {
    pub(super) record: Record,
    pub(super) shim_lives: bool,
    /// Its first process, if that lives.
    init: Option<(u32, ProcessState)>,
    started_at_unix_ns: i64,
    /// What its bundle says that it runs; empty if that cannot be read, or is gone.
    command: Vec<String>,
}

/// All of them.
pub(super) fn look(paths: &Paths) -> Vec<Foreign> {
    // Without a boot id no record is believed.
    let Ok(boot_id) = proc::boot_id() else { return Vec::new() };
    scan::foreign(paths, &boot_id).into_iter().map(|record| Foreign::new(record, proc::is_live)).collect()
}

/// The one with this id, or with an id that begins like that.
///
/// # Errors
/// [`Refusal::NotFound`]; [`Refusal::Invalid`] if more than one is meant.
pub(super) fn named<'a>(all: &'a [Foreign], name: &str) -> Result<&'a Foreign, Refusal> {
    let exact: Vec<&Foreign> = all.iter().filter(|one| one.record.id == name).collect();
    let begins = |one: &&Foreign| !name.is_empty() && one.record.id.starts_with(name);
    let found = if exact.is_empty() { all.iter().filter(begins).collect() } else { exact };
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(Refusal::NotFound(format!("there is no container {name:?}"))),
        _ => Err(Refusal::Invalid(format!("more than one container of other managers is meant by {name:?}"))),
    }
}

impl Foreign {
    fn new(record: Record, is_live: impl Fn(u32, u64) -> bool) -> Self {
        let init = record.init().filter(|p| p.exit.is_none() && p.pid != 0 && is_live(p.pid, p.start_time));
        let init = init.map(|p| (p.pid, p.state));
        Self {
            shim_lives: is_live(record.shim.pid, record.shim.start_time),
            init,
            started_at_unix_ns: init.map_or(0, |(pid, _)| proc::started_at_unix_ns(pid)),
            command: command(&record.bundle),
            record,
        }
    }

    /// Of its first process; 0 if that does not live.
    pub(super) fn pid(&self) -> u32 {
        self.init.map_or(0, |(pid, _)| pid)
    }

    /// Its shim, if that lives.
    pub(super) fn shim(&self) -> Option<Whom> {
        let (shim, namespace) = (&self.record.shim, self.record.namespace.clone());
        self.shim_lives.then(|| Whom { address: shim.address.clone(), pid: shim.pid, namespace })
    }

    /// What there is to tell; what only its manager knows is empty.
    pub(super) fn message(&self) -> pb::Container {
        let (record, shim_lives) = (&self.record, self.shim_lives);
        let init = record.init();
        let exit = init.and_then(|p| p.exit);
        let status = match (self.init, exit, init.map(|p| p.state)) {
            // Its first process is what holds the namespaces.
            (Some(_), ..) if record.sandbox => Status::Ready,
            (None, ..) if record.sandbox => Status::NotReady,
            (Some((_, ProcessState::Created)), ..) => Status::Created,
            (Some((_, ProcessState::Paused)), ..) => Status::Paused,
            (Some(_), ..) => Status::Running,
            // Before its first process is there; and when it has ended and its shim is about to say so.
            (None, None, Some(ProcessState::Created)) if shim_lives => Status::Preparing,
            (None, None, _) if shim_lives => Status::Stopping,
            (None, ..) => Status::Exited,
        };
        let reason = match (self.init, exit) {
            _ if init.is_some_and(|p| p.oom_killed) => OUT_OF_MEMORY,
            (Some(_), _) if !shim_lives && record.sandbox => "its shim is dead",
            (Some(_), _) if !shim_lives => "its shim is dead: it runs without anybody who drains its output",
            (None, None) if !shim_lives => "its shim died with the exit status",
            _ => "",
        };
        let unknown = if status == Status::Exited { UNKNOWN_STATUS } else { 0 };
        pb::Container {
            namespace: record.namespace.clone(),
            id: record.id.clone(),
            name: record.id.clone(),
            manager: match &record.manager {
                record::Manager::Containerd { address } => address.clone(),
                record::Manager::Holdfastd => "holdfastd".to_owned(),
            },
            command: self.command.clone(),
            status: status.as_str().to_owned(),
            pid: self.pid(),
            shim_pid: record.shim.pid,
            started_at_unix_ns: self.started_at_unix_ns,
            exit_status: exit.map_or(unknown, |e| e.status),
            exited_at_unix_ns: exit.map_or(0, |e| i64::try_from(e.at_unix_ns).unwrap_or(i64::MAX)),
            reason: reason.to_owned(),
            sandbox: record.sandbox,
            ..Default::default()
        }
    }
}

fn command(bundle: &Path) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Spec {
        process: Process,
    }
    #[derive(serde::Deserialize)]
    struct Process {
        args: Vec<String>,
    }
    let spec = regular::read(&bundle.join("config.json")).ok();
    spec.and_then(|text| serde_json::from_slice::<Spec>(&text).ok()).map(|s| s.process.args).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn record(state: &str, exit: &str) -> Record {
        let text = format!(
            r#"{{"schema":1,"boot_id":"b","shim":{{"pid":7,"start_time":8,"version":"0","address":"unix:///s"}},
            "manager":{{"kind":"containerd","address":"/run/c.sock"}},"namespace":"k8s.io","id":"one","group":"one",
            "bundle":"/no/such/bundle","runtime":{{"binary":"runc","root":"/r"}},
            "processes":[{{"exec_id":"","pid":9,"start_time":10,"state":"{state}"{exit}}}]}}"#
        );
        Record::parse(Path::new("r"), text.as_bytes()).unwrap()
    }

    #[test]
    fn the_state_of_another_managers_container_is_what_its_record_and_the_kernel_say() {
        const EXIT: &str = r#","exit":{"status":7,"at_unix_ns":5}"#;
        for (state, exit, shim, init, expected) in [
            ("created", "", true, true, ("created", 9, 0, "")),
            ("created", "", true, false, ("preparing", 0, 0, "")),
            ("running", "", true, true, ("running", 9, 0, "")),
            ("paused", "", true, true, ("paused", 9, 0, "")),
            ("running", "", true, false, ("stopping", 0, 0, "")),
            ("stopped", EXIT, true, false, ("exited", 0, 7, "")),
            // Its pid is somebody else's by now.
            ("stopped", EXIT, true, true, ("exited", 0, 7, "")),
            (
                "running",
                "",
                false,
                true,
                ("running", 9, 0, "its shim is dead: it runs without anybody who drains its output"),
            ),
            ("running", "", false, false, ("exited", 0, 255, "its shim died with the exit status")),
            ("stopped", EXIT, false, false, ("exited", 0, 7, "")),
        ] {
            let one = Foreign::new(record(state, exit), |pid, _| if pid == 7 { shim } else { init }).message();
            let seen = (one.status.as_str(), one.pid, one.exit_status, one.reason.as_str());
            assert_eq!(seen, expected, "{state} {exit} {shim} {init}");
            assert_eq!((one.manager.as_str(), one.namespace.as_str()), ("/run/c.sock", "k8s.io"));
        }
    }

    #[test]
    fn a_sandbox_is_ready_while_its_holder_lives() {
        const EXIT: &str = r#","exit":{"status":137,"at_unix_ns":5}"#;
        for (state, exit, shim, holder, expected) in [
            ("created", "", true, false, ("not-ready", 0, 0, "")),
            ("running", "", true, true, ("ready", 9, 0, "")),
            ("running", "", false, true, ("ready", 9, 0, "its shim is dead")),
            ("stopped", EXIT, true, false, ("not-ready", 0, 137, "")),
            ("running", "", false, false, ("not-ready", 0, 0, "its shim died with the exit status")),
        ] {
            let record = Record { sandbox: true, ..record(state, exit) };
            let one = Foreign::new(record, |pid, _| if pid == 7 { shim } else { holder }).message();
            let seen = (one.status.as_str(), one.pid, one.exit_status, one.reason.as_str());
            assert_eq!(seen, expected, "{state} {exit} {shim} {holder}");
            assert!(one.sandbox);
        }
    }

    #[test]
    fn a_container_is_named_by_its_id_or_by_an_unambiguous_beginning() {
        let all: Vec<Foreign> = ["abc", "abd", "ab", "x", "x"]
            .into_iter()
            .map(|id| Foreign::new(Record { id: id.into(), ..record("running", "") }, |_, _| true))
            .collect();
        for (name, found) in [("abc", "abc"), ("ab", "ab"), ("abd", "abd")] {
            assert_eq!(named(&all, name).unwrap().record.id, found);
        }
        for ambiguous in ["a", "x"] {
            assert!(matches!(named(&all, ambiguous), Err(Refusal::Invalid(_))), "{ambiguous}");
        }
        for unknown in ["", "y", "abcd"] {
            assert!(matches!(named(&all, unknown), Err(Refusal::NotFound(_))), "{unknown}");
        }
    }
}
