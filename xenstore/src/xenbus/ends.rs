//! The two ends, each with its state as its type.

use alloc::format;
use alloc::string::String;
use core::marker::PhantomData;

use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xen_sys::{DomId, Errno};

use super::{Error, Keys};
use crate::client::{self, Client, Watch};
use crate::wire::error_name;

/// Made by the toolstack, or back at the beginning.
#[derive(Debug)]
pub enum Initialising {}
/// A backend that has said what it can do.
#[derive(Debug)]
pub enum InitWait {}
/// A frontend that has published its rings.
#[derive(Debug)]
pub enum Initialised {}
/// In use.
#[derive(Debug)]
pub enum Connected {}
/// On the way out.
#[derive(Debug)]
pub enum Closing {}
/// Out.
#[derive(Debug)]
pub enum Closed {}

/// What an end waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prospect {
    /// It is here.
    Here,
    /// It may still come.
    Coming,
    /// It will not come.
    Never,
}

/// Which states of the other end let each wait end; the rest of the handshake is in the types.
mod prospects {
    use super::Prospect;
    use super::Prospect::{Coming, Here, Never};
    use XenbusState as State;
    use parapet_xen_sys::io::xenbus::XenbusState;

    /// A frontend waits for a backend that has said what it can do. One that closes comes back
    /// only if it is to go on: see [`super::Frontend::backend_waits`].
    pub(super) fn backend_waits(backend: State) -> Prospect {
        match backend {
            State::InitWait => Here,
            State::Closing | State::Closed => Never,
            _ => Coming,
        }
    }

    /// A frontend that has published waits for its backend to connect.
    pub(super) fn backend_connected(backend: State) -> Prospect {
        match backend {
            State::Connected | State::Reconfiguring | State::Reconfigured => Here,
            State::Closing | State::Closed => Never,
            _ => Coming,
        }
    }

    /// A backend waits for a frontend that has published. Some go to Connected at once.
    pub(super) fn frontend_ready(frontend: State) -> Prospect {
        match frontend {
            State::Initialised | State::Connected => Here,
            State::Closing | State::Closed => Never,
            _ => Coming,
        }
    }

    /// A connected backend waits for its frontend to be so too.
    pub(super) fn frontend_connected(frontend: State) -> Prospect {
        match frontend {
            State::Connected => Here,
            State::Closing | State::Closed => Never,
            _ => Coming,
        }
    }

    /// Who closes waits for the other to do so too. A backend back in InitWait, and a frontend
    /// back in Initialising, has closed and begun anew meanwhile.
    pub(super) fn closed(other: State) -> Prospect {
        match other {
            State::Closed | State::Initialising | State::InitWait | State::Unknown => Here,
            _ => Coming,
        }
    }

    #[cfg(test)]
    #[test]
    fn a_wait_ends_with_the_states_that_mean_it() {
        let table = [
            (backend_waits as fn(State) -> Prospect, ".....!!", "..+...."),
            (backend_connected, ".....!!", "....+.."),
            (frontend_ready, ".....!!", "...++.."),
            (frontend_connected, ".....!!", "....+.."),
            (closed, ".......", "+++...+"),
        ];
        for (prospect, never, here) in table {
            let marks = never.bytes().zip(here.bytes());
            for (state, (never, here)) in State::ALL.iter().zip(marks) {
                let expected = match (never, here) {
                    (b'!', _) => Never,
                    (_, b'+') => Here,
                    _ => Coming,
                };
                assert_eq!(prospect(*state), expected, "{state:?}");
            }
        }
    }
}

/// One end of a device, whichever: its directory, the other's, and the states of both.
pub struct End {
    client: Client,
    own: Keys,
    other: Keys,
    other_domid: DomId,
    /// On the other's state, once somebody waits for it: a domain may have only so many watches.
    watch: Option<Watch>,
    /// The other's state when last looked at.
    seen: Option<XenbusState>,
}

impl End {
    async fn open(client: &Client, path: &str, other: &str) -> Result<Self, Error> {
        let own = Keys::new(client.clone(), path);
        let other_path: String = own.get(other).await?;
        let other_domid = own.get(&format!("{other}-id")).await?;
        let other = Keys::new(client.clone(), other_path);
        Ok(End {
            client: client.clone(),
            own,
            other,
            other_domid,
            watch: None,
            seen: None,
        })
    }

    /// The connection to the store.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Our own keys.
    pub fn own(&self) -> &Keys {
        &self.own
    }

    /// The other end's keys.
    pub fn other(&self) -> &Keys {
        &self.other
    }

    /// The domain of the other end.
    pub fn other_domid(&self) -> DomId {
        self.other_domid
    }

    /// Waits until the other end is in a state that was not seen before.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn changed(&mut self) -> Result<XenbusState, Error> {
        loop {
            let seen = self.seen;
            let state = self.written().await?;
            if seen != Some(state) {
                return Ok(state);
            }
        }
    }

    /// Waits until the other end has written its state, be it the one it was in: so it says that
    /// something else has changed, as the size of a disk. The first time it is ready at once.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn written(&mut self) -> Result<XenbusState, Error> {
        let watch = match &mut self.watch {
            Some(watch) => watch,
            // It begins with an event.
            none => none.insert(self.client.watch(&self.other.path("state")).await?),
        };
        watch.next().await?;
        let state = self.other.state().await?;
        self.seen = Some(state);
        Ok(state)
    }

    async fn wait(&mut self, prospect: fn(XenbusState) -> Prospect) -> Result<XenbusState, Error> {
        loop {
            let state = match self.seen {
                Some(state) => state,
                None => self.changed().await?,
            };
            match prospect(state) {
                Prospect::Here => return Ok(state),
                Prospect::Never => return Err(Error::Leaving(state)),
                Prospect::Coming => self.changed().await?,
            };
        }
    }

    /// Writes our state, and before it what `keys` writes, in one transaction.
    async fn switch<F>(&self, state: XenbusState, keys: impl Fn(Keys) -> F) -> Result<(), Error>
    where
        F: Future<Output = Result<(), client::Error>>,
    {
        let switched = self.client.transaction(|tx| {
            let own = self.own.within(&tx);
            let written = keys(own.clone());
            async move {
                written.await?;
                // An end that was removed meanwhile is not to come back as a lone state.
                tx.read(&own.path("state")).await?;
                own.set("state", u32::from(state)).await
            }
        });
        Ok(switched.await?)
    }

    async fn switch_plainly(&self, state: XenbusState) -> Result<(), Error> {
        self.switch(state, async |_| Ok(())).await
    }

    /// Reports an error where people and toolstacks look for it: as Linux does, under `error` in
    /// our own domain's directory.
    ///
    /// # Errors
    /// The store's.
    pub async fn report(&self, error: Errno, what: &str) -> Result<(), client::Error> {
        let own = self.own.base();
        let local = own.strip_prefix("/local/domain/");
        let name = local.and_then(|rest| rest.split_once('/'));
        let name = name.map_or(own, |(_, name)| name);
        let message = format!("{} {}: {what}", error.0, error_name(error));
        let path = format!("error/{name}/error");
        self.client.write(&path, message).await
    }
}

macro_rules! end {
    ($(#[$doc:meta])* $name:ident, $other:literal) => {
        $(#[$doc])*
        pub struct $name<State> {
            end: End,
            state: PhantomData<fn() -> State>,
        }

        impl<State> core::ops::Deref for $name<State> {
            type Target = End;

            fn deref(&self) -> &End {
                &self.end
            }
        }

        impl<State> core::ops::DerefMut for $name<State> {
            fn deref_mut(&mut self) -> &mut End {
                &mut self.end
            }
        }

        impl<State> core::fmt::Debug for $name<State> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{}({})", stringify!($name), self.end.own.base())
            }
        }

        impl<State> $name<State> {
            fn now<Next>(self) -> $name<Next> {
                $name {
                    end: self.end,
                    state: PhantomData,
                }
            }

            /// Begins to close. What is outstanding can still be finished.
            ///
            /// # Errors
            /// The store's; [`client::Error::is_not_found`] if the device was removed.
            pub async fn close(self) -> Result<$name<Closing>, Error> {
                self.switch_plainly(XenbusState::Closing).await?;
                Ok(self.now())
            }
        }

        impl $name<Initialising> {
            /// Takes up the end whose directory is `path`, and says that it is at the beginning.
            ///
            /// # Errors
            /// Any [`Error`]; [`Error::Peer`] for what the toolstack should have written.
            pub async fn open(client: &Client, path: &str) -> Result<Self, Error> {
                let end = End::open(client, path, $other).await?;
                end.switch_plainly(XenbusState::Initialising).await?;
                Ok($name {
                    end,
                    state: PhantomData,
                })
            }
        }

        impl $name<Closing> {
            /// Waits until the other end has closed too, and says that we have. By now nothing of
            /// it is mapped or granted.
            ///
            /// # Errors
            /// The store's.
            pub async fn closed(mut self) -> Result<$name<Closed>, Error> {
                self.wait(prospects::closed).await?;
                self.switch_plainly(XenbusState::Closed).await?;
                Ok(self.now())
            }

            /// Says that we have closed, without waiting for the other.
            ///
            /// # Errors
            /// The store's.
            pub async fn closed_first(self) -> Result<$name<Closed>, Error> {
                self.switch_plainly(XenbusState::Closed).await?;
                Ok(self.now())
            }
        }

        impl $name<Closed> {
            /// Begins anew.
            ///
            /// # Errors
            /// The store's.
            pub async fn reopen(self) -> Result<$name<Initialising>, Error> {
                self.switch_plainly(XenbusState::Initialising).await?;
                Ok(self.now())
            }
        }
    };
}

end! {
    /// A guest's end of a device, in the state that its type says.
    Frontend, "backend"
}

end! {
    /// The serving end of a device, in the state that its type says.
    Backend, "frontend"
}

impl Frontend<Initialising> {
    /// Waits until the backend has said what it can do, and waits for us.
    ///
    /// # Errors
    /// [`Error::Leaving`] if the backend is gone; any other [`Error`].
    pub async fn backend_waits(&mut self) -> Result<(), Error> {
        loop {
            match self.wait(prospects::backend_waits).await {
                // It has closed the connection before ours, and begins anew as we do.
                Err(Error::Leaving(_)) if self.backend_stays().await? => {
                    self.changed().await?;
                }
                ended => return ended.map(drop),
            }
        }
    }

    /// Whether the backend is to go on, and could set the device up.
    async fn backend_stays(&self) -> Result<bool, Error> {
        let online = match self.other().get_or("online", false).await {
            Err(Error::Store(error)) if error.errno() == Some(Errno::EACCES) => false,
            online => online?,
        };
        if !online {
            return Ok(false);
        }
        let status: Option<String> = self.other().find("hotplug-status").await?;
        Ok(status.as_deref() != Some("error"))
    }

    /// Publishes: what `keys` writes and the state, seen by the backend at once. `keys` may be run
    /// again if somebody interferes.
    ///
    /// # Errors
    /// The store's.
    pub async fn publish<F>(self, keys: impl Fn(Keys) -> F) -> Result<Frontend<Initialised>, Error>
    where
        F: Future<Output = Result<(), client::Error>>,
    {
        self.switch(XenbusState::Initialised, keys).await?;
        Ok(self.now())
    }
}

impl Frontend<Initialising> {
    /// Publishes as [`Frontend::publish`] does, and says at once that the device is in use: what
    /// the backend of a vif waits for before it connects, since all that a vif is stands in the
    /// frontend's own directory.
    ///
    /// # Errors
    /// The store's.
    pub async fn connect_first<F>(
        self,
        keys: impl Fn(Keys) -> F,
    ) -> Result<Frontend<Connected>, Error>
    where
        F: Future<Output = Result<(), client::Error>>,
    {
        self.switch(XenbusState::Connected, keys).await?;
        Ok(self.now())
    }
}

impl Frontend<Connected> {
    /// Waits until the backend has connected too.
    ///
    /// # Errors
    /// [`Error::Leaving`] if the backend gives up; any other [`Error`].
    pub async fn backend_connected(&mut self) -> Result<(), Error> {
        self.wait(prospects::backend_connected).await.map(drop)
    }
}

impl Frontend<Initialised> {
    /// Waits until the backend has connected, and has said what the device is.
    ///
    /// # Errors
    /// [`Error::Leaving`] if the backend gives up; any other [`Error`].
    pub async fn backend_connected(&mut self) -> Result<(), Error> {
        self.wait(prospects::backend_connected).await.map(drop)
    }

    /// Says that the device is in use.
    ///
    /// # Errors
    /// The store's.
    pub async fn connect(self) -> Result<Frontend<Connected>, Error> {
        self.switch_plainly(XenbusState::Connected).await?;
        Ok(self.now())
    }
}

impl Backend<Initialising> {
    /// Announces: what `keys` writes, the features, and that we wait for the frontend.
    ///
    /// # Errors
    /// The store's.
    pub async fn announce<F>(self, keys: impl Fn(Keys) -> F) -> Result<Backend<InitWait>, Error>
    where
        F: Future<Output = Result<(), client::Error>>,
    {
        self.switch(XenbusState::InitWait, keys).await?;
        Ok(self.now())
    }
}

impl Backend<InitWait> {
    /// Waits until the frontend has published its rings.
    ///
    /// # Errors
    /// [`Error::Leaving`] if the frontend is closing or gone; any other [`Error`].
    pub async fn frontend_ready(&mut self) -> Result<(), Error> {
        self.wait(prospects::frontend_ready).await.map(drop)
    }

    /// Connects: what `keys` writes, which says what the device is, and that it is in use.
    ///
    /// # Errors
    /// The store's.
    pub async fn connect<F>(self, keys: impl Fn(Keys) -> F) -> Result<Backend<Connected>, Error>
    where
        F: Future<Output = Result<(), client::Error>>,
    {
        self.switch(XenbusState::Connected, keys).await?;
        Ok(self.now())
    }
}

impl Backend<Connected> {
    /// Waits until the frontend has connected too.
    ///
    /// # Errors
    /// [`Error::Leaving`] if the frontend is closing or gone; any other [`Error`].
    pub async fn frontend_connected(&mut self) -> Result<(), Error> {
        self.wait(prospects::frontend_connected).await.map(drop)
    }
}

impl<State> Backend<State> {
    /// Takes up the end whose directory is `path` as another has left it, when it is known to be in
    /// that state. Nothing is written.
    ///
    /// # Errors
    /// Any [`Error`]; [`Error::Peer`] for what the toolstack should have written.
    pub async fn take_up(client: &Client, path: &str) -> Result<Self, Error> {
        Ok(Backend {
            end: End::open(client, path, "frontend").await?,
            state: PhantomData,
        })
    }

    /// Whether the toolstack wants the device to stay: it writes `online` as 0 when it removes it.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn is_online(&self) -> Result<bool, Error> {
        self.own().get_or("online", false).await
    }

    /// Tells the toolstack that the device could not be set up, as a hotplug script would.
    ///
    /// # Errors
    /// The store's; [`client::Error::is_not_found`] if the device was removed.
    pub async fn hotplug_failed(&self, why: &str) -> Result<(), client::Error> {
        let own = self.own();
        self.client()
            .transaction(|tx| async move {
                let own = own.within(&tx);
                // One that was removed meanwhile is not to come back as a lone error.
                tx.read(&own.path("state")).await?;
                own.set("hotplug-error", why).await?;
                own.set("hotplug-status", "error").await
            })
            .await
    }
}
