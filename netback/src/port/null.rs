//! A network of nobody: what is sent there is counted, and nothing ever comes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use parapet_hypervisor::seam::Grants;

use super::{Network, Port, Socket, Vif};
use crate::drops::Drops;
use crate::endpoint::Endpoint;
use crate::frame::Frame;

/// The network. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Null(Arc<Taken>);

#[derive(Debug, Default)]
struct Taken {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Null {
    /// Frames that were sent there, by all vifs.
    pub fn frames(&self) -> u64 {
        self.0.frames.load(Ordering::Relaxed)
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }
}

impl<P: Grants> Network<P> for Null {
    fn plug(&self, _: &Vif) -> io::Result<Box<dyn Socket<P>>> {
        Ok(Box::new(self.clone()))
    }
}

impl<P: Grants> Socket<P> for Null {
    fn connect(&mut self, endpoint: Arc<Endpoint<P>>) -> io::Result<Vec<Box<dyn Port<P>>>> {
        let port = |_| Box::new(self.clone()) as Box<dyn Port<P>>;
        Ok((0..endpoint.queues()).map(port).collect())
    }
}

impl<P: Grants> Port<P> for Null {
    fn send(&mut self, frames: &mut Vec<Frame<P>>, _: &Drops) {
        let bytes: u64 = frames.iter().map(|frame| frame.len() as u64).sum();
        self.0
            .frames
            .fetch_add(frames.len() as u64, Ordering::Relaxed);
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn poll_receive(
        &mut self,
        _: &mut Context<'_>,
        _: &mut Vec<Frame<P>>,
        _: usize,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn is_quiet(&self) -> bool {
        true
    }
}
