//! The network protocol (`io/netif.h`): a ring to transmit, one to receive, and one for control.
//!
//! A packet is a chain of slots; between its first slot and the next there may be slots of extra
//! information, told from requests only by the flags of the slot before:
//!
//! ```text
//!  transmit (12 bytes a slot)                     receive (8 bytes a slot)
//!  TxRequest   EXTRA_INFO | MORE_DATA  total size  RxResponse  EXTRA_INFO | MORE_DATA  its own size
//!  TxExtra     MORE                                ExtraInfo   MORE
//!  TxExtra     -                                   ExtraInfo   -
//!  TxRequest   MORE_DATA               its own     RxResponse  MORE_DATA               its own
//!  TxRequest   -                       its own     RxResponse  -                       its own
//! ```
//!
//! As in [`blkif`](super::blkif), a copy of a slot's bytes becomes any of its structures by
//! `zerocopy::transmute!`.

use super::ring::slots;
use crate::GrantRef;
use crate::abi::{Claim, Header, Target, claim, codes, constants, enumeration, flags, layout};

/// A slot of the transmit ring as bytes.
pub type TxSlot = [u8; 12];
/// A slot of the receive ring as bytes.
pub type RxSlot = [u8; 8];
/// A slot of the control ring as bytes.
pub type ControlSlot = [u8; 16];

constants! { LIMITS:
    /// The longest packet to transmit, in bytes.
    pub const MAX_TX_SIZE: usize = 0xFFFF => "XEN_NETIF_MAX_TX_SIZE";
    /// Slots with data that a backend must take in one packet to transmit.
    pub const NR_SLOTS_MIN: usize = 18 => "XEN_NETIF_NR_SLOTS_MIN";
    /// One more than the highest [`ExtraType`].
    pub const EXTRA_TYPE_MAX: usize = 5 => "XEN_NETIF_EXTRA_TYPE_MAX";
}

enumeration! {
    /// What a slot of extra information is about.
    pub enum ExtraType: u8 {
        /// Never valid.
        None = 0 => "XEN_NETIF_EXTRA_TYPE_NONE",
        /// [`ExtraGso`].
        Gso = 1 => "XEN_NETIF_EXTRA_TYPE_GSO",
        /// [`ExtraMulticast`]: receive this group.
        MulticastAdd = 2 => "XEN_NETIF_EXTRA_TYPE_MCAST_ADD",
        /// [`ExtraMulticast`]: receive it no more.
        MulticastDel = 3 => "XEN_NETIF_EXTRA_TYPE_MCAST_DEL",
        /// [`ExtraHash`].
        Hash = 4 => "XEN_NETIF_EXTRA_TYPE_HASH",
    }

    /// How a packet is to be cut into segments.
    pub enum GsoType: u8 {
        /// Not at all.
        None = 0 => "XEN_NETIF_GSO_TYPE_NONE",
        /// As TCP over IPv4.
        TcpV4 = 1 => "XEN_NETIF_GSO_TYPE_TCPV4",
        /// As TCP over IPv6.
        TcpV6 = 2 => "XEN_NETIF_GSO_TYPE_TCPV6",
    }

    /// What a hash was made of, in [`ExtraHash`]; the bit of that number in [`HashTypes`].
    pub enum HashType: u8 {
        /// IPv4 addresses.
        Ipv4 = 0 => "_XEN_NETIF_CTRL_HASH_TYPE_IPV4",
        /// IPv4 addresses and TCP ports.
        Ipv4Tcp = 1 => "_XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP",
        /// IPv6 addresses.
        Ipv6 = 2 => "_XEN_NETIF_CTRL_HASH_TYPE_IPV6",
        /// IPv6 addresses and TCP ports.
        Ipv6Tcp = 3 => "_XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP",
    }

    /// How a hash was made.
    pub enum HashAlgorithm: u8 {
        /// Not at all: the backend spreads packets as it likes.
        None = 0 => "XEN_NETIF_CTRL_HASH_ALGORITHM_NONE",
        /// Toeplitz's.
        Toeplitz = 1 => "XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ",
    }

    /// What a control request asks for, and what its `data` are.
    pub enum ControlType: u16 {
        /// Never valid.
        Invalid = 0 => "XEN_NETIF_CTRL_TYPE_INVALID",
        /// Which [`HashTypes`] can be had? None; answered in `data`.
        GetHashFlags = 1 => "XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS",
        /// Use these: `[HashTypes, 0, 0]`.
        SetHashFlags = 2 => "XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS",
        /// Use this key: `[gref, bytes, 0]`.
        SetHashKey = 3 => "XEN_NETIF_CTRL_TYPE_SET_HASH_KEY",
        /// How many entries may the mapping of hashes to queues have? None; answered in `data`.
        GetHashMappingSize = 4 => "XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE",
        /// It shall have: `[entries, 0, 0]`.
        SetHashMappingSize = 5 => "XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE",
        /// Change part of it: `[gref of an array of u32, entries, first entry]`.
        SetHashMapping = 6 => "XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING",
        /// Use this algorithm: `[HashAlgorithm, 0, 0]`.
        SetHashAlgorithm = 7 => "XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM",
        /// How many pages may stay mapped? `[queue, 0, 0]`; answered in `data`.
        GetGrefMappingSize = 8 => "XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE",
        /// Keep these mapped, all or none: `[queue, gref of an array of GrefMapping, entries]`.
        AddGrefMapping = 9 => "XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING",
        /// Unmap these: the same; each entry is given its own status.
        DelGrefMapping = 10 => "XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING",
    }
}

codes! {
    /// How a packet fared. In a receive response a number above zero is a size instead.
    pub struct Status(i16) {
        /// Dropped.
        DROPPED = -2 => "NETIF_RSP_DROPPED",
        /// Failed.
        ERROR = -1 => "NETIF_RSP_ERROR",
        /// Done.
        OKAY = 0 => "NETIF_RSP_OKAY",
        /// No packet: the response to a slot of extra information.
        NULL = 1 => "NETIF_RSP_NULL",
    }
}

codes! {
    /// How a control request ended.
    pub struct ControlStatus(u32) {
        /// Done.
        SUCCESS = 0 => "XEN_NETIF_CTRL_STATUS_SUCCESS",
        /// The backend does not do this.
        NOT_SUPPORTED = 1 => "XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED",
        /// `data` make no sense.
        INVALID_PARAMETER = 2 => "XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER",
        /// More than the backend has room for.
        BUFFER_OVERFLOW = 3 => "XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW",
    }
}

flags! {
    /// Of a slot to transmit.
    pub struct TxFlags: u16 {
        /// The transport checksum is left to be made (and the field holds the pseudo header's).
        const CSUM_BLANK = 1 << 0 => "NETTXF_csum_blank";
        /// The data are known to be intact.
        const DATA_VALIDATED = 1 << 1 => "NETTXF_data_validated";
        /// The packet goes on in the next request.
        const MORE_DATA = 1 << 2 => "NETTXF_more_data";
        /// The next slot is extra information.
        const EXTRA_INFO = 1 << 3 => "NETTXF_extra_info";
    }

    /// Of a slot received. The first two have each other's number in [`TxFlags`].
    pub struct RxFlags: u16 {
        /// The data are known to be intact.
        const DATA_VALIDATED = 1 << 0 => "NETRXF_data_validated";
        /// The transport checksum is left to be made.
        const CSUM_BLANK = 1 << 1 => "NETRXF_csum_blank";
        /// The packet goes on in the next response.
        const MORE_DATA = 1 << 2 => "NETRXF_more_data";
        /// The next slot is extra information.
        const EXTRA_INFO = 1 << 3 => "NETRXF_extra_info";
        /// No data: `offset` is the size of the segments that the packet is to be cut into. Only for
        /// old frontends.
        const GSO_PREFIX = 1 << 4 => "NETRXF_gso_prefix";
    }

    /// Of a slot of extra information.
    pub struct ExtraFlags: u8 {
        /// The next slot is extra information too.
        const MORE = 1 << 0 => "XEN_NETIF_EXTRA_FLAG_MORE";
    }

    /// What hashes are made of, in control requests.
    pub struct HashTypes: u32 {
        /// IPv4 addresses.
        const IPV4 = 1 << 0 => "XEN_NETIF_CTRL_HASH_TYPE_IPV4";
        /// IPv4 addresses and TCP ports.
        const IPV4_TCP = 1 << 1 => "XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP";
        /// IPv6 addresses.
        const IPV6 = 1 << 2 => "XEN_NETIF_CTRL_HASH_TYPE_IPV6";
        /// IPv6 addresses and TCP ports.
        const IPV6_TCP = 1 << 3 => "XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP";
    }

    /// How a page is to stay mapped.
    pub struct GrefFlags: u16 {
        /// Read-only.
        const READONLY = 1 << 0 => "XEN_NETIF_CTRLF_GREF_readonly";
    }
}

layout! {
    /// Part of a packet to transmit.
    pub struct TxRequest = "struct netif_tx_request" in "union netif_tx_sring_entry", 12 {
        /// The page.
        0 gref: GrantRef,
        /// The first byte in it.
        4 offset: u16,
        /// What it is and what follows.
        6 flags: TxFlags,
        /// Returned in the response.
        8 id: u16,
        /// Bytes: of the whole packet in its first slot, of this part in others.
        10 size: u16,
    }

    /// The answer to it.
    pub struct TxResponse = "struct netif_tx_response", 4 {
        /// The request's.
        0 id: u16,
        /// How it fared.
        2 status: Status,
    }

    /// A page to receive into.
    pub struct RxRequest = "struct netif_rx_request" in "union netif_rx_sring_entry", 8 {
        /// Returned in the response, which must be in the same slot.
        0 id: u16,
        /// Zero.
        2 _pad: u16 = "pad",
        /// The page.
        4 gref: GrantRef,
    }

    /// Part of a packet received.
    pub struct RxResponse = "struct netif_rx_response" in "union netif_rx_sring_entry", 8 {
        /// The request's.
        0 id: u16,
        /// The first byte in the page.
        2 offset: u16,
        /// What it is and what follows.
        4 flags: RxFlags,
        /// Bytes of this part, or a [`Status`] below zero.
        6 status: i16,
    }

    /// Extra information of any type.
    pub struct ExtraInfo = "struct netif_extra_info", 8 {
        /// An [`ExtraType`].
        0 extra: u8 = "type",
        /// What follows.
        1 flags: ExtraFlags,
        /// By type.
        2 data: [u8; 6] = "u",
    }

    /// The packet is to be cut into segments.
    pub struct ExtraGso = "struct netif_extra_info", 8 {
        /// [`ExtraType::Gso`].
        0 extra: u8 = "type",
        /// What follows.
        1 flags: ExtraFlags,
        /// The most payload in a segment: TCP's MSS.
        2 size: u16 = "u.gso.size",
        /// A [`GsoType`].
        4 gso: u8 = "u.gso.type",
        /// Zero.
        5 _pad: u8 = "u.gso.pad",
        /// None is defined.
        6 features: u16 = "u.gso.features",
    }

    /// A multicast group to receive or not.
    pub struct ExtraMulticast = "struct netif_extra_info", 8 {
        /// [`ExtraType::MulticastAdd`] or [`ExtraType::MulticastDel`].
        0 extra: u8 = "type",
        /// What follows.
        1 flags: ExtraFlags,
        /// The group's Ethernet address.
        2 addr: [u8; 6] = "u.mcast.addr",
    }

    /// The packet's hash.
    pub struct ExtraHash = "struct netif_extra_info", 8 {
        /// [`ExtraType::Hash`].
        0 extra: u8 = "type",
        /// What follows.
        1 flags: ExtraFlags,
        /// A [`HashType`].
        2 hash: u8 = "u.hash.type",
        /// A [`HashAlgorithm`].
        3 algorithm: u8 = "u.hash.algorithm",
        /// The hash, least significant byte first.
        4 value: [u8; 4] = "u.hash.value",
    }

    /// Extra information in the transmit ring, whose slots are longer.
    pub struct TxExtra = "union netif_tx_sring_entry", 12 {
        /// The information.
        0 info: ExtraInfo = ours,
        /// The rest of the slot.
        8 _rest: [u8; 4] = ours,
    }

    /// A control request.
    pub struct ControlRequest
        = "struct xen_netif_ctrl_request" in "union xen_netif_ctrl_sring_entry", 16
    {
        /// Returned in the response.
        0 id: u16,
        /// A [`ControlType`].
        2 control: u16 = "type",
        /// By type.
        4 data: [u32; 3],
    }

    /// The answer to it.
    pub struct ControlResponse = "struct xen_netif_ctrl_response", 12 {
        /// The request's.
        0 id: u16,
        /// The request's.
        2 control: u16 = "type",
        /// How it ended.
        4 status: ControlStatus,
        /// By type.
        8 data: u32,
    }

    /// A page to keep mapped.
    pub struct GrefMapping = "struct xen_netif_gref", 8 {
        /// The page.
        0 gref: GrantRef = "ref",
        /// How.
        4 flags: GrefFlags,
        /// Out, when unmapping: a [`ControlStatus`] in half its width.
        6 status: u16,
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/io/netif.h",
    target: Target::X86_64,
    claims: CLAIMS,
};

/// The protocol has no 64-bit integers, so its layout is the same for 32-bit frontends.
pub(crate) const HEADER_X86_32: Header = Header {
    include: "xen/io/netif.h",
    target: Target::X86_32,
    claims: CLAIMS,
};

const RING_SIZES: &[&[Claim]] = &[&[
    claim!(
        "__CONST_RING_SIZE(netif_tx, 4096)",
        slots(4096, size_of::<TxSlot>()),
    ),
    claim!(
        "__CONST_RING_SIZE(netif_rx, 4096)",
        slots(4096, size_of::<RxSlot>()),
    ),
    claim!(
        "__CONST_RING_SIZE(xen_netif_ctrl, 4096)",
        slots(4096, size_of::<ControlSlot>()),
    ),
]];

const CLAIMS: &[&[&[Claim]]] = &[
    LIMITS,
    RING_SIZES,
    ExtraType::CLAIMS,
    GsoType::CLAIMS,
    HashType::CLAIMS,
    HashAlgorithm::CLAIMS,
    ControlType::CLAIMS,
    Status::CLAIMS,
    ControlStatus::CLAIMS,
    TxFlags::CLAIMS,
    RxFlags::CLAIMS,
    ExtraFlags::CLAIMS,
    HashTypes::CLAIMS,
    GrefFlags::CLAIMS,
    TxRequest::CLAIMS,
    TxResponse::CLAIMS,
    RxRequest::CLAIMS,
    RxResponse::CLAIMS,
    ExtraInfo::CLAIMS,
    ExtraGso::CLAIMS,
    ExtraMulticast::CLAIMS,
    ExtraHash::CLAIMS,
    TxExtra::CLAIMS,
    ControlRequest::CLAIMS,
    ControlResponse::CLAIMS,
    GrefMapping::CLAIMS,
];
