//! Event channels (`event_channel.h`): one bit that a domain can set in another, with a wake-up.

use crate::DomId;
use crate::abi::{Header, Target, constants, enumeration, flags, identifiers, layout};

identifiers! {
    /// One end of an event channel, numbered within its domain. Zero is no port.
    pub struct Port(u32) = "evtchn_port_t" {}
}

constants! { LIMITS:
    /// Ports of a domain under the 2-level ABI: a word of selector bits, each for a word of pending
    /// bits ([`SharedInfo`](crate::shared_info::SharedInfo)).
    pub const NR_CHANNELS_2L: u32 = 4096 => "EVTCHN_2L_NR_CHANNELS";
    /// Ports of a domain under the FIFO ABI.
    pub const NR_CHANNELS_FIFO: u32 = 1 << FIFO_LINK_BITS => "EVTCHN_FIFO_NR_CHANNELS";
    /// Bits of an [`EventWord`] that hold the next port in its queue.
    pub const FIFO_LINK_BITS: u32 = 17 => "EVTCHN_FIFO_LINK_BITS";
    /// The mask of those bits.
    pub const FIFO_LINK_MASK: u32 = NR_CHANNELS_FIFO - 1 => "EVTCHN_FIFO_LINK_MASK";
    /// The priority served first.
    pub const FIFO_PRIORITY_MAX: u32 = 0 => "EVTCHN_FIFO_PRIORITY_MAX";
    /// The priority of a new port.
    pub const FIFO_PRIORITY_DEFAULT: u32 = 7 => "EVTCHN_FIFO_PRIORITY_DEFAULT";
    /// The priority served last.
    pub const FIFO_PRIORITY_MIN: u32 = 15 => "EVTCHN_FIFO_PRIORITY_MIN";
    /// Queues of a vCPU: one a priority.
    pub const FIFO_MAX_QUEUES: usize = 16 => "EVTCHN_FIFO_MAX_QUEUES";
}

enumeration! {
    /// The operations of the event channel hypercall.
    pub enum Operation: u32 {
        /// [`BindInterdomain`].
        BindInterdomain = 0 => "EVTCHNOP_bind_interdomain",
        /// [`BindVirq`].
        BindVirq = 1 => "EVTCHNOP_bind_virq",
        /// [`BindPirq`].
        BindPirq = 2 => "EVTCHNOP_bind_pirq",
        /// [`Close`].
        Close = 3 => "EVTCHNOP_close",
        /// [`Send`].
        Send = 4 => "EVTCHNOP_send",
        /// [`Status`].
        Status = 5 => "EVTCHNOP_status",
        /// [`AllocUnbound`].
        AllocUnbound = 6 => "EVTCHNOP_alloc_unbound",
        /// [`BindIpi`].
        BindIpi = 7 => "EVTCHNOP_bind_ipi",
        /// [`BindVcpu`].
        BindVcpu = 8 => "EVTCHNOP_bind_vcpu",
        /// [`Unmask`].
        Unmask = 9 => "EVTCHNOP_unmask",
        /// [`Reset`].
        Reset = 10 => "EVTCHNOP_reset",
        /// [`InitControl`].
        InitControl = 11 => "EVTCHNOP_init_control",
        /// [`ExpandArray`].
        ExpandArray = 12 => "EVTCHNOP_expand_array",
        /// [`SetPriority`].
        SetPriority = 13 => "EVTCHNOP_set_priority",
    }

    /// What a port is bound to.
    pub enum Binding: u32 {
        /// Not in use.
        Closed = 0 => "EVTCHNSTAT_closed",
        /// Waiting for its peer: [`StatusUnbound`].
        Unbound = 1 => "EVTCHNSTAT_unbound",
        /// Connected to a port, usually of another domain: [`StatusInterdomain`].
        Interdomain = 2 => "EVTCHNSTAT_interdomain",
        /// A physical interrupt: [`StatusIrq`].
        Pirq = 3 => "EVTCHNSTAT_pirq",
        /// A virtual interrupt: [`StatusIrq`].
        Virq = 4 => "EVTCHNSTAT_virq",
        /// An interrupt between vCPUs of one domain.
        Ipi = 5 => "EVTCHNSTAT_ipi",
    }

    /// What Xen tells a domain of by event (`xen.h`).
    pub enum Virq: u32 {
        /// The timer of a vCPU. One a vCPU.
        Timer = 0 => "VIRQ_TIMER",
        /// Print what you are doing. One a vCPU.
        Debug = 1 => "VIRQ_DEBUG",
        /// Input on the emergency console. One domain of all.
        Console = 2 => "VIRQ_CONSOLE",
        /// A domain died, shut down or the like. One domain of all.
        DomExc = 3 => "VIRQ_DOM_EXC",
        /// Trace records wait. One domain of all.
        TBuf = 4 => "VIRQ_TBUF",
        /// A domain stopped for its debugger. One domain of all.
        Debugger = 6 => "VIRQ_DEBUGGER",
        /// A profiler's sample. One a vCPU.
        Xenoprof = 7 => "VIRQ_XENOPROF",
        /// Output in the console ring. One domain of all.
        ConRing = 8 => "VIRQ_CON_RING",
        /// A physical processor came or went. One domain of all.
        PcpuState = 9 => "VIRQ_PCPU_STATE",
        /// A watched page was touched. One domain of all.
        MemEvent = 10 => "VIRQ_MEM_EVENT",
        /// A message by Argo. One a domain.
        Argo = 11 => "VIRQ_ARGO",
        /// Xen runs out of memory. One domain of all.
        Enomem = 12 => "VIRQ_ENOMEM",
        /// A performance counter. One a vCPU.
        XenPmu = 13 => "VIRQ_XENPMU",
        /// Left to the architecture; on x86 a machine check.
        Arch0 = 16 => "VIRQ_ARCH_0",
        /// Left to the architecture.
        Arch1 = 17 => "VIRQ_ARCH_1",
        /// Left to the architecture.
        Arch2 = 18 => "VIRQ_ARCH_2",
        /// Left to the architecture.
        Arch3 = 19 => "VIRQ_ARCH_3",
        /// Left to the architecture.
        Arch4 = 20 => "VIRQ_ARCH_4",
        /// Left to the architecture.
        Arch5 = 21 => "VIRQ_ARCH_5",
        /// Left to the architecture.
        Arch6 = 22 => "VIRQ_ARCH_6",
        /// Left to the architecture.
        Arch7 = 23 => "VIRQ_ARCH_7",
    }
}

constants! { VIRQS:
    /// One more than the highest [`Virq`] there can be.
    pub const NR_VIRQS: usize = 24 => "NR_VIRQS";
}

flags! {
    /// How a physical interrupt is bound.
    pub struct PirqFlags: u32 {
        /// Others may bind it too.
        const WILL_SHARE = 1 => "BIND_PIRQ__WILL_SHARE";
    }

    /// A port's word in the event array of the FIFO ABI: flags above, and below the port that
    /// follows it in its queue ([`FIFO_LINK_MASK`]).
    pub struct EventWord: u32 {
        /// The event happened.
        const PENDING = 1 << 31 => "1U << EVTCHN_FIFO_PENDING";
        /// It is not to be queued.
        const MASKED = 1 << 30 => "1U << EVTCHN_FIFO_MASKED";
        /// It is in a queue.
        const LINKED = 1 << 29 => "1U << EVTCHN_FIFO_LINKED";
        /// Xen is about to set its link.
        const BUSY = 1 << 28 => "1U << EVTCHN_FIFO_BUSY";
    }
}

layout! {
    /// Make a port that one other domain may bind to.
    pub struct AllocUnbound = "struct evtchn_alloc_unbound", 8 {
        /// In: whose port it will be.
        0 dom: DomId,
        /// In: who may bind to it.
        2 remote_dom: DomId,
        /// Out: the port.
        4 port: Port,
    }

    /// Bind to a port that another domain made for the caller.
    pub struct BindInterdomain = "struct evtchn_bind_interdomain", 12 {
        /// In: the other domain.
        0 remote_dom: DomId,
        /// Zero.
        2 _pad: u16 = ours,
        /// In: its port.
        4 remote_port: Port,
        /// Out: the caller's port; pending at once, as the other may have sent already.
        8 local_port: Port,
    }

    /// Bind to a virtual interrupt.
    pub struct BindVirq = "struct evtchn_bind_virq", 12 {
        /// In: a [`Virq`].
        0 virq: u32,
        /// In: of which vCPU; 0 where it is not one a vCPU.
        4 vcpu: u32,
        /// Out: the port.
        8 port: Port,
    }

    /// Bind to a physical interrupt.
    pub struct BindPirq = "struct evtchn_bind_pirq", 12 {
        /// In: the interrupt's number.
        0 pirq: u32,
        /// In: how.
        4 flags: PirqFlags,
        /// Out: the port.
        8 port: Port,
    }

    /// Make a port that the caller's own vCPUs send to.
    pub struct BindIpi = "struct evtchn_bind_ipi", 8 {
        /// In: the vCPU to be interrupted.
        0 vcpu: u32,
        /// Out: the port.
        4 port: Port,
    }

    /// Close a port; the other end is left waiting for a peer.
    pub struct Close = "struct evtchn_close", 4 {
        /// In: the port.
        0 port: Port,
    }

    /// Make the other end pending.
    pub struct Send = "struct evtchn_send", 4 {
        /// In: the port at this end.
        0 port: Port,
    }

    /// Ask what a port is bound to.
    pub struct Status = "struct evtchn_status", 24 {
        /// In: whose port.
        0 dom: DomId,
        /// Zero.
        2 _pad: u16 = ours,
        /// In: which.
        4 port: Port,
        /// Out: a [`Binding`].
        8 status: u32,
        /// Out: the vCPU that it interrupts.
        12 vcpu: u32,
        /// Out: [`StatusUnbound`], [`StatusInterdomain`] or [`StatusIrq`], by `status`.
        16 detail: [u8; 8] = "u",
    }

    /// The detail of a port that waits for its peer.
    pub struct StatusUnbound = "struct evtchn_status" in "((struct evtchn_status *)0)->u", 8 {
        /// Who may bind to it.
        0 dom: DomId = "u.unbound.dom" at 16,
        /// Zero.
        2 _pad: [u16; 3] = ours,
    }

    /// The detail of a port that has a peer.
    pub struct StatusInterdomain = "struct evtchn_status" in "((struct evtchn_status *)0)->u", 8 {
        /// The peer.
        0 dom: DomId = "u.interdomain.dom" at 16,
        /// Zero.
        2 _pad: u16 = ours,
        /// The peer's port.
        4 port: Port = "u.interdomain.port" at 16,
    }

    /// The detail of an interrupt's port.
    pub struct StatusIrq = "struct evtchn_status" in "((struct evtchn_status *)0)->u", 8 {
        /// The physical interrupt, or the [`Virq`].
        0 irq: u32 = "u.pirq" at 16,
        /// Zero.
        4 _pad: u32 = ours,
    }

    /// Choose the vCPU that a port interrupts.
    pub struct BindVcpu = "struct evtchn_bind_vcpu", 8 {
        /// In: the port.
        0 port: Port,
        /// In: the vCPU.
        4 vcpu: u32,
    }

    /// Unmask a port, and interrupt its vCPU if it is pending.
    pub struct Unmask = "struct evtchn_unmask", 4 {
        /// In: the port.
        0 port: Port,
    }

    /// Close all ports of a domain.
    pub struct Reset = "struct evtchn_reset", 2 {
        /// In: whose.
        0 dom: DomId,
    }

    /// Give a vCPU its control block, and turn the FIFO ABI on.
    pub struct InitControl = "struct evtchn_init_control", 24 {
        /// In: the frame with the [`FifoControlBlock`].
        0 control_gfn: u64,
        /// In: where in it.
        8 offset: u32,
        /// In: whose it is.
        12 vcpu: u32,
        /// Out: how many link bits Xen uses.
        16 link_bits: u8,
        /// Zero.
        17 _pad: [u8; 7],
    }

    /// Add a page of event words to the event array.
    pub struct ExpandArray = "struct evtchn_expand_array", 8 {
        /// In: the page's frame.
        0 array_gfn: u64,
    }

    /// Choose the queue for a port.
    pub struct SetPriority = "struct evtchn_set_priority", 8 {
        /// In: the port.
        0 port: Port,
        /// In: from [`FIFO_PRIORITY_MAX`] to [`FIFO_PRIORITY_MIN`].
        4 priority: u32,
    }

    /// A vCPU's queues of the FIFO ABI.
    pub struct FifoControlBlock = "struct evtchn_fifo_control_block", 72 {
        /// One bit a queue that is not empty.
        0 ready: u32,
        /// Zero.
        4 _pad: u32 = "_rsvd",
        /// The first port in each queue.
        8 head: [u32; FIFO_MAX_QUEUES],
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/event_channel.h",
    target: Target::X86_64,
    claims: &[
        Port::CLAIMS,
        LIMITS,
        VIRQS,
        Operation::CLAIMS,
        Binding::CLAIMS,
        Virq::CLAIMS,
        PirqFlags::CLAIMS,
        EventWord::CLAIMS,
        AllocUnbound::CLAIMS,
        BindInterdomain::CLAIMS,
        BindVirq::CLAIMS,
        BindPirq::CLAIMS,
        BindIpi::CLAIMS,
        Close::CLAIMS,
        Send::CLAIMS,
        Status::CLAIMS,
        StatusUnbound::CLAIMS,
        StatusInterdomain::CLAIMS,
        StatusIrq::CLAIMS,
        BindVcpu::CLAIMS,
        Unmask::CLAIMS,
        Reset::CLAIMS,
        InitControl::CLAIMS,
        ExpandArray::CLAIMS,
        SetPriority::CLAIMS,
        FifoControlBlock::CLAIMS,
    ],
};
