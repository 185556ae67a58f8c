//! The console's page, with a ring each way (`io/console.h`).

use crate::abi::{Header, Target, enumeration, layout};

/// Bytes in the ring to the guest.
pub const IN_SIZE: usize = 1024;
/// Bytes in the ring from the guest.
pub const OUT_SIZE: usize = 2048;

enumeration! {
    /// Whether somebody serves the console, in the page's field `connection`.
    pub enum ConnectionState: u8 {
        /// Somebody does, or the backend does not use the field.
        Connected = 0 => "XENCONSOLE_CONNECTED" newer,
        /// Nobody yet.
        Disconnected = 1 => "XENCONSOLE_DISCONNECTED" newer,
    }
}

layout! {
    /// The page that a guest shares with the console daemon.
    pub struct ConsoleInterface = "struct xencons_interface", 3092
        newer "offsetof(struct xencons_interface, connection)"
    {
        /// To the guest.
        0 input: [u8; IN_SIZE] = "in",
        /// From the guest.
        1024 output: [u8; OUT_SIZE] = "out",
        /// Bytes taken from `input`; free-running.
        3072 in_cons: u32,
        /// Bytes put into `input`; free-running.
        3076 in_prod: u32,
        /// Bytes taken from `output`; free-running.
        3080 out_cons: u32,
        /// Bytes put into `output`; free-running.
        3084 out_prod: u32,
        /// A [`ConnectionState`].
        3088 connection: u8 = newer,
        /// Zero.
        3089 _pad: [u8; 3] = ours,
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/io/console.h",
    target: Target::X86_64,
    claims: &[ConnectionState::CLAIMS, ConsoleInterface::CLAIMS],
};
