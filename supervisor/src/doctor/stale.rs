//! Files that belong to nothing any more: found by looking at all of them, judged by what the kernel says of their owners.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_proto::record::{self, Manager, Record};

use crate::client::has_listener;
use crate::paths::{NAMESPACE, Paths};
use crate::sys::proc;

/// A shim that starts binds its socket a moment before it listens.
const SECOND_LOOK: Duration = Duration::from_millis(200);

/// A file or directory that nobody needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub kind: StaleKind,
}

/// Why nobody needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StaleKind {
    /// Nobody listens on the socket.
    Socket,
    /// The record's shim is dead, and so is its container.
    DeadRecord {
        /// Who should have cleaned up.
        manager: Manager,
    },
    /// The record's shim is dead, its container's first process is not.
    Orphan {
        /// Who should have cleaned up.
        manager: Manager,
        /// The process.
        pid: u32,
        /// The container.
        id: String,
    },
    /// The record is of another boot.
    OtherBoot,
    /// Events of a shim that is dead.
    Events,
    /// The bundle of a container that holdfastd does not have.
    Bundle,
}

impl Stale {
    /// What was seen, and what it means.
    pub fn message(&self) -> String {
        let path = self.path.display();
        match &self.kind {
            StaleKind::Socket => format!("{path}: nobody listens on this socket any more"),
            StaleKind::DeadRecord { .. } => format!("{path}: shim and container are dead, and nobody has cleaned up"),
            StaleKind::Orphan { pid, id, .. } => {
                format!(
                    "{path}: the shim of {id} is dead, and its process {pid} runs without anybody who drains its output"
                )
            }
            StaleKind::OtherBoot => format!("{path}: left over from before the last boot: is /run not a tmpfs?"),
            StaleKind::Events => format!("{path}: events that a dead shim could not deliver"),
            StaleKind::Bundle => format!("{path}: the bundle of a container that does not exist"),
        }
    }

    /// What to do.
    pub fn advice(&self) -> String {
        let path = self.path.display();
        match &self.kind {
            StaleKind::Socket | StaleKind::Events => format!("rm {path}"),
            StaleKind::OtherBoot => format!("rm -r {path}"),
            StaleKind::Bundle => format!("umount -R {path}/rootfs; rm -r --one-file-system {path}"),
            StaleKind::DeadRecord { manager: Manager::Holdfastd } => "restart holdfastd: it cleans up".to_owned(),
            StaleKind::Orphan { manager: Manager::Holdfastd, id, .. } => format!("holdfast stop {id}"),
            StaleKind::DeadRecord { manager: Manager::Containerd { address } }
            | StaleKind::Orphan { manager: Manager::Containerd { address }, .. } => {
                format!("restart the containerd at {address}: it has the shim's files deleted")
            }
        }
    }
}

/// Looks at everything below the run root. `boot_id` is the kernel's.
pub(super) async fn find(paths: &Paths, boot_id: &str) -> Vec<Stale> {
    let mut stale = Vec::new();
    for instance in entries(&paths.run.join("tasks")) {
        for namespace in entries(&instance) {
            for task in entries(&namespace) {
                stale.extend(judge_task(task, boot_id));
            }
        }
    }
    stale.extend(bundles(paths));
    stale.extend(sockets(&paths.run.join("s")).await);
    stale.sort_by(|a, b| a.path.cmp(&b.path));
    stale
}

/// Everything in a directory; nothing, if there is none.
fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn judge_task(path: PathBuf, boot_id: &str) -> Option<Stale> {
    if let Some((pid, start_time)) = path.file_name().and_then(|name| owner_of_events(name.to_str()?)) {
        return (!proc::is_live(pid, start_time)).then_some(Stale { path, kind: StaleKind::Events });
    }
    // What cannot be read is the restore's to tell.
    let record = Record::read(&path.join(record::FILE_NAME)).ok()?;
    let kind = judge(&record, boot_id, proc::is_live)?;
    Some(Stale { path, kind })
}

/// Pid and start time in `.<64 hex>-<pid>-<start time>.events`.
fn owner_of_events(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix('.')?.strip_suffix(".events")?.rsplit('-');
    let start_time = parts.next()?.parse().ok()?;
    Some((parts.next()?.parse().ok()?, start_time))
}

fn judge(record: &Record, boot_id: &str, is_live: impl Fn(u32, u64) -> bool) -> Option<StaleKind> {
    if record.boot_id != boot_id {
        return Some(StaleKind::OtherBoot);
    }
    if is_live(record.shim.pid, record.shim.start_time) {
        return None;
    }
    let manager = record.manager.clone();
    let init = record.init().filter(|p| p.pid != 0 && p.exit.is_none() && is_live(p.pid, p.start_time));
    Some(match init {
        Some(init) => StaleKind::Orphan { manager, pid: init.pid, id: record.id.clone() },
        None => StaleKind::DeadRecord { manager },
    })
}

/// A container is written down before its bundle is made, and forgotten after it.
fn bundles(paths: &Paths) -> Vec<Stale> {
    let known: HashSet<_> =
        entries(&paths.containers()).into_iter().filter_map(|p| Some(p.file_name()?.to_owned())).collect();
    let bundles = entries(&paths.run.join("bundles").join(NAMESPACE)).into_iter();
    let unknown = bundles.filter(|path| path.file_name().is_some_and(|name| !known.contains(name)));
    unknown.map(|path| Stale { path, kind: StaleKind::Bundle }).collect()
}

async fn sockets(directory: &Path) -> Vec<Stale> {
    let mut deserted = Vec::new();
    for path in entries(directory) {
        if is_deserted(&path).await {
            deserted.push(path);
        }
    }
    if deserted.is_empty() {
        return Vec::new();
    }
    tokio::time::sleep(SECOND_LOOK).await;
    let mut stale = Vec::new();
    for path in deserted {
        if is_deserted(&path).await {
            stale.push(Stale { path, kind: StaleKind::Socket });
        }
    }
    stale
}

/// Whether it is a socket on which nobody listens.
async fn is_deserted(path: &Path) -> bool {
    matches!(has_listener(path).await, Ok(false))
        && fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn record(manager: &str) -> Record {
        let text = format!(
            r#"{{"schema":1,"boot_id":"now","shim":{{"pid":7,"start_time":8,"version":"0","address":"unix:///s"}},
            "manager":{manager},"namespace":"default","id":"one","group":"one",
            "bundle":"/b","runtime":{{"binary":"runc","root":"/r"}},
            "processes":[{{"exec_id":"","pid":9,"start_time":10,"state":"running"}}]}}"#
        );
        Record::parse(Path::new("r"), text.as_bytes()).unwrap()
    }

    #[test]
    fn a_record_is_judged_by_boot_shim_and_process() {
        let own = record(r#"{"kind":"holdfastd"}"#);
        let live = |pids: &'static [u32]| move |pid: u32, _: u64| pids.contains(&pid);
        assert_eq!(judge(&own, "now", live(&[7, 9])), None);
        assert_eq!(judge(&own, "now", live(&[7])), None, "its shim knows what to do");
        assert_eq!(judge(&own, "before", live(&[7, 9])), Some(StaleKind::OtherBoot));
        let orphan = StaleKind::Orphan { manager: Manager::Holdfastd, pid: 9, id: "one".into() };
        assert_eq!(judge(&own, "now", live(&[9])), Some(orphan));
        assert_eq!(judge(&own, "now", live(&[])), Some(StaleKind::DeadRecord { manager: Manager::Holdfastd }));
    }

    #[test]
    fn advice_names_who_cleans_up() {
        let foreign = record(r#"{"kind":"containerd","address":"/run/c.sock"}"#);
        let kind = judge(&foreign, "now", |_, _| false).unwrap();
        let advice = Stale { path: "/t".into(), kind }.advice();
        assert!(advice.contains("/run/c.sock"), "{advice}");
        assert_eq!(Stale { path: "/run/s/x".into(), kind: StaleKind::Socket }.advice(), "rm /run/s/x");
    }

    #[test]
    fn the_owner_of_events_is_in_their_name() {
        assert_eq!(owner_of_events(".0a1b-42-4711.events"), Some((42, 4711)));
        for other in ["0a1b-42-4711.events", ".0a1b-42-x.events", ".events", "one", ".0a1b.events"] {
            assert_eq!(owner_of_events(other), None, "{other}");
        }
    }
}
