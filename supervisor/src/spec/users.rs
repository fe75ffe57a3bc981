//! Users and groups by the container's own files, read without ever leaving its root.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::{fs, io};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use thiserror::Error;

/// More than this of a passwd or group file is not read.
const MOST: u64 = 8 << 20;

/// Whom a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The uid.
    pub uid: u32,
    /// The primary gid.
    pub gid: u32,
    /// Groups that list the user as a member.
    pub additional_gids: Vec<u32>,
    /// Its home directory, `/` if unknown.
    pub home: String,
}

/// Why there is no such user.
#[derive(Debug, Error)]
pub enum UserError {
    /// No line for it.
    #[error("the container's {file} has no {what} {name:?}")]
    Unknown {
        /// The file.
        file: &'static str,
        /// `user` or `group`.
        what: &'static str,
        /// What was asked for.
        name: String,
    },
    /// The file cannot be read.
    #[error("cannot read the container's {file} to look up {name:?}")]
    Read {
        /// The file.
        file: &'static str,
        /// What was asked for.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// Looks up `user[:group]`, each by name or number; an empty text is root. Numbers need no files.
///
/// # Errors
/// See [`UserError`].
pub fn lookup(root: &Path, given: &str) -> Result<User, UserError> {
    let passwd = read(root, "etc/passwd");
    let group = read(root, "etc/group");
    resolve(given, passwd, group)
}

type File = io::Result<String>;

fn read(root: &Path, file: &str) -> File {
    let root = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let fd = openat2(root.as_fd(), file, how)?;
    let mut bytes = Vec::new();
    fs::File::from(fd).take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn resolve(given: &str, passwd: File, group: File) -> Result<User, UserError> {
    let (user, wanted_group) = given.split_once(':').map_or((given, None), |(u, g)| (u, Some(g)));
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let lines = match (&passwd, number) {
        (Ok(text), _) => text.as_str(),
        (Err(_), Some(_)) => "",
        (Err(e), None) => {
            let source = io::Error::new(e.kind(), e.to_string());
            return Err(UserError::Read { file: "/etc/passwd", name: user.to_owned(), source });
        }
    };
    let line = lines
        .lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|f| f.len() >= 6 && (f[0] == user || number.is_some_and(|n| f[2].parse() == Ok(n))));
    let (name, uid, gid, home) = match (line, number) {
        (Some(f), _) => {
            let id = |text: &str| text.parse::<u32>().unwrap_or(u32::MAX);
            (f[0].to_owned(), number.unwrap_or_else(|| id(f[2])), id(f[3]), f[5].to_owned())
        }
        (None, Some(uid)) => (String::new(), uid, 0, "/".to_owned()),
        (None, None) => {
            return Err(UserError::Unknown { file: "/etc/passwd", what: "user", name: user.to_owned() });
        }
    };
    let home = if home.is_empty() { "/".to_owned() } else { home };
    let groups = group.as_deref().unwrap_or_default();
    match wanted_group {
        None => Ok(User { uid, gid, additional_gids: memberships(groups, &name, gid), home }),
        Some(wanted) => Ok(User { uid, gid: group_id(wanted, &group)?, additional_gids: Vec::new(), home }),
    }
}

fn memberships(groups: &str, name: &str, primary: u32) -> Vec<u32> {
    let fields = groups.lines().map(|l| l.split(':').collect::<Vec<_>>());
    let member = |f: &Vec<&str>| !name.is_empty() && f.len() >= 4 && f[3].split(',').any(|m| m == name);
    let mut gids: Vec<u32> = fields.filter(member).filter_map(|f| f[2].parse().ok()).collect();
    gids.retain(|gid| *gid != primary);
    gids.sort_unstable();
    gids.dedup();
    gids
}

fn group_id(wanted: &str, group: &File) -> Result<u32, UserError> {
    if let Ok(gid) = wanted.parse() {
        return Ok(gid);
    }
    let file = "/etc/group";
    let text = group.as_ref().map_err(|e| UserError::Read {
        file,
        name: wanted.to_owned(),
        source: io::Error::new(e.kind(), e.to_string()),
    })?;
    let found = text.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.len() >= 3 && f[0] == wanted);
    let unknown = || UserError::Unknown { file, what: "group", name: wanted.to_owned() };
    found.and_then(|f| f[2].parse().ok()).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken line\nweb:x:33:34:web:/srv:/bin/false\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:web\ndisk:x:6:root,web\nlog:x:9:web\n";

    fn find(given: &str) -> Result<User, UserError> {
        resolve(given, Ok(PASSWD.into()), Ok(GROUP.into()))
    }

    #[test]
    fn by_name_with_memberships() {
        let user = find("web").unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_str()), (33, 34, "/srv"));
        assert_eq!(user.additional_gids, [6, 9], "without the primary group");
    }

    #[test]
    fn by_number_known_or_not() {
        assert_eq!(find("33").unwrap(), find("web").unwrap());
        let stranger = find("4242").unwrap();
        assert_eq!((stranger.uid, stranger.gid, stranger.home.as_str()), (4242, 0, "/"));
    }

    #[test]
    fn a_given_group_replaces_all_others() {
        let user = find("web:disk").unwrap();
        assert_eq!((user.uid, user.gid, user.additional_gids), (33, 6, vec![]));
        assert_eq!(find("1:2").unwrap().gid, 2);
    }

    #[test]
    fn nothing_is_root_even_without_files() {
        let none = || io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(resolve("", Err(none()), Err(none())).unwrap().uid, 0);
        assert!(resolve("web", Err(none()), Err(none())).unwrap_err().to_string().contains("web"));
        assert!(find("web:nope").unwrap_err().to_string().contains("nope"));
        assert!(find("nope").unwrap_err().to_string().contains("nope"));
    }
}
