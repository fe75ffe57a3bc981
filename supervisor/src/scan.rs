//! Reads everything that earlier supervisors and shims left on disk. What cannot be read is reported, never skipped in
//! silence and never deleted.

use holdfast_proto::regular;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use holdfast_proto::record::{self, ProcessRecord, ProcessState, ReadError, Record};

use crate::chain;
use crate::container::{Container, OUT_OF_MEMORY, Outcome};
use crate::endings::Ending;
use crate::names::check_identifier;
use crate::paths::{NAMESPACE, Paths};
use crate::programs::in_path;
use crate::report::Class;
use crate::store::{self, StoreError};

/// What lies on disk.
#[derive(Debug, Default)]
pub struct Findings {
    /// The supervisor's own containers by id.
    pub own: BTreeMap<String, Found>,
    /// Other managers' containers.
    pub foreign: Vec<Record>,
    /// What cannot be used, and why.
    pub unusable: Vec<Unusable>,
    /// What earlier supervisors remembered of what has ended. Not looked for here: whoever goes on with it fills it in.
    pub endings: Vec<Ending>,
}

/// One container of the supervisor's.
#[derive(Debug)]
pub struct Found {
    /// What was asked.
    pub container: Container,
    /// Its shim, if traces of one are left from this boot.
    pub shim: Option<ShimTraces>,
    /// Whether something of an earlier boot lies in the run directory.
    pub left_over: bool,
    /// What is to be minded.
    pub caution: Option<Caution>,
}

/// Why a container of ours cannot be treated as any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caution {
    /// Its record is a newer holdfast's.
    Newer(String),
    /// Its record cannot be read.
    Unreadable(String),
    /// The OCI runtime that made it is not there any more.
    RuntimeGone(String),
}

impl Caution {
    /// One sentence for people.
    pub fn reason(&self) -> &str {
        match self {
            Self::Newer(reason) | Self::Unreadable(reason) | Self::RuntimeGone(reason) => reason,
        }
    }
}

/// Where to look for a shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShimTraces {
    /// Its socket, with `unix://`.
    pub address: String,
    /// Pid and start time, from the record; `None` if only the bundle's `address` file is left.
    pub process: Option<(u32, u64)>,
    /// Pid and start time of the container's first process, from the record.
    pub init: Option<(u32, u64)>,
    /// Execs in the record.
    pub execs: Vec<ExecTrace>,
}

/// What a record says of an exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecTrace {
    /// Its id.
    pub id: String,
    /// 0 if it has none.
    pub pid: u32,
    /// Where it was when the record was read.
    pub state: ExecTraceState,
}

/// Where an exec is in its life, as its shim's record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecTraceState {
    /// Made, not started.
    Created,
    /// Started.
    Running,
    /// Ended like this.
    Ended(Outcome),
}

impl ExecTrace {
    /// The execs of a record.
    pub fn all(record: &Record) -> Vec<Self> {
        record.processes.iter().filter(|process| !process.exec_id.is_empty()).map(Self::of).collect()
    }

    fn of(process: &ProcessRecord) -> Self {
        let state = match process.exit {
            Some(exit) => ExecTraceState::Ended(Outcome {
                status: exit.status,
                at_unix_ns: i64::try_from(exit.at_unix_ns).unwrap_or(i64::MAX),
                reason: if process.oom_killed { OUT_OF_MEMORY.to_owned() } else { String::new() },
            }),
            None if process.state == ProcessState::Created => ExecTraceState::Created,
            None => ExecTraceState::Running,
        };
        Self { id: process.exec_id.clone(), pid: process.pid, state }
    }
}

/// Something that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub struct Unusable {
    /// containerd's namespace, as the directory says.
    pub namespace: String,
    /// The directory's name.
    pub id: String,
    /// [`Class::Unreadable`] or [`Class::Incompatible`].
    pub class: Class,
    /// Why.
    pub reason: String,
}

/// Reads the state root and the run root.
pub fn scan(paths: &Paths, boot_id: &str) -> Findings {
    let mut findings = Findings::default();
    scan_containers(paths, &mut findings);
    let mut records = BTreeMap::new();
    scan_tasks(&paths.run.join("tasks"), boot_id, &mut findings, &mut records);
    for (id, found) in &mut findings.own {
        let of_this_boot = found.container.state.boot_id == boot_id;
        match records.remove(id) {
            Some(Ok(record)) => {
                found.caution = runtime_gone(&record);
                found.shim = Some(traces_of(&record));
            }
            Some(Err(problem)) => {
                found.caution = Some(match problem.class {
                    Class::Incompatible => Caution::Newer(problem.reason),
                    _ => Caution::Unreadable(problem.reason),
                });
                found.shim = address_file(&paths.bundle(id));
            }
            // The record may be missing when /run was full; the socket's address is enough to ask.
            None if of_this_boot => found.shim = address_file(&paths.bundle(id)),
            None => found.left_over = paths.bundle(id).exists() || paths.record(id).exists(),
        }
    }
    for (id, record) in records {
        let unusable = record.map_or_else(
            |problem| problem,
            |_| {
                let reason = format!(
                    "the record {} has no configuration in {}; kept, with whatever runs",
                    paths.record(&id).display(),
                    paths.containers().display()
                );
                Unusable { namespace: NAMESPACE.into(), id: id.clone(), class: Class::Unreadable, reason }
            },
        );
        // Its configuration may be of no use either, which is said already.
        if !findings.unusable.iter().any(|one| one.id == unusable.id && one.namespace == unusable.namespace) {
            findings.unusable.push(unusable);
        }
    }
    findings
}

/// The records of the supervisor's own containers, or why they are of no use.
type OwnRecords = BTreeMap<String, Result<Record, Unusable>>;

fn scan_containers(paths: &Paths, findings: &mut Findings) {
    for id in directories(&paths.containers(), NAMESPACE, &mut findings.unusable) {
        let unusable = |class, reason| Unusable { namespace: NAMESPACE.into(), id: id.clone(), class, reason };
        if let Err(e) = check_identifier("the directory's name", &id) {
            findings.unusable.push(unusable(Class::Unreadable, e.to_string()));
            continue;
        }
        match store::load(paths, &id) {
            Ok(container) => {
                findings.own.insert(id, Found { container, shim: None, left_over: false, caution: None });
            }
            Err(e @ StoreError::Newer { .. }) => findings.unusable.push(unusable(Class::Incompatible, chain(&e))),
            Err(e) => findings.unusable.push(unusable(Class::Unreadable, chain(&e))),
        }
    }
}

/// Other managers' containers by their records, as far as these are of this boot and can be read; nothing else is looked at.
/// Sandboxes of pods are among them.
pub fn foreign(paths: &Paths, boot_id: &str) -> Vec<Record> {
    let others = tasks(&paths.run.join("tasks"), &mut Vec::new()).into_iter().filter(|task| !task.is_ours);
    let records = others.filter_map(|task| Record::read(&task.record).ok());
    records.filter(|record| record.boot_id == boot_id).collect()
}

/// A place for a record.
struct Task {
    namespace: String,
    id: String,
    is_ours: bool,
    record: PathBuf,
}

/// All places for records, in order.
fn tasks(tasks: &Path, unusable: &mut Vec<Unusable>) -> Vec<Task> {
    let mut all = Vec::new();
    for instance in directories(tasks, "", unusable) {
        let of_instance = tasks.join(&instance);
        for namespace in directories(&of_instance, "", unusable) {
            let of_namespace = of_instance.join(&namespace);
            let is_ours = instance == record::SUPERVISOR_INSTANCE && namespace == NAMESPACE;
            for id in directories(&of_namespace, &namespace, unusable) {
                let record = of_namespace.join(&id).join(record::FILE_NAME);
                all.push(Task { namespace: namespace.clone(), id, is_ours, record });
            }
        }
    }
    all
}

fn scan_tasks(root: &Path, boot_id: &str, findings: &mut Findings, own: &mut OwnRecords) {
    for Task { namespace, id, is_ours, record } in tasks(root, &mut findings.unusable) {
        match Record::read(&record) {
            // Written before the last boot: nothing in it is true any more.
            Ok(record) if record.boot_id != boot_id => {}
            Ok(record) if is_ours => {
                own.insert(id, Ok(record));
            }
            Ok(record) => findings.foreign.push(record),
            // A directory is made before its first record.
            Err(ReadError::Io(_, e)) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                let class = match e {
                    ReadError::Newer { .. } => Class::Incompatible,
                    _ => Class::Unreadable,
                };
                let unusable = Unusable { namespace, id: id.clone(), class, reason: chain(&e) };
                if is_ours {
                    own.insert(id, Err(unusable));
                } else {
                    findings.unusable.push(unusable);
                }
            }
        }
    }
}

/// Names of the sub-directories; a root that does not exist has none.
fn directories(path: &Path, namespace: &str, unusable: &mut Vec<Unusable>) -> Vec<String> {
    let mut report = |path: &Path, e: io::Error| {
        if e.kind() != io::ErrorKind::NotFound {
            unusable.push(Unusable {
                namespace: namespace.to_owned(),
                id: path.display().to_string(),
                class: Class::Unreadable,
                reason: format!("cannot list {}: {e}", path.display()),
            });
        }
    };
    let mut names = Vec::new();
    match fs::read_dir(path) {
        Err(e) => report(path, e),
        Ok(entries) => {
            for entry in entries {
                match entry {
                    Err(e) => report(path, e),
                    Ok(entry) if entry.file_type().is_ok_and(|t| t.is_dir()) => {
                        names.push(entry.file_name().to_string_lossy().into_owned());
                    }
                    Ok(_) => {}
                }
            }
        }
    }
    names.sort_unstable();
    names
}

/// Where the shim of this record is to be looked for.
pub fn traces_of(record: &Record) -> ShimTraces {
    ShimTraces {
        address: record.shim.address.clone(),
        process: Some((record.shim.pid, record.shim.start_time)),
        init: record.init().filter(|p| p.pid != 0 && p.exit.is_none()).map(|p| (p.pid, p.start_time)),
        execs: ExecTrace::all(record),
    }
}

/// Whether the OCI runtime that made a container can be found, which every later call to the container needs.
fn runtime_gone(record: &Record) -> Option<Caution> {
    let binary = Path::new(&record.runtime.binary);
    let found = if binary.is_absolute() { binary.is_file() } else { in_path(binary).is_some() };
    let reason = || format!("its OCI runtime {} is not there any more", binary.display());
    (!found && !record.runtime.binary.is_empty()).then(|| Caution::RuntimeGone(reason()))
}

/// The traces that a bundle has: the address that its shim wrote, and the pid that the OCI runtime wrote.
fn address_file(bundle: &Path) -> Option<ShimTraces> {
    let address = regular::read_to_string(&bundle.join("address")).ok()?.trim().to_owned();
    let valid = address.strip_prefix("unix://").is_some_and(|p| PathBuf::from(p).is_absolute());
    valid.then(|| ShimTraces { address, process: None, init: None, execs: Vec::new() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::container::{Config, State};
    use holdfast_proto::record::{Manager, RuntimeRef, ShimIdentity};

    struct Roots(PathBuf, Paths);

    impl Roots {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("holdfast-scan-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            Self(root.clone(), Paths { run: root.join("run"), state: root.join("state") })
        }
        fn container(&self, id: &str) {
            let container = Container {
                schema: 1,
                id: id.into(),
                name: id.into(),
                created_at_unix_ns: 1,
                config: Config::default(),
                state: State { boot_id: "boot".into(), ..State::default() },
            };
            store::create(&self.1, &container, "{}").unwrap();
        }
        fn file(&self, path: PathBuf, content: &[u8]) {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        fn record(&self, instance: &str, id: &str, boot_id: &str) {
            let record = Record {
                schema: record::SCHEMA,
                boot_id: boot_id.into(),
                shim: ShimIdentity { pid: 7, start_time: 8, version: "0".into(), address: "unix:///s/1".into() },
                manager: Manager::Holdfastd,
                namespace: NAMESPACE.into(),
                id: id.into(),
                group: id.into(),
                bundle: "/b".into(),
                runtime: RuntimeRef::default(),
                sandbox: false,
                times_out_of_memory: 0,
                processes: vec![ProcessRecord {
                    exec_id: String::new(),
                    pid: 9,
                    start_time: 10,
                    state: ProcessState::Running,
                    exit: None,
                    exit_told: false,
                    oom_killed: false,
                    terminal: false,
                    stdin: String::new(),
                    stdout: String::new(),
                    stderr: String::new(),
                    logger: None,
                }],
            };
            let path = record::container_dir(&self.1.run, instance, NAMESPACE, id).join(record::FILE_NAME);
            self.file(path, &serde_json::to_vec(&record).unwrap());
        }
    }

    impl Drop for Roots {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn nothing_at_all_is_no_error() {
        let roots = Roots::new("empty");
        let found = scan(&roots.1, "boot");
        assert!(found.own.is_empty() && found.foreign.is_empty() && found.unusable.is_empty());
    }

    #[test]
    fn a_container_is_joined_with_its_record() {
        let roots = Roots::new("join");
        roots.container("one");
        roots.record("holdfastd", "one", "boot");
        let found = scan(&roots.1, "boot");
        let shim = found.own["one"].shim.clone().unwrap();
        assert_eq!((shim.process, shim.init), (Some((7, 8)), Some((9, 10))));
        assert!(found.unusable.is_empty(), "{:?}", found.unusable);
    }

    #[test]
    fn a_record_that_is_of_no_use_is_told_with_its_container_and_once() {
        let roots = Roots::new("caution");
        for id in ["newer", "garbage"] {
            roots.container(id);
            roots.file(roots.1.bundle(id).join("address"), b"unix:///run/s/abc");
        }
        roots.file(roots.1.record("newer"), br#"{"schema":99}"#);
        roots.file(roots.1.record("garbage"), b"{");
        let found = scan(&roots.1, "boot");
        assert!(matches!(&found.own["newer"].caution, Some(Caution::Newer(why)) if why.contains("99")));
        assert!(matches!(&found.own["garbage"].caution, Some(Caution::Unreadable(why)) if why.contains("record.json")));
        assert!(found.own.values().all(|one| one.shim.is_some()), "their shims can be asked");
        assert!(found.unusable.is_empty(), "{:?}", found.unusable);
    }

    #[test]
    fn an_oci_runtime_is_looked_for_where_the_shim_looks() {
        let record = |binary: &str| {
            let roots = Roots::new("runtime");
            roots.record("holdfastd", "one", "boot");
            let mut record = Record::read(&roots.1.record("one")).unwrap();
            record.runtime.binary = binary.into();
            record
        };
        for there in ["/bin/sh", "sh", ""] {
            assert_eq!(runtime_gone(&record(there)), None, "{there:?}");
        }
        for gone in ["/no/such/runtime", "no-such-runtime"] {
            assert!(matches!(runtime_gone(&record(gone)), Some(Caution::RuntimeGone(why)) if why.contains(gone)));
        }
    }

    #[test]
    fn a_record_of_another_boot_is_void() {
        let roots = Roots::new("boot");
        roots.container("one");
        roots.record("holdfastd", "one", "earlier");
        assert!(!scan(&roots.1, "boot").own["one"].left_over, "nor a trace, if its container is of this boot");
        let mut container = store::load(&roots.1, "one").unwrap();
        container.state.boot_id = "earlier".into();
        store::save(&roots.1, &container).unwrap();
        assert!(scan(&roots.1, "boot").own["one"].left_over);
        roots.record("0123456789abcdef", "two", "earlier");
        let found = scan(&roots.1, "boot");
        assert_eq!(found.own["one"].shim, None);
        assert!(found.foreign.is_empty());
    }

    #[test]
    fn a_missing_record_is_replaced_by_the_bundles_address() {
        let roots = Roots::new("address");
        roots.container("one");
        roots.file(roots.1.bundle("one").join("address"), b"unix:///run/s/abc");
        assert_eq!(scan(&roots.1, "boot").own["one"].shim.as_ref().unwrap().address, "unix:///run/s/abc");
        roots.file(roots.1.bundle("one").join("address"), b"\xff\xfe");
        assert_eq!(scan(&roots.1, "boot").own["one"].shim, None);
    }

    #[test]
    fn other_managers_are_foreign_and_a_record_without_configuration_is_kept() {
        let roots = Roots::new("foreign");
        roots.record("0123456789abcdef", "theirs", "boot");
        roots.record("holdfastd", "orphan", "boot");
        let found = scan(&roots.1, "boot");
        assert_eq!(found.foreign.len(), 1);
        assert_eq!(found.foreign, foreign(&roots.1, "boot"));
        assert_eq!(foreign(&roots.1, "later"), []);
        let sandbox = Record { sandbox: true, ..found.foreign[0].clone() };
        let path = record::container_dir(&roots.1.run, "1f2e", NAMESPACE, "pod").join(record::FILE_NAME);
        roots.file(path, &serde_json::to_vec(&sandbox).unwrap());
        assert_eq!(foreign(&roots.1, "boot").last(), Some(&sandbox));
        assert_eq!(scan(&roots.1, "boot").foreign.len(), 2, "and is not forgotten");
        assert_eq!(found.unusable[0].id, "orphan");
        assert!(roots.1.record("orphan").exists());
    }

    #[test]
    fn garbage_is_reported_by_file_and_reason_and_never_deleted() {
        let roots = Roots::new("garbage");
        for (id, content) in [
            ("broken", &b"{"[..]),
            ("newer", &br#"{"schema":99}"#[..]),
            ("binary", &b"\x00\xff"[..]),
            ("other", &br#"{"schema":1,"id":"x","name":"x","created_at_unix_ns":1,"config":{}}"#[..]),
        ] {
            roots.file(roots.1.container(id).join("config.json"), content);
        }
        fs::create_dir_all(roots.1.container("empty")).unwrap();
        fs::create_dir_all(roots.1.container("..-bad")).unwrap();
        roots.file(roots.1.run.join("tasks/holdfastd/default/mad/record.json"), b"[]");
        roots.file(roots.1.run.join("tasks/holdfastd/default/new/record.json"), br#"{"schema":2}"#);
        let found = scan(&roots.1, "boot");
        let class = |id: &str| found.unusable.iter().find(|u| u.id == id).map(|u| u.class);
        for id in ["broken", "binary", "other", "empty", "..-bad", "mad"] {
            assert_eq!(class(id), Some(Class::Unreadable), "{id}: {:?}", found.unusable);
        }
        assert_eq!(class("newer"), Some(Class::Incompatible));
        assert_eq!(class("new"), Some(Class::Incompatible));
        assert!(found.unusable.iter().all(|u| !u.reason.is_empty()));
        assert!(roots.1.container("broken").join("config.json").exists());
        assert!(found.own.is_empty());
    }
}
