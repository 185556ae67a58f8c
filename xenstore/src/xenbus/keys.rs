//! Keys and their values.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xen_sys::{DomId, Errno, GrantRef, Port};

use super::Error;
use crate::client::{self, Client};

/// What a key's value can be read as.
pub trait Key: Sized {
    /// What is expected, for the one who has to find out what went wrong.
    const WHAT: &'static str;

    /// Reads it.
    fn parse(text: &str) -> Option<Self>;
}

macro_rules! numbers {
    ($( $type:ty = $number:ty, $make:expr; )*) => {$(
        impl Key for $type {
            const WHAT: &'static str = concat!("a number (", stringify!($number), ")");

            fn parse(text: &str) -> Option<Self> {
                text.parse::<$number>().ok().map($make)
            }
        }
    )*};
}

numbers! {
    u16 = u16, |number| number;
    u32 = u32, |number| number;
    u64 = u64, |number| number;
    DomId = u16, DomId;
    Port = u32, Port;
    GrantRef = u32, GrantRef;
    // As features are: zero or anything else.
    bool = u32, |number| number != 0;
}

impl Key for XenbusState {
    const WHAT: &'static str = "the number of a state";

    fn parse(text: &str) -> Option<Self> {
        text.parse::<u32>().ok()?.try_into().ok()
    }
}

impl Key for String {
    const WHAT: &'static str = "text";

    fn parse(text: &str) -> Option<Self> {
        Some(text.into())
    }
}

/// The keys in one directory, read as what they should be.
#[derive(Clone)]
pub struct Keys {
    client: Client,
    base: String,
}

impl Keys {
    /// Those below `base`.
    pub fn new(client: Client, base: impl Into<String>) -> Self {
        let base = base.into();
        Keys { client, base }
    }

    /// The directory.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A key's path.
    pub fn path(&self, key: &str) -> String {
        format!("{}/{key}", self.base)
    }

    /// The same keys, as a transaction sees them.
    pub fn within(&self, transaction: &Client) -> Keys {
        Keys::new(transaction.clone(), self.base.clone())
    }

    /// A key's value, if it is there.
    ///
    /// # Errors
    /// [`Error::Peer`], naming the path, if it is there and not a `T`; [`Error::Store`].
    pub async fn find<T: Key>(&self, key: &str) -> Result<Option<T>, Error> {
        let path = self.path(key);
        let value = match self.client.read(&path).await {
            Ok(value) => value,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let text = core::str::from_utf8(&value).ok();
        match text.map(str::trim).and_then(T::parse) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::Peer {
                what: format!("is \"{}\" and not {}", value.escape_ascii(), T::WHAT),
                path,
            }),
        }
    }

    /// A key's value, which has to be there.
    ///
    /// # Errors
    /// As [`Keys::find`], and [`Error::Peer`] if it is missing.
    pub async fn get<T: Key>(&self, key: &str) -> Result<T, Error> {
        self.find(key).await?.ok_or_else(|| Error::Peer {
            path: self.path(key),
            what: format!("is missing; it should be {}", T::WHAT),
        })
    }

    /// A key's value, or `default`.
    ///
    /// # Errors
    /// As [`Keys::find`].
    pub async fn get_or<T: Key>(&self, key: &str, default: T) -> Result<T, Error> {
        Ok(self.find(key).await?.unwrap_or(default))
    }

    /// Writes a key.
    ///
    /// # Errors
    /// The store's.
    pub async fn set(&self, key: &str, value: impl ToString) -> Result<(), client::Error> {
        self.client.write(&self.path(key), value.to_string()).await
    }

    /// The names of all keys.
    ///
    /// # Errors
    /// The store's.
    pub async fn names(&self) -> Result<Vec<String>, client::Error> {
        self.client.list(&self.base).await
    }

    /// Removes a key and all below it; nothing if it is not there.
    ///
    /// # Errors
    /// The store's.
    pub async fn remove(&self, key: &str) -> Result<(), client::Error> {
        match self.client.remove(&self.path(key)).await {
            Err(error) if error.is_not_found() => Ok(()),
            removed => removed,
        }
    }

    /// The state that is written here. Who has no state, or no directory (which one that may not
    /// look into the directory above cannot tell from a forbidden one), has closed.
    ///
    /// # Errors
    /// As [`Keys::find`].
    pub async fn state(&self) -> Result<XenbusState, Error> {
        match self.find("state").await {
            Ok(state) => Ok(state.unwrap_or(XenbusState::Closed)),
            Err(Error::Store(error)) if error.errno() == Some(Errno::EACCES) => {
                Ok(XenbusState::Closed)
            }
            Err(error) => Err(error),
        }
    }
}
