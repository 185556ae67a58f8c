//! The handle of a loopback domain: a guest's side of the seam, and a toolstack's grip on it.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use parapet_xen_sys::DomId;
use parapet_xen_sys::event_channel::Port;
use parapet_xen_sys::grant_table::GrantRef;
use parapet_xen_sys::sched::ShutdownReason;
use parapet_xen_sys::start_info::StartInfo;

use super::channel::Channel;
use super::domain::{DomainInner, START_INFO, XENSTORE};
use super::mapping::{Grant, Mapping};
use super::memory::Pages;
use super::ports::{Binding, PortStatus};
use super::process::Process;
use crate::block_on;
use crate::memory::View;
use crate::seam::{
    Access, Clock, CopyOp, EventError, Events, GrantError, Grants, HostDescriptors, Identity,
    Instant, MapError, Memory, OutOfMemory, Tasks,
};
use crate::wait::{Sleep, lock};

/// A loopback domain. Clones are handles of the same domain; a plain thread may hold one as well as
/// a task of the guest.
#[derive(Clone)]
pub struct Domain(pub(super) Arc<DomainInner>);

/// What a guest finds in its start info: the page and the port by which it talks to xenstore.
pub struct XenstoreInterface {
    /// The page.
    pub page: Pages,
    /// Our end of the event channel.
    pub channel: Channel,
}

impl Domain {
    /// The domain's name, for people.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs `main` as a task of the domain, with a handle of it.
    pub fn run<F, T>(&self, main: F)
    where
        F: FnOnce(Domain) -> T,
        T: Future<Output = ()> + Send + 'static,
    {
        self.spawn(main(self.clone()));
    }

    /// A process in the domain, which has no tasks yet.
    pub fn process(&self) -> Process {
        Process::new(self)
    }

    /// The start info page, as Xen lays it out.
    pub fn start_info(&self) -> StartInfo {
        self.0
            .page(START_INFO)
            .read(0)
            .expect("a start info fits a page")
    }

    /// The xenstore page and port, for the first who asks: a port has one holder.
    pub fn xenstore(&self) -> Option<XenstoreInterface> {
        let first = !self.0.xenstore_taken.swap(true, Ordering::SeqCst);
        first.then(|| XenstoreInterface {
            page: self.0.memory.reserved(XENSTORE),
            channel: Channel::new(Arc::clone(&self.0), self.start_info().store_evtchn),
        })
    }

    // ---- life ----

    /// Ends the domain's run: its tasks go on until it is destroyed, as those of a guest would
    /// until its toolstack comes.
    pub fn shut_down(&self, reason: ShutdownReason) {
        self.0.shut_down(reason);
    }

    /// Why it shut down, if it did.
    pub fn shutdown_reason(&self) -> Option<ShutdownReason> {
        self.0.shutdown_reason()
    }

    /// Waits until it shuts down.
    pub async fn wait_shutdown(&self) -> ShutdownReason {
        poll_fn(
            |cx| match self.0.poll_life(cx.waker(), |reason, _| reason) {
                Some(reason) => Poll::Ready(reason),
                None => Poll::Pending,
            },
        )
        .await
    }

    /// [`Domain::wait_shutdown`], for a plain thread.
    pub fn wait_shutdown_blocking(&self) -> ShutdownReason {
        block_on(self.wait_shutdown())
    }

    /// Destroys it: its tasks are dropped wherever they wait, its ports closed, what it mapped
    /// unmapped. Pages of it that others have mapped stay until they let go.
    ///
    /// What a plain thread holds of it is only given back when that thread drops it.
    pub async fn destroy(&self) {
        self.0.destroy();
        poll_fn(
            |cx| match self.0.poll_life(cx.waker(), |_, dead| dead.then_some(())) {
                Some(()) => Poll::Ready(()),
                None => Poll::Pending,
            },
        )
        .await;
    }

    /// [`Domain::destroy`], for a plain thread.
    ///
    /// # Panics
    /// When called by a task on one of the machine's physical CPUs, which it would block for ever.
    pub fn destroy_blocking(&self) {
        assert!(
            self.0.machine.pcpu_of_this_thread().is_none(),
            "a task must await `destroy`, and not block its physical CPU"
        );
        block_on(self.destroy());
    }

    /// Whether it was destroyed.
    pub fn is_dead(&self) -> bool {
        self.0.is_dead()
    }

    // ---- what a toolstack or a test wants to know ----

    /// Whether there is a domain of that id on this one's host.
    pub fn is_alive(&self, domid: DomId) -> bool {
        self.0.machine.domain(domid).is_some()
    }

    /// How many pages of other domains it has mapped.
    pub fn mappings(&self) -> usize {
        self.0.mappings.load(Ordering::Relaxed)
    }

    /// How many uses of its own grants there are: mappings by others, and copies under way.
    pub fn grants_in_use(&self) -> usize {
        self.0.grants.uses()
    }

    /// How many of its pages are in quarantine, since a peer would not let go of them.
    pub fn quarantined(&self) -> usize {
        self.0.grants.quarantined()
    }

    /// Its grant table, as it lies in its memory: for drivers that keep it themselves, and tests.
    pub fn grant_table(&self) -> View<'_> {
        self.0.grants.entries()
    }

    /// Its shared-info page.
    pub fn shared_info(&self) -> View<'_> {
        self.0.page(super::domain::SHARED_INFO)
    }

    /// What `port` is bound to.
    pub fn port_status(&self, port: Port) -> PortStatus {
        self.0.port_status(port)
    }

    /// How many ports are in use.
    pub fn ports_in_use(&self) -> usize {
        self.0.ports.in_use().len()
    }

    /// How long each of its vCPUs has run.
    pub fn vcpu_times(&self) -> Vec<Duration> {
        self.0.vcpus.iter().map(|vcpu| vcpu.ran()).collect()
    }

    // ---- event channels beyond the seam ----

    /// A port that notifies vCPU `vcpu` of this domain when any other of its vCPUs does.
    ///
    /// # Errors
    /// No port is left, or no such vCPU.
    pub fn bind_ipi(&self, vcpu: usize) -> Result<Channel, EventError> {
        if vcpu >= self.0.vcpus.len() {
            return Err(EventError::Host(libc::ENOENT));
        }
        self.port(vcpu, Binding::Ipi(vcpu))
    }

    /// A port for a virtual interrupt of the hypervisor; each can be bound once.
    ///
    /// # Errors
    /// No port is left, or it is bound already.
    pub fn bind_virq(&self, virq: u32) -> Result<Channel, EventError> {
        let _one_at_a_time = lock(&self.0.virqs);
        if self.0.virq_port(virq).is_some() {
            return Err(EventError::Host(libc::EEXIST));
        }
        self.port(0, Binding::Virq(virq))
    }

    /// Raises a virtual interrupt, as the hypervisor would. Nobody bound to it is no error.
    pub fn raise_virq(&self, virq: u32) {
        self.0.raise_virq(virq);
    }

    /// Unbinds every port (EVTCHNOP_reset). The channels that are still held are dead: nothing
    /// comes by them any more.
    pub fn reset_ports(&self) {
        self.0.unbind_all_ports();
    }

    fn port(&self, vcpu: usize, binding: Binding) -> Result<Channel, EventError> {
        self.0.check_alive()?;
        let port = self.0.ports.allocate(vcpu, binding)?;
        Ok(Channel::new(Arc::clone(&self.0), port))
    }

    fn vcpu(&self) -> usize {
        self.0.current_vcpu().unwrap_or(0)
    }
}

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Domain({}, {:?})", self.0.domid, self.0.name)
    }
}

impl Identity for Domain {
    fn domid(&self) -> DomId {
        self.0.domid
    }
}

impl Memory for Domain {
    type Pages = Pages;

    fn allocate(&self, count: usize) -> Result<Pages, OutOfMemory> {
        self.0.memory.allocate(count).or_else(|_| {
            self.0.grants.retry_quarantine();
            self.0.memory.allocate(count)
        })
    }
}

impl Grants for Domain {
    type Grant = Grant;
    type Mapping = Mapping;

    fn grant(&self, pages: &Pages, to: DomId, access: Access) -> Result<Grant, GrantError> {
        Ok(Grant {
            refs: self.0.grants.permit(pages, to, access)?,
            domain: Arc::clone(&self.0),
            pages: pages.clone(),
        })
    }

    fn map(&self, from: DomId, refs: &[GrantRef], access: Access) -> Result<Mapping, MapError> {
        self.0.map_grants(from, refs, access)
    }

    fn map_each(
        &self,
        from: DomId,
        refs: &[GrantRef],
        access: Access,
        out: &mut Vec<Result<Mapping, MapError>>,
    ) {
        out.extend(
            refs.iter()
                .map(|gref| self.0.map_grants(from, &[*gref], access)),
        );
    }

    fn copy(&self, ops: &mut [CopyOp<'_, Pages>]) -> Result<(), i32> {
        for op in ops {
            op.status = self.0.copy_grant(op);
        }
        Ok(())
    }
}

impl Events for Domain {
    type Channel = Channel;

    fn alloc_unbound(&self, peer: DomId) -> Result<Channel, EventError> {
        self.port(self.vcpu(), Binding::Unbound(peer))
    }

    fn bind(&self, peer: DomId, port: Port) -> Result<Channel, EventError> {
        self.0.check_alive()?;
        let refused = EventError::NoSuchPort { domid: peer, port };
        let remote = self.0.machine.domain(peer).ok_or(refused)?;
        let ours = self.0.bind_interdomain(self.vcpu(), &remote, port)?;
        Ok(Channel::new(Arc::clone(&self.0), ours))
    }
}

impl HostDescriptors for Domain {
    fn bind_descriptor(&self, descriptor: BorrowedFd<'_>) -> io::Result<Channel> {
        let machine = &self.0.machine;
        let registration = machine.registration();
        let vcpu = self.vcpu();
        let channel = self
            .port(vcpu, Binding::Descriptor(registration))
            .map_err(io::Error::other)?;
        let pcpu = self.0.vcpus[vcpu].last_pcpu();
        let port = crate::seam::Channel::port(&channel);
        machine.register(registration, descriptor, &self.0, port, pcpu)?;
        Ok(channel)
    }
}

impl Clock for Domain {
    fn now(&self) -> Instant {
        self.0.machine.now()
    }

    fn sleep_until(&self, when: Instant) -> impl Future<Output = ()> + Send + 'static {
        Sleep::new(Arc::clone(&self.0.machine), when)
    }
}

impl Tasks for Domain {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // In turn, so that the queues of many devices share all the vCPUs there are.
        let vcpus = &self.0.vcpus;
        let vcpu = self.0.next_vcpu.fetch_add(1, Ordering::Relaxed) % vcpus.len();
        vcpus[vcpu].spawn(&self.0, task);
    }
}
