//! Loop devices: an image file as a block device, see loop(4).
#![allow(unsafe_code)] // nix has no wrapper for the requests

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;

const CONTROL: &str = "/dev/loop-control";
/// How often a free device is asked for: others may take the one that was free a moment ago.
const ATTEMPTS: u32 = 100;
/// The pause after a device was lost to somebody else grows by this.
const PAUSE: Duration = Duration::from_micros(200);

/// A device with its image. The kernel frees it when nothing uses it any more: neither this nor a mount.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    path: PathBuf,
    _held: File,
}

impl LoopDevice {
    /// Its node.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Why an image has no device.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// Opening a file failed.
    #[error("cannot open {0}")]
    Open(PathBuf, #[source] io::Error),
    /// The kernel names no free device.
    #[error("cannot get a free loop device")]
    Free(#[source] io::Error),
    /// The device does not take the image.
    #[error("cannot attach {0} to {1}")]
    Attach(PathBuf, PathBuf, #[source] io::Error),
}

/// How an image is attached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) read_only: bool,
    /// Past the page cache.
    pub(crate) direct_io: bool,
}

/// Attaches an image to a free device, which is freed again after its last use.
///
/// # Errors
/// See [`LoopError`]. `EBUSY` after a hundred devices were lost to others.
pub(crate) fn attach(image: &Path, manner: Manner) -> Result<LoopDevice, LoopError> {
    let file = open(image, manner.read_only)?;
    let control = open(Path::new(CONTROL), false)?;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let path = PathBuf::from(format!("/dev/loop{}", free_device(&control).map_err(LoopError::Free)?));
        match attach_to(&path, &file, image, manner) {
            Ok(held) => return Ok(LoopDevice { path, _held: held }),
            Err(e) if is_lost(&e) && attempt < ATTEMPTS => thread::sleep(PAUSE * attempt),
            Err(e) => return Err(e),
        }
    }
}

/// Taken by somebody else, or removed, between the question which one is free and our attempt.
fn is_lost(error: &LoopError) -> bool {
    let (LoopError::Open(_, e) | LoopError::Attach(_, _, e)) = error else { return false };
    matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::EBUSY | Errno::ENXIO))
}

fn open(path: &Path, read_only: bool) -> Result<File, LoopError> {
    let opened = OpenOptions::new().read(true).write(!read_only).open(path);
    opened.map_err(|e| LoopError::Open(path.to_owned(), e))
}

/// The number of a device that is free now, made if there is none.
fn free_device(control: &File) -> io::Result<i32> {
    const LOOP_CTL_GET_FREE: u64 = 0x4C82;
    // SAFETY: the request takes no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    if number < 0 { Err(io::Error::last_os_error()) } else { Ok(number) }
}

fn attach_to(device: &Path, file: &File, image: &Path, manner: Manner) -> Result<File, LoopError> {
    let held = open(device, manner.read_only)?;
    let configured = configure(held.as_raw_fd(), file.as_raw_fd(), image, manner);
    configured.map_err(|e| LoopError::Attach(image.to_owned(), device.to_owned(), e))?;
    Ok(held)
}

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// `LOOP_CONFIGURE`: everything at once, so that nobody sees a device half set up.
fn configure(device: RawFd, file: RawFd, image: &Path, manner: Manner) -> io::Result<()> {
    const LOOP_CONFIGURE: u64 = 0x4C0A;
    const READ_ONLY: u32 = 1;
    const AUTOCLEAR: u32 = 4;
    const DIRECT_IO: u32 = 16;
    // SAFETY: both structures are plain data, for which zeroes are valid and mean the default.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = file.cast_unsigned();
    config.info.flags = AUTOCLEAR;
    if manner.read_only {
        config.info.flags |= READ_ONLY;
    }
    if manner.direct_io {
        config.info.flags |= DIRECT_IO;
    }
    // For those who list the devices; the last byte stays zero.
    let room = config.info.file_name.len() - 1;
    for (to, from) in config.info.file_name.iter_mut().take(room).zip(image.as_os_str().as_bytes()) {
        *to = *from;
    }
    // SAFETY: the structure has the kernel's layout and outlives the call; the kernel takes its own reference of the file.
    let result = unsafe { libc::ioctl(device, LOOP_CONFIGURE as _, &raw const config) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_sizes_of_the_kernels() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}
