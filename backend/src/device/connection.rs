//! A connected device: its queues at work, and what may end it.

use std::future::poll_fn;
use std::task::Poll;

use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::xenbus::{Backend, Closing, Connected, End, InitWait, Keys};

use super::changes::{Changes, frontend_state, is_back_at_the_beginning};
use super::{Device, Ended};
use crate::Error;
use crate::kind::Kind;
use crate::queues::Queues;
use crate::report::Stage;

/// A connection at work.
pub(super) struct Running<K: Kind> {
    pub(super) queues: Queues,
    pub(super) connection: K::Connection,
}

/// How a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The frontend uses it.
    Serving,
    /// The frontend will leave; it may still have something to finish.
    Leaving,
    /// The frontend has left, or a queue has ended by itself.
    Over,
}

/// What happened while a device was watched.
enum Event {
    /// A queue has ended by itself.
    QueueEnded,
    /// Something beside the queues has come to an end.
    Aside,
}

impl<K: Kind> Running<K> {
    /// Waits until something may have changed, and says what that comes to, and whether something
    /// beside the queues has come to an end.
    async fn next(&mut self, end: &End, changes: &mut Changes) -> Result<(Standing, bool), Error> {
        let mut event = poll_fn(|cx| {
            if self.queues.poll_any_ended(cx).is_ready() {
                return Poll::Ready(Event::QueueEnded);
            }
            K::poll_aside(&mut self.connection, cx).map(|()| Event::Aside)
        });
        let aside = match changes.or(&mut event).await? {
            Some(Event::QueueEnded) => return Ok((Standing::Over, false)),
            Some(Event::Aside) => true,
            None => false,
        };
        let standing = match frontend_state(end).await? {
            XenbusState::Closing => Standing::Leaving,
            // One that is back at the beginning has not said a word of closing: its guest crashed,
            // or began anew.
            XenbusState::Closed | XenbusState::Initialising => Standing::Over,
            _ => Standing::Serving,
        };
        Ok((standing, aside))
    }
}

impl<K: Kind> Device<K> {
    /// One connection: from the frontend's answer until it leaves, or until it is clear that there
    /// will be none. By the end nothing of the frontend's is mapped.
    pub(super) async fn one_connection(
        &self,
        waiting: Backend<InitWait>,
        opened: &mut K::Opened,
        scripted: bool,
        changes: &mut Changes,
    ) -> Result<Ended, Error> {
        let ended = Ended::Connection;
        loop {
            if !waiting.is_online().await? || is_back_at_the_beginning(&waiting).await? {
                return Ok(ended(self.turns().take(waiting.close()).await?));
            }
            let script = match scripted {
                true => script_outcome(waiting.own()).await?,
                false => Some(Ok(())),
            };
            if let Some(Err(error)) = script {
                // It will not be run again, whatever the frontend does.
                self.report(&waiting, &error).await?;
                return Ok(Ended::Device(self.turns().take(waiting.close()).await?));
            }
            match frontend_state(&waiting).await? {
                XenbusState::Initialised | XenbusState::Connected if script.is_some() => break,
                XenbusState::Closing | XenbusState::Closed => {
                    return Ok(ended(self.turns().take(waiting.close()).await?));
                }
                _ => changes.next().await?,
            }
        }
        let mut running = match self.kind.connect(self, &waiting, opened).await {
            Ok((queues, connection)) => Running::<K> { queues, connection },
            Err(error) => {
                self.report(&waiting, &error).await?;
                return Ok(ended(self.turns().take(waiting.close()).await?));
            }
        };
        let greeting = self.kind.greeting(&running.connection);
        let connected = waiting.connect(async |own: Keys| {
            for (key, value) in &greeting {
                match value {
                    Some(value) => own.set(key, value).await?,
                    None => own.remove(key).await?,
                }
            }
            Ok(())
        });
        let closing = match self.turns().take(connected).await {
            Ok(connected) => self.keep_up(connected, opened, &mut running, changes).await,
            Err(error) => Err(error.into()),
        };
        self.end(running, &closing).await;
        Ok(ended(closing?))
    }

    /// Waits until the frontend of a connected device has left, and does meanwhile what is due.
    pub(super) async fn keep_up(
        &self,
        connected: Backend<Connected>,
        opened: &mut K::Opened,
        running: &mut Running<K>,
        changes: &mut Changes,
    ) -> Result<Backend<Closing>, Error> {
        let own: Option<String> = connected.own().find("state").await?;
        // One that is closing already was so when we took it over.
        let mut standing = match own.as_deref() {
            Some("5") => Standing::Leaving,
            _ => Standing::Serving,
        };
        while standing == Standing::Serving && connected.is_online().await? {
            let connection = &mut running.connection;
            let own = changes.of_our_own();
            let tended = self.kind.tend(self, &connected, opened, connection, own);
            tended.await?;
            let aside;
            (standing, aside) = running.next(&connected, changes).await?;
            if aside {
                let connection = &mut running.connection;
                let dealt_with = self.kind.aside(self, &connected, opened, connection);
                dealt_with.await?;
            }
        }
        if let Some(error) = running.queues.take_error() {
            self.report(&connected, &error).await?;
        }
        // The toolstack asks the frontend to go by this very state, which we may have overwritten.
        let closing = self.turns().take(connected.close()).await?;
        while standing != Standing::Over {
            (standing, _) = running.next(&closing, changes).await?;
        }
        Ok(closing)
    }

    /// Lets go of all that a connection had, also when the nodes are gone, or the xenstore is: then
    /// nobody knows that the connection is over, and who comes after us goes on with it.
    pub(super) async fn end(&self, running: Running<K>, closing: &Result<Backend<Closing>, Error>) {
        let Running {
            mut queues,
            connection,
        } = running;
        queues.stop().await;
        if let Some(error) = queues.take_error() {
            self.complain(&error);
        }
        self.kind.end(connection).await;
        if !closing.as_ref().is_err_and(Error::is_broken) {
            self.kind.forget(self);
        }
    }

    /// Takes note of a connection, which is one more.
    pub fn note_connection(&self, what: impl std::fmt::Display) {
        self.record.note(|report| {
            report.stage = Stage::Connected;
            report.connections += 1;
        });
        self.log_connection(format_args!("connected: {what}"));
    }
}

/// What the toolstack's script has come to, if it has ended.
async fn script_outcome(own: &Keys) -> Result<Option<Result<(), Error>>, Error> {
    let status: Option<String> = own.find("hotplug-status").await?;
    Ok(match status.as_deref() {
        Some("connected") => Some(Ok(())),
        Some("error") => {
            let reason: Option<String> = own.find("hotplug-error").await?;
            let reason = reason.unwrap_or_else(|| "it does not say why".into());
            Some(Err(Error::Script(reason)))
        }
        _ => None,
    })
}
