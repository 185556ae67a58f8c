//! The names of the slot layouts (`io/protocols.h`), the value of a frontend's key `protocol`.

use crate::abi::{Header, Target, texts};

texts! { NAMES:
    /// 32-bit x86.
    pub const X86_32: &str = "x86_32-abi" => "XEN_IO_PROTO_ABI_X86_32";
    /// 64-bit x86.
    pub const X86_64: &str = "x86_64-abi" => "XEN_IO_PROTO_ABI_X86_64";
    /// Arm, 32-bit and 64-bit.
    pub const ARM: &str = "arm-abi" => "XEN_IO_PROTO_ABI_ARM";
    /// The layout of the machine that this crate describes.
    pub const NATIVE: &str = "x86_64-abi" => "XEN_IO_PROTO_ABI_NATIVE";
}

pub(crate) const HEADER: Header = Header {
    include: "xen/io/protocols.h",
    target: Target::X86_64,
    claims: &[NAMES],
};
