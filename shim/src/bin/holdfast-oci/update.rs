//! `update`: changes the limits of a container that exists.

use std::fs;
use std::io::{Read, stdin};
use std::path::Path;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxPids, LinuxResources, Spec};

use crate::cli::{Global, UpdateArgs};
use crate::error::Failure;
use crate::record::{RunRoot, Status};
use crate::spec_check;

/// Applies the limits.
///
/// # Errors
/// When the container is stopped, a limit is refused, or the kernel refuses it.
pub(crate) fn run(global: &Global, args: &UpdateArgs) -> Result<u8, Failure> {
    let container = RunRoot::new(&global.root).load(&args.id)?;
    if matches!(container.status(), Status::Stopped | Status::Creating) {
        return Err(Failure::NotRunning { id: args.id.clone() });
    }
    let mut resources = requested(args)?;
    let cgroup = &container.record.cgroup;
    spec_check::resources("resources", &resources)?;
    spec_check::limits("resources", &resources, cgroup.unified)?;
    let spec = container.dir.spec()?;
    keep_oom_killer(&mut resources, &spec);
    if !cgroup.unified {
        keep_device_rules(&mut resources, &spec);
    }
    cgroup.limit(&resources)?;
    Ok(0)
}

/// libcgroups sets the OOM killer with every change of memory limits: what is not asked for must stay as it was.
fn keep_oom_killer(resources: &mut LinuxResources, spec: &Spec) {
    let Some(memory) = resources.memory_mut().as_mut().filter(|memory| memory.disable_oom_killer().is_none()) else {
        return;
    };
    let original = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let original = original.and_then(|resources| resources.memory().as_ref());
    memory.set_disable_oom_killer(original.and_then(|memory| memory.disable_oom_killer()));
}

/// On version 1 libcgroups allows devices of its own with every change of limits: the container's rules come after it.
fn keep_device_rules(resources: &mut LinuxResources, spec: &Spec) {
    if resources.devices().is_none() {
        let original = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        resources.set_devices(original.and_then(|resources| resources.devices().clone()));
    }
}

fn requested(args: &UpdateArgs) -> Result<LinuxResources, Failure> {
    let Some(path) = &args.resources else { return Ok(from_flags(args)) };
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        stdin().read_to_end(&mut bytes).map_err(Failure::file("read", path))?;
    } else {
        bytes = fs::read(path).map_err(Failure::file("read", path))?;
    }
    serde_json::from_slice(&bytes).map_err(|source| Failure::Json { path: path.clone(), source })
}

fn from_flags(args: &UpdateArgs) -> LinuxResources {
    let mut resources = LinuxResources::default();
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(args.cpu_shares);
    cpu.set_quota(args.cpu_quota);
    cpu.set_period(args.cpu_period);
    cpu.set_cpus(args.cpuset_cpus.clone());
    cpu.set_mems(args.cpuset_mems.clone());
    resources.set_cpu(Some(cpu).filter(|cpu| *cpu != LinuxCpu::default()));
    let mut memory = LinuxMemory::default();
    memory.set_limit(args.memory);
    memory.set_reservation(args.memory_reservation);
    memory.set_swap(args.memory_swap);
    resources.set_memory(Some(memory).filter(|memory| *memory != LinuxMemory::default()));
    if let Some(limit) = args.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    if args.blkio_weight.is_some() {
        let mut block = oci_spec::runtime::LinuxBlockIo::default();
        block.set_weight(args.blkio_weight);
        resources.set_block_io(Some(block));
    }
    resources
}
