//! Copying bytes that somebody else may write at the same time.
//!
//! The compiler must neither repeat nor invent an access to such bytes, nor take them for what they
//! were a moment ago. So it does not see these: where there are instructions for it they are written
//! out, and elsewhere each access is volatile.

#![allow(unsafe_code, reason = "memory is copied by address")]

/// Copies `len` bytes, each of which is read once. They need not be aligned.
///
/// # Safety
/// Both ranges are mapped, the target for writing, and do not overlap. What is private of them is the
/// caller's own.
#[inline]
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's contract.
    unsafe { arch::copy(from, to, len) }
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use core::arch::asm;

    /// From here on the string instruction is as fast as blocks, whatever the alignment (measured on
    /// processors that have it in fast; at 1500 bytes it takes two and a half times as long).
    const STRING: usize = 4096;

    /// Moves of one width, by way of a register, which leave everything else as it is.
    macro_rules! through {
        ($from:expr, $to:expr, $class:ident, $mov:literal, $register:literal) => {
            asm!(
                concat!($mov, " {through", $register, "}, [{from}]"),
                concat!($mov, " [{to}], {through", $register, "}"),
                from = in(reg) $from,
                to = in(reg) $to,
                through = out($class) _,
                options(nostack, preserves_flags)
            )
        };
    }

    #[inline]
    pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
        if len >= STRING {
            // SAFETY: the caller vouches for both ranges; the direction flag is clear on entry to
            // every asm block.
            unsafe {
                asm!(
                    "rep movsb",
                    inout("rcx") len => _,
                    inout("rsi") from => _,
                    inout("rdi") to => _,
                    options(nostack, preserves_flags)
                );
            }
            return;
        }
        let mut at = 0;
        // SAFETY: no move passes `len`, and the caller vouches for both ranges up to there.
        unsafe {
            while len - at >= 64 {
                asm!(
                    "movups {a}, [{from}]",
                    "movups {b}, [{from} + 16]",
                    "movups {c}, [{from} + 32]",
                    "movups {d}, [{from} + 48]",
                    "movups [{to}], {a}",
                    "movups [{to} + 16], {b}",
                    "movups [{to} + 32], {c}",
                    "movups [{to} + 48], {d}",
                    from = in(reg) from.add(at),
                    to = in(reg) to.add(at),
                    a = out(xmm_reg) _,
                    b = out(xmm_reg) _,
                    c = out(xmm_reg) _,
                    d = out(xmm_reg) _,
                    options(nostack, preserves_flags)
                );
                at += 64;
            }
            while len - at >= 16 {
                through!(from.add(at), to.add(at), xmm_reg, "movups", "");
                at += 16;
            }
            if len - at >= 8 {
                through!(from.add(at), to.add(at), reg, "mov", ":r");
                at += 8;
            }
            if len - at >= 4 {
                through!(from.add(at), to.add(at), reg, "mov", ":e");
                at += 4;
            }
            if len - at >= 2 {
                through!(from.add(at), to.add(at), reg, "mov", ":x");
                at += 2;
            }
            if len - at >= 1 {
                through!(from.add(at), to.add(at), reg_byte, "mov", "");
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod arch {
    #[inline]
    pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
        let mut at = 0;
        // SAFETY: no access passes `len`, and the caller vouches for both ranges up to there; words
        // are used only where both are aligned.
        unsafe {
            if (from as usize | to as usize) & 7 == 0 {
                while len - at >= 8 {
                    let word = from.add(at).cast::<u64>().read_volatile();
                    to.add(at).cast::<u64>().write_volatile(word);
                    at += 8;
                }
            }
            while at < len {
                to.add(at).write_volatile(from.add(at).read_volatile());
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn every_length_and_alignment_is_copied_whole_and_nothing_else_is() {
        let from: Vec<u8> = (0..9000).map(|at| (at % 251) as u8).collect();
        let lens = (0..300).chain([4095, 4096, 4097, 8192]);
        for len in lens {
            for skip in 0..9 {
                let (before, after) = (skip * 7 % 9, 3);
                let mut to = vec![0xEE; before + len + after];
                // SAFETY: both have so many bytes there, and are our own.
                unsafe { copy(from.as_ptr().add(skip), to.as_mut_ptr().add(before), len) };
                assert_eq!(to[before..before + len], from[skip..skip + len], "{len}");
                assert!(
                    to[..before]
                        .iter()
                        .chain(&to[before + len..])
                        .all(|&b| b == 0xEE)
                );
            }
        }
    }
}
