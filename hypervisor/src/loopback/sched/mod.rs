//! Running vCPUs: policy and mechanism.
//!
//! ```text
//!   wake-up ──> Vcpu::kick ──> Policy::enqueue ──> the queue of a physical CPU
//!                                                        │ Policy::next
//!                     doorbell, if it sleeps ──>  Pcpu: run the vCPU's tasks until they all wait,
//!                                                  or its slice is over; else sleep in epoll
//! ```
//!
//! * [`policy`]: who runs where and for how long; a trait, and a fair round robin.
//! * `vcpu`: a vCPU, its tasks, and its upcalls.
//! * `pcpu`: a thread that runs vCPUs, its timers and the descriptors that interrupt it.

pub(super) mod pcpu;
pub mod policy;
pub(super) mod vcpu;
