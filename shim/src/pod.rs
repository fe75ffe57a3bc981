//! What a sandbox is to hold, from what a client says of it: its specification in the bundle, else the options that CRI
//! sends (`runtime.v1.PodSandboxConfig`), else what a pod mostly wants. And the network namespace, which is given by path.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use holdfast_proto::regular;
use protobuf::CodedInputStream;
use serde::{Deserialize, Serialize};

use crate::cmd::hold::HoldRequest;
use crate::sys::namespaces::Kind;

/// What CRI sends; by its name alone, as containerd writes types without a prefix, and others with one.
const CRI_TYPE: &str = "runtime.v1.PodSandboxConfig";

/// What comes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) hold: HoldRequest,
    /// The control group of the whole pod, absolute; empty if nobody named one.
    pub(crate) cgroup: String,
}

/// Why a sandbox cannot be made as it is asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodError {
    /// The specification cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// It is none.
    #[error("{0} is not an OCI specification")]
    Malformed(PathBuf, #[source] serde_json::Error),
    /// The options cannot be decoded.
    #[error("cannot decode the sandbox's options")]
    Options(#[source] protobuf::Error),
    /// Not done here.
    #[error("a sandbox with a {0} namespace of its own is not supported")]
    Unsupported(String),
    /// It would change the whole machine.
    #[error("sysctl {0:?} is not of a namespace that this sandbox has for itself")]
    Sysctl(String),
    /// The path is relative, and the working directory is the bundle.
    #[error("the path {0} of a namespace is not absolute")]
    Relative(PathBuf),
}

/// Puts together what `bundle`, options and path say.
///
/// # Errors
/// See [`PodError`].
pub(crate) fn plan(bundle: &Path, options: Option<(&str, &[u8])>, netns: &str) -> Result<Plan, PodError> {
    let path = bundle.join("config.json");
    let spec = match regular::read(&path) {
        Ok(text) => Some(serde_json::from_slice::<Spec>(&text).map_err(|source| PodError::Malformed(path, source))?),
        // The sandboxes of CRI have none.
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(PodError::Read(path, source)),
    };
    let cri = match options {
        Some((type_url, value)) if type_url.rsplit('/').next() == Some(CRI_TYPE) => {
            Some(CriConfig::decode(value).map_err(PodError::Options)?)
        }
        // containerd's controller sends an empty one for none.
        Some(("", _)) => None,
        Some((type_url, _)) => {
            tracing::warn!(type_url, "unknown options of a sandbox, ignoring");
            None
        }
        None => None,
    };
    let cgroup = cri.as_ref().map(|cri| cri.cgroup_parent.clone()).unwrap_or_default();
    let mut plan = match (spec, cri) {
        (Some(spec), _) => spec.plan()?,
        (None, Some(cri)) => cri.plan(netns)?,
        (None, None) => Plan {
            hold: HoldRequest {
                namespaces: BTreeMap::from([(Kind::Ipc, None), (Kind::Uts, None)]),
                ..HoldRequest::default()
            },
            ..Plan::default()
        },
    };
    if plan.cgroup.is_empty() {
        plan.cgroup = cgroup;
    }
    if !netns.is_empty() {
        plan.hold.namespaces.insert(Kind::Network, Some(netns.into()));
    }
    check(&plan.hold)?;
    Ok(plan)
}

fn check(hold: &HoldRequest) -> Result<(), PodError> {
    if let Some(path) = hold.namespaces.values().flatten().find(|path| path.is_relative()) {
        return Err(PodError::Relative(path.clone()));
    }
    let has = |kind| hold.namespaces.contains_key(&kind);
    let is_own = |name: &str| match name.split(['.', '/']).collect::<Vec<_>>()[..] {
        ref parts if parts.iter().any(|part| part.is_empty()) => false,
        ["net", ..] => has(Kind::Network),
        ["kernel", name] => {
            has(Kind::Ipc) && (name == "sem" || name.starts_with("shm") || name.starts_with("msg"))
                || has(Kind::Uts) && name == "domainname"
        }
        ["fs", "mqueue", ..] => has(Kind::Ipc),
        _ => false,
    };
    match hold.sysctls.keys().find(|name| !is_own(name)) {
        Some(name) => Err(PodError::Sysctl(name.clone())),
        None => Ok(()),
    }
}

/// The part of the specification that is decoded. Its process is none of a sandbox that is no container.
#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    hostname: Option<String>,
    linux: Option<Linux>,
}

#[derive(Default, Deserialize)]
struct Linux {
    namespaces: Option<Vec<Namespace>>,
    sysctl: Option<BTreeMap<String, String>>,
    #[serde(rename = "cgroupsPath")]
    cgroups_path: Option<String>,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: PathBuf,
}

impl Spec {
    fn plan(self) -> Result<Plan, PodError> {
        let linux = self.linux.unwrap_or_default();
        let mut namespaces = BTreeMap::new();
        for Namespace { kind, path } in linux.namespaces.unwrap_or_default() {
            let kind = match kind.as_str() {
                "network" => Kind::Network,
                "ipc" => Kind::Ipc,
                "uts" => Kind::Uts,
                "pid" => Kind::Pid,
                // Each container has its own, so nobody would join it.
                "mount" | "cgroup" => continue,
                _ => return Err(PodError::Unsupported(kind)),
            };
            namespaces.insert(kind, Some(path).filter(|path| !path.as_os_str().is_empty()));
        }
        let hostname = self.hostname.unwrap_or_default();
        let sysctls = linux.sysctl.unwrap_or_default();
        let hold = HoldRequest { namespaces, hostname, sysctls, ..HoldRequest::default() };
        Ok(Plan { hold, cgroup: linux.cgroups_path.unwrap_or_default() })
    }
}

/// The fields of `PodSandboxConfig` and of what is in it that mean something here, by their numbers in CRI's api.proto.
#[derive(Debug, Default, PartialEq, Eq)]
struct CriConfig {
    hostname: String,
    cgroup_parent: String,
    sysctls: BTreeMap<String, String>,
    pid: u64,
    ipc: u64,
    /// None: the pod is in the machine's.
    users: Option<u64>,
}

/// `NamespaceMode`.
const POD: u64 = 0;
const NODE: u64 = 2;

impl CriConfig {
    fn decode(bytes: &[u8]) -> protobuf::Result<Self> {
        let mut config = Self::default();
        each_field(bytes, |number, field| {
            match (number, field) {
                (2, Field::Bytes(hostname)) => config.hostname = text(hostname),
                (8, Field::Bytes(linux)) => config.decode_linux(linux)?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(config)
    }

    fn decode_linux(&mut self, bytes: &[u8]) -> protobuf::Result<()> {
        each_field(bytes, |number, field| {
            match (number, field) {
                (1, Field::Bytes(parent)) => self.cgroup_parent = text(parent),
                (2, Field::Bytes(security)) => each_field(security, |number, field| match (number, field) {
                    (1, Field::Bytes(options)) => self.decode_namespaces(options),
                    _ => Ok(()),
                })?,
                (3, Field::Bytes(entry)) => {
                    let mut pair = [String::new(), String::new()];
                    each_field(entry, |number, field| {
                        if let (1 | 2, Field::Bytes(bytes)) = (number, field) {
                            pair[usize::from(number == 2)] = text(bytes);
                        }
                        Ok(())
                    })?;
                    let [key, value] = pair;
                    self.sysctls.insert(key, value);
                }
                _ => {}
            }
            Ok(())
        })
    }

    fn decode_namespaces(&mut self, bytes: &[u8]) -> protobuf::Result<()> {
        each_field(bytes, |number, field| {
            match (number, field) {
                (2, Field::Number(mode)) => self.pid = mode,
                (3, Field::Number(mode)) => self.ipc = mode,
                (5, Field::Bytes(users)) => {
                    let mut mode = POD;
                    each_field(users, |number, field| {
                        if let (1, Field::Number(value)) = (number, field) {
                            mode = value;
                        }
                        Ok(())
                    })?;
                    self.users = Some(mode);
                }
                _ => {}
            }
            Ok(())
        })
    }

    /// CRI gives a path for the network unless the pod is in the machine's.
    fn plan(self, netns: &str) -> Result<Plan, PodError> {
        if self.users.is_some_and(|mode| mode != NODE) {
            return Err(PodError::Unsupported("user".to_owned()));
        }
        let wanted = [(Kind::Ipc, self.ipc != NODE), (Kind::Uts, !netns.is_empty()), (Kind::Pid, self.pid == POD)];
        let namespaces = wanted.into_iter().filter(|(_, wanted)| *wanted).map(|(kind, _)| (kind, None)).collect();
        let (hostname, sysctls) = (self.hostname, self.sysctls);
        let hold = HoldRequest { namespaces, hostname, sysctls, ..HoldRequest::default() };
        Ok(Plan { hold, cgroup: self.cgroup_parent })
    }
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Goes through the fields of a message; those of other kinds are passed over.
fn each_field(bytes: &[u8], mut use_it: impl FnMut(u32, Field<'_>) -> protobuf::Result<()>) -> protobuf::Result<()> {
    const VARINT: u32 = 0;
    const DELIMITED: u32 = 2;
    let mut stream = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = stream.read_raw_tag_or_eof()? {
        let number = tag >> 3;
        match tag & 7 {
            VARINT => use_it(number, Field::Number(stream.read_uint64()?))?,
            DELIMITED => use_it(number, Field::Bytes(&stream.read_bytes()?))?,
            _ => protobuf::rt::skip_field_for_tag(tag, &mut stream)?,
        }
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    /// A field that is delimited.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn cri(modes: &[u8]) -> Vec<u8> {
        let sysctl = [field(1, b"net.core.somaxconn"), field(2, b"7")].concat();
        cri_with(modes, &field(3, &sysctl))
    }

    fn cri_with(modes: &[u8], sysctls: &[u8]) -> Vec<u8> {
        let linux = [field(1, b"/kubepods/pod1"), field(2, &field(1, modes)), sysctls.to_vec()].concat();
        // With a fixed-size field that nobody knows.
        [field(1, &field(1, b"name")), field(2, b"host"), field(8, &linux), vec![0xfd, 1, 1, 2, 3, 4]].concat()
    }

    fn kinds(plan: &Plan) -> Vec<(Kind, Option<&Path>)> {
        plan.hold.namespaces.iter().map(|(kind, path)| (*kind, path.as_deref())).collect()
    }

    const NOWHERE: &str = "/nonexistent";

    #[test]
    fn cri_says_which_namespaces_a_pod_has_for_itself() {
        let cri_plan = |modes: &[u8], netns| plan(Path::new(NOWHERE), Some((CRI_TYPE, &cri(modes))), netns).unwrap();
        let netns = Some(Path::new("/n"));
        // Pids of each container, which is what CRI calls 1.
        let each = cri_plan(&[2 << 3, 1], "/n");
        assert_eq!(kinds(&each), [(Kind::Network, netns), (Kind::Ipc, None), (Kind::Uts, None)]);
        assert_eq!((each.hold.hostname.as_str(), each.cgroup.as_str()), ("host", "/kubepods/pod1"));
        assert_eq!(each.hold.sysctls["net.core.somaxconn"], "7");
        let pod = cri_plan(&[], "/n");
        assert_eq!(kinds(&pod), [(Kind::Network, netns), (Kind::Ipc, None), (Kind::Uts, None), (Kind::Pid, None)]);
        let node = cri_with(&[1 << 3, 2, 2 << 3, 2, 3 << 3, 2], b"");
        assert_eq!(kinds(&plan(Path::new(NOWHERE), Some((CRI_TYPE, &node)), "").unwrap()), []);
    }

    #[test]
    fn what_cannot_be_held_is_refused_by_name() {
        let refused = |options: &[u8], netns| plan(Path::new(NOWHERE), Some((CRI_TYPE, options)), netns).unwrap_err();
        assert!(matches!(refused(&cri(&field(5, &[])), "/n"), PodError::Unsupported(kind) if kind == "user"));
        assert!(matches!(refused(&cri(&[]), "n"), PodError::Relative(_)));
        // In the machine's network it would be the machine's.
        assert!(matches!(refused(&cri(&[]), ""), PodError::Sysctl(name) if name == "net.core.somaxconn"));
        assert!(matches!(refused(&[0xff], "/n"), PodError::Options(_)));
        for name in ["vm.swappiness", "kernel.panic", "net..x", "net/../vm/swappiness", "", "kernel.hostname"] {
            let sysctls = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
            let namespaces = BTreeMap::from([(Kind::Network, None), (Kind::Ipc, None), (Kind::Uts, None)]);
            let hold = HoldRequest { namespaces, sysctls, ..HoldRequest::default() };
            assert!(matches!(check(&hold), Err(PodError::Sysctl(_))), "{name}");
        }
        for name in ["net.ipv4.conf.eth0/1.rp_filter", "kernel.shmmax", "fs.mqueue.msg_max", "kernel.domainname"] {
            let sysctls = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
            let namespaces = BTreeMap::from([(Kind::Network, None), (Kind::Ipc, None), (Kind::Uts, None)]);
            assert!(check(&HoldRequest { namespaces, sysctls, ..HoldRequest::default() }).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_specification_comes_first_and_a_path_of_the_network_before_it() {
        let bundle = std::env::temp_dir().join(format!("hf-pod-{}", std::process::id()));
        fs::create_dir(&bundle).unwrap();
        let said = |text: &str, netns| {
            fs::write(bundle.join("config.json"), text).unwrap();
            plan(&bundle, Some((CRI_TYPE, &cri(&[]))), netns)
        };
        let text = r#"{"hostname": "h", "linux": {"cgroupsPath": "/p", "namespaces": [
            {"type": "mount"}, {"type": "network"}, {"type": "pid"}, {"type": "uts", "path": "/u"}]}}"#;
        let inside = said(text, "");
        let given = said(text, "/n");
        let bare = said("{}", "");
        let wrong = [said("{", ""), said(r#"{"linux": {"namespaces": [{"type": "user"}]}}"#, "")];
        fs::remove_dir_all(&bundle).unwrap();
        let inside = inside.unwrap();
        assert_eq!(kinds(&inside), [(Kind::Network, None), (Kind::Uts, Some(Path::new("/u"))), (Kind::Pid, None)]);
        assert_eq!((inside.hold.hostname.as_str(), inside.cgroup.as_str()), ("h", "/p"));
        assert_eq!(given.unwrap().hold.namespaces[&Kind::Network].as_deref(), Some(Path::new("/n")));
        let bare = bare.unwrap();
        assert_eq!((kinds(&bare), bare.cgroup.as_str()), (Vec::new(), "/kubepods/pod1"));
        assert!(matches!(wrong, [Err(PodError::Malformed(..)), Err(PodError::Unsupported(_))]));
    }

    #[test]
    fn without_a_word_a_sandbox_has_what_pods_mostly_have() {
        let plan = plan(Path::new(NOWHERE), Some(("x/y.Z", b"?")), "").unwrap();
        assert_eq!((kinds(&plan), plan.cgroup.as_str()), (vec![(Kind::Ipc, None), (Kind::Uts, None)], ""));
    }
}
