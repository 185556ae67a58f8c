//! The front half of Xen's paravirtual network device: frames out of a guest, and into it.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]
