//! Hooks that OCI runtimes call. The container's state comes on standard input.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::args::Hook;
use super::{CliError, Outcome};

/// The loopback interface is the first one in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

pub(super) fn run(hook: Hook) -> Outcome {
    match hook {
        Hook::Loopback => loopback(),
    }
}

/// Brings up loopback in the network namespace of the container whose state is on standard input.
fn loopback() -> Outcome {
    let mut state = String::new();
    std::io::stdin().read_to_string(&mut state).map_err(CliError::io("read the container's state"))?;
    let state: serde_json::Value = serde_json::from_str(&state)
        .map_err(|e| CliError::Usage(format!("the container's state on standard input is no JSON: {e}")))?;
    let pid = state["pid"].as_u64().filter(|pid| *pid > 0);
    let pid = pid.ok_or_else(|| CliError::Usage("the container's state names no pid".to_owned()))?;
    let path = format!("/proc/{pid}/ns/net");
    let namespace = File::open(&path).map_err(CliError::io(format!("open {path}")))?;
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .map_err(|e| CliError::io("enter the container's network namespace")(e.into()))?;
    bring_up(LOOPBACK_INDEX).map_err(CliError::io("bring up loopback"))?;
    Ok(0)
}

/// RTM_NEWLINK for one interface with IFF_UP, rtnetlink(7): a netlink header, an ifinfomsg, and the kernel's answer.
fn bring_up(index: u32) -> std::io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
    const NLMSG_ERROR: u16 = 2;
    let up = (nix::libc::IFF_UP).cast_unsigned();
    let mut message = Vec::with_capacity(32);
    message.extend_from_slice(&32u32.to_ne_bytes()); // length
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend_from_slice(&1u32.to_ne_bytes()); // sequence number
    message.extend_from_slice(&0u32.to_ne_bytes()); // to and from the kernel
    message.extend_from_slice(&[0, 0, 0, 0]); // any family, padding, any type
    message.extend_from_slice(&index.to_ne_bytes());
    message.extend_from_slice(&up.to_ne_bytes()); // flags
    message.extend_from_slice(&up.to_ne_bytes()); // which of them to change
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0u8; 1024];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let short = || std::io::Error::other("a short answer from the kernel");
    let answer = answer.get(..length).filter(|a| a.len() >= 20).ok_or_else(short)?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    match (kind, error) {
        (NLMSG_ERROR, 0) => Ok(()),
        (NLMSG_ERROR, error) => Err(std::io::Error::from_raw_os_error(-error)),
        (kind, _) => Err(std::io::Error::other(format!("unexpected answer {kind} from the kernel"))),
    }
}
