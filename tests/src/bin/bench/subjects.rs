//! What is compared.

use std::path::{Path, PathBuf};

use holdfast_tests::programs::{self, Version};
use holdfast_tests::{Bundle, Launch, Scene};

/// A shim with an OCI runtime below it.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) shim: PathBuf,
    pub(crate) runtime: PathBuf,
}

impl Subject {
    pub(crate) fn launch<'a>(&self, scene: &'a Scene, bundle: &Bundle) -> Launch<'a> {
        Launch::new(scene, bundle).binary(&self.shim).runtime(&self.runtime)
    }

    /// Whether it is what this benchmark is about.
    pub(crate) fn is_ours(&self) -> bool {
        self.shim == our_shim()
    }
}

pub(crate) fn our_shim() -> PathBuf {
    programs::bin_dir().join("containerd-shim-holdfast-v2")
}

fn stock_shim(version: Version) -> PathBuf {
    programs::containerd_dir(version).join("containerd-shim-runc-v2")
}

/// The OCI runtimes that there are and that work here, ours first.
pub(crate) fn runtimes() -> Vec<(&'static str, PathBuf)> {
    let all = [
        ("holdfast-oci", Some(programs::bin_dir().join("holdfast-oci"))),
        ("runc", programs::peer("runc")),
        // It refuses the mode that has both versions of control groups.
        ("crun", programs::peer("crun").filter(|_| Path::new("/sys/fs/cgroup/cgroup.controllers").exists())),
    ];
    all.into_iter().filter_map(|(name, path)| Some((name, path.filter(|path| path.exists())?))).collect()
}

/// Each of our shim's pairs, then the stock shims; the last one is what the others are compared with. What is missing is
/// named once and left out.
pub(crate) fn pairs() -> Vec<Subject> {
    let ours = runtimes().into_iter().map(|(name, runtime)| Subject {
        name: format!("holdfast, {name}"),
        shim: our_shim(),
        runtime,
    });
    let stock = [Version::V1_6, Version::V2_1].into_iter().filter_map(|version| {
        let runtime = programs::peer("runc")?;
        Some(Subject { name: format!("stock {}, runc", version.name()), shim: stock_shim(version), runtime })
    });
    ours.chain(stock).filter(|subject| is_there(&subject.name, &subject.shim)).collect()
}

/// Each shim alone, where all have the same OCI runtime below; the last one is what the others are compared with.
pub(crate) fn shims() -> Vec<(&'static str, PathBuf)> {
    let all =
        [("holdfast", our_shim()), ("stock 1.6", stock_shim(Version::V1_6)), ("stock 2.1", stock_shim(Version::V2_1))];
    all.into_iter().filter(|(name, program)| is_there(name, program)).collect()
}

/// All of them, beginning with another one in each round.
pub(crate) fn in_turn<T>(all: &[T], round: usize) -> impl Iterator<Item = &T> {
    all.iter().cycle().skip(round % all.len().max(1)).take(all.len())
}

/// Whether the program is there; said aloud if not.
fn is_there(name: &str, program: &Path) -> bool {
    let there = program.exists();
    if !there {
        eprintln!("bench: left out: {name} ({} is missing)", program.display());
    }
    there
}
