//! Mount options as containerd sends them, sorted into what mount(2) takes as flags and what the filesystem reads; pure.

use nix::mount::MsFlags;

/// The options of one mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// The flags of the mount itself.
    pub flags: MsFlags,
    /// The propagation flags, which need a call of their own; empty when none were given.
    pub propagation: MsFlags,
    /// `rro`: read-only with all mounts below, which needs a call of its own.
    pub recursive_read_only: bool,
    /// `loop`: the source is an image, to be attached to a loop device.
    pub loop_device: bool,
    /// `direct-io`, where there is a loop device: past the page cache.
    pub direct_io: bool,
    /// `uidmap=` and `gidmap=`: who owns what is seen through the mount.
    pub id_map: Option<IdMap>,
    /// What is left for the filesystem, joined by commas.
    pub data: String,
}

/// How the owners on a filesystem are shown through an idmapped mount, see mount_setattr(2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// For users.
    pub uids: Vec<IdRange>,
    /// For groups.
    pub gids: Vec<IdRange>,
}

/// A range of user or group ids: `first` on the filesystem is shown as `shown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first id on the filesystem, which is that inside of the container's user namespace.
    pub first: u32,
    /// The first id on the host.
    pub shown: u32,
    /// How many, at least 1.
    pub count: u32,
}

impl std::fmt::Display for IdRange {
    /// As in `/proc/PID/uid_map`, see user_namespaces(7).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.first, self.shown, self.count)
    }
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
    let mut parsed = MountOptions {
        flags: MsFlags::empty(),
        propagation: MsFlags::empty(),
        recursive_read_only: false,
        loop_device: options.iter().any(|option| option == "loop"),
        direct_io: false,
        id_map: None,
        data: String::new(),
    };
    let (mut uids, mut gids) = (None, None);
    for option in options {
        let refused = |reason| OptionRefused { option: option.clone(), reason };
        if let Some(reason) = refusal(option) {
            return Err(refused(reason));
        }
        if let Some(ranges) = option.strip_prefix("uidmap=") {
            uids = Some((option, id_ranges(ranges).map_err(refused)?));
            continue;
        }
        if let Some(ranges) = option.strip_prefix("gidmap=") {
            gids = Some((option, id_ranges(ranges).map_err(refused)?));
            continue;
        }
        match (option.as_str(), effect(option)) {
            ("loop", _) => {}
            // A filesystem may have an option of that name.
            ("direct-io", _) if parsed.loop_device => parsed.direct_io = true,
            ("rro", _) => parsed.recursive_read_only = true,
            (_, Some(Effect::Set(flags))) => parsed.flags |= flags,
            (_, Some(Effect::Clear(flags))) => parsed.flags &= !flags,
            (_, Some(Effect::Propagate(flags))) => parsed.propagation |= flags,
            (_, None) => append(&mut parsed.data, option),
        }
    }
    parsed.id_map = match (uids, gids) {
        (Some((_, uids)), Some((_, gids))) => Some(IdMap { uids, gids }),
        (None, None) => None,
        (Some((option, _)), None) => return Err(lonely(option, "there is no gidmap, and both are needed")),
        (None, Some((option, _))) => return Err(lonely(option, "there is no uidmap, and both are needed")),
    };
    Ok(parsed)
}

fn lonely(option: &str, reason: &'static str) -> OptionRefused {
    OptionRefused { option: option.to_owned(), reason }
}

/// `FIRST:SHOWN:COUNT`, and more of these after commas.
fn id_ranges(text: &str) -> Result<Vec<IdRange>, &'static str> {
    text.split(',').map(id_range).collect()
}

fn id_range(text: &str) -> Result<IdRange, &'static str> {
    const FORM: &str = "a range of ids has the form FIRST:SHOWN:COUNT";
    let mut numbers = text.split(':').map(|number| number.parse::<u32>().map_err(|_| FORM));
    let mut next = || numbers.next().unwrap_or(Err(FORM));
    let range = IdRange { first: next()?, shown: next()?, count: next()? };
    if numbers.next().is_some() {
        return Err(FORM);
    }
    let ends = [range.first, range.shown].map(|first| first.checked_add(range.count));
    if range.count == 0 || ends.contains(&None) {
        return Err("a range of ids is empty or ends after the last id");
    }
    Ok(range)
}

fn append(data: &mut String, option: &str) {
    if !data.is_empty() && !option.is_empty() {
        data.push(',');
    }
    data.push_str(option);
}

/// Why an option cannot be passed on: the kernel or a filesystem would ignore it or misread it.
fn refusal(option: &str) -> Option<&'static str> {
    if option.starts_with("X-containerd.") {
        return Some("it belongs to the daemon's mount manager");
    }
    option.starts_with("loop=").then_some("which loop device is used cannot be chosen, only `loop` without a value")
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

/// Rewrites every lower directory in overlay data, in their order; `to` gets the plain path, and what it gives must need
/// no escapes. Data-only layers are lower directories too.
///
/// # Errors
/// Those of `to`.
pub fn map_layers<E>(data: &str, mut to: impl FnMut(&str) -> Result<String, E>) -> Result<String, E> {
    let mut options = Vec::new();
    for option in data.split(',') {
        options.push(match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                // An empty one is what stands between two colons, before a data-only layer.
                let one = |layer: &str| if layer.is_empty() { Ok(String::new()) } else { to(&unescape(layer)) };
                let layers: Result<Vec<_>, _> = split_layers(layers).into_iter().map(one).collect();
                format!("lowerdir={}", layers?.join(":"))
            }
            Some((key @ ("lowerdir+" | "datadir+"), layer)) => format!("{key}={}", to(layer)?),
            _ => option.to_owned(),
        });
    }
    Ok(options.join(","))
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
        let bad = [
            "loop=/dev/loop3",
            "X-containerd.mkdir.path=/x",
            "uidmap=0:1000:1",
            "gidmap=0:1000:1",
            "uidmap=0:1000",
            "uidmap=0:1000:1:1",
            "uidmap=0:1000:0",
            "gidmap=-1:0:1",
            "gidmap=0:4294967295:1",
            "gidmap=",
        ];
        for option in bad {
            let refused = parse(&options(&format!("ro {option}"))).unwrap_err();
            assert_eq!(refused.option, option);
        }
    }

    #[test]
    fn a_loop_device_has_sub_options_of_its_own() {
        let got = parse(&options("direct-io ro loop errors=continue")).unwrap();
        assert!(got.loop_device && got.direct_io);
        assert_eq!((got.flags, got.data.as_str()), (MsFlags::MS_RDONLY, "errors=continue"));
        let got = parse(&options("direct-io")).unwrap();
        assert_eq!((got.loop_device, got.direct_io, got.data.as_str()), (false, false, "direct-io"));
    }

    #[test]
    fn ids_are_mapped_in_any_number_of_ranges() {
        let got = parse(&options("uidmap=0:1000:10,10:70000:65526 lowerdir=/a gidmap=0:2000:65536")).unwrap();
        let map = got.id_map.unwrap();
        let lines: Vec<String> = map.uids.iter().chain(&map.gids).map(ToString::to_string).collect();
        assert_eq!(lines, ["0 1000 10", "10 70000 65526", "0 2000 65536"]);
        assert_eq!(got.data, "lowerdir=/a");
    }

    #[test]
    fn every_kind_of_lower_directory_can_be_rewritten() {
        let mut seen = Vec::new();
        let data = r"index=off,lowerdir=/a\:b:/c::/d,upperdir=/u:/v,lowerdir+=/e,datadir+=/f";
        let got = map_layers(data, |path| {
            seen.push(path.to_owned());
            Ok::<_, ()>(seen.len().to_string())
        });
        assert_eq!(seen, ["/a:b", "/c", "/d", "/e", "/f"]);
        assert_eq!(got.unwrap(), "index=off,lowerdir=1:2::3,upperdir=/u:/v,lowerdir+=4,datadir+=5");
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
