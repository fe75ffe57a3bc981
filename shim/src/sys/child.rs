//! A child with more file descriptors than the standard three.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::lifecycle::Pid;

/// The first number after the standard streams.
const FIRST: i32 = 3;

/// Starts `command` with `fds` as its descriptors 3, 4, 5, …, in their order, and no other besides the standard ones. All
/// that this program opens is close-on-exec.
///
/// # Errors
/// As `dup(2)`, `fork(2)` and `execve(2)`: a program that is missing shows here.
pub(crate) fn spawn_with<const N: usize>(mut command: Command, fds: [OwnedFd; N]) -> io::Result<Pid> {
    let last = FIRST + i32::try_from(N).unwrap_or(i32::MAX) - 1;
    // Until the child has its own, none of these numbers may be in use for anything else: not for one of `fds`, and not
    // for the pipe on which the standard library's child reports that it could not become the program.
    let mut reserved = Vec::new();
    let mut high = Vec::new();
    for fd in fds {
        high.push(above(last, fd, &mut reserved)?);
    }
    if let Some(fd) = high.first() {
        let spare = above(last, fd.try_clone()?, &mut reserved)?;
        drop(spare);
    }
    let numbers: Vec<i32> = high.iter().map(AsRawFd::as_raw_fd).collect();
    let place = move || {
        for (number, place) in numbers.iter().zip(FIRST..) {
            // SAFETY: dup2 takes two integers, is async-signal-safe, and the numbers are of fds that `high` owns until
            // the child was made. The copy is not close-on-exec.
            if unsafe { libc::dup2(*number, place) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec; it only reads an array and calls dup2: no allocation, no lock.
    unsafe { command.pre_exec(place) };
    let child = command.spawn()?;
    drop((high, reserved));
    Ok(child.id())
}

/// `fd` under a number above `last`; copies that are not are kept in `reserved`, so that nothing else gets their numbers.
fn above(last: i32, fd: OwnedFd, reserved: &mut Vec<OwnedFd>) -> io::Result<OwnedFd> {
    let mut fd = fd;
    while fd.as_raw_fd() <= last {
        let copy = fd.try_clone()?;
        reserved.push(fd);
        fd = copy;
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;
    use std::io::Read;
    use std::process::Stdio;

    use super::*;
    use crate::sys::pipe;

    #[test]
    fn a_child_gets_its_descriptors_by_number_and_no_others() {
        let (read, write) = pipe::large_pipe().unwrap();
        let (read_names, write_names) = pipe::large_pipe().unwrap();
        let mut shell = Command::new("/bin/sh");
        let look = "for n in 3 4 5 6 7 8 9; do test -e /proc/$$/fd/$n && echo $n; done >&4; echo third >&3";
        shell.args(["-c", look]).stdin(Stdio::null()).stdout(Stdio::null());
        shell.stderr(Stdio::null());
        spawn_with(shell, [write, write_names]).unwrap();
        let text = |fd: OwnedFd| {
            let mut text = String::new();
            File::from(fd).read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(text(read), "third\n");
        assert_eq!(text(read_names), "3\n4\n");
    }

    #[test]
    fn a_program_that_is_missing_is_an_error_here() {
        let (read, _write) = pipe::large_pipe().unwrap();
        let failed = spawn_with(Command::new("/nonexistent/logger"), [read]).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::NotFound);
    }
}
