//! A small filesystem of its own, which can be full, frozen or broken: for what a test does to no other.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};
use serde_json::json;

use crate::skip::{is_root, skip};
use crate::{Scene, process, programs, sys};

/// An ext4 filesystem in an image, mounted in the scene's directory. Declare it after the scene: it is thawed and unmounted
/// when dropped, whatever happens, since what waits for a frozen filesystem cannot even be killed.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    image: PathBuf,
    /// Held open: a frozen filesystem that nobody has open could not be thawed any more.
    root: Option<File>,
}

impl Disk {
    /// One of `size` bytes, mounted at `name` in the scene's directory. None, said loudly, where this cannot be.
    ///
    /// # Panics
    /// If it could be, and is not.
    pub fn new(scene: &Scene, name: &str, size: u64) -> Option<Self> {
        Self::on(scene, name, &scene.path(format!("{name}.image")), size)
    }

    /// As [`Disk::new`], with the image at the given place.
    ///
    /// # Panics
    /// If it could be, and is not.
    pub fn on(scene: &Scene, name: &str, image: &Path, size: u64) -> Option<Self> {
        if !is_root() {
            skip("needs root");
            return None;
        }
        if !Path::new("/dev/loop-control").exists() {
            skip("there is no /dev/loop-control");
            return None;
        }
        make_image(image, size);
        let mut disk = Self { dir: scene.make_dir(name), image: image.to_owned(), root: None };
        disk.mount(scene);
        Some(disk)
    }

    fn mount(&mut self, scene: &Scene) {
        let request = json!({ "rootfs": self.dir, "mounts": [{
            "kind": "ext4", "source": self.image, "options": ["loop"] }] });
        let input = serde_json::to_vec(&request).expect("JSON encodes");
        let output = process::run_with_input(scene.command(programs::shim()).arg("mount-rootfs"), &input);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.root = Some(File::open(&self.dir).expect("it is mounted"));
    }

    /// A path on it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// Takes all space that is left, until the returned file is removed.
    ///
    /// # Panics
    /// If it fails for another reason than that.
    pub fn fill(&self) -> PathBuf {
        let path = self.path("filler");
        let mut filler = File::create(&path).expect("there is space yet");
        // The last bytes come one by one.
        let mut block = vec![0; 1 << 20];
        while !block.is_empty() {
            match filler.write(&block) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::StorageFull => block.truncate(block.len() / 2),
                Err(e) => panic!("cannot fill {}: {e}", self.dir.display()),
            }
        }
        path
    }

    /// From now on whoever writes to it waits.
    ///
    /// # Panics
    /// If it cannot be frozen.
    pub fn freeze(&self) -> Frozen<'_> {
        sys::freeze(self.root()).unwrap_or_else(|e| panic!("cannot freeze {}: {e}", self.dir.display()));
        Frozen(self)
    }

    /// Breaks it: every access fails, as after errors of the disk itself.
    ///
    /// # Panics
    /// If it cannot be broken.
    pub fn break_down(&self) {
        sys::shut_down(self.root()).unwrap_or_else(|e| panic!("cannot break {}: {e}", self.dir.display()));
    }

    /// Mounts it anew in its place, whole again, as an administrator would.
    ///
    /// # Panics
    /// If it cannot be mounted.
    pub fn repair(&mut self, scene: &Scene) {
        self.unmount();
        self.mount(scene);
    }

    fn root(&self) -> &File {
        self.root.as_ref().expect("it is mounted")
    }

    fn unmount(&mut self) {
        if let Some(root) = self.root.take() {
            let _ = sys::thaw(&root);
        }
        let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// A disk on which nothing can be written; thawed when dropped.
#[derive(Debug)]
pub struct Frozen<'a>(&'a Disk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = sys::thaw(self.0.root());
    }
}

/// Makes an empty ext4 filesystem of `size` bytes.
///
/// # Panics
/// If it cannot be made.
pub fn make_image(image: &Path, size: u64) {
    let file = File::create(image).unwrap_or_else(|e| panic!("cannot make {}: {e}", image.display()));
    file.set_len(size).expect("a sparse file");
    let mke2fs = programs::peer("mke2fs").expect("tests/peers.sh provides mke2fs");
    // Nothing reserved for root, who the tests are.
    let made = process::run(Command::new(mke2fs).args(["-q", "-F", "-t", "ext4", "-m", "0"]).arg(image));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
