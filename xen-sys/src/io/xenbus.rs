//! The states of a device's two ends (`io/xenbus.h`), each written by its own end under the key
//! `state`, as a decimal number.

use crate::abi::{Header, Target, enumeration};

enumeration! {
    /// How far an end has come.
    pub enum XenbusState: u32 {
        /// There is none: the key is missing or makes no sense.
        Unknown = 0 => "XenbusStateUnknown",
        /// As the toolstack made it.
        Initialising = 1 => "XenbusStateInitialising",
        /// The backend has published its features and waits for the frontend.
        InitWait = 2 => "XenbusStateInitWait",
        /// The frontend has published its rings and waits for the backend.
        Initialised = 3 => "XenbusStateInitialised",
        /// In use.
        Connected = 4 => "XenbusStateConnected",
        /// This end wants to stop.
        Closing = 5 => "XenbusStateClosing",
        /// This end has stopped.
        Closed = 6 => "XenbusStateClosed",
        /// The device is being changed.
        Reconfiguring = 7 => "XenbusStateReconfiguring",
        /// The change is done.
        Reconfigured = 8 => "XenbusStateReconfigured",
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/io/xenbus.h",
    target: Target::X86_64,
    claims: &[XenbusState::CLAIMS],
};
