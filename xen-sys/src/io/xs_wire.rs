//! The xenstore protocol (`io/xs_wire.h`): messages, and the page with a ring each way.

use crate::Errno;
use crate::abi::{Claim, Header, Target, claim, constants, enumeration, flags, layout};

constants! { LIMITS:
    /// Bytes in each direction of the ring; a power of two.
    pub const RING_SIZE: usize = 1024 => "XENSTORE_RING_SIZE";
    /// The longest payload. Who sends more has broken the protocol.
    pub const PAYLOAD_MAX: usize = 4096 => "XENSTORE_PAYLOAD_MAX";
    /// The longest absolute path.
    pub const ABS_PATH_MAX: usize = 3072 => "XENSTORE_ABS_PATH_MAX";
    /// The longest relative path.
    pub const REL_PATH_MAX: usize = 2048 => "XENSTORE_REL_PATH_MAX";
    /// The position of the path among the strings of a watch event.
    pub const WATCH_PATH: usize = 0 => "XS_WATCH_PATH";
    /// The position of the token among the strings of a watch event.
    pub const WATCH_TOKEN: usize = 1 => "XS_WATCH_TOKEN";
    /// A message type that will never be valid.
    pub const INVALID: u32 = 0xffff => "XS_INVALID";
}

enumeration! {
    /// The type of a message. 20 was `RESTRICT` and is no longer.
    pub enum Operation: u32 {
        /// Talk to the daemon itself; `XS_DEBUG` in old headers.
        Control = 0 => "XS_CONTROL",
        /// List a node's children.
        Directory = 1 => "XS_DIRECTORY",
        /// Read a node's value.
        Read = 2 => "XS_READ",
        /// Read a node's permissions.
        GetPerms = 3 => "XS_GET_PERMS",
        /// Ask for events.
        Watch = 4 => "XS_WATCH",
        /// Ask for no more events.
        Unwatch = 5 => "XS_UNWATCH",
        /// Begin a transaction.
        TransactionStart = 6 => "XS_TRANSACTION_START",
        /// Commit or drop a transaction.
        TransactionEnd = 7 => "XS_TRANSACTION_END",
        /// Tell of a new domain.
        Introduce = 8 => "XS_INTRODUCE",
        /// Tell that a domain is gone.
        Release = 9 => "XS_RELEASE",
        /// Ask where a domain's nodes are.
        GetDomainPath = 10 => "XS_GET_DOMAIN_PATH",
        /// Write a node's value, and make the node if need be.
        Write = 11 => "XS_WRITE",
        /// Make a node.
        Mkdir = 12 => "XS_MKDIR",
        /// Remove a node and all below it.
        Rm = 13 => "XS_RM",
        /// Change a node's permissions.
        SetPerms = 14 => "XS_SET_PERMS",
        /// A watched node changed (to the client only).
        WatchEvent = 15 => "XS_WATCH_EVENT",
        /// The request failed (to the client only).
        Error = 16 => "XS_ERROR",
        /// Ask whether a domain was introduced.
        IsDomainIntroduced = 17 => "XS_IS_DOMAIN_INTRODUCED",
        /// Tell that a domain runs again after a suspension.
        Resume = 18 => "XS_RESUME",
        /// Give a domain another's permissions.
        SetTarget = 19 => "XS_SET_TARGET",
        /// Drop all of the client's watches and transactions.
        ResetWatches = 21 => "XS_RESET_WATCHES",
        /// List part of a node's children.
        DirectoryPart = 22 => "XS_DIRECTORY_PART",
        /// Ask for the features of the server, or of a domain.
        GetFeature = 23 => "XS_GET_FEATURE" newer,
        /// Choose a domain's features.
        SetFeature = 24 => "XS_SET_FEATURE" newer,
        /// Ask for quotas.
        GetQuota = 25 => "XS_GET_QUOTA" newer,
        /// Set quotas.
        SetQuota = 26 => "XS_SET_QUOTA" newer,
    }

    /// Whether the ring is in use, in its field `connection`.
    pub enum ConnectionState: u32 {
        /// It is.
        Connected = 0 => "XENSTORE_CONNECTED",
        /// The guest asks for a fresh start; the server resets the indices and answers `Connected`.
        Reconnect = 1 => "XENSTORE_RECONNECT",
    }

    /// Why the server gave up on a ring, in its field `error`.
    pub enum RingError: u32 {
        /// It did not.
        None = 0 => "XENSTORE_ERROR_NONE",
        /// Communication failed.
        Comm = 1 => "XENSTORE_ERROR_COMM",
        /// An index was impossible.
        RingIdx = 2 => "XENSTORE_ERROR_RINGIDX",
        /// The protocol was broken, as by a payload too long.
        Proto = 3 => "XENSTORE_ERROR_PROTO",
    }
}

flags! {
    /// What the server can do, in the ring's field `server_features`.
    pub struct ServerFeatures: u32 {
        /// The ring can be restarted by [`ConnectionState::Reconnect`].
        const RECONNECTION = 1 => "XENSTORE_SERVER_FEATURE_RECONNECTION";
        /// The ring's field `error` is used.
        const ERROR = 2 => "XENSTORE_SERVER_FEATURE_ERROR";
        /// A watch can be limited in depth.
        const WATCHDEPTH = 4 => "XENSTORE_SERVER_FEATURE_WATCHDEPTH", newer;
        /// A permission can name any domain.
        const DOMID_ANY = 8 => "XENSTORE_SERVER_FEATURE_DOMID_ANY", newer;
    }
}

/// Makes [`ERRORS`] and its claims from one list: `position NAME`.
macro_rules! errors {
    ($( $index:literal $name:ident, )*) => {
        /// The errors that an answer of type [`Operation::Error`] can name, in the protocol's
        /// order: the name goes over the wire (with a final zero), the number does not.
        pub const ERRORS: &[(Errno, &str)] = &[$( (Errno::$name, stringify!($name)) ),*];

        const ERROR_CLAIMS: &[&[Claim]] = &[
            &[claim!("sizeof(xsd_errors) / sizeof(xsd_errors[0])", ERRORS.len(),)],
            $( &[
                claim!(
                    concat!("xsd_errors[", $index, "].errnum"), Errno::$name.0,
                ),
                claim!(
                    concat!("strcmp(xsd_errors[", $index, "].errstring, \"", stringify!($name), "\")"),
                    0,
                ),
            ] ),*
        ];
    };
}

errors! {
    0 EINVAL,
    1 EACCES,
    2 EEXIST,
    3 EISDIR,
    4 ENOENT,
    5 ENOMEM,
    6 ENOSPC,
    7 EIO,
    8 ENOTEMPTY,
    9 ENOSYS,
    10 EROFS,
    11 EBUSY,
    12 EAGAIN,
    13 EISCONN,
    14 E2BIG,
    15 EPERM,
}

layout! {
    /// What every message begins with.
    pub struct MessageHeader = "struct xsd_sockmsg", 16 {
        /// An [`Operation`]; the answer's is the request's, or [`Operation::Error`].
        0 operation: u32 = "type",
        /// Chosen by the client, returned in the answer.
        4 req_id: u32,
        /// The transaction, or zero.
        8 tx_id: u32,
        /// Bytes that follow.
        12 len: u32,
    }

    /// The page that a guest shares with xenstored.
    pub struct DomainInterface = "struct xenstore_domain_interface", 2080
        newer "offsetof(struct xenstore_domain_interface, evtchn_port)"
    {
        /// From the guest.
        0 req: [u8; RING_SIZE],
        /// To the guest.
        1024 rsp: [u8; RING_SIZE],
        /// Bytes taken from `req`; free-running.
        2048 req_cons: u32,
        /// Bytes put into `req`; free-running.
        2052 req_prod: u32,
        /// Bytes taken from `rsp`; free-running.
        2056 rsp_cons: u32,
        /// Bytes put into `rsp`; free-running.
        2060 rsp_prod: u32,
        /// What the server can do.
        2064 server_features: ServerFeatures,
        /// A [`ConnectionState`].
        2068 connection: u32,
        /// A [`RingError`].
        2072 error: u32,
        /// The guest's port, where Xen made the domain itself; else zero.
        2076 evtchn_port: crate::Port = newer,
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/io/xs_wire.h",
    target: Target::X86_64,
    claims: &[
        LIMITS,
        Operation::CLAIMS,
        ConnectionState::CLAIMS,
        RingError::CLAIMS,
        ServerFeatures::CLAIMS,
        ERROR_CLAIMS,
        MessageHeader::CLAIMS,
        DomainInterface::CLAIMS,
    ],
};
