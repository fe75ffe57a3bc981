//! Ring 3: `holdfast-oci` and user namespaces.
#![allow(clippy::unwrap_used)]

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, symlink};
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

/// A directory of the bundle that only root may enter.
fn secret(c: &Bundle) -> PathBuf {
    let dir = c.dir().join("secret");
    DirBuilder::new().mode(0o700).create(&dir).unwrap();
    dir
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
    c.write(&spec);
    c.start();
    for kind in kinds {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(of(c.pid()), of(first.pid()));
    }
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
