//! Network devices: the container's loopback, and those of the host that go to it (`linux.netDevices`).

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use libcontainer::network::cidr::CidrAddress;
use libcontainer::network::network_device::dev_change_net_namespace;
use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, LinuxNetDevice};

use crate::error::{Failure, chain};
use crate::sys;

/// Brings up the loopback device of the process's network namespace, if that is a new one: every program expects it, and
/// for a container without other networks nobody else does.
///
/// # Errors
/// When the namespace cannot be entered or the kernel refuses.
pub(crate) fn bring_up_loopback(linux: &Linux, pid: i32) -> Result<(), Failure> {
    let is_new =
        |namespace: &LinuxNamespace| namespace.typ() == LinuxNamespaceType::Network && namespace.path().is_none();
    if !linux.namespaces().iter().flatten().any(is_new) {
        return Ok(());
    }
    let path = format!("/proc/{pid}/ns/net");
    let namespace = File::open(&path).map_err(Failure::file("open", &path))?;
    sys::in_child(|| {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        sys::bring_up_interface(c"lo")
    })
    .map_err(Failure::sys("bring up the loopback device"))
}

/// Moves the devices into the network namespace of the process; returns the addresses that the kernel drops on the way.
///
/// # Errors
/// Names the device that stays. The kernel moves those back that went, once the namespace is gone.
pub(crate) fn move_devices(
    devices: &HashMap<String, LinuxNetDevice>,
    pid: i32,
) -> Result<HashMap<String, Vec<CidrAddress>>, Failure> {
    let path = format!("/proc/{pid}/ns/net");
    let namespace = File::open(&path).map_err(Failure::file("open", path))?;
    let mut addresses = HashMap::new();
    for (name, device) in devices {
        let kept = dev_change_net_namespace(name, namespace.as_raw_fd(), device).map_err(|error| Failure::Start {
            reason: format!("cannot move linux.netDevices[{name:?}]: {}", chain(&error)),
        })?;
        addresses.insert(name.clone(), kept);
    }
    Ok(addresses)
}
