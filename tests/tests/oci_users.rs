//! Ring 3: `holdfast-oci` and who owns what: user namespaces, and mounts that show other owners.
#![allow(clippy::unwrap_used)]

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use holdfast_tests::oci_bundle::Bundle;
use serde_json::{Value, json};

/// Who root of a user namespace is outside.
const ROOT: u32 = 100_000;

fn bundle() -> Option<Bundle> {
    Bundle::new("holdfast-oci")
}

fn map(inside: u32, outside: u32, size: u32) -> Value {
    json!([{ "containerID": inside, "hostID": outside, "size": size }])
}

fn add(list: &mut Value, value: Value) {
    list.as_array_mut().unwrap().push(value);
}

/// A specification with a user namespace.
fn apart(c: &Bundle) -> Value {
    let mut spec = c.spec(&["sleep", "1000"]);
    add(&mut spec["linux"]["namespaces"], json!({ "type": "user" }));
    spec["linux"]["uidMappings"] = map(0, ROOT, 65_536);
    spec["linux"]["gidMappings"] = map(0, ROOT, 65_536);
    spec
}

/// Adds a bind mount of `source` with `more` in it. Root of a user namespace could not make the place for it.
fn bind(c: &Bundle, spec: &mut Value, source: &Path, destination: &str, more: &Value) {
    let place = c.rootfs().join(&destination[1..]);
    if source.is_dir() {
        fs::create_dir(place).unwrap()
    } else {
        fs::write(place, "").unwrap()
    }
    let mut mount = json!({ "destination": destination, "type": "bind", "source": source, "options": ["bind"] });
    mount.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    add(&mut spec["mounts"], mount);
}

/// A directory of the bundle with two files: `root` is root's, `user` is 5's, of the group 6.
fn volume(c: &Bundle) -> PathBuf {
    let dir = c.dir().join("volume");
    fs::create_dir(&dir).unwrap();
    for (name, uid, gid) in [("root", 0, 0), ("user", 5, 6)] {
        fs::write(dir.join(name), name).unwrap();
        chown(dir.join(name), Some(uid), Some(gid)).unwrap();
    }
    dir
}

/// A directory of the bundle that only root may enter.
fn secret(c: &Bundle) -> PathBuf {
    let dir = c.dir().join("secret");
    DirBuilder::new().mode(0o700).create(&dir).unwrap();
    dir
}

/// The owners of files, as the container sees them.
fn owners(c: &Bundle, files: &[&str]) -> Vec<String> {
    let seen = c.ok(&[&["exec", c.id(), "stat", "-c", "%u:%g"][..], files].concat());
    seen.lines().map(str::to_owned).collect()
}

/// `create` in a mount namespace that the script has changed, with the bundle as its working directory.
fn create_after(c: &Bundle, script: &str) -> Result<(), String> {
    let plain = c.command();
    let errors = c.dir().join("errors");
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec", &format!("{script}\nexec \"$@\""), "sh"])
        .arg(plain.get_program())
        .args(plain.get_args())
        .args(["create", "--bundle", ".", c.id()])
        .current_dir(c.dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&errors).unwrap())
        .status();
    if status.unwrap().success() { Ok(()) } else { Err(fs::read_to_string(errors).unwrap()) }
}

#[test]
fn a_user_namespace_needs_no_way_to_the_sources_of_its_mounts() {
    let Some(c) = bundle() else { return };
    let dir = secret(&c);
    fs::create_dir(dir.join("volume")).unwrap();
    fs::write(dir.join("volume/inside"), "in a directory").unwrap();
    fs::write(dir.join("file"), "a file").unwrap();
    let mut spec = apart(&c);
    bind(&c, &mut spec, &dir.join("volume"), "/volume", &json!({}));
    bind(&c, &mut spec, Path::new("secret/file"), "/file", &json!({ "options": ["bind", "ro"] }));
    c.write(&spec);
    c.start();
    assert_eq!(c.ok(&["exec", c.id(), "cat", "/volume/inside", "/file"]), "in a directorya file");
    let table = c.ok(&["exec", c.id(), "cat", "/proc/self/mountinfo"]);
    let read_only = |place: &str| {
        let line = table.lines().find(|line| line.split(' ').nth(4) == Some(place)).unwrap();
        line.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro")
    };
    assert!(read_only("/file") && !read_only("/volume"), "{table}");
    // What the sources were put into is nowhere to be seen.
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains("mode=711"));
    assert!(!table.contains("mode=711"), "{table}");
}

#[test]
fn a_user_namespace_needs_no_way_to_the_namespaces_that_are_joined() {
    let (Some(first), Some(c)) = (bundle(), bundle()) else { return };
    first.write(&apart(&first));
    first.start();
    let dir = secret(&c);
    let mut spec = c.spec(&["sleep", "1000"]);
    let kinds = ["user", "ipc", "uts"];
    spec["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "pid" }]);
    for kind in kinds {
        symlink(format!("/proc/{}/ns/{kind}", first.pid()), dir.join(kind)).unwrap();
        add(&mut spec["linux"]["namespaces"], json!({ "type": kind, "path": dir.join(kind) }));
    }
    // The map of the one that is joined is the container's.
    bind(&c, &mut spec, &volume(&c), "/volume", &json!({ "options": ["bind", "idmap"] }));
    c.write(&spec);
    c.start();
    for kind in kinds {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(of(c.pid()), of(first.pid()));
    }
    assert_eq!(owners(&c, &["/volume/root", "/volume/user"]), ["0:0", "5:6"]);
}

#[test]
fn without_a_place_for_the_sources_a_container_in_a_user_namespace_is_refused() {
    let Some(c) = bundle() else { return };
    let dir = secret(&c);
    let mut spec = apart(&c);
    bind(&c, &mut spec, &dir, "/volume", &json!({}));
    c.write(&spec);
    let places = ["/mnt", "/srv", "/tmp", "/run"].map(Path::new);
    // One with the root filesystem below is none.
    let others = places.iter().filter(|place| place.is_dir() && !c.dir().starts_with(place));
    let shut: Vec<String> =
        others.map(|place| format!("mount -t tmpfs -o mode=700 none {}", place.display())).collect();
    let error = create_after(&c, &shut.join("\n")).unwrap_err();
    assert!(error.contains("none of [\"/mnt\", \"/srv\", \"/tmp\", \"/run\"] is a directory"), "{error}");
    assert!(!c.state_dir().exists());
    assert_eq!(c.cgroups(), Vec::<PathBuf>::new());
    fs::remove_dir(c.rootfs().join("volume")).unwrap();
    let mut spec = c.spec(&["sleep", "1000"]);
    bind(&c, &mut spec, &dir, "/volume", &json!({}));
    c.write(&spec);
    create_after(&c, &shut.join("\n")).expect("without a user namespace none is needed");
}

#[test]
fn mounts_in_a_user_namespace_have_the_owners_that_their_maps_say() {
    let Some(c) = bundle() else { return };
    let dir = volume(&c);
    let mut spec = apart(&c);
    let mapped = |to: u32| json!({ "uidMappings": map(0, to, 10), "gidMappings": map(0, to + 10, 10) });
    bind(&c, &mut spec, &dir, "/plain", &json!({}));
    bind(&c, &mut spec, &dir, "/containers", &json!({ "options": ["bind", "idmap"] }));
    bind(&c, &mut spec, &dir, "/own", &mapped(ROOT + 20));
    bind(&c, &mut spec, &dir.join("user"), "/file", &mapped(ROOT));
    c.write(&spec);
    c.start();
    assert_eq!(owners(&c, &["/plain/root", "/plain/user"]), ["65534:65534", "65534:65534"]);
    assert_eq!(owners(&c, &["/containers/root", "/containers/user"]), ["0:0", "5:6"]);
    assert_eq!(owners(&c, &["/own/root", "/own/user"]), ["20:30", "25:36"]);
    assert_eq!(owners(&c, &["/file"]), ["5:16"]);
    // What is made there belongs to whom the map says.
    c.ok(&["exec", c.id(), "touch", "/containers/new"]);
    let outside = fs::metadata(dir.join("new")).unwrap();
    assert_eq!((outside.uid(), outside.gid()), (0, 0));
    let refusal = c.run(&["exec", c.id(), "touch", "/plain/new"]);
    assert!(String::from_utf8_lossy(&refusal.stderr).contains("Permission denied"), "{refusal:?}");
}

#[test]
fn mounts_have_other_owners_without_a_user_namespace_too() {
    let Some(c) = bundle() else { return };
    let dir = volume(&c);
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
    let mut spec = c.spec(&["sleep", "1000"]);
    let more = json!({ "uidMappings": map(0, 1000, 3), "gidMappings": map(0, 2000, 10) });
    bind(&c, &mut spec, &dir, "/mapped", &more);
    bind(&c, &mut spec, &dir, "/plain", &json!({}));
    c.write(&spec);
    c.start();
    assert_eq!(owners(&c, &["/mapped/root", "/mapped/user"]), ["1000:2000", "65534:2006"]);
    assert_eq!(owners(&c, &["/plain/root", "/plain/user"]), ["0:0", "5:6"]);
    c.ok(&["exec", "--user", "1000:2000", c.id(), "touch", "/mapped/new"]);
    let outside = fs::metadata(dir.join("new")).unwrap();
    assert_eq!((outside.uid(), outside.gid()), (0, 0));
    // Whom the map does not name cannot own a file there.
    let refusal = c.run(&["exec", "--user", "7:2000", c.id(), "touch", "/mapped/more"]);
    assert!(!refusal.status.success() && !dir.join("more").exists(), "{refusal:?}");
}

#[test]
fn mounts_below_have_other_owners_only_if_that_is_asked_for() {
    let Some(c) = bundle() else { return };
    let dir = volume(&c);
    fs::create_dir(dir.join("below")).unwrap();
    let mount_below = "mount -t tmpfs none volume/below; echo >volume/below/root";
    for (option, below) in [("idmap", "0:0"), ("ridmap", "1000:2000")] {
        let mut spec = c.spec(&["sleep", "1000"]);
        let mut more = json!({ "uidMappings": map(0, 1000, 10), "gidMappings": map(0, 2000, 10) });
        more["options"] = json!(["rbind", option]);
        bind(&c, &mut spec, &dir, "/volume", &more);
        c.write(&spec);
        create_after(&c, mount_below).unwrap();
        c.ok(&["start", c.id()]);
        assert_eq!(owners(&c, &["/volume/root", "/volume/below/root"]), ["1000:2000", below], "{option}");
        c.ok(&["delete", "--force", c.id()]);
        fs::remove_dir(c.rootfs().join("volume")).unwrap();
    }
}

#[test]
fn a_map_that_cannot_be_is_refused_with_the_mount_and_the_reason() {
    let Some(c) = bundle() else { return };
    let dir = volume(&c);
    let overlapping = json!([
        { "containerID": 0, "hostID": 1000, "size": 10 },
        { "containerID": 5, "hostID": 2000, "size": 10 },
    ]);
    let mapped = |map: &Value, option| json!({ "uidMappings": map, "gidMappings": map, "options": ["rbind", option] });
    let cannot = "its file system, or one below it, cannot: invalid argument";
    for (what, source, more, reason) in [
        ("a map", &*dir, mapped(&overlapping, "idmap"), "uid_map\": invalid argument"),
        ("a file system", Path::new("/proc/sys"), mapped(&map(0, 1000, 10), "idmap"), cannot),
        ("one below", &*dir, mapped(&map(0, 1000, 10), "ridmap"), cannot),
    ] {
        let mut spec = c.spec(&["sleep", "1000"]);
        bind(&c, &mut spec, source, "/volume", &more);
        c.write(&spec);
        let below = "mkdir -p volume/below; mount -t proc none volume/below";
        let error = create_after(&c, below).unwrap_err();
        assert!(error.contains("cannot map the owners in the mount on \"/volume\": "), "{what}: {error}");
        assert!(error.contains(reason), "{what}: {error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{what}: {error}");
        assert!(!c.state_dir().exists(), "{what}");
        assert_eq!(c.cgroups(), Vec::<PathBuf>::new(), "{what}");
        fs::remove_dir(c.rootfs().join("volume")).unwrap();
    }
}
