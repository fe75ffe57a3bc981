//! Where the programs are: ours in `bin/`, those of others in `target/peers/`, see `tests/peers.sh`.

use std::env;
use std::path::{Path, PathBuf};

/// The root of the working tree.
pub fn repository() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().expect("the crate lies in the working tree").to_owned()
}

/// The directory of the programs under test: `HOLDFAST_BIN_DIR`, else `bin/`.
pub fn bin_dir() -> PathBuf {
    env::var_os("HOLDFAST_BIN_DIR").map_or_else(|| repository().join("bin"), PathBuf::from)
}

/// One of the programs under test.
///
/// # Panics
/// If it was not built.
pub fn ours(name: &str) -> PathBuf {
    let path = bin_dir().join(name);
    assert!(path.exists(), "{} is missing: run `make build` first", path.display());
    path
}

/// The shim under test: `HOLDFAST_SHIM`, else ours.
pub fn shim() -> PathBuf {
    env::var_os("HOLDFAST_SHIM").map_or_else(|| ours("containerd-shim-holdfast-v2"), PathBuf::from)
}

/// Where `tests/peers.sh` puts everything: `HOLDFAST_PEERS_DIR`, else `target/peers`.
fn peers_root() -> PathBuf {
    env::var_os("HOLDFAST_PEERS_DIR").map_or_else(|| repository().join("target/peers"), PathBuf::from)
}

/// The directory of the peers' programs.
pub fn peers_dir() -> PathBuf {
    peers_root().join("bin")
}

/// A containerd of the matrix, by the numbers that decide how it behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 1.6.
    V1_6,
    /// 1.7.
    V1_7,
    /// 2.1.
    V2_1,
}

impl Version {
    /// From the oldest.
    pub const ALL: [Self; 3] = [Self::V1_6, Self::V1_7, Self::V2_1];

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1_6 => "1.6",
            Self::V1_7 => "1.7",
            Self::V2_1 => "2.1",
        }
    }
}

/// The directory with containerd of this version, its ctr and its own shim.
pub fn containerd_dir(version: Version) -> PathBuf {
    peers_root().join(format!("containerd-{}", version.name())).join("bin")
}

/// A dockerd of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DockerVersion {
    /// 20.10.
    V20_10,
    /// 28.5.
    V28_5,
}

impl DockerVersion {
    /// From the oldest.
    pub const ALL: [Self; 2] = [Self::V20_10, Self::V28_5];

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V20_10 => "20.10",
            Self::V28_5 => "28.5",
        }
    }

    /// The containerd of its time.
    pub fn containerd(self) -> Version {
        match self {
            Self::V20_10 => Version::V1_6,
            Self::V28_5 => Version::V2_1,
        }
    }
}

/// The directory with dockerd of this version, its command line and what it needs besides containerd and runc.
pub fn docker_dir(version: DockerVersion) -> PathBuf {
    peers_root().join(format!("docker-{}", version.name())).join("bin")
}

/// A peer, if `tests/peers.sh` could provide it.
pub fn peer(name: &str) -> Option<PathBuf> {
    let path = peers_dir().join(name);
    path.exists().then_some(path)
}

/// A static busybox, if there is one: `HOLDFAST_TEST_BUSYBOX`, else what `tests/peers.sh` provides, else the machine's.
pub fn busybox() -> Option<PathBuf> {
    let named = env::var_os("HOLDFAST_TEST_BUSYBOX").map(PathBuf::from);
    let places = [named, peer("busybox"), Some("/usr/bin/busybox".into())];
    places.into_iter().flatten().find(|path| path.is_file())
}

/// A program that comes with containerd of this version, if `tests/peers.sh` could provide it.
pub fn peer_of(version: Version, name: &str) -> Option<PathBuf> {
    let path = containerd_dir(version).join(name);
    path.exists().then_some(path)
}

/// A program that comes with Docker of this version, if `tests/peers.sh` could provide it.
pub fn docker_peer(version: DockerVersion, name: &str) -> Option<PathBuf> {
    let path = docker_dir(version).join(name);
    path.exists().then_some(path)
}

/// A program of this crate, built beside the test that asks.
///
/// # Panics
/// If it was not built; cargo builds the programs of a package before its integration tests.
pub fn test_program(name: &str) -> PathBuf {
    let own = env::current_exe().expect("a test knows its own path");
    // target/PROFILE/deps/TEST or target/PROFILE/PROGRAM
    let dir = own.ancestors().skip(1).find(|d| d.join(name).exists());
    dir.unwrap_or_else(|| panic!("no program {name} beside {}", own.display())).join(name)
}
