//! Mount options as containerd sends them, sorted into what mount(2) takes as flags and what the filesystem reads; pure.

use nix::mount::MsFlags;

/// The options of one mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// The flags of the mount itself.
    pub flags: MsFlags,
    /// The propagation flags, which need a call of their own; empty when none were given.
    pub propagation: MsFlags,
    /// What is left for the filesystem, joined by commas.
    pub data: String,
}

/// An option that is not performed, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mount option {option:?} is not supported: {reason}")]
pub struct OptionRefused {
    /// As given.
    pub option: String,
    /// Why not.
    pub reason: &'static str,
}

/// What an option does to the flags.
enum Effect {
    Set(MsFlags),
    Clear(MsFlags),
    Propagate(MsFlags),
}

/// Sorts `options`. Later ones override earlier ones, as in mount(8).
///
/// # Errors
/// The first option that would have to be performed by the shim and is not.
pub fn parse(options: &[String]) -> Result<MountOptions, OptionRefused> {
    let mut parsed = MountOptions { flags: MsFlags::empty(), propagation: MsFlags::empty(), data: String::new() };
    for option in options {
        if let Some(reason) = refusal(option) {
            return Err(OptionRefused { option: option.clone(), reason });
        }
        match effect(option) {
            Some(Effect::Set(flags)) => parsed.flags |= flags,
            Some(Effect::Clear(flags)) => parsed.flags &= !flags,
            Some(Effect::Propagate(flags)) => parsed.propagation |= flags,
            None => append(&mut parsed.data, option),
        }
    }
    Ok(parsed)
}

fn append(data: &mut String, option: &str) {
    if !data.is_empty() && !option.is_empty() {
        data.push(',');
    }
    data.push_str(option);
}

/// Why an option cannot be passed on: the kernel or a filesystem would ignore it or misread it.
fn refusal(option: &str) -> Option<&'static str> {
    let name = option.split('=').next().unwrap_or(option);
    match name {
        "loop" => Some("loop devices are not set up here"),
        "uidmap" | "gidmap" => Some("idmapped mounts are not set up here"),
        _ if name.starts_with("X-containerd.") => Some("it belongs to the daemon's mount manager"),
        _ => None,
    }
}

fn effect(option: &str) -> Option<Effect> {
    use Effect::{Clear, Propagate, Set};
    Some(match option {
        "defaults" => Set(MsFlags::empty()),
        "bind" => Set(MsFlags::MS_BIND),
        "rbind" => Set(MsFlags::MS_BIND | MsFlags::MS_REC),
        "remount" => Set(MsFlags::MS_REMOUNT),
        "ro" => Set(MsFlags::MS_RDONLY),
        "rw" => Clear(MsFlags::MS_RDONLY),
        "nosuid" => Set(MsFlags::MS_NOSUID),
        "suid" => Clear(MsFlags::MS_NOSUID),
        "nodev" => Set(MsFlags::MS_NODEV),
        "dev" => Clear(MsFlags::MS_NODEV),
        "noexec" => Set(MsFlags::MS_NOEXEC),
        "exec" => Clear(MsFlags::MS_NOEXEC),
        "sync" => Set(MsFlags::MS_SYNCHRONOUS),
        "async" => Clear(MsFlags::MS_SYNCHRONOUS),
        "dirsync" => Set(MsFlags::MS_DIRSYNC),
        "mand" => Set(MsFlags::MS_MANDLOCK),
        "nomand" => Clear(MsFlags::MS_MANDLOCK),
        "noatime" => Set(MsFlags::MS_NOATIME),
        "atime" => Clear(MsFlags::MS_NOATIME),
        "nodiratime" => Set(MsFlags::MS_NODIRATIME),
        "diratime" => Clear(MsFlags::MS_NODIRATIME),
        "relatime" => Set(MsFlags::MS_RELATIME),
        "norelatime" => Clear(MsFlags::MS_RELATIME),
        "strictatime" => Set(MsFlags::MS_STRICTATIME),
        "nostrictatime" => Clear(MsFlags::MS_STRICTATIME),
        "lazytime" => Set(MsFlags::MS_LAZYTIME),
        "nolazytime" => Clear(MsFlags::MS_LAZYTIME),
        "private" => Propagate(MsFlags::MS_PRIVATE),
        "rprivate" => Propagate(MsFlags::MS_PRIVATE | MsFlags::MS_REC),
        "shared" => Propagate(MsFlags::MS_SHARED),
        "rshared" => Propagate(MsFlags::MS_SHARED | MsFlags::MS_REC),
        "slave" => Propagate(MsFlags::MS_SLAVE),
        "rslave" => Propagate(MsFlags::MS_SLAVE | MsFlags::MS_REC),
        "unbindable" => Propagate(MsFlags::MS_UNBINDABLE),
        "runbindable" => Propagate(MsFlags::MS_UNBINDABLE | MsFlags::MS_REC),
        _ => return None,
    })
}

/// Overlay data rewritten with lower directories relative to their common parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactOverlay {
    /// The directory to be in during the mount.
    pub directory: String,
    /// The data to mount with.
    pub data: String,
}

/// Shortens overlay data that is too long for mount(2). `None` when the lower directories have no common parent below
/// the root, or are in a form that is not rewritten (data-only layers).
pub fn compact_overlay(data: &str) -> Option<CompactOverlay> {
    const KEY: &str = "lowerdir=";
    let at = data.split(',').position(|o| o.starts_with(KEY))?;
    let lower = data.split(',').nth(at)?.strip_prefix(KEY)?;
    let layers = split_layers(lower);
    if layers.len() < 2 || layers.iter().any(|l| !l.starts_with('/')) {
        return None;
    }
    let parent = common_parent(&layers)?;
    let relative: Vec<&str> = layers.iter().map(|l| &l[parent.len() + 1..]).collect();
    let lower = format!("{KEY}{}", relative.join(":"));
    let options = data.split(',').enumerate().map(|(i, option)| if i == at { lower.as_str() } else { option });
    Some(CompactOverlay { directory: unescape(parent), data: options.collect::<Vec<_>>().join(",") })
}

/// Splits at colons, but not at `\:`, which stands for a colon in a directory's name.
fn split_layers(lower: &str) -> Vec<&str> {
    let mut layers = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in lower.char_indices() {
        match c {
            ':' if !escaped => {
                layers.push(&lower[start..at]);
                start = at + 1;
                escaped = false;
            }
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    layers.push(&lower[start..]);
    layers
}

/// The longest directory, other than the root, in which all of `layers` are.
fn common_parent<'a>(layers: &[&'a str]) -> Option<&'a str> {
    let first = *layers.first()?;
    let is_parent =
        |dir: &str| layers.iter().all(|l| l.strip_prefix(dir).is_some_and(|r| r.len() > 1 && r.starts_with('/')));
    let mut ends: Vec<usize> = first.match_indices('/').map(|(at, _)| at).filter(|&at| at > 0).collect();
    ends.reverse();
    ends.into_iter().map(|end| &first[..end]).find(|dir| is_parent(dir))
}

fn unescape(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        plain.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    plain
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn options(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn flags_propagation_and_data_are_told_apart() {
        let got = parse(&options("rbind ro nosuid rslave lowerdir=/a:/b defaults upperdir=/c")).unwrap();
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
        assert_eq!(got.flags, flags);
        assert_eq!(got.propagation, MsFlags::MS_SLAVE | MsFlags::MS_REC);
        assert_eq!(got.data, "lowerdir=/a:/b,upperdir=/c");
    }

    #[test]
    fn the_last_of_two_contrary_options_wins() {
        let got = parse(&options("ro nodev rw dev noexec")).unwrap();
        assert_eq!(got.flags, MsFlags::MS_NOEXEC);
        assert_eq!(got.data, "");
    }

    #[test]
    fn what_is_not_performed_is_refused_by_name() {
        for option in ["loop", "loop=/dev/loop3", "uidmap=0:1000:1", "gidmap=0:1:1", "X-containerd.mkdir.path=/x"] {
            let refused = parse(&options(&format!("ro {option}"))).unwrap_err();
            assert_eq!(refused.option, option);
        }
    }

    #[test]
    fn lower_directories_become_relative_to_their_common_parent() {
        let data = "index=off,lowerdir=/v/s/12/fs:/v/s/1/fs:/v/s/10/fs,upperdir=/v/s/13/fs,workdir=/v/s/13/work";
        let got = compact_overlay(data).unwrap();
        assert_eq!(got.directory, "/v/s");
        assert_eq!(got.data, "index=off,lowerdir=12/fs:1/fs:10/fs,upperdir=/v/s/13/fs,workdir=/v/s/13/work");
    }

    #[test]
    fn an_escaped_colon_belongs_to_a_name() {
        let got = compact_overlay(r"lowerdir=/v/a\:b/1:/v/a\:b/2\:3").unwrap();
        assert_eq!(got, CompactOverlay { directory: "/v/a:b".into(), data: r"lowerdir=1:2\:3".into() });
    }

    #[test]
    fn overlay_data_without_a_common_parent_stays_as_it_is() {
        for data in
            ["lowerdir=/a:/b", "lowerdir=/a/b", "lowerdir=/a/b:c", "lowerdir=/a/b::/a/c", "ro", "lowerdir=/a/b:/a"]
        {
            assert_eq!(compact_overlay(data), None, "{data}");
        }
    }
}
