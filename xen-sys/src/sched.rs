//! Scheduling, as a guest asks for it (`sched.h`).

use crate::DomId;
use crate::abi::{Header, Target, enumeration, layout};
use crate::hypercall::GuestHandle;

enumeration! {
    /// The operations of the scheduling hypercall.
    pub enum Operation: u32 {
        /// Let others run.
        Yield = 0 => "SCHEDOP_yield",
        /// Unmask upcalls, and sleep until an event is pending.
        Block = 1 => "SCHEDOP_block",
        /// [`Shutdown`].
        Shutdown = 2 => "SCHEDOP_shutdown",
        /// [`Poll`].
        Poll = 3 => "SCHEDOP_poll",
        /// [`RemoteShutdown`].
        RemoteShutdown = 4 => "SCHEDOP_remote_shutdown",
        /// [`Shutdown`], kept until the domain does shut down.
        ShutdownCode = 5 => "SCHEDOP_shutdown_code",
        /// [`Watchdog`].
        Watchdog = 6 => "SCHEDOP_watchdog",
        /// [`PinOverride`].
        PinOverride = 7 => "SCHEDOP_pin_override",
    }

    /// Why a domain shuts down.
    pub enum ShutdownReason: u32 {
        /// It is done; destroy it.
        Poweroff = 0 => "SHUTDOWN_poweroff",
        /// Destroy it and start it again.
        Reboot = 1 => "SHUTDOWN_reboot",
        /// Save it.
        Suspend = 2 => "SHUTDOWN_suspend",
        /// It found itself broken.
        Crash = 3 => "SHUTDOWN_crash",
        /// Its watchdog ran out.
        Watchdog = 4 => "SHUTDOWN_watchdog",
        /// Forget what Xen holds for it, and let it run on.
        SoftReset = 5 => "SHUTDOWN_soft_reset",
    }
}

layout! {
    /// Stop the whole domain.
    pub struct Shutdown = "struct sched_shutdown", 4 {
        /// A [`ShutdownReason`].
        0 reason: u32,
    }

    /// Sleep until one of some ports is pending, masked or not.
    pub struct Poll = "struct sched_poll", 24 {
        /// The ports, an array of [`Port`](crate::Port).
        0 ports: GuestHandle,
        /// How many.
        8 nr_ports: u32,
        /// Zero.
        12 _pad: u32 = ours,
        /// Until when, in nanoseconds of system time; zero for ever.
        16 timeout: u64,
    }

    /// Stop another domain.
    pub struct RemoteShutdown = "struct sched_remote_shutdown", 8 {
        /// Which.
        0 domain_id: DomId,
        /// Zero.
        2 _pad: u16 = ours,
        /// A [`ShutdownReason`].
        4 reason: u32,
    }

    /// Set, feed or remove a watchdog.
    pub struct Watchdog = "struct sched_watchdog", 8 {
        /// Which; zero for a new one.
        0 id: u32,
        /// Seconds; zero removes it.
        4 timeout: u32,
    }

    /// Tie the vCPU to one processor for a while.
    pub struct PinOverride = "struct sched_pin_override", 4 {
        /// The processor; negative ends it.
        0 pcpu: i32,
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/sched.h",
    target: Target::X86_64,
    claims: &[
        Operation::CLAIMS,
        ShutdownReason::CLAIMS,
        Shutdown::CLAIMS,
        Poll::CLAIMS,
        RemoteShutdown::CLAIMS,
        Watchdog::CLAIMS,
        PinOverride::CLAIMS,
    ],
};
