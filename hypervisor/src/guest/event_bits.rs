//! The event bits of a shared-info page (`xen.h`, `event_channel.h`: the 2-level ABI).
//!
//! A pending bit a port; a mask bit a port; for each vCPU a selector word, one bit for each word of
//! pending bits, and a byte that says whether to look at all. The hypervisor sets them from the
//! inside out; a guest clears them from the outside in.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parapet_xen_sys::event_channel::Port;
use parapet_xen_sys::shared_info::{SharedInfo, VcpuInfo};

use crate::memory::{OutOfView, View};

/// Ports that the 2-level ABI has on a 64-bit machine.
pub const PORTS: u32 = 4096;

/// vCPUs that have their vcpu_info in the shared-info page itself.
pub const VCPUS: usize = 32;

/// The event bits of one domain.
#[derive(Debug, Clone, Copy)]
pub struct EventBits<'a> {
    shared_info: View<'a>,
}

/// One port's place among the words.
#[derive(Debug, Clone, Copy)]
struct Bit<'a> {
    word: &'a AtomicU64,
    mask: u64,
}

impl Bit<'_> {
    fn get(self) -> bool {
        self.word.load(Ordering::SeqCst) & self.mask != 0
    }

    /// Sets it, and tells whether it was set before.
    fn set(self) -> bool {
        self.word.fetch_or(self.mask, Ordering::SeqCst) & self.mask != 0
    }

    /// Clears it, and tells whether it was set before.
    fn clear(self) -> bool {
        self.word.fetch_and(!self.mask, Ordering::SeqCst) & self.mask != 0
    }
}

impl<'a> EventBits<'a> {
    /// The bits of the domain whose shared-info page this is.
    ///
    /// # Errors
    /// The view is smaller than the structure, or not aligned.
    pub fn new(page: View<'a>) -> Result<Self, OutOfView> {
        let shared_info = page.slice(0, size_of::<SharedInfo>())?;
        shared_info.atomic_u64(0)?;
        Ok(EventBits { shared_info })
    }

    fn bit(&self, array: usize, port: Port) -> Result<Bit<'a>, OutOfView> {
        let word = (port.0 / u64::BITS) as usize;
        if port.0 >= PORTS {
            return Err(OutOfView {
                offset: array.saturating_add(word.saturating_mul(8)),
                len: 8,
                size: self.shared_info.len(),
            });
        }
        Ok(Bit {
            word: self.shared_info.atomic_u64(array + word * 8)?,
            mask: 1 << (port.0 % u64::BITS),
        })
    }

    fn pending_bit(&self, port: Port) -> Result<Bit<'a>, OutOfView> {
        self.bit(offset_of!(SharedInfo, evtchn_pending), port)
    }

    fn mask_bit(&self, port: Port) -> Result<Bit<'a>, OutOfView> {
        self.bit(offset_of!(SharedInfo, evtchn_mask), port)
    }

    fn vcpu(&self, vcpu: usize) -> Result<usize, OutOfView> {
        if vcpu < VCPUS {
            Ok(offset_of!(SharedInfo, vcpu_info) + vcpu * size_of::<VcpuInfo>())
        } else {
            Err(OutOfView {
                offset: vcpu.saturating_mul(size_of::<VcpuInfo>()),
                len: size_of::<VcpuInfo>(),
                size: self.shared_info.len(),
            })
        }
    }

    fn selector(&self, vcpu: usize) -> Result<&'a AtomicU64, OutOfView> {
        self.shared_info
            .atomic_u64(self.vcpu(vcpu)? + offset_of!(VcpuInfo, evtchn_pending_sel))
    }

    /// The byte that asks `vcpu` to look at its selector.
    ///
    /// # Errors
    /// There is no such vCPU.
    pub fn upcall_pending(&self, vcpu: usize) -> Result<&'a AtomicU8, OutOfView> {
        self.shared_info
            .atomic_u8(self.vcpu(vcpu)? + offset_of!(VcpuInfo, evtchn_upcall_pending))
    }

    /// Takes the pending event of `port`, if there is one and the port is not masked.
    #[inline]
    pub fn take(&self, port: Port) -> Result<bool, OutOfView> {
        let bit = self.pending_bit(port)?;
        // A look first: it costs no exclusive cache line, and a port that is polled is mostly idle.
        Ok(bit.get() && !self.is_masked(port)? && bit.clear())
    }

    /// Whether an event of `port` is pending.
    pub fn is_pending(&self, port: Port) -> Result<bool, OutOfView> {
        Ok(self.pending_bit(port)?.get())
    }

    /// Whether `port` is masked.
    pub fn is_masked(&self, port: Port) -> Result<bool, OutOfView> {
        Ok(self.mask_bit(port)?.get())
    }

    /// Masks `port`: its events stay pending and wake nobody.
    pub fn mask(&self, port: Port) -> Result<(), OutOfView> {
        self.mask_bit(port)?.set();
        Ok(())
    }

    /// Forgets `port`: not pending, not masked.
    pub fn reset(&self, port: Port) -> Result<(), OutOfView> {
        self.pending_bit(port)?.clear();
        self.mask_bit(port)?.clear();
        Ok(())
    }

    /// Unmasks `port`, and tells whether an event that came meanwhile must now be raised again.
    pub fn unmask(&self, port: Port) -> Result<bool, OutOfView> {
        self.mask_bit(port)?.clear();
        self.is_pending(port)
    }

    /// The hypervisor's half: makes `port` pending for `vcpu`, and tells whether that vCPU must be
    /// woken.
    #[inline]
    pub fn set_pending(&self, port: Port, vcpu: usize) -> Result<bool, OutOfView> {
        if self.pending_bit(port)?.set() {
            return Ok(false);
        }
        self.raise(port, vcpu)
    }

    /// The hypervisor's half: passes a pending bit on to the selector, unless masked or passed on
    /// already.
    #[inline]
    pub fn raise(&self, port: Port, vcpu: usize) -> Result<bool, OutOfView> {
        if self.mask_bit(port)?.get() {
            return Ok(false);
        }
        let select = Bit {
            word: self.selector(vcpu)?,
            mask: 1 << (port.0 / u64::BITS),
        };
        if select.set() {
            return Ok(false);
        }
        Ok(self.upcall_pending(vcpu)?.swap(1, Ordering::SeqCst) == 0)
    }

    /// The guest's half: calls `found` with every port that is pending, unmasked and selected for
    /// `vcpu`. The pending bits are left to [`EventBits::take`].
    #[inline]
    pub fn upcall(&self, vcpu: usize, mut found: impl FnMut(Port)) -> Result<(), OutOfView> {
        let upcall = self.upcall_pending(vcpu)?;
        let selector = self.selector(vcpu)?;
        while upcall.load(Ordering::SeqCst) != 0 {
            // Cleared before the selector is taken: a sender that comes too late for the one finds
            // the other clear, and sets it again. The swap releases this store to that sender.
            upcall.store(0, Ordering::Relaxed);
            let mut selected = selector.swap(0, Ordering::SeqCst);
            while selected != 0 {
                let word = selected.trailing_zeros();
                selected &= selected - 1;
                let first = Port(word * u64::BITS);
                let pending = self.pending_bit(first)?.word.load(Ordering::SeqCst);
                let masked = self.mask_bit(first)?.word.load(Ordering::SeqCst);
                let mut ports = pending & !masked;
                while ports != 0 {
                    found(Port(first.0 + ports.trailing_zeros()));
                    ports &= ports - 1;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::memory::{PAGE_SIZE, Scratch};

    fn upcalls(bits: &EventBits<'_>, vcpu: usize) -> Vec<u32> {
        let mut ports = Vec::new();
        bits.upcall(vcpu, |port| ports.push(port.0)).unwrap();
        ports
    }

    #[test]
    fn an_event_reaches_its_vcpu_once_and_stays_pending_until_taken() {
        let page = Scratch::new(PAGE_SIZE);
        let bits = EventBits::new(page.view()).unwrap();
        assert!(bits.set_pending(Port(7), 1).unwrap());
        assert!(!bits.set_pending(Port(7), 1).unwrap(), "already pending");
        assert!(
            !bits.set_pending(Port(4095), 1).unwrap(),
            "the vCPU is being woken already"
        );
        assert_eq!(upcalls(&bits, 0), []);
        assert_eq!(upcalls(&bits, 1), [7, 4095]);
        assert_eq!(upcalls(&bits, 1), []);
        assert!(bits.take(Port(7)).unwrap());
        assert!(!bits.take(Port(7)).unwrap());
        assert!(bits.set_pending(Port(7), 1).unwrap(), "a new event");
    }

    #[test]
    fn a_masked_event_waits_for_the_unmask() {
        let page = Scratch::new(PAGE_SIZE);
        let bits = EventBits::new(page.view()).unwrap();
        bits.mask(Port(70)).unwrap();
        assert!(!bits.set_pending(Port(70), 0).unwrap());
        assert_eq!(upcalls(&bits, 0), []);
        assert!(bits.unmask(Port(70)).unwrap());
        assert!(bits.raise(Port(70), 0).unwrap());
        assert_eq!(upcalls(&bits, 0), [70]);
        bits.mask(Port(71)).unwrap();
        assert!(!bits.unmask(Port(71)).unwrap(), "nothing came meanwhile");
    }

    #[test]
    fn a_port_or_vcpu_beyond_the_abi_is_an_error() {
        let page = Scratch::new(PAGE_SIZE);
        let bits = EventBits::new(page.view()).unwrap();
        assert!(bits.set_pending(Port(PORTS), 0).is_err());
        assert!(bits.take(Port(u32::MAX)).is_err());
        assert!(bits.raise(Port(1), VCPUS).is_err());
        assert!(bits.upcall(VCPUS, |_| ()).is_err());
    }
}
