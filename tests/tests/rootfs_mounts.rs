//! Ring 3: root filesystems that containerd wants mounted: images, other owners, helpers, many layers. The scene's check
//! sees that no mount is left, nor a process that served one.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use containerd_shim_protos::api::{CreateTaskResponse, Mount};
use holdfast_tests::shim::TASK;
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::wire::CallError;
use holdfast_tests::{
    Bundle, FakeContainerd, Launch, Scene, Shim, Stdio, bundle, eventually, eventually::holds, process, programs,
};
use serde_json::json;

/// What the host calls the container's root.
const MAPPED: u32 = 100_000;
const MAP: [&str; 2] = ["uidmap=0:100000:65536", "gidmap=0:100000:65536"];

/// A scene and a bundle whose root filesystem is to come with Create, with busybox in the directory `lower`.
struct Stage {
    bundle: Bundle,
    _events: FakeContainerd,
    scene: Scene,
}

impl Stage {
    /// None, said loudly, where this cannot run.
    fn new(script: &str) -> Option<Self> {
        if !is_root() {
            skip("needs root");
            return None;
        }
        let scene = Scene::new();
        let bundle = Bundle::busybox(&scene, &["/bin/sh", "-c", script]).configure(|c| {
            c["root"]["readonly"] = false.into();
        });
        let rootfs = bundle.path("rootfs");
        fs::remove_dir_all(&rootfs).unwrap();
        fs::create_dir(&rootfs).unwrap();
        bundle::fill_with_busybox(&scene.make_dir("lower"));
        Some(Self { bundle, _events: FakeContainerd::start(&scene), scene })
    }

    fn path(&self, name: &str) -> String {
        self.scene.path(name).to_str().unwrap().to_owned()
    }

    fn launch(&self) -> Launch<'_> {
        Launch::new(&self.scene, &self.bundle).runtime(&programs::peer("runc").expect("tests/peers.sh provides runc"))
    }

    /// In a user namespace, in which the host's 100000 is root.
    fn with_users(mut self) -> Self {
        // Its root must reach what the host's root alone may see.
        for dir in [self.scene.dir(), self.bundle.dir()] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).unwrap();
        }
        let map = json!([{ "containerID": 0, "hostID": MAPPED, "size": 65536 }]);
        self.bundle = self.bundle.configure(|c| {
            c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
            c["linux"]["uidMappings"] = map.clone();
            c["linux"]["gidMappings"] = map;
        });
        self
    }

    /// Runs the container to its end and gives what it printed.
    fn output(&self, mounts: &[Mount]) -> String {
        let mut shim = self.launch().start();
        let stdio = Stdio::output(&self.scene, self.bundle.id());
        let (stdout, stderr) = stdio.readers();
        create(&mut shim, &stdio, mounts).unwrap();
        shim.start("").unwrap();
        let status = shim.wait_status("");
        let (text, complaint) = (stdout.text(), stderr.unwrap().text());
        assert_eq!((status, complaint.as_str()), (0, ""), "{text}");
        shim.delete("").unwrap();
        assert_eq!(mounted_below(self.bundle.dir()), 0);
        shim.shutdown();
        text
    }

    /// The refusal of a Create with these mounts, after which nothing is mounted.
    fn refusal(&self, launch: &Launch<'_>, mounts: &[Mount]) -> String {
        let mut shim = launch.start();
        let refusal = create(&mut shim, &Stdio::none(), mounts).unwrap_err();
        assert_eq!(mounted_below(self.bundle.dir()), 0);
        shim.shutdown();
        refusal.message().to_owned()
    }

    /// An ext2 image of the directory `lower`.
    fn image(&self) -> PathBuf {
        let image = self.scene.path("image");
        let file = fs::File::create(&image).unwrap();
        file.set_len(16 << 20).unwrap();
        let mke2fs = programs::peer("mke2fs").expect("tests/peers.sh provides mke2fs");
        let mut command = Command::new(mke2fs);
        let made = command.args(["-q", "-F", "-t", "ext2", "-d"]).arg(self.path("lower")).arg(&image).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        image
    }
}

fn create(shim: &mut Shim, stdio: &Stdio, mounts: &[Mount]) -> Result<CreateTaskResponse, CallError> {
    let mut request = shim.create_request(stdio);
    request.rootfs = mounts.to_vec();
    shim.connection.call(TASK, "Create", &request)
}

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|&option| option.to_owned()).collect();
    Mount { type_: kind.into(), source: source.into(), options, ..Mount::default() }
}

fn mounted_below(dir: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    table.lines().filter(|l| l.split(' ').nth(1).is_some_and(|p| Path::new(p).starts_with(dir))).count()
}

/// Whether this machine has what loop devices need; a reason to skip if not.
fn no_loop_devices() -> Option<&'static str> {
    (!Path::new("/dev/loop-control").exists()).then_some("there is no /dev/loop-control")
}

/// Whether the kernel maps the ids of overlay's layers; a reason to skip if not.
fn no_id_maps() -> Option<&'static str> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).filter_map(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    (version < (5, 19)).then_some("overlays of idmapped layers need Linux 5.19")
}

/// The loop devices that have an image below `dir`, as the kernel's sysfs names them.
fn loop_devices(dir: &Path) -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/block").unwrap().flatten().map(|entry| entry.path());
    let image = |device: &Path| fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
    devices.filter(|device| Path::new(&image(device)).starts_with(dir)).collect()
}

fn assert_no_loop_device(dir: &Path) {
    // The kernel frees a device when it has written what is due.
    eventually("no loop device should be left", || {
        let left = loop_devices(dir);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn an_image_is_a_root_filesystem() {
    if let Some(reason) = no_loop_devices() {
        return skip(reason);
    }
    let Some(stage) = Stage::new("echo kept >/file; echo written") else { return };
    let image = stage.image();
    let root = mount("ext2", image.to_str().unwrap(), &["loop", "direct-io", "noatime"]);
    assert_eq!(stage.output(std::slice::from_ref(&root)), "written\n");
    assert_no_loop_device(stage.scene.dir());
    // It was the image that was written to.
    let stage = Stage { bundle: Bundle::busybox(&stage.scene, &["/bin/cat", "/file"]), ..stage };
    assert_eq!(stage.output(&[mount("ext2", image.to_str().unwrap(), &["loop", "ro"])]), "kept\n");
    assert_no_loop_device(stage.scene.dir());
}

#[test]
fn the_device_of_a_read_only_image_is_read_only_too() {
    if let Some(reason) = no_loop_devices() {
        return skip(reason);
    }
    let Some(stage) = Stage::new("read line") else { return };
    let image = stage.image();
    let before = fs::read(&image).unwrap();
    let mut shim = stage.launch().start();
    create(&mut shim, &Stdio::none(), &[mount("ext2", image.to_str().unwrap(), &["ro", "loop"])]).unwrap();
    let devices = loop_devices(stage.scene.dir());
    assert_eq!(devices.len(), 1, "{devices:?}");
    assert_eq!(fs::read_to_string(devices[0].join("ro")).unwrap(), "1\n");
    shim.start("").unwrap();
    shim.discard();
    assert_no_loop_device(stage.scene.dir());
    assert!(fs::read(&image).unwrap() == before, "not even the mount left a trace");
}

#[test]
fn an_image_that_cannot_be_mounted_leaves_no_device() {
    if let Some(reason) = no_loop_devices() {
        return skip(reason);
    }
    let Some(stage) = Stage::new("true") else { return };
    let image = stage.scene.path("no-image");
    fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let image = image.to_str().unwrap();
    let refusal = stage.refusal(&stage.launch(), &[mount("ext2", image, &["loop"])]);
    assert!(refusal.contains(&format!("cannot mount ext2 {image} on ")), "{refusal}");
    assert_no_loop_device(stage.scene.dir());
    let refusal = stage.refusal(&stage.launch(), &[mount("ext2", "/no/such/image", &["loop"])]);
    assert!(refusal.contains("cannot open /no/such/image: No such file or directory"), "{refusal}");
    let refusal = stage.refusal(&stage.launch(), &[mount("ext2", image, &["loop=/dev/loop1"])]);
    assert!(refusal.contains("mount option \"loop=/dev/loop1\" is not supported"), "{refusal}");
}

#[test]
fn those_who_want_a_loop_device_at_the_same_time_all_get_one() {
    if let Some(reason) = no_loop_devices() {
        return skip(reason);
    }
    let Some(stage) = Stage::new("true") else { return };
    let image = stage.image();
    let at_once = 5;
    let roots: Vec<PathBuf> = (0..at_once).map(|n| stage.scene.path(format!("root{n}"))).collect();
    thread::scope(|scope| {
        for root in &roots {
            let request = json!({ "rootfs": root, "mounts": [{
                "kind": "ext2", "source": image, "options": ["loop", "ro"] }] });
            let mut command = stage.scene.command(programs::shim());
            scope.spawn(move || {
                let input = serde_json::to_vec(&request).unwrap();
                let output = process::run_with_input(command.arg("mount-rootfs"), &input);
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            });
        }
    });
    assert_eq!(loop_devices(stage.scene.dir()).len(), at_once);
    for root in &roots {
        assert!(root.join("bin/busybox").exists());
        let output = process::run(stage.scene.command(programs::shim()).arg("unmount-rootfs").arg(root));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_no_loop_device(stage.scene.dir());
}

/// Says who owns a file of the image, and makes one.
const OWNERS: &str = "ls -ln /bin/busybox | { read a b uid gid rest; echo $uid $gid; }; echo x >/tmp-file; id -u";

#[test]
fn a_bind_mount_shows_mapped_owners() {
    if let Some(reason) = no_id_maps() {
        return skip(reason);
    }
    let Some(stage) = Stage::new(OWNERS) else { return };
    let stage = stage.with_users();
    let options: Vec<&str> = ["rbind", "nosuid"].into_iter().chain(MAP).collect();
    assert_eq!(stage.output(&[mount("bind", &stage.path("lower"), &options)]), "0 0\n0\n");
    // Through the mount the container's root is the directory's own.
    let made = fs::metadata(stage.scene.path("lower/tmp-file")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0));
}

#[test]
fn an_overlay_shows_mapped_owners_of_its_lower_directories() {
    if let Some(reason) = no_id_maps() {
        return skip(reason);
    }
    let Some(stage) = Stage::new(&format!("{OWNERS}; cat /etc/second")) else { return };
    let stage = stage.with_users();
    fs::create_dir_all(stage.scene.path("second: layer/etc")).unwrap();
    fs::write(stage.scene.path("second: layer/etc/second"), "seen\n").unwrap();
    // As the snapshotter makes them.
    for dir in ["upper", "work"] {
        chown(stage.scene.make_dir(dir), Some(MAPPED), Some(MAPPED)).unwrap();
    }
    let lower = format!("lowerdir={}:{}", stage.path(r"second\: layer"), stage.path("lower"));
    let (upper, work) = (format!("upperdir={}", stage.path("upper")), format!("workdir={}", stage.path("work")));
    let options: Vec<&str> = MAP.into_iter().chain([lower.as_str(), &upper, &work, "index=off"]).collect();
    assert_eq!(stage.output(&[mount("overlay", "overlay", &options)]), "0 0\n0\nseen\n");
    let made = fs::metadata(stage.scene.path("upper/tmp-file")).unwrap();
    assert_eq!((made.uid(), made.gid()), (MAPPED, MAPPED));
    // The layers themselves stay as they are.
    assert_eq!(fs::metadata(stage.scene.path("lower/bin/busybox")).unwrap().uid(), 0);
}

#[test]
fn an_image_shows_mapped_owners() {
    if let Some(reason) = no_loop_devices().or_else(no_id_maps) {
        return skip(reason);
    }
    let Some(stage) = Stage::new(OWNERS) else { return };
    let stage = stage.with_users();
    let image = stage.image();
    // The kernel maps ext4 only, which reads an ext2 image as well.
    let options: Vec<&str> = ["loop"].into_iter().chain(MAP).collect();
    assert_eq!(stage.output(&[mount("ext4", image.to_str().unwrap(), &options)]), "0 0\n0\n");
    assert_no_loop_device(stage.scene.dir());
}

#[test]
fn a_map_that_the_kernel_refuses_is_named() {
    if let Some(reason) = no_id_maps() {
        return skip(reason);
    }
    let Some(stage) = Stage::new("true") else { return };
    let overlapping = ["uidmap=0:1000:10,5:2000:10", "gidmap=0:1000:10"];
    let refusal = stage.refusal(&stage.launch(), &[mount("bind", &stage.path("lower"), &overlapping)]);
    assert!(refusal.contains("cannot make a user namespace for"), "{refusal}");
    let half = ["bind", "uidmap=0:1000:10"];
    let refusal = stage.refusal(&stage.launch(), &[mount("bind", &stage.path("lower"), &half)]);
    assert!(refusal.contains("\"uidmap=0:1000:10\" is not supported: there is no gidmap"), "{refusal}");
}

#[test]
fn layers_without_a_common_parent_may_be_many() {
    let Some(stage) = Stage::new("cat /etc/deepest") else { return };
    let parents = [stage.scene.dir().to_owned(), Path::new("/proc/self/root").join(stage.path("")[1..].trim_end())];
    let name = "n".repeat(60);
    let mut layers = Vec::new();
    for n in 0..100 {
        stage.scene.make_dir(format!("{name}{n}"));
        layers.push(parents[n % 2].join(format!("{name}{n}")).to_str().unwrap().to_owned());
    }
    layers.push(stage.path("lower"));
    fs::write(stage.scene.path("lower/etc/deepest"), "found\n").unwrap();
    let lower = format!("lowerdir={}", layers.join(":"));
    assert!(lower.len() > 8192);
    assert_eq!(stage.output(&[mount("overlay", "overlay", &[&lower])]), "found\n");
}

#[test]
fn options_of_the_daemons_mount_manager_are_refused_by_name() {
    let Some(stage) = Stage::new("true") else { return };
    let option = "X-containerd.mkdir.path=/somewhere";
    let refusal = stage.refusal(&stage.launch(), &[mount("bind", &stage.path("lower"), &["rbind", option])]);
    assert!(refusal.contains(option) && refusal.contains("the daemon's mount manager"), "{refusal}");
}

/// A `mount.fuse3` that runs `script`, and the PATH with it.
fn with_helper<'a>(stage: &'a Stage, script: &str) -> Launch<'a> {
    let dir = stage.scene.make_dir("helpers");
    let program = dir.join("mount.fuse3");
    fs::write(&program, format!("#!/bin/sh\nset -eu\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    stage.launch().env("PATH", &format!("{}:{path}", dir.display()))
}

/// Mounts, and leaves a process as a FUSE filesystem does: in a session of its own, until the mount is gone.
const SERVED: &str = r#"
for a in "$@"; do echo "$a"; done >"$0.args"
mount --bind "$1" "$2"
setsid sh -c 'while grep -qF " $1 " /proc/self/mounts; do sleep 0.01; done' sh "$2" &
echo $! >"$0.pid"
"#;

#[test]
fn what_serves_a_filesystem_outlives_its_helper_and_ends_with_the_mount() {
    let Some(stage) = Stage::new("cat /etc/words") else { return };
    fs::write(stage.scene.path("lower/etc/words"), "served\n").unwrap();
    let launch = with_helper(&stage, SERVED);
    let mut shim = launch.start();
    let stdio = Stdio::output(&stage.scene, "init");
    let (stdout, _stderr) = stdio.readers();
    let root = mount("fuse3.some-fs", &stage.path("lower"), &["lowerdir=/a:/b", "allow_other"]);
    create(&mut shim, &stdio, &[root]).unwrap();
    let note = |name: &str| fs::read_to_string(stage.scene.path(format!("helpers/mount.fuse3.{name}"))).unwrap();
    let rootfs = stage.bundle.path("rootfs");
    let lower = stage.path("lower");
    let expected = [&lower, rootfs.to_str().unwrap(), "-o", "lowerdir=/a:/b", "-o", "allow_other", "-t", "some-fs"];
    assert_eq!(note("args").lines().collect::<Vec<_>>(), expected);
    let server = holdfast_tests::Process::of(note("pid").trim().parse().unwrap());
    assert!(server.is_alive());
    // Neither the shim's files nor those of the child that mounted.
    let held: Vec<PathBuf> =
        fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().flatten().map(|e| e.path()).collect();
    for fd in held {
        let is = fs::read_link(&fd).unwrap_or_default();
        let is = is.to_string_lossy();
        assert!(!is.starts_with("socket:") && !is.starts_with("pipe:") && !is.contains("eventpoll"), "{is}");
    }
    shim.start("").unwrap();
    assert_eq!(shim.wait_status(""), 0);
    assert_eq!(stdout.text(), "served\n");
    assert!(server.is_alive());
    shim.delete("").unwrap();
    server.wait_gone();
    shim.shutdown();
}

#[test]
fn a_helper_that_is_missing_fails_or_lies_is_named() {
    let Some(stage) = Stage::new("true") else { return };
    let root = [mount("fuse3.some-fs", "src", &[])];
    let empty = stage.scene.make_dir("empty");
    let refusal = stage.refusal(&stage.launch().env("PATH", empty.to_str().unwrap()), &root);
    assert!(
        refusal.contains("cannot mount fuse3.some-fs src: it needs the program mount.fuse3, which is not"),
        "{refusal}"
    );
    let refusal = stage.refusal(&with_helper(&stage, "echo the moon; echo is full >&2; exit 7"), &root);
    assert!(refusal.contains("mount.fuse3 ended with status 7: the moon; is full"), "{refusal}");
    let refusal = stage.refusal(&with_helper(&stage, "exit 0"), &root);
    assert!(refusal.contains("mount.fuse3 ended well and has mounted nothing"), "{refusal}");
    // What it mounted before it failed is undone.
    let refusal = stage.refusal(&with_helper(&stage, "mount -t tmpfs tmpfs \"$2\"; exit 3"), &root);
    assert!(refusal.contains("mount.fuse3 ended with status 3"), "{refusal}");
}

#[test]
fn a_mount_that_is_killed_at_its_deadline_is_undone() {
    let Some(stage) = Stage::new("true") else { return };
    let launch = with_helper(&stage, "mount -t tmpfs tmpfs \"$2\"; sleep 1000");
    let launch = launch.env("HOLDFAST_RUNTIME_TIMEOUT_MS", "500");
    let mounts = [mount("tmpfs", "tmpfs", &[]), mount("fuse3.some-fs", "src", &[])];
    let refusal = stage.refusal(&launch, &mounts);
    assert!(refusal.contains("mount of the root filesystem failed: it did not end within its deadline"), "{refusal}");
}

#[test]
fn a_later_failure_undoes_images_and_mapped_mounts() {
    if let Some(reason) = no_loop_devices().or_else(no_id_maps) {
        return skip(reason);
    }
    let Some(stage) = Stage::new("true") else { return };
    let image = stage.image();
    let bind: Vec<&str> = ["rbind"].into_iter().chain(MAP).collect();
    let mounts = [
        mount("ext2", image.to_str().unwrap(), &["loop", "ro"]),
        mount("bind", &stage.path("lower"), &bind),
        mount("no-such-filesystem", "none", &[]),
    ];
    let refusal = stage.refusal(&stage.launch(), &mounts);
    assert!(refusal.contains("cannot mount no-such-filesystem none on "), "{refusal}");
    assert_no_loop_device(stage.scene.dir());
    holds(mounted_below(stage.scene.dir()) == 0).unwrap();
}
