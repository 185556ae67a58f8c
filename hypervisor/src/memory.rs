//! Views of shared memory: the one place where bytes that a peer may change at any moment are
//! touched.
//!
//! A [`View`] is a bounds-checked window on memory that somebody else may be writing. It never
//! becomes a `&[u8]`: what is read is copied out, once, and the copy is what a driver checks and
//! uses. Whole words that both sides synchronise on (ring indices, grant flags, event bits) are
//! reached as atomics.
//!
//! The type says what may be done: `View<'_, ReadOnly>` has no method that writes, and a page that
//! was mapped read-only yields nothing else.

#![allow(
    unsafe_code,
    reason = "views of shared memory are made here, and nowhere else"
)]

mod copy;

use alloc::sync::Arc;
use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use copy::copy;

/// Bytes in a page. Xen's PV protocols speak of 4 KiB pages on every architecture.
pub const PAGE_SIZE: usize = 4096;

/// Marker: the memory behind a [`View`] may be read and written.
#[derive(Debug, Clone, Copy)]
pub enum ReadWrite {}

/// Marker: the memory behind a [`View`] may only be read.
#[derive(Debug, Clone, Copy)]
pub enum ReadOnly {}

/// An access that does not fit into its view, or is not aligned for the word it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{len} bytes at offset {offset:#x} do not fit a view of {size:#x} bytes, or are not aligned"
)]
pub struct OutOfView {
    /// Where the access begins, in bytes from the start of the view.
    pub offset: usize,
    /// How many bytes it wants.
    pub len: usize,
    /// How many bytes the view has.
    pub size: usize,
}

/// A window on memory that is shared with a peer.
///
/// It is `Copy` and as cheap as a slice. Bytes are read and written with volatile accesses, so
/// that the compiler neither repeats nor invents one; words are atomics.
pub struct View<'a, A = ReadWrite> {
    start: NonNull<u8>,
    len: usize,
    life: PhantomData<(&'a AtomicU8, A)>,
}

impl<A> Clone for View<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for View<'_, A> {}

// SAFETY: a view only makes volatile and atomic accesses to memory that is valid for its lifetime
// (the contract of `from_raw`), from whichever thread.
unsafe impl<A> Send for View<'_, A> {}
// SAFETY: as for `Send`; a view has no state of its own.
unsafe impl<A> Sync for View<'_, A> {}

impl<A> fmt::Debug for View<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View({:p}, {:#x})", self.start, self.len)
    }
}

impl<'a> From<View<'a, ReadWrite>> for View<'a, ReadOnly> {
    fn from(view: View<'a, ReadWrite>) -> Self {
        view.read_only()
    }
}

impl<'a, A> View<'a, A> {
    /// Makes a view of the `len` bytes at `start`.
    ///
    /// # Safety
    /// For all of `'a` the bytes are mapped, with write access unless `A` is [`ReadOnly`]; and
    /// nobody in this process makes a reference to them or accesses them but through views, the
    /// atomics that they hand out, and system calls.
    pub const unsafe fn from_raw(start: NonNull<u8>, len: usize) -> Self {
        View {
            start,
            len,
            life: PhantomData,
        }
    }

    /// How many bytes the view covers.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it covers none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the view begins, for system calls that take an address. Dereferencing it is not what
    /// it is for.
    pub const fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The same memory, without the right to write.
    pub const fn read_only(self) -> View<'a, ReadOnly> {
        View {
            start: self.start,
            len: self.len,
            life: PhantomData,
        }
    }

    /// The `len` bytes from `offset` on, as a view of their own.
    #[inline]
    pub fn slice(self, offset: usize, len: usize) -> Result<Self, OutOfView> {
        self.check(offset, len, 1)?;
        // SAFETY: `check` has found `offset` inside this view.
        let start = unsafe { self.start.add(offset) };
        Ok(View {
            start,
            len,
            life: PhantomData,
        })
    }

    #[inline]
    fn check(&self, offset: usize, len: usize, align: usize) -> Result<(), OutOfView> {
        let fits = offset <= self.len && len <= self.len - offset;
        if fits && (self.start.as_ptr() as usize).wrapping_add(offset) & (align - 1) == 0 {
            Ok(())
        } else {
            Err(OutOfView {
                offset,
                len,
                size: self.len,
            })
        }
    }

    #[inline]
    fn at<T>(&self, offset: usize) -> Result<*mut T, OutOfView> {
        self.check(offset, size_of::<T>(), align_of::<T>())?;
        // SAFETY: `check` has found `offset` inside this view.
        Ok(unsafe { self.start.as_ptr().add(offset) }.cast())
    }

    /// Copies a `T` out: one read of each byte, whatever the peer writes meanwhile.
    #[inline]
    pub fn read<T: FromBytes>(&self, offset: usize) -> Result<T, OutOfView> {
        self.check(offset, size_of::<T>(), 1)?;
        let mut value = T::new_zeroed();
        // SAFETY: the source is inside the view; `value` is our own and any bytes make a valid `T`
        // (`FromBytes`).
        unsafe {
            copy(
                self.start.as_ptr().add(offset),
                (&raw mut value).cast(),
                size_of::<T>(),
            );
        }
        Ok(value)
    }

    /// Copies bytes out into `to`.
    #[inline]
    pub fn read_bytes(&self, offset: usize, to: &mut [u8]) -> Result<(), OutOfView> {
        self.check(offset, to.len(), 1)?;
        // SAFETY: the source is inside the view; `to` is our own.
        unsafe {
            copy(self.start.as_ptr().add(offset), to.as_mut_ptr(), to.len());
        }
        Ok(())
    }

    /// Loads the 32-bit word at `offset`, which must be aligned.
    #[inline]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> Result<u32, OutOfView> {
        let word = self.at::<AtomicU32>(offset)?;
        // Memory that is mapped read-only may be loaded from in relaxed order only, and a fence
        // makes of that what was asked for.
        // SAFETY: inside the view and aligned; a relaxed load needs no write access.
        let value = unsafe { &*word }.load(Ordering::Relaxed);
        if order != Ordering::Relaxed {
            fence(order);
        }
        Ok(value)
    }

    /// Copies `len` bytes from `offset` on into another view, at `to_offset`.
    pub fn copy_to(
        &self,
        offset: usize,
        to: View<'_, ReadWrite>,
        to_offset: usize,
        len: usize,
    ) -> Result<(), OutOfView> {
        self.check(offset, len, 1)?;
        to.check(to_offset, len, 1)?;
        // SAFETY: both ranges are inside their views; should they overlap (one page under two
        // views) the bytes that result are some mixture, as with any two writers of shared memory.
        unsafe {
            copy(
                self.start.as_ptr().add(offset),
                to.start.as_ptr().add(to_offset),
                len,
            );
        }
        Ok(())
    }
}

impl<'a> View<'a, ReadWrite> {
    /// Writes a whole `T`, padding that it declares included.
    #[inline]
    pub fn write<T: IntoBytes + Immutable>(
        &self,
        offset: usize,
        value: &T,
    ) -> Result<(), OutOfView> {
        self.write_bytes(offset, value.as_bytes())
    }

    /// Writes bytes at `offset`.
    #[inline]
    pub fn write_bytes(&self, offset: usize, from: &[u8]) -> Result<(), OutOfView> {
        self.check(offset, from.len(), 1)?;
        // SAFETY: the target is inside the view, which allows writes; `from` is our own.
        unsafe {
            copy(from.as_ptr(), self.start.as_ptr().add(offset), from.len());
        }
        Ok(())
    }

    /// Sets every byte to zero.
    pub fn zero(&self) {
        const ZEROES: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
        let mut offset = 0;
        while offset < self.len {
            let len = (self.len - offset).min(PAGE_SIZE);
            // SAFETY: `offset + len` does not pass the end of the view, which allows writes.
            unsafe { copy(ZEROES.as_ptr(), self.start.as_ptr().add(offset), len) };
            offset += len;
        }
    }

    /// The byte at `offset` as an atomic.
    #[inline]
    pub fn atomic_u8(&self, offset: usize) -> Result<&'a AtomicU8, OutOfView> {
        // SAFETY: inside the view, writable, valid for `'a`.
        self.at::<AtomicU8>(offset).map(|word| unsafe { &*word })
    }

    /// The 16-bit word at `offset`, which must be aligned, as an atomic.
    #[inline]
    pub fn atomic_u16(&self, offset: usize) -> Result<&'a AtomicU16, OutOfView> {
        // SAFETY: inside the view, aligned, writable, valid for `'a`.
        self.at::<AtomicU16>(offset).map(|word| unsafe { &*word })
    }

    /// The 32-bit word at `offset`, which must be aligned, as an atomic.
    #[inline]
    pub fn atomic_u32(&self, offset: usize) -> Result<&'a AtomicU32, OutOfView> {
        // SAFETY: inside the view, aligned, writable, valid for `'a`.
        self.at::<AtomicU32>(offset).map(|word| unsafe { &*word })
    }

    /// The 64-bit word at `offset`, which must be aligned, as an atomic.
    #[inline]
    pub fn atomic_u64(&self, offset: usize) -> Result<&'a AtomicU64, OutOfView> {
        // SAFETY: inside the view, aligned, writable, valid for `'a`.
        self.at::<AtomicU64>(offset).map(|word| unsafe { &*word })
    }
}

/// Zeroed memory of this process in the role of shared memory: for rings between two parties that
/// share an address space, and for tests. Clones share the bytes.
#[derive(Clone)]
pub struct Scratch(Arc<ScratchBytes>);

struct ScratchBytes {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the bytes are only ever accessed through views.
unsafe impl Send for ScratchBytes {}
// SAFETY: as for `Send`.
unsafe impl Sync for ScratchBytes {}

impl Scratch {
    /// `len` bytes, all zero, aligned to a page.
    ///
    /// # Panics
    /// If `len` is zero or more than an allocation may have.
    pub fn new(len: usize) -> Self {
        assert!(len > 0, "scratch memory of no length");
        let layout = Layout::from_size_align(len, PAGE_SIZE).expect("a length that can be had");
        // SAFETY: the layout's size is not zero.
        let Some(start) = NonNull::new(unsafe { alloc::alloc::alloc_zeroed(layout) }) else {
            alloc::alloc::handle_alloc_error(layout);
        };
        Scratch(Arc::new(ScratchBytes { start, layout }))
    }

    /// All of it.
    pub fn view(&self) -> View<'_> {
        // SAFETY: the bytes live as long as `self`, and nobody has another way to them.
        unsafe { View::from_raw(self.0.start, self.0.layout.size()) }
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scratch({:?})", self.view())
    }
}

impl crate::seam::Pages for Scratch {
    fn view(&self) -> View<'_> {
        Scratch::view(self)
    }
}

impl Drop for ScratchBytes {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and no view outlives the last owner.
        unsafe { alloc::alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn with_view<R>(len: usize, test: impl FnOnce(View<'_>) -> R) -> R {
        test(Scratch::new(len).view())
    }

    #[test]
    fn an_access_past_the_end_is_an_error_also_when_the_sum_overflows() {
        with_view(64, |view| {
            assert!(view.read::<u32>(60).is_ok());
            assert!(view.read::<u32>(61).is_err());
            assert!(view.read::<u32>(usize::MAX).is_err());
            assert!(view.write_bytes(65, &[]).is_err());
            assert!(view.slice(usize::MAX, 2).is_err());
            assert!(view.slice(32, 33).is_err());
        });
    }

    #[test]
    fn a_word_must_be_aligned() {
        with_view(64, |view| {
            assert!(view.atomic_u32(4).is_ok());
            assert!(view.atomic_u32(2).is_err());
            assert!(view.atomic_u64(4).is_err());
            assert!(view.load_u32(3, Ordering::Relaxed).is_err());
        });
    }

    #[test]
    fn zeroing_reaches_every_byte_of_an_odd_length() {
        with_view(PAGE_SIZE * 2 + 3, |view| {
            view.write_bytes(0, &vec![0xa5; PAGE_SIZE * 2 + 3]).unwrap();
            view.zero();
            let mut all = vec![1; PAGE_SIZE * 2 + 3];
            view.read_bytes(0, &mut all).unwrap();
            assert!(all.iter().all(|&byte| byte == 0));
        });
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_at_any_offset_and_length(
            offset in 0usize..600, bytes in proptest::collection::vec(any::<u8>(), 0..700)
        ) {
            with_view(1400, |view| {
                view.write_bytes(offset, &bytes).unwrap();
                let mut back = vec![0; bytes.len()];
                view.read_bytes(offset, &mut back).unwrap();
                assert_eq!(back, bytes);
                with_view(1400, |other| {
                    view.copy_to(offset, other, 5, bytes.len()).unwrap();
                    let mut copied = vec![0; bytes.len()];
                    other.read_bytes(5, &mut copied).unwrap();
                    assert_eq!(copied, bytes);
                });
            });
        }
    }
}
