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

/// An end of a segment: the bytes of the union, and whether they name a grant. It borrows what it
/// is the address of.
struct End<'a>([u8; 8], bool, PhantomData<View<'a>>);

impl<'a> End<'a> {
    fn granted(domid: DomId, gref: GrantRef, offset: u16) -> Self {
        let mut bytes = [0; 8];
        let pointer = ForeignPtr {
            gref,
            offset,
            domid,
        };
        bytes.copy_from_slice(pointer.as_bytes());
        End(bytes, true, PhantomData)
    }

    fn local(view: View<'a>) -> Self {
        End((view.as_ptr() as u64).to_ne_bytes(), false, PhantomData)
    }

    /// An end of a copy of `len` bytes, if it stays within its page.
    fn of(end: &CopyEnd<'a, Pages>, len: usize) -> Option<Self> {
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
    fn new(from: End<'a>, to: End<'a>, len: u16) -> Self {
        let (End(source, from_grant, _), End(dest, to_grant, _)) = (from, to);
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

/// Does all of `ops` in order, and in one call if none of them is without a grant.
pub(super) fn copy(device: &Device, ops: &mut [CopyOp<'_, Pages>]) -> Result<(), i32> {
    let mut pending = Pending {
        segments: Vec::with_capacity(ops.len()),
        of: Vec::with_capacity(ops.len()),
    };
    for index in 0..ops.len() {
        let op = &mut ops[index];
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
        let (
            CopyEnd::Local { pages, offset },
            CopyEnd::Local {
                pages: to,
                offset: at,
            },
        ) = (op.from, op.to)
        else {
            pending.segments.push(segment);
            pending.of.push(index);
            continue;
        };
        // No grant, so nothing for the hypervisor to do; but it may need what comes before.
        let len = op.len.into();
        pending.run(device, ops)?;
        let copied = pages.view().copy_to(offset, to.view(), at, len);
        copied.map_err(|_| libc::EINVAL)?;
    }
    pending.run(device, ops)
}

/// Copies that are to be done, and which of the operations they are.
struct Pending<'a> {
    segments: Vec<Segment<'a>>,
    of: Vec<usize>,
}

impl Pending<'_> {
    fn run(&mut self, device: &Device, ops: &mut [CopyOp<'_, Pages>]) -> Result<(), i32> {
        run(device, &mut self.segments)?;
        for (index, Segment(done, _)) in self.of.drain(..).zip(self.segments.drain(..)) {
            ops[index].status = done.status;
        }
        Ok(())
    }
}

/// The first of `refs` that cannot be read from, and what Xen says of it.
///
/// # Errors
/// The host's, as an errno.
pub(super) fn find_refused(
    device: &Device,
    from: DomId,
    refs: &[GrantRef],
) -> Result<Option<(GrantRef, GrantStatus)>, i32> {
    let byte = Scratch::new(1);
    let mut segments: Vec<Segment<'_>> = refs
        .iter()
        .map(|&gref| Segment::new(End::granted(from, gref, 0), End::local(byte.view()), 1))
        .collect();
    run(device, &mut segments)?;
    let outcomes = refs.iter().zip(&segments);
    let mut outcomes = outcomes.map(|(&gref, Segment(done, _))| (gref, done.status));
    Ok(outcomes.find(|(_, status)| *status != GrantStatus::OKAY))
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
