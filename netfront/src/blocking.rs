//! For a plain thread, which may sleep. A task would block its processor.

use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::Guest;
use parapet_packet::Offloads;

use crate::error::{Gone, SendError};
use crate::queue::{Receiver, Sender};
use crate::receive::RxFrame;

impl<G: Guest> Sender<G> {
    /// As [`Sender::send`], on a plain thread.
    ///
    /// # Errors
    /// As there.
    pub fn send_blocking(&mut self, parts: &[&[u8]], offloads: Offloads) -> Result<(), SendError> {
        block_on(self.send(parts, offloads))
    }
}

impl<G: Guest> Receiver<G> {
    /// As [`Receiver::receive`], on a plain thread.
    ///
    /// # Errors
    /// As there.
    pub fn receive_blocking(&mut self) -> Result<RxFrame<'_, G>, Gone> {
        block_on(self.receive())
    }
}
