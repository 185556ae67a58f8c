//! An interface as a whole.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;

use parapet_hypervisor::seam::Guest;
use parapet_packet::Mac;
use parapet_xenstore::client::Client;
use parapet_xenstore::xenbus::Frontend;

use crate::config::Config;
use crate::connect::{ConnectError, Identity, Session, give_up, wait_for_the_one_before};
use crate::control::{Control, Hashing};
use crate::error::{ControlError, Gone};
use crate::life::Life;
use crate::queue::Queue;
use crate::shared::{Keep, Retired, Shared, Wish};

/// An interface as a whole: what it is called, how it stands, and how the backend is to treat it.
/// Its frames go by its [`Queue`]s.
///
/// The interface is closed when this and all ends of its queues are dropped.
pub struct Interface<G: Guest> {
    shared: Arc<Shared<G>>,
    keep: Arc<Keep<G>>,
    identity: Identity,
    control: Option<Box<Control<G>>>,
    /// Which connection that is of.
    generation: u32,
}

/// How an interface stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// A backend serves it.
    pub connected: bool,
    /// The backend says that there is a network behind it.
    pub carrier: bool,
}

impl<G: Guest> Interface<G> {
    pub(crate) async fn connect_with(
        guest: &G,
        client: &Client,
        path: &str,
        config: Config,
    ) -> Result<(Self, Vec<Queue<G>>), ConnectError> {
        wait_for_the_one_before(client, path).await?;
        let mut front = Frontend::open(client, path).await?;
        if let Err(error) = front.backend_waits().await {
            return Err(give_up(front, error.into()).await);
        }
        let session = Session::establish(guest, front, &config).await?;
        let shared = Arc::new(Shared::new(session.queues.len()));
        let keep = Arc::new(Keep(Arc::clone(&shared)));
        let mut identity = session.identity;
        if let Some(mtu) = config.mtu {
            identity.mtu = mtu;
        }
        let queues = (0..session.queues.len())
            .map(|number| Queue::new(&keep, number))
            .collect();
        let interface = Interface {
            shared: Arc::clone(&shared),
            keep,
            identity,
            control: None,
            generation: 0,
        };
        Life::new(guest, client, path, config, shared).begin(session);
        Ok((interface, queues))
    }

    /// Its Ethernet address.
    pub fn mac(&self) -> Mac {
        self.identity.mac
    }

    /// The longest packet, without its Ethernet header, that goes over its network, in bytes.
    pub fn mtu(&self) -> u16 {
        self.identity.mtu
    }

    /// How it stands.
    ///
    /// # Errors
    /// It is no more.
    pub fn status(&self) -> Result<Status, Gone> {
        match self.shared.gone() {
            Some(gone) => Err(gone),
            None => Ok(Status {
                connected: self.shared.is_connected(),
                carrier: self.shared.carrier(),
            }),
        }
    }

    /// Waits until it stands otherwise than `before`. One waiter at a time.
    ///
    /// # Errors
    /// It is no more.
    pub async fn changed(&self, before: Status) -> Result<Status, Gone> {
        poll_fn(|cx| {
            self.shared.watch(cx);
            match self.status() {
                Ok(now) if now == before => Poll::Pending,
                other => Poll::Ready(other),
            }
        })
        .await
    }

    /// Has the backend choose the queue of what it has for us by a hash; and again, by itself, when
    /// it has been away.
    ///
    /// # Errors
    /// [`ControlError`]; the backend may then have been told some of it.
    pub async fn set_hash(&mut self, hashing: &Hashing) -> Result<(), ControlError> {
        self.tell(Some(hashing)).await
    }

    /// Leaves it to the backend again.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn hash_no_more(&mut self) -> Result<(), ControlError> {
        self.tell(None).await
    }

    async fn tell(&mut self, hashing: Option<&Hashing>) -> Result<(), ControlError> {
        self.turn()?;
        let generation = self.generation;
        let shared = &self.shared;
        let Some(control) = &mut self.control else {
            return Err(match shared.is_connected() {
                true => ControlError::NoRing,
                false => ControlError::Away,
            });
        };
        // First, so that a backend that comes between hears of it too.
        shared.wishes.push(Wish::Hash(hashing.cloned()));
        let mut told = pin!(async {
            match hashing {
                Some(hashing) => control.hash(hashing).await,
                None => control.hash_no_more().await,
            }
        });
        let told = poll_fn(|cx| {
            shared.control.register(cx);
            match shared.generation() == generation {
                true => told.as_mut().poll(cx).map_err(ControlError::from),
                false => Poll::Ready(Err(ControlError::Away)),
            }
        });
        let told = told.await;
        if let Err(ControlError::Gone(gone)) = told {
            shared.close(gone);
        }
        told
    }

    /// Gets the control ring of the present connection.
    fn turn(&mut self) -> Result<(), Gone> {
        let now = self.shared.generation();
        if self.generation != now {
            self.give_back();
            match self.shared.control.take() {
                Some((generation, control)) => {
                    (self.generation, self.control) = (generation, Some(control));
                }
                None => self.generation = now,
            }
        }
        match self.shared.gone() {
            Some(gone) => Err(gone),
            None => Ok(()),
        }
    }

    fn give_back(&mut self) {
        if let Some(control) = self.control.take() {
            self.shared
                .retire(self.generation, Retired::Control(control));
        }
    }

    /// Closes it: whoever uses one of its queues is told so. The backend is told too, by the task
    /// that sees to it.
    pub fn close(self) {
        self.keep.0.close(Gone::Closed);
    }
}

impl<G: Guest> Drop for Interface<G> {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl<G: Guest> fmt::Debug for Interface<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interface")
            .field("identity", &self.identity)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
