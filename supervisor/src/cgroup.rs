//! Where containers and their shims are in the tree of control groups.
//!
//! What is in a unit's control group shares the unit's fate: `systemctl kill` signals all of it, a stop waits for it,
//! and systemd takes controllers away from groups below one that it was not told to leave alone. So under systemd
//! neither shims nor containers are in holdfastd's: its unit names the group of another unit, which does nothing but
//! hold them (`systemd/holdfast-containers.service`), in [`PARENT_VARIABLE`]. There, a container has a group named by
//! its id, and all shims share one.

use std::path::{Component, Path};
use std::{fs, io};

use thiserror::Error;

/// Names the control group that containers and shims are put below, as a path from the root of the hierarchy.
pub const PARENT_VARIABLE: &str = "HOLDFAST_CGROUP_PARENT";

/// Where containers are when the variable is not set; shims then stay where holdfastd is.
const OWN_PARENT: &str = "/holdfast";

/// The group of the shims. No container's: those have ids of 64 digits.
const SHIMS: &str = "shims";

/// Where the kernel shows control groups.
const ROOT: &str = "/sys/fs/cgroup";

/// Why there is no control group.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The variable does not hold a path.
    #[error("{PARENT_VARIABLE}={0:?} does not do: it must be an absolute path without \"..\"")]
    Parent(String),
    /// The group that was named is in no hierarchy.
    #[error("the control group {0}, which {PARENT_VARIABLE} names, does not exist: is its unit active?")]
    Missing(String),
    /// The shims' group could not be made.
    #[error("cannot make the control group {0}")]
    Make(String, #[source] io::Error),
}

/// The group that the environment names.
///
/// # Errors
/// [`CgroupError::Parent`].
fn parent() -> Result<Option<String>, CgroupError> {
    match std::env::var_os(PARENT_VARIABLE) {
        None => Ok(None),
        Some(value) => checked(&value.to_string_lossy()).map(Some),
    }
}

fn checked(value: &str) -> Result<String, CgroupError> {
    let path = Path::new(value);
    let is_plain = path.is_absolute() && !path.components().any(|c| c == Component::ParentDir);
    let trimmed = value.trim_end_matches('/');
    if is_plain && !trimmed.is_empty() { Ok(trimmed.to_owned()) } else { Err(CgroupError::Parent(value.to_owned())) }
}

/// The control group of a new container, for its OCI configuration.
///
/// # Errors
/// [`CgroupError::Parent`].
pub fn of_container(id: &str) -> Result<String, CgroupError> {
    let parent = parent()?;
    Ok(format!("{}/{id}", parent.as_deref().unwrap_or(OWN_PARENT)))
}

/// The control group that shims are to be moved to, made if it is not there; `None` if they stay where holdfastd is.
///
/// # Errors
/// See [`CgroupError`].
pub fn of_shims() -> Result<Option<String>, CgroupError> {
    parent()?.map(|parent| make_shims(Path::new(ROOT), &parent)).transpose()
}

/// Makes the shims' group in each hierarchy that has the parent: the one of version 2, or all those of version 1.
fn make_shims(root: &Path, parent: &str) -> Result<String, CgroupError> {
    let shims = format!("{parent}/{SHIMS}");
    let failed = |e| CgroupError::Make(shims.clone(), e);
    let hierarchies = if root.join("cgroup.controllers").exists() {
        vec![root.to_owned()]
    } else {
        let entries = fs::read_dir(root).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed)?;
        entries.iter().map(fs::DirEntry::path).collect()
    };
    let below = |hierarchy: &Path, group: &str| hierarchy.join(group.trim_start_matches('/'));
    let mut found = false;
    for hierarchy in hierarchies.iter().filter(|h| below(h, parent).is_dir()) {
        match fs::create_dir(below(hierarchy, &shims)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            _ => found = true,
        }
    }
    if found { Ok(shims) } else { Err(CgroupError::Missing(parent.to_owned())) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A directory that is deleted at the end.
    struct Tree(std::path::PathBuf);

    impl Tree {
        fn with(name: &str, directories: &[&str]) -> Self {
            let root = std::env::temp_dir().join(format!("hf-cgroup-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&root); // of a run that was killed
            fs::create_dir_all(&root).unwrap();
            for directory in directories {
                fs::create_dir_all(root.join(directory)).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0); // a temporary directory
        }
    }

    #[test]
    fn version_2_has_one_group_of_shims_and_it_may_be_there_already() {
        let tree = Tree::with("v2", &["a.slice/b.service"]);
        fs::write(tree.0.join("cgroup.controllers"), "").unwrap();
        for _ in 0..2 {
            assert_eq!(make_shims(&tree.0, "/a.slice/b.service").unwrap(), "/a.slice/b.service/shims");
            assert!(tree.0.join("a.slice/b.service/shims").is_dir());
        }
    }

    #[test]
    fn version_1_has_one_in_each_hierarchy_that_has_the_parent() {
        let tree = Tree::with("v1", &["memory/a", "systemd/a", "pids"]);
        make_shims(&tree.0, "/a").unwrap();
        assert!(tree.0.join("memory/a/shims").is_dir() && tree.0.join("systemd/a/shims").is_dir());
        assert!(!tree.0.join("pids/a").exists());
    }

    #[test]
    fn a_parent_that_does_not_do_is_named() {
        let tree = Tree::with("none", &["memory"]);
        let error = make_shims(&tree.0, "/gone.service").unwrap_err().to_string();
        assert!(error.contains("/gone.service") && error.contains(PARENT_VARIABLE), "{error}");
        for value in ["", "/", "a.slice", "/a/../b"] {
            assert!(checked(value).unwrap_err().to_string().contains(&format!("{value:?}")));
        }
        assert_eq!(checked("/a.slice/b.service/").unwrap(), "/a.slice/b.service");
    }
}
