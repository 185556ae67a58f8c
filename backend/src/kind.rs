//! What a kind of device adds to the life that all have in common.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::task::{Context, Poll};

use parapet_hypervisor::seam;
use parapet_xenstore::client;
use parapet_xenstore::xenbus::{Backend, Connected, InitWait, Keys};

use crate::Error;
use crate::device::{Changes, Device};
use crate::queues::Queues;
use crate::report::DeviceId;
use crate::values::Values;

/// A kind of device, and how all of that kind are served.
///
/// A device is opened once, and has connections one after the other, for as long as the toolstack
/// wants it:
///
/// ```text
///   open ─► offer ─► connect ─► greeting ─► tend … ─► end ─► (offer again) ─► drop(Opened)
///           (InitWait)          (Connected)           (Closing, Closed)
/// ```
pub trait Kind: Send + Sync + Sized + 'static {
    /// Where its backends run.
    type Place: seam::Backend;
    /// What is known of a device beside what is known of all.
    type About: Clone + Debug + Send + Sync + 'static;
    /// What a backend that crashed leaves for the one that comes after it.
    type Left: Send + 'static;
    /// What is behind a device, once it is open.
    type Opened: Send + 'static;
    /// What a connection has beside its queues.
    type Connection: Send + 'static;

    /// What it is called in the xenstore, as `vbd`.
    const NAME: &'static str;

    /// The keys by which the toolstack says what it wants. A device of which they say something else
    /// than before is another.
    const ORDERS: &'static [&'static str];

    /// What is known of a device that has just been found, perhaps with something `left`.
    fn begin(&self, device: DeviceId, left: Option<&Self::Left>) -> Self::About;

    /// What the device did, for a line in the log at its end.
    fn sum(&self, device: &Device<Self>) -> impl std::fmt::Display + Send;

    /// Looks for what a backend that crashed has left of a device, whose backend's directory is
    /// `own`. Nothing if it left nothing to go on with: the frontend then has to connect again.
    ///
    /// # Errors
    /// The xenstore's.
    fn find_left(
        &self,
        device: DeviceId,
        own: &Keys,
    ) -> impl Future<Output = Result<Option<Self::Left>, client::Error>> + Send;

    /// Forgets what was left of devices other than these, which are all there are.
    fn forget_others(&self, _devices: &BTreeSet<DeviceId>) {}

    /// Opens what is behind a device. It is dropped in mid-course if the device is not wanted any
    /// more.
    ///
    /// # Errors
    /// Why there can be no such device.
    fn open(
        &self,
        device: &Device<Self>,
        orders: &Values,
    ) -> impl Future<Output = Result<Self::Opened, Error>> + Send;

    /// The keys to write before the frontend is let in (state `InitWait`).
    fn offer(&self, opened: &Self::Opened) -> Vec<(&'static str, String)>;

    /// Reads the frontend's answer, takes what it names, and starts the queues on it.
    ///
    /// # Errors
    /// What is wrong with the answer, or with the host.
    fn connect(
        &self,
        device: &Device<Self>,
        waiting: &Backend<InitWait>,
        opened: &mut Self::Opened,
    ) -> impl Future<Output = Result<(Queues, Self::Connection), Error>> + Send;

    /// The keys to write, or to remove, with the state `Connected`.
    fn greeting(&self, connection: &Self::Connection) -> Vec<(&'static str, Option<String>)>;

    /// Does for a connected device what is due: at the beginning, and whenever something may have
    /// changed; `own` says whether that was in the backend's own directory.
    ///
    /// # Errors
    /// Why the connection has to end.
    fn tend(
        &self,
        device: &Device<Self>,
        end: &Backend<Connected>,
        opened: &mut Self::Opened,
        connection: &mut Self::Connection,
        own: bool,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Ready when something that goes on beside the queues has come to an end, of which
    /// [`Kind::aside`] is then told if the device is connected still.
    fn poll_aside(_connection: &mut Self::Connection, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    /// Deals with what [`Kind::poll_aside`] was ready for.
    ///
    /// # Errors
    /// Why the connection has to end.
    fn aside(
        &self,
        _device: &Device<Self>,
        _end: &Backend<Connected>,
        _opened: &mut Self::Opened,
        _connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        async { Ok(()) }
    }

    /// Ends a connection whose queues have let go of everything.
    fn end(&self, _connection: Self::Connection) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Goes on with a connection that a backend before us has left; nothing if the frontend has
    /// left meanwhile.
    ///
    /// # Errors
    /// Why that cannot be: the frontend then has to connect again.
    fn recover(
        &self,
        device: &Device<Self>,
        end: &Backend<Connected>,
        left: Self::Left,
        orders: &Values,
        changes: &mut Changes,
    ) -> impl Future<Output = Result<Option<Recovered<Self>>, Error>> + Send;

    /// Takes note that there is nothing any more that a backend after us could go on with.
    fn forget(&self, _device: &Device<Self>) {}
}

/// A connection that is taken up where another backend has left it.
pub struct Recovered<K: Kind> {
    /// What is behind the device.
    pub opened: K::Opened,
    /// Its queues, at work.
    pub queues: Queues,
    /// What the connection has beside them.
    pub connection: K::Connection,
}
