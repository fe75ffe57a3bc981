//! The few fields of a bundle's `config.json` that the shim needs. Everything else in it is the OCI runtime's business.

use std::io;
use std::path::{Path, PathBuf};

use holdfast_proto::regular;
use serde::Deserialize;

/// What the shim knows about a container from its specification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecFacts {
    /// The group whose members share one shim: a pod.
    pub annotations_group: Option<String>,
    /// Whether the container has a pid namespace of its own, so that its processes end with init.
    pub private_pid_namespace: bool,
    /// Whether init has a terminal.
    pub terminal: bool,
    /// `linux.cgroupsPath`, in the form of the runtime's cgroup driver.
    pub cgroups_path: Option<String>,
    /// `root.path`, as written: relative ones are relative to the bundle.
    pub root_path: Option<PathBuf>,
    /// The annotation [`LIMIT_ANNOTATION`](crate::io::spill::policy::LIMIT_ANNOTATION), as written.
    pub spill_limit: Option<String>,
    /// The annotation [`POLICY_ANNOTATION`](crate::io::spill::policy::POLICY_ANNOTATION), as written.
    pub output_policy: Option<String>,
}

/// Why a `config.json` was refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// It is not an OCI specification.
    #[error("{path} is not an OCI specification")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

/// Reads `config.json` in `bundle`.
///
/// # Errors
/// See [`SpecError`]. An absent file is a [`SpecError::Read`]: whether that matters is for the caller to say.
pub fn read(bundle: &Path) -> Result<SpecFacts, SpecError> {
    let path = bundle.join("config.json");
    match regular::read(&path) {
        Ok(text) => parse(&text).map_err(|source| SpecError::Malformed { path, source }),
        Err(source) => Err(SpecError::Read { path, source }),
    }
}

/// The part of the specification that is decoded; the rest is skipped without being stored.
#[derive(Deserialize)]
struct Spec {
    annotations: Option<Annotations>,
    process: Option<Process>,
    root: Option<Root>,
    linux: Option<Linux>,
}

/// The annotations that mean something here. Those that name a group stand in the order in which they are looked for.
#[derive(Default, Deserialize)]
struct Annotations {
    #[serde(rename = "io.containerd.runc.v2.group")]
    group: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-id")]
    sandbox: Option<String>,
    #[serde(rename = "holdfast.output.spill-limit")]
    spill_limit: Option<String>,
    #[serde(rename = "holdfast.output.policy")]
    output_policy: Option<String>,
}

#[derive(Deserialize)]
struct Process {
    #[serde(default)]
    terminal: bool,
}

#[derive(Deserialize)]
struct Root {
    path: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Linux {
    namespaces: Option<Vec<Namespace>>,
    #[serde(rename = "cgroupsPath")]
    cgroups_path: Option<String>,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

fn parse(text: &[u8]) -> serde_json::Result<SpecFacts> {
    let spec: Spec = serde_json::from_slice(text)?;
    let (namespaces, cgroups_path) =
        spec.linux.map(|l| (l.namespaces.unwrap_or_default(), l.cgroups_path)).unwrap_or_default();
    let annotations = spec.annotations.unwrap_or_default();
    Ok(SpecFacts {
        annotations_group: non_empty(annotations.group).or(non_empty(annotations.sandbox)),
        // A namespace with a path is somebody else's; without an entry it is the shim's own.
        private_pid_namespace: namespaces.iter().any(|n| n.kind == "pid" && n.path.is_empty()),
        terminal: spec.process.is_some_and(|p| p.terminal),
        cgroups_path: non_empty(cgroups_path),
        root_path: spec.root.and_then(|r| r.path),
        spill_limit: annotations.spill_limit,
        output_policy: annotations.output_policy,
    })
}

fn non_empty(text: Option<String>) -> Option<String> {
    text.filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;
    use crate::io::spill::policy::{LIMIT_ANNOTATION, POLICY_ANNOTATION};

    #[test]
    fn the_facts_of_a_pod_container_are_found() {
        let text = br#"{
            "ociVersion": "1.1.0",
            "process": {"terminal": true, "user": {"uid": 0}, "args": ["sh"]},
            "root": {"path": "rootfs", "readonly": true},
            "annotations": {"io.kubernetes.cri.sandbox-id": "pod", "x": "y",
                "holdfast.output.spill-limit": "1m", "holdfast.output.policy": "block"},
            "linux": {"cgroupsPath": "/kubepods/c1", "namespaces": [{"type": "pid"}, {"type": "network", "path": "/n"}]}
        }"#;
        let expected = SpecFacts {
            annotations_group: Some("pod".into()),
            private_pid_namespace: true,
            terminal: true,
            cgroups_path: Some("/kubepods/c1".into()),
            root_path: Some("rootfs".into()),
            spill_limit: Some("1m".into()),
            output_policy: Some("block".into()),
        };
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn containerds_own_group_annotation_comes_first() {
        let text = br#"{"annotations": {"io.kubernetes.cri.sandbox-id": "b", "io.containerd.runc.v2.group": "a"}}"#;
        assert_eq!(parse(text).unwrap().annotations_group.as_deref(), Some("a"));
        let text = br#"{"annotations": {"io.kubernetes.cri.sandbox-id": "b", "io.containerd.runc.v2.group": ""}}"#;
        assert_eq!(parse(text).unwrap().annotations_group.as_deref(), Some("b"));
    }

    #[test]
    fn a_joined_or_absent_pid_namespace_is_not_private() {
        for namespaces in [r#"[{"type":"pid","path":"/proc/7/ns/pid"}]"#, r#"[{"type":"mount"}]"#, "[]", "null"] {
            let text = format!(r#"{{"linux":{{"namespaces":{namespaces}}}}}"#);
            assert!(!parse(text.as_bytes()).unwrap().private_pid_namespace, "{namespaces}");
        }
    }

    #[test]
    fn an_empty_specification_has_no_facts() {
        for text in ["{}", r#"{"annotations":null,"process":null,"root":null,"linux":null}"#] {
            assert_eq!(parse(text.as_bytes()).unwrap(), SpecFacts::default());
        }
    }

    #[test]
    fn a_missing_or_malformed_file_is_named() {
        let bundle = std::env::temp_dir().join(format!("holdfast-spec-{}", std::process::id()));
        fs::create_dir(&bundle).unwrap();
        let missing = read(&bundle).unwrap_err();
        fs::write(bundle.join("config.json"), "{\"linux\": 7}").unwrap();
        let malformed = read(&bundle).unwrap_err();
        fs::remove_dir_all(&bundle).unwrap();
        let file = bundle.join("config.json").display().to_string();
        assert_eq!(missing.to_string(), format!("cannot read {file}"));
        assert_eq!(malformed.to_string(), format!("{file} is not an OCI specification"));
        assert!(std::error::Error::source(&malformed).is_some());
    }

    #[test]
    fn the_annotations_about_output_have_the_names_that_are_told() {
        let text = format!(r#"{{"annotations": {{"{LIMIT_ANNOTATION}": "1m", "{POLICY_ANNOTATION}": "block"}}}}"#);
        let facts = parse(text.as_bytes()).unwrap();
        assert_eq!((facts.spill_limit.as_deref(), facts.output_policy.as_deref()), (Some("1m"), Some("block")));
    }
}
