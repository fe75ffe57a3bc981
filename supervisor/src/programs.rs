//! Programs by their names.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

/// The program that a name means: the first in `PATH` that may be executed.
pub fn in_path(name: impl AsRef<Path>) -> Option<PathBuf> {
    first_in(&env::var_os("PATH").unwrap_or_default(), name.as_ref())
}

fn first_in(path: &OsStr, name: &Path) -> Option<PathBuf> {
    // A relative directory means another place to each process.
    env::split_paths(path).map(|dir| dir.join(name)).find(|file| file.is_absolute() && is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && access(file, AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_first_that_may_be_executed_counts() {
        let root = env::temp_dir().join(format!("holdfast-programs-{}", std::process::id()));
        for (place, mode) in [("document/tool", 0o644), ("program/tool", 0o755), ("later/tool", 0o755)] {
            let file = root.join(place);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir_all(root.join("directory/tool")).unwrap();
        let path = env::join_paths(["directory", "document", "program", "later"].map(|dir| root.join(dir))).unwrap();
        assert_eq!(first_in(&path, Path::new("tool")), Some(root.join("program/tool")));
        assert_eq!(first_in(&path, Path::new("other")), None);
        assert_eq!(first_in(OsStr::new("."), Path::new("Cargo.toml")), None);
        fs::remove_dir_all(root).unwrap();
    }
}
