//! `/dev/xen/gntdev`: copies by the hypervisor, without mapping.

#![allow(
    unsafe_code,
    reason = "the kernel is told addresses to copy from and to"
)]

use std::marker::PhantomData;

use parapet_xen_sys::DomId;
use parapet_xen_sys::grant_table::{CopyFlags, GrantRef, GrantStatus};
use parapet_xen_sys::linux::gntdev::{CopySegment, ForeignPtr, GRANT_COPY, GrantCopy};
use zerocopy::IntoBytes;

use super::device::Device;
use super::errno;
use super::granting::Pages;
use crate::memory::{PAGE_SIZE, Scratch, View};
use crate::seam::{CopyEnd, CopyOp, Pages as _};

/// One copy as the kernel wants it. Its addresses are those of views, which it borrows.
#[repr(transparent)]
struct Segment<'a>(CopySegment, PhantomData<View<'a>>);

/// An end of a segment: the bytes of the union, and whether they name a grant.
struct End([u8; 8], bool);

impl End {
    fn granted(domid: DomId, gref: GrantRef, offset: u16) -> Self {
        let mut bytes = [0; 8];
        let pointer = ForeignPtr {
            gref,
            offset,
            domid,
        };
        bytes.copy_from_slice(pointer.as_bytes());
        End(bytes, true)
    }

    fn local(view: View<'_>) -> Self {
        End((view.as_ptr() as u64).to_ne_bytes(), false)
    }

    /// An end of a copy of `len` bytes, if it stays within its page.
    fn of(end: &CopyEnd<'_, Pages>, len: usize) -> Option<Self> {
        match *end {
            CopyEnd::Granted {
                domid,
                gref,
                offset,
            } => {
                (usize::from(offset) + len <= PAGE_SIZE).then(|| End::granted(domid, gref, offset))
            }
            CopyEnd::Local { pages, offset } => {
                let view = pages.view().slice(offset, len).ok()?;
                (offset % PAGE_SIZE + len <= PAGE_SIZE).then(|| End::local(view))
            }
        }
    }
}

impl<'a> Segment<'a> {
    /// Borrows, for as long as it exists, what the two ends point to.
    fn new(from: End, to: End, len: u16) -> Self {
        let (End(source, from_grant), End(dest, to_grant)) = (from, to);
        let mut flags = CopyFlags::empty();
        flags.set(CopyFlags::SOURCE_GREF, from_grant);
        flags.set(CopyFlags::DEST_GREF, to_grant);
        let segment = CopySegment {
            source,
            dest,
            len,
            flags,
            status: GrantStatus::OKAY,
            _pad: 0,
        };
        Segment(segment, PhantomData)
    }

    fn of(op: &CopyOp<'a, Pages>) -> Option<Self> {
        let len = usize::from(op.len);
        Some(Segment::new(
            End::of(&op.from, len)?,
            End::of(&op.to, len)?,
            op.len,
        ))
    }
}

/// Does all of `ops`, those that make sense in one call.
pub(super) fn copy(device: &Device, ops: &mut [CopyOp<'_, Pages>]) -> Result<(), i32> {
    let mut segments = Vec::with_capacity(ops.len());
    let mut asked = Vec::with_capacity(ops.len());
    for op in ops {
        // One that is wrong would fail the kernel's whole call.
        let Some(segment) = Segment::of(op) else {
            op.status = GrantStatus::BAD_COPY_ARG;
            continue;
        };
        op.status = GrantStatus::OKAY;
        // The kernel passes over a copy of nothing without a word.
        if op.len == 0 {
            continue;
        }
        match (op.from, op.to) {
            // No grant, so nothing for the hypervisor to do.
            (
                CopyEnd::Local { pages, offset },
                CopyEnd::Local {
                    pages: to,
                    offset: to_offset,
                },
            ) => {
                let copied = pages
                    .view()
                    .copy_to(offset, to.view(), to_offset, op.len.into());
                copied.map_err(|_| libc::EINVAL)?;
            }
            _ => {
                segments.push(segment);
                asked.push(op);
            }
        }
    }
    run(device, &mut segments)?;
    for (op, Segment(done, _)) in asked.into_iter().zip(segments) {
        op.status = done.status;
    }
    Ok(())
}

/// The first of `refs` that cannot be read from, and what Xen says of it.
pub(super) fn find_refused(
    device: &Device,
    from: DomId,
    refs: &[GrantRef],
) -> Option<(GrantRef, GrantStatus)> {
    let byte = Scratch::new(1);
    let mut segments: Vec<Segment<'_>> = refs
        .iter()
        .map(|&gref| Segment::new(End::granted(from, gref, 0), End::local(byte.view()), 1))
        .collect();
    run(device, &mut segments).ok()?;
    refs.iter()
        .zip(&segments)
        .map(|(&gref, Segment(done, _))| (gref, done.status))
        .find(|(_, status)| *status != GrantStatus::OKAY)
}

fn run(device: &Device, segments: &mut [Segment<'_>]) -> Result<(), i32> {
    if segments.is_empty() {
        return Ok(());
    }
    let count = u32::try_from(segments.len()).map_err(|_| libc::EINVAL)?;
    let mut call = GrantCopy {
        count,
        _pad: 0,
        segments: segments.as_mut_ptr() as u64,
    };
    // SAFETY: `struct ioctl_gntdev_grant_copy` of xen/sys/gntdev.h: the kernel reads `count`
    // segments and writes the status of each; they are laid out as `CopySegment` is. It copies
    // from and to the addresses in them, which are those of views of `len` bytes each, borrowed
    // by the segments: shared memory, mapped and, where it is the target, writable.
    let done = unsafe { device.ioctl(GRANT_COPY, call.as_mut_bytes().as_mut_ptr()) };
    match done {
        Ok(_) => Ok(()),
        Err(error) => Err(errno(&error)),
    }
}
