//! Ring 3: what README tells operators to write, taken from there and given to the programs that read it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use containerd_shim_protos::types::introspection::RuntimeInfo;
use holdfast_tests::containerd::{Containerd, RUNTIME, STOCK_RUNTIME};
use holdfast_tests::programs::{self, Version};
use holdfast_tests::readme::snippet;
use holdfast_tests::shim::toml_options;
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::{Scene, eventually, process};
use protobuf::Message;
use serde_json::{Value, json};
use toml::Table;

/// CRI, in whatever parts a version has it, and what these cannot do without.
const CRI: &[&str] = &[
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.nri.v1.nri",
    "io.containerd.image-verifier.v1.bindir",
];

/// The plugin that has CRI's handlers, in a version's own format of the configuration.
fn cri(version: Version) -> &'static str {
    if version < Version::V2_1 { "io.containerd.grpc.v1.cri" } else { "io.containerd.cri.v1.runtime" }
}

/// README's handler, in a version's own format.
fn handler(version: Version) -> String {
    let series = if version < Version::V2_1 { "1.6 and 1.7 (version = 2)" } else { "2.x (version = 3)" };
    snippet(&format!("# the handler, containerd {series}"))
}

/// README's choice of an OCI runtime for it.
fn options(version: Version) -> String {
    let series = if version < Version::V2_1 { version.name() } else { "2.x" };
    snippet(&format!("# its OCI runtime, containerd {series}"))
}

/// The format's number, as a file with nothing else in it has to name it.
fn format_of(version: Version) -> String {
    format!("version = {}\n", if version < Version::V2_1 { 2 } else { 3 })
}

/// The settings as containerd understands them, its defaults included.
#[track_caller]
fn understood(scene: &Scene, version: Version, settings: &str) -> Table {
    let file = scene.path("given.toml");
    fs::write(&file, settings).unwrap();
    let program = programs::peer_of(version, "containerd").expect("tests/peers.sh provides every version");
    let output = process::run(scene.command(program).arg("--config").arg(file).args(["config", "dump"]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("level=warning"), "{}: {said}", version.name());
    toml::from_str(std::str::from_utf8(&output.stdout).unwrap()).unwrap()
}

/// CRI's part of that.
#[track_caller]
fn handlers(settings: &Table, version: Version) -> (&str, &Table) {
    let of_cri = settings["plugins"][cri(version)]["containerd"].as_table().unwrap();
    (of_cri["default_runtime_name"].as_str().unwrap(), of_cri["runtimes"].as_table().unwrap())
}

/// The handler is there, with its options if they were given, and what was there before is.
#[track_caller]
fn assert_complete(settings: &Table, version: Version, with_options: Option<Version>) {
    let (default, handlers) = handlers(settings, version);
    assert_eq!(handlers["holdfast"]["runtime_type"].as_str(), Some(RUNTIME));
    assert_eq!((default, handlers["runc"]["runtime_type"].as_str()), ("runc", Some(STOCK_RUNTIME)));
    let (key, value) = match with_options {
        None => return,
        Some(Version::V1_6) => ("ConfigPath", "/etc/holdfast/runc.toml"),
        Some(_) => ("BinaryName", "/usr/sbin/runc"),
    };
    assert_eq!(handlers["holdfast"]["options"][key].as_str(), Some(value));
}

#[test]
fn containerd_understands_the_handler_as_its_whole_configuration() {
    let scene = Scene::new();
    for version in Version::ALL {
        let alone = format_of(version) + &handler(version);
        assert_complete(&understood(&scene, version, &alone), version, None);
        let with_options = alone + &options(version);
        assert_complete(&understood(&scene, version, &with_options), version, Some(version));
    }
}

#[test]
fn containerd_understands_the_handler_below_what_its_file_has_already() {
    let scene = Scene::new();
    for version in Version::ALL {
        let program = programs::peer_of(version, "containerd").expect("tests/peers.sh provides every version");
        let output = process::run(scene.command(program).args(["config", "default"]));
        let given = String::from_utf8(output.stdout).unwrap();
        // The other one is there.
        let handler = handler(version);
        let handler = handler.split("# the default one").next().unwrap();
        let settings = understood(&scene, version, &format!("{given}\n{handler}{}", options(version)));
        assert_complete(&settings, version, Some(version));
    }
}

#[test]
fn containerd_2_reads_the_older_format_too() {
    let scene = Scene::new();
    let file = scene.path("given.toml");
    fs::write(&file, format_of(Version::V1_7) + &handler(Version::V1_7) + &options(Version::V1_7)).unwrap();
    let program = programs::peer_of(Version::V2_1, "containerd").expect("tests/peers.sh provides every version");
    let output = process::run(scene.command(program).arg("--config").arg(file).args(["config", "dump"]));
    let settings = toml::from_str(std::str::from_utf8(&output.stdout).unwrap()).unwrap();
    assert_complete(&settings, Version::V2_1, Some(Version::V1_7));
}

/// Handlers are looked at only by CRI itself, when it is loaded.
#[test]
fn cri_is_loaded_with_the_handler() {
    if !is_root() {
        return skip("needs root");
    }
    for version in Version::ALL {
        let scene = Scene::new();
        let containerd = Containerd::start(&scene, version);
        containerd.stop();
        let file = scene.path("containerd.toml");
        let given = CRI.iter().fold(fs::read_to_string(&file).unwrap(), |text, plugin| {
            assert!(text.contains(plugin), "{plugin} is among what a private daemon does without");
            text.replace(&format!("\"{plugin}\", "), "")
        });
        // That one would make a socket outside the scene.
        let nri = "[plugins.'io.containerd.nri.v1.nri']\ndisable = true\n";
        fs::write(&file, format!("{given}{nri}{}{}", handler(version), options(version))).unwrap();
        containerd.resume();
        // A type, a name, platforms, and how it went.
        eventually("CRI should be loaded", || {
            let table = containerd.ok(&["plugins", "ls"]);
            let rows =
                table.lines().filter(|row| row.contains(".cri.v1") || row.split_whitespace().nth(1) == Some("cri"));
            let states: BTreeSet<&str> = rows.filter_map(|row| row.split_whitespace().last()).collect();
            if states == BTreeSet::from(["ok"]) { Ok(()) } else { Err(containerd.log()) }
        });
        containerd.stop();
    }
}

/// k3s renders its own configuration where the template says so: of that, what handlers are written beside.
fn rendered_by_k3s(version: Version) -> String {
    let name = if version < Version::V2_1 { "config.toml.tmpl" } else { "config-v3.toml.tmpl" };
    let template = snippet(&format!("# {name}, k3s with containerd"));
    let runc = format!("plugins.'{}'.containerd.runtimes.runc", cri(version));
    let base = format!(
        "{}[{runc}]\nruntime_type = '{STOCK_RUNTIME}'\n[{runc}.options]\nSystemdCgroup = true\n",
        format_of(version)
    );
    let rendered = template.replacen("{{ template \"base\" . }}", &base, 1);
    assert!(rendered.contains(&base) && !rendered.contains("{{"), "{rendered}");
    rendered
}

#[test]
fn containerd_understands_what_k3s_makes_of_the_templates() {
    let scene = Scene::new();
    for version in [Version::V1_7, Version::V2_1] {
        let settings = understood(&scene, version, &rendered_by_k3s(version));
        assert_complete(&settings, version, None);
        assert_eq!(handlers(&settings, version).1["runc"]["options"]["SystemdCgroup"].as_bool(), Some(true));
    }
}

/// Every line of it, so that nothing stands there that this does not know.
#[test]
fn the_runtime_class_names_the_handler() {
    let text = snippet("apiVersion: node.k8s.io/v1\n");
    let lines: Vec<&str> = text.lines().skip(1).collect();
    assert_eq!(lines, ["kind: RuntimeClass", "metadata: { name: holdfast }", "handler: holdfast"]);
    for version in Version::ALL {
        let settings: Table = toml::from_str(&handler(version)).unwrap();
        let handlers = settings["plugins"][cri(version)]["containerd"]["runtimes"].as_table().unwrap();
        assert!(handlers.contains_key("holdfast"), "{handlers:?}");
    }
}

#[test]
fn the_shim_understands_the_options_that_a_file_may_have() {
    let scene = Scene::new();
    let file = scene.path("runc.toml");
    let told = |settings: &str| -> Output {
        fs::write(&file, settings).unwrap();
        let options = toml_options(file.to_str().unwrap(), "").write_to_bytes().unwrap();
        process::run_with_input(scene.command(programs::shim()).arg("-info"), &options)
    };
    let settings = snippet("BinaryName = ");
    let output = told(&settings);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = told(&settings.replace("false", "7"));
    assert!(
        !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("SystemdCgroup"),
        "{output:?}"
    );
    // The program that is named is the one that is asked.
    let features = |program: &str| {
        let output = told(&settings.replace("/usr/sbin/runc", program));
        RuntimeInfo::parse_from_bytes(&output.stdout).unwrap().features.is_some()
    };
    assert!(features(programs::ours("holdfast-oci").to_str().unwrap()) && !features("/no/such/runc"));
}

/// dockerd, once it is among the peers.
fn dockerd() -> Option<PathBuf> {
    const FOLDER: &str = "docker-28.5";
    let program = programs::peers_dir().with_file_name(FOLDER).join("bin/dockerd");
    let peers = fs::read_to_string(programs::repository().join("tests/peers.sh")).unwrap();
    let is_peer = peers.lines().any(|line| line.starts_with(FOLDER));
    assert!(!is_peer || program.exists(), "tests/peers.sh provides {}", program.display());
    program.exists().then_some(program)
}

#[test]
fn dockerd_accepts_its_daemon_json() {
    let Some(dockerd) = dockerd() else { return skip("dockerd is not among the peers") };
    let scene = Scene::new();
    let file = scene.path("daemon.json");
    let validate = |settings: &Value| -> Output {
        fs::write(&file, settings.to_string()).unwrap();
        // It looks for that one in PATH otherwise.
        let proxy = dockerd.with_file_name("docker-proxy");
        let mut command = scene.command(&dockerd);
        process::run(command.arg("--userland-proxy-path").arg(proxy).args(["--validate", "--config-file"]).arg(&file))
    };
    let mut settings: Value = serde_json::from_str(&snippet("{ \"runtimes\": ")).unwrap();
    assert_eq!(settings["runtimes"]["holdfast"]["runtimeType"], RUNTIME);
    let output = validate(&settings);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Of a misspelled name dockerd says nothing.
    let named = json!({ "runtimeType": RUNTIME, "options": { "ConfigPath": "/etc/holdfast/runc.toml" } });
    assert_eq!(settings["runtimes"]["holdfast-runc"], named);
    // But it does look there.
    settings["runtimes"]["holdfast"]["runtimeType"] = 7.into();
    assert!(!validate(&settings).status.success());
}

/// Whether a path is one that README names, where `*` stands for a part of a name.
fn fits(pattern: &str, path: &str) -> bool {
    let (pattern, path): (Vec<&str>, Vec<&str>) = (pattern.split('/').collect(), path.split('/').collect());
    let names = pattern.iter().zip(&path);
    pattern.len() == path.len()
        && names.into_iter().all(|(pattern, name)| match pattern.split_once('*') {
            Some((begin, end)) => name.strip_prefix(begin).is_some_and(|rest| rest.ends_with(end)),
            None => pattern == name,
        })
}

/// `make install`, in the working tree, where there can be only one at a time: it prepares files in `target`.
#[track_caller]
fn install(settings: &[String]) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(programs::repository().join("bin/holdfast").exists(), "run `make build` first");
    let mut make = Command::new("make");
    make.arg("install").args(settings).current_dir(programs::repository());
    // What the make above this test was told is not meant for that one.
    for name in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PREFIX", "DESTDIR"] {
        make.env_remove(name);
    }
    let output = process::run(&mut make);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            files_below(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

#[test]
fn an_installation_is_the_tree_that_readme_shows() {
    let scene = Scene::new();
    let tree = scene.path("tree");
    install(&[format!("DESTDIR={}", tree.display())]);
    let mut installed = Vec::new();
    files_below(&tree, &mut installed);
    let installed: Vec<String> =
        installed.iter().map(|path| format!("/{}", path.strip_prefix(&tree).unwrap().display())).collect();
    let shown = snippet("/usr/local/bin/containerd-shim-holdfast-v2");
    let unknown: Vec<_> = installed.iter().filter(|path| !shown.lines().any(|line| fits(line, path))).collect();
    let missing: Vec<_> = shown.lines().filter(|line| !installed.iter().any(|path| fits(line, path))).collect();
    assert!(unknown.is_empty() && missing.is_empty(), "not in README: {unknown:?}; not installed: {missing:?}");
    // What is named as enough for containerd.
    let first: Vec<&str> = shown.lines().take(3).map(|line| line.rsplit('/').next().unwrap()).collect();
    assert_eq!(first, ["containerd-shim-holdfast-v2", "containerd-shim-runc-v2-holdfast", "holdfast-oci"]);
}

#[test]
fn another_prefix_is_where_the_units_look() {
    let scene = Scene::new();
    install(&[format!("DESTDIR={}", scene.path("tree").display()), "PREFIX=/opt/holdfast".into()]);
    let unit = fs::read_to_string(scene.path("tree/opt/holdfast/lib/systemd/system/holdfastd.service")).unwrap();
    assert!(unit.contains("=/opt/holdfast/bin/holdfastd") && !unit.contains("/usr/local/bin"), "{unit}");
    assert!(scene.path("tree/opt/holdfast/bin/holdfastd").exists());
}
