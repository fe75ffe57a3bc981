//! Ring 2 in one value: a scene with a fake containerd and a fake runtime in it.

use crate::fake_runtime::Gate;
use crate::{Bundle, FakeContainerd, FakeRuntime, Launch, Scene, Shim, Stdio, process};

/// The scene comes last, so that it is dropped last.
#[derive(Debug)]
pub struct FakeWorld {
    /// What the shim takes for runc.
    pub runtime: FakeRuntime,
    /// What takes its events.
    pub containerd: FakeContainerd,
    /// Where it all happens.
    pub scene: Scene,
}

impl FakeWorld {
    /// All in place, all well-behaved.
    pub fn new() -> Self {
        let scene = Scene::new();
        Self { runtime: FakeRuntime::new(&scene), containerd: FakeContainerd::start(&scene), scene }
    }

    /// A bundle that runs `args`.
    pub fn bundle(&self, args: &[&str]) -> Bundle {
        Bundle::plain(&self.scene, args)
    }

    /// A bundle that runs a shell script.
    pub fn script(&self, script: &str) -> Bundle {
        self.bundle(&["/bin/sh", "-c", script])
    }

    /// A bundle whose process runs until it is killed.
    pub fn sleeper(&self) -> Bundle {
        self.bundle(&["/bin/sleep", "1000"])
    }

    /// How a shim for `bundle` is started.
    pub fn launch(&self, bundle: &Bundle) -> Launch<'_> {
        Launch::new(&self.scene, bundle).fake(&self.runtime)
    }

    /// A running shim for `bundle`, with no container yet.
    #[track_caller]
    pub fn start(&self, bundle: &Bundle) -> Shim {
        self.launch(bundle).start()
    }

    /// Runs the container of a shim, in shared pids, kills it and holds the runtime that is to kill what it left: its end is
    /// known to the shim and not told.
    #[track_caller]
    pub fn dying(&self, shim: &mut Shim) -> Gate<'_> {
        let pid = shim.run(&Stdio::none());
        let gate = self.runtime.hold("kill");
        process::kill_hard(pid);
        gate.reached();
        gate
    }
}

impl Default for FakeWorld {
    fn default() -> Self {
        Self::new()
    }
}
