//! A device that a backend before us has left, which crashed.
//!
//! ```text
//!   found at 4 or 5, with something to go on with ──► its kind goes on: the frontend has seen
//!                                                     nothing
//!   found like that without ────────────────────────► 5, so that a frontend that can connects
//!                                                     again
//! ```
//!
//! Nothing is written into the xenstore by the former.

use std::time::Duration;

use parapet_hypervisor::seam::EventError;
use parapet_hypervisor::seam::prelude::*;
use parapet_xen_sys::{DomId, Port};
use parapet_xenstore::xenbus::{Backend, Closing, Connected};

use super::changes::Changes;
use super::connection::Running;
use super::{ChannelOf, Device};
use crate::Error;
use crate::kind::{Kind, Recovered};
use crate::limit::Pace;
use crate::report::Stage;
use crate::values::Values;

/// How long a port may be bound by what is left of another backend.
const LAST_PORT: Duration = Duration::from_secs(20);

/// How often to look whether it is over.
const LOOK: Duration = Duration::from_millis(10);

impl<K: Kind> Device<K> {
    /// Goes on with a device that another has left, or closes it so that its frontend begins anew.
    pub(super) async fn take_over(&self, left: Option<K::Left>) -> Result<(), Error> {
        let end = Backend::take_up(&self.store, &self.path).await?;
        let mut changes = Changes::of(&end).await?;
        let orders = Self::orders(&end).await?;
        let closing = self.go_on(end, left, &orders, &mut changes).await?;
        self.record.stage(Stage::Closed);
        if !self.frontend_leaves(&closing, &mut changes).await? {
            self.closed(closing, &orders).await?;
            return Ok(());
        }
        let mut pace = Pace::default();
        let reopened = self.reopen(closing, &orders, &mut pace, &mut changes);
        match reopened.await? {
            Some(backend) => {
                // They are watched anew.
                drop(changes);
                self.live(backend).await
            }
            None => Ok(()),
        }
    }

    /// Serves a connection that another has left until it ends, which may be at once.
    async fn go_on(
        &self,
        end: Backend<Connected>,
        left: Option<K::Left>,
        orders: &Values,
        changes: &mut Changes,
    ) -> Result<Backend<Closing>, Error> {
        if let Some(left) = left {
            match self.kind.recover(self, &end, left, orders, changes).await {
                Ok(Some(recovered)) => {
                    let Recovered {
                        mut opened,
                        queues,
                        connection,
                    } = recovered;
                    // Not at the limited rate of connections, of which this is the first.
                    let id = self.id();
                    log::info!(
                        "{} {id}: goes on where a backend before this one was",
                        K::NAME
                    );
                    let mut running = Running::<K> { queues, connection };
                    let closing = self.keep_up(end, &mut opened, &mut running, changes).await;
                    self.end(running, &closing).await;
                    return closing;
                }
                Ok(None) => {}
                Err(error) => self.report(&end, &error).await?,
            }
        }
        self.kind.forget(self);
        Ok(self.turns().take(end.close()).await?)
    }

    /// Binds a port that another had bound, and may have until it is quite gone.
    ///
    /// # Errors
    /// It cannot be bound.
    pub async fn bind_again(&self, peer: DomId, port: Port) -> Result<ChannelOf<K>, EventError> {
        let last = self.place.now().after(LAST_PORT);
        loop {
            match self.place.bind(peer, port) {
                Err(EventError::NoSuchPort { .. }) if self.place.now() < last => {
                    self.place.sleep(LOOK).await;
                }
                bound => return bound,
            }
        }
    }
}
