//! A place to run tests in: domains that share memory and bells, and an executor that polls only
//! what was woken, so that a lost wake-up is a test that fails.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use std::sync::Mutex;

use parapet_hypervisor::memory::{ReadOnly, Scratch, View};
use parapet_hypervisor::seam::{
    Access, Channel, Clock, CopyOp, EventError, Events, Grant, GrantError, Grants, Identity,
    Instant, MapError, Mapping, Memory, OutOfMemory, StillMapped, Tasks,
};
use parapet_xen_sys::{DomId, GrantRef, GrantStatus, Port};

use crate::mailbox::Bell;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
struct Shared {
    pages: Mutex<BTreeMap<DomId, Scratch>>,
    ports: Mutex<BTreeMap<(DomId, Port), End>>,
    new: Mutex<Vec<Task>>,
}

/// A domain. Its only grant is its xenstore page, as grant 1.
#[derive(Clone)]
pub(crate) struct Place {
    domid: DomId,
    shared: Arc<Shared>,
}

impl Place {
    pub(crate) fn host() -> Self {
        Place {
            domid: DomId::ZERO,
            shared: Arc::default(),
        }
    }

    /// A domain with its xenstore page, and its end of an event channel to domain 0.
    pub(crate) fn domain(&self, domid: DomId) -> (Self, Scratch, End) {
        let place = Place {
            domid,
            shared: self.shared.clone(),
        };
        let page = Scratch::new(4096);
        self.shared
            .pages
            .lock()
            .unwrap()
            .insert(domid, page.clone());
        let channel = place.alloc_unbound(DomId::ZERO).unwrap();
        (place, page, channel)
    }

    /// Polls `main` and every task, whenever they are woken, until `main` is done.
    pub(crate) fn run<R>(&self, main: impl Future<Output = R>) -> R {
        let mut main = pin!(main);
        let woken = Arc::new(Woken::new());
        let mut tasks: Vec<(Task, Arc<Woken>)> = Vec::new();
        loop {
            let mut quiet = true;
            if woken.0.take() {
                quiet = false;
                let waker = woken.clone().into();
                if let Poll::Ready(result) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return result;
                }
            }
            let new = core::mem::take(&mut *self.shared.new.lock().unwrap());
            tasks.extend(new.into_iter().map(|task| (task, Arc::new(Woken::new()))));
            tasks.retain_mut(|(task, woken)| {
                if !woken.0.take() {
                    return true;
                }
                quiet = false;
                let waker = woken.clone().into();
                task.as_mut()
                    .poll(&mut Context::from_waker(&waker))
                    .is_pending()
            });
            assert!(!quiet, "everybody waits and nobody will wake them");
        }
    }
}

struct Woken(Bell);

impl Woken {
    fn new() -> Self {
        let bell = Bell::default();
        bell.ring();
        Woken(bell)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.ring();
    }
}

impl Identity for Place {
    fn domid(&self) -> DomId {
        self.domid
    }
}

impl Tasks for Place {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.shared.new.lock().unwrap().push(Box::pin(task));
    }
}

impl Clock for Place {
    fn now(&self) -> Instant {
        Instant::from_nanos(0)
    }

    fn sleep_until(&self, _: Instant) -> impl Future<Output = ()> + Send + 'static {
        core::future::pending()
    }
}

/// One end of an event channel.
#[derive(Clone)]
pub(crate) struct End {
    port: Port,
    mine: Arc<Bell>,
    theirs: Arc<Bell>,
}

impl Channel for End {
    fn port(&self) -> Port {
        self.port
    }

    fn notify(&self) {
        self.theirs.ring();
    }

    fn poll_wait(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.mine.poll(cx)
    }

    fn take(&self) -> bool {
        self.mine.take()
    }

    fn mask(&self) {}

    fn unmask(&self) {}
}

impl Events for Place {
    type Channel = End;

    fn alloc_unbound(&self, _: DomId) -> Result<End, EventError> {
        let mut ports = self.shared.ports.lock().unwrap();
        let port = Port(1 + ports.len() as u32);
        let bells = [Arc::<Bell>::default(), Arc::default()];
        let end = |mine: usize| End {
            port,
            mine: bells[mine].clone(),
            theirs: bells[1 - mine].clone(),
        };
        ports.insert((self.domid, port), end(1));
        Ok(end(0))
    }

    fn bind(&self, domid: DomId, port: Port) -> Result<End, EventError> {
        let ports = self.shared.ports.lock().unwrap();
        let end = ports.get(&(domid, port)).cloned();
        end.ok_or(EventError::NoSuchPort { domid, port })
    }
}

impl Memory for Place {
    type Pages = Scratch;

    fn allocate(&self, count: usize) -> Result<Scratch, OutOfMemory> {
        Ok(Scratch::new(count * 4096))
    }
}

pub(crate) struct Mapped(Scratch);

impl Mapping for Mapped {
    fn view(&self) -> View<'_, ReadOnly> {
        self.0.view().read_only()
    }

    fn view_mut(&self) -> Option<View<'_>> {
        Some(self.0.view())
    }
}

pub(crate) enum NoGrant {}

impl Grant for NoGrant {
    fn refs(&self) -> &[GrantRef] {
        match *self {}
    }

    fn end(self) -> Result<(), StillMapped> {
        match self {}
    }
}

impl Grants for Place {
    type Grant = NoGrant;
    type Mapping = Mapped;

    fn grant(&self, _: &Scratch, to: DomId, _: Access) -> Result<NoGrant, GrantError> {
        Err(GrantError::NotGrantable(to))
    }

    fn map(&self, from: DomId, refs: &[GrantRef], _: Access) -> Result<Mapped, MapError> {
        assert_eq!(refs, [GrantRef::RESERVED_XENSTORE]);
        let pages = self.shared.pages.lock().unwrap();
        pages
            .get(&from)
            .cloned()
            .map(Mapped)
            .ok_or(MapError::Refused {
                domid: from,
                gref: GrantRef::RESERVED_XENSTORE,
                status: GrantStatus::BAD_DOMAIN,
            })
    }

    fn map_each(
        &self,
        from: DomId,
        refs: &[GrantRef],
        access: Access,
        out: &mut Vec<Result<Mapped, MapError>>,
    ) {
        out.extend(refs.iter().map(|gref| self.map(from, &[*gref], access)));
    }

    fn copy(&self, _: &mut [CopyOp<'_, Scratch>]) -> Result<(), i32> {
        Err(38)
    }
}
