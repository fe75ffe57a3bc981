//! What is compared.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use holdfast_tests::programs::{self, Version};
use holdfast_tests::{Bundle, Launch, Scene};

/// A program that is to be compared beside the usual ones: `NAME=PROGRAM`.
#[derive(Clone, Debug)]
pub(crate) struct Other {
    name: String,
    program: PathBuf,
}

impl FromStr for Other {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, program) = text.split_once('=').ok_or("it must be NAME=PROGRAM")?;
        let program = std::path::absolute(program).map_err(|e| e.to_string())?;
        if name.is_empty() || !program.is_file() {
            return Err(format!("{} is no program", program.display()));
        }
        Ok(Self { name: name.to_owned(), program })
    }
}

/// What is compared beside the usual.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Others {
    /// Another shim, as an older build of ours.
    #[arg(long = "shim", value_name = "NAME=PROGRAM")]
    shims: Vec<Other>,
    /// Another OCI runtime.
    #[arg(long = "runtime", value_name = "NAME=PROGRAM")]
    runtimes: Vec<Other>,
}

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

impl Others {
    /// The OCI runtimes that there are and that work here, ours first.
    pub(crate) fn runtimes(&self) -> Vec<(String, PathBuf)> {
        let usual = [
            ("holdfast-oci", Some(programs::bin_dir().join("holdfast-oci"))),
            ("runc", programs::peer("runc")),
            // It refuses the mode that has both versions of control groups.
            ("crun", programs::peer("crun").filter(|_| Path::new("/sys/fs/cgroup/cgroup.controllers").exists())),
        ];
        let usual = usual.into_iter().filter_map(|(name, path)| Some((name.to_owned(), path.filter(|p| p.exists())?)));
        usual.chain(named(&self.runtimes)).collect()
    }

    /// Each of our shim's pairs, then those of other shims, then the stock shims; the last one is what the others are
    /// compared with. What is missing is named once and left out.
    pub(crate) fn pairs(&self) -> Vec<Subject> {
        let above_all = |(shim_name, shim): (String, PathBuf)| {
            self.runtimes().into_iter().map(move |(name, runtime)| Subject {
                name: format!("{shim_name}, {name}"),
                shim: shim.clone(),
                runtime,
            })
        };
        let stock = stock_shims().filter_map(|(name, shim)| {
            let runtime = programs::peer("runc")?;
            Some(Subject { name: format!("{name}, runc"), shim, runtime })
        });
        let ours = [("holdfast".to_owned(), our_shim())].into_iter().chain(named(&self.shims)).flat_map(above_all);
        ours.chain(stock).filter(|subject| is_there(&subject.name, &subject.shim)).collect()
    }

    /// Each shim alone, where all have the same OCI runtime below; the last one is what the others are compared with.
    pub(crate) fn shims(&self) -> Vec<(String, PathBuf)> {
        let ours = [("holdfast".to_owned(), our_shim())];
        let all = ours.into_iter().chain(named(&self.shims)).chain(stock_shims());
        all.filter(|(name, program)| is_there(name, program)).collect()
    }
}

fn named(others: &[Other]) -> impl Iterator<Item = (String, PathBuf)> {
    others.iter().map(|other| (other.name.clone(), other.program.clone()))
}

fn stock_shims() -> impl Iterator<Item = (String, PathBuf)> {
    [Version::V1_6, Version::V2_1].into_iter().map(|version| (format!("stock {}", version.name()), stock_shim(version)))
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
