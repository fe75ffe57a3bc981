//! What programs under test make at fixed places, outside of any scene, and nobody can tell them to make elsewhere: dockerd
//! its plugins' directory, the library of CNI its results, the OCI runtimes the parent of holdfastd's control groups.
//!
//! Tests run beside each other, in this process and in others, so the last one that holds an [`Outside`] removes what was not
//! there before the first one did, as far as it is empty: what a real Docker or holdfastd has made stays.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::skip::is_root;

/// Where the library of CNI keeps what plugins have answered, until they are told to undo it.
const CNI_RESULTS: &str = "/var/lib/cni/results";

/// Held as long as something may be made outside. Only root's programs make anything there.
#[derive(Debug)]
pub struct Outside {
    _held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    /// Shared by all that hold it; in it are the places that were there before, one a line.
    lock: Flock<File>,
    path: PathBuf,
    places: Vec<PathBuf>,
}

impl Outside {
    /// Holds the machine's.
    ///
    /// # Panics
    /// If there can be no lock.
    #[track_caller]
    pub fn hold() -> Self {
        let path = std::env::temp_dir().join("holdfast-tests.lock");
        let held = is_root().then(|| Held::new(path, places()));
        let held = held.transpose();
        Self { _held: held.unwrap_or_else(|e| panic!("cannot lock what is outside of scenes: {e}")) }
    }
}

/// All places, what is in a directory before the directory.
fn places() -> Vec<PathBuf> {
    let fixed = ["/run/docker/plugins", "/run/docker", CNI_RESULTS, "/var/lib/cni", "/sys/fs/cgroup/holdfast"];
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let groups = hierarchies.map(|hierarchy| hierarchy.path().join("holdfast"));
    fixed.into_iter().map(PathBuf::from).chain(groups).collect()
}

impl Held {
    fn new(path: PathBuf, places: Vec<PathBuf>) -> io::Result<Self> {
        loop {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut first) => {
                    let there = places.iter().filter(|place| place.exists());
                    let list: String = there.map(|place| format!("{}\n", place.display())).collect();
                    first.set_len(0)?;
                    first.rewind()?;
                    first.write_all(list.as_bytes())?;
                    first.relock(FlockArg::LockShared)?;
                    first
                }
                Err((file, Errno::EWOULDBLOCK)) => Flock::lock(file, FlockArg::LockShared).map_err(|(_, e)| e)?,
                Err((_, e)) => return Err(e.into()),
            };
            // The last one takes the file away.
            if is_at(&lock, &path) {
                return Ok(Self { lock, path, places });
            }
        }
    }

    /// Nobody else holds it, nor can before this is over.
    fn clear(&mut self) -> io::Result<()> {
        let mut there = String::new();
        self.lock.rewind()?;
        self.lock.read_to_string(&mut there)?;
        let made = self.places.iter().filter(|place| !there.lines().any(|line| Path::new(line) == **place));
        for place in made {
            // What is not empty is still somebody's; so is what is beside other things.
            let alone = |dir: &Path| fs::read_dir(dir).is_ok_and(|entries| entries.count() == 1);
            if !place.ends_with("docker/plugins") || place.parent().is_some_and(alone) {
                let _ = fs::remove_dir(place);
            }
        }
        fs::remove_file(&self.path)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.lock.relock(FlockArg::LockExclusiveNonblock).is_ok() && is_at(&self.lock, &self.path) {
            let _ = self.clear();
        }
    }
}

/// Whether the file is the one that is at the path now.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: io::Result<fs::Metadata>| metadata.map(|m| (m.dev(), m.ino())).ok();
    id(file.metadata()).is_some_and(|of_file| Some(of_file) == id(fs::metadata(path)))
}

/// Removes the results of plugins that nobody has told to undo anything, since a test has failed before: those in whose text
/// `dir` is, the directory of a scene.
pub fn remove_cni_results(dir: &Path) {
    let word = format!("{}/", dir.display());
    for entry in fs::read_dir(CNI_RESULTS).into_iter().flatten().flatten() {
        if fs::read_to_string(entry.path()).is_ok_and(|text| text.contains(&word)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Machine(PathBuf);

    impl Machine {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("holdfast-outside-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn make(&self, name: &str) {
            fs::create_dir_all(self.0.join(name)).unwrap();
        }

        fn hold(&self) -> Held {
            let places = ["docker/plugins", "docker", "results", "cni"].map(|name| self.0.join(name));
            Held::new(self.0.join("lock"), places.to_vec()).unwrap()
        }

        fn left(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            let mut left: Vec<String> = entries.collect();
            left.sort();
            left
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_last_one_removes_what_was_made() {
        let machine = Machine::new("last");
        let first = machine.hold();
        machine.make("docker/plugins");
        let second = machine.hold();
        machine.make("results");
        drop(first);
        assert_eq!(machine.left(), ["docker", "lock", "results"], "somebody else is at work");
        drop(second);
        assert_eq!(machine.left(), [""; 0]);
        drop(machine.hold());
        assert_eq!(machine.left(), [""; 0]);
    }

    #[test]
    fn what_was_there_or_is_in_use_stays() {
        let machine = Machine::new("stays");
        machine.make("cni");
        let held = machine.hold();
        machine.make("results/one");
        machine.make("docker/plugins");
        machine.make("docker/netns");
        drop(held);
        assert_eq!(machine.left(), ["cni", "docker", "results"]);
        assert!(machine.0.join("docker/plugins").exists(), "a Docker has begun to run");
    }

    #[test]
    fn many_at_the_same_time_end_with_nothing() {
        let machine = Machine::new("many");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _held = machine.hold();
                        machine.make("docker/plugins");
                    }
                });
            }
        });
        drop(machine.hold());
        assert!(!machine.left().contains(&"lock".to_owned()), "{:?}", machine.left());
    }
}
