//! Domain ids (`xen.h`).

use crate::abi::{Header, Target, constants, identifiers};

identifiers! {
    /// A domain's number.
    pub struct DomId(u16) = "domid_t" {
        /// The lowest id that is no domain's: a domain's own id is below this.
        FIRST_RESERVED = 0x7FF0 => "DOMID_FIRST_RESERVED",
        /// The caller itself, in calls that take a domain.
        SELF = 0x7FF0 => "DOMID_SELF",
        /// The owner of I/O pages.
        IO = 0x7FF1 => "DOMID_IO",
        /// The owner of pages of Xen itself.
        XEN = 0x7FF2 => "DOMID_XEN",
        /// The owner of pages that are shared copy-on-write.
        COW = 0x7FF3 => "DOMID_COW",
        /// Nobody.
        INVALID = 0x7FF4 => "DOMID_INVALID",
        /// Any domain, in a xenstore node's permissions.
        ANY = 0x7FF5 => "DOMID_ANY" newer,
        /// The idle domain.
        IDLE = 0x7FFF => "DOMID_IDLE",
    }
}

constants! { LIMITS:
    /// The bits of which a [`DomId`] consists.
    pub const DOMID_MASK: u16 = 0x7FFF => "DOMID_MASK";
}

impl DomId {
    /// The first domain, in which toolstack and backends usually live.
    pub const ZERO: Self = Self(0);

    /// Whether this is a real domain's own number, domain 0 included, and not one of the reserved
    /// ids that stand for something else.
    #[must_use]
    pub const fn is_domain(self) -> bool {
        self.0 < Self::FIRST_RESERVED.0
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/xen.h",
    target: Target::X86_64,
    claims: &[DomId::CLAIMS, LIMITS],
};
