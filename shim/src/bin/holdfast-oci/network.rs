//! Network devices of the host that go to the container (`linux.netDevices`).

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;

use libcontainer::network::cidr::CidrAddress;
use libcontainer::network::network_device::dev_change_net_namespace;
use oci_spec::runtime::LinuxNetDevice;

use crate::error::{Failure, chain};

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
