//! An image of busybox that needs no registry.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::containerd::{Containerd, NAMESPACE};
use crate::programs::Version;
use crate::scene::MARK;
use crate::{Scene, bundle, process};

/// Its name, which is found nowhere else.
pub const IMAGE: &str = "holdfast.test/busybox:latest";

/// Gives [`IMAGE`] to a containerd.
#[track_caller]
pub fn import(containerd: &Containerd<'_>) {
    import_into(containerd, NAMESPACE);
}

/// Gives [`IMAGE`] to a namespace of a containerd.
#[track_caller]
pub fn import_into(containerd: &Containerd<'_>, namespace: &str) {
    let file = write(containerd.scene());
    // Otherwise the ctr of 2.1 leaves the import to a service that the private daemons do not load.
    let local: &[&str] = if containerd.version() >= Version::V2_1 { &["--local"] } else { &[] };
    let output = process::run(containerd.ctr_in(namespace).args(["image", "import"]).args(local).arg(file));
    assert!(output.status.success(), "{}", containerd.complain(&output));
}

/// Writes a file with it, in Docker's form, which takes no more than tar. What runs from it bears the scene's mark, and sleeps
/// if it is told nothing else: all that the first container of a pod has to do.
///
/// # Panics
/// If that is impossible.
#[track_caller]
pub fn write(scene: &Scene) -> PathBuf {
    let dir = scene.make_dir("image");
    bundle::fill_with_busybox(&dir.join("root"));
    let done = |command: &mut Command| {
        let output = process::run(command.current_dir(&dir));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    done(Command::new("tar").args(["-cf", "layer.tar", "-C", "root", "."]));
    let sum = done(Command::new("sha256sum").arg("layer.tar"));
    let sum = sum.split_whitespace().next().unwrap_or_default();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Env": ["PATH=/bin", format!("{MARK}={}", scene.id())], "Cmd": ["/bin/sleep", "100000"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{sum}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    for (name, content) in [("config.json", config), ("manifest.json", manifest)] {
        fs::write(dir.join(name), content.to_string()).expect("the scene is writable");
    }
    done(Command::new("tar").args(["-cf", "image.tar", "manifest.json", "config.json", "layer.tar"]));
    dir.join("image.tar")
}
