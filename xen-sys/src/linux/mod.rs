//! How Linux lets a process use Xen: the devices under `/dev/xen` and what their ioctls take.
//!
//! Most structures here that end in an array of one element are longer in use: the array goes on in
//! memory for as many elements as `count` says, while the ioctl's number always has the size with one.

pub mod evtchn;
pub mod gntalloc;
pub mod gntdev;
pub mod privcmd;
pub mod xenbus;

/// The number of an ioctl as all of these are made: `_IOC(_IOC_NONE, device, number, size)`.
const fn ioctl(device: u8, number: u8, size: usize) -> u32 {
    assert!(size < 1 << 14, "an ioctl's number holds 14 bits of size");
    (size as u32) << 16 | (device as u32) << 8 | number as u32
}
