//! A network that makes frames, for measuring: what is sent there goes nowhere.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::{Grants, Identity};
use parapet_packet::Mac;

use super::{Network, Port, Socket, Vif};
use crate::bell::Bell;
use crate::drops::Drops;
use crate::endpoint::Endpoint;
use crate::frame::{Frame, HEAD, LONGEST, Page, Part, Pool};

/// Frames of a queue that are under way at the most.
const FRAMES: u16 = 512;

/// Pages that those may have together.
const PAGES: u16 = 1024;

/// Whom the frames are from.
const SOURCE: Mac = Mac([2, 0, 0, 0, 0, 1]);

/// A number for a protocol that nobody speaks: IEEE's for local experiments.
const EXPERIMENT: u16 = 0x88B5;

/// The network. Each queue of each vif on it is given as many frames as it takes, up to `count`.
#[derive(Debug, Clone)]
pub struct Generator<P> {
    place: P,
    size: u16,
    count: Option<u64>,
}

impl<P> Generator<P> {
    /// Makes frames of `size` bytes, with an Ethernet header and no checksum at their end: `count`
    /// for each queue, or without end.
    pub fn new(place: P, size: u16, count: Option<u64>) -> Self {
        Generator {
            place,
            size: size.max(14),
            count,
        }
    }
}

impl<P: Grants + Identity + Clone + Send + Sync + 'static> Network<P> for Generator<P> {
    fn plug(&self, vif: &Vif) -> io::Result<Box<dyn Socket<P>>> {
        Ok(Box::new(Plugged {
            generator: self.clone(),
            to: vif.mac,
        }))
    }
}

struct Plugged<P> {
    generator: Generator<P>,
    to: Mac,
}

impl<P: Grants + Identity + Clone + Send + Sync + 'static> Socket<P> for Plugged<P> {
    fn connect(&mut self, endpoint: Arc<Endpoint<P>>) -> io::Result<Vec<Box<dyn Port<P>>>> {
        (0..endpoint.queues())
            .map(|_| {
                let source = Source::new(&self.generator, self.to)?;
                Ok(Box::new(source) as Box<dyn Port<P>>)
            })
            .collect()
    }
}

struct Source<P: Grants> {
    pool: Pool<P>,
    home: Arc<Bell>,
    header: [u8; 14],
    size: usize,
    /// Pages that a frame has.
    pages: usize,
    left: Option<u64>,
}

impl<P: Grants + Identity> Source<P> {
    fn new(generator: &Generator<P>, to: Mac) -> io::Result<Self> {
        let home = Arc::new(Bell::default());
        let size = usize::from(generator.size).min(LONGEST);
        let pages = size.saturating_sub(HEAD).div_ceil(PAGE_SIZE);
        let place = &generator.place;
        let pool = Pool::new(
            place,
            place.domid(),
            FRAMES,
            // No more than `PAGES`.
            (usize::from(FRAMES) * pages).min(usize::from(PAGES)) as u16,
            Arc::clone(&home),
        )
        .map_err(io::Error::other)?;
        let mut header = [0; 14];
        header[..6].copy_from_slice(&to.0);
        header[6..12].copy_from_slice(&SOURCE.0);
        header[12..].copy_from_slice(&EXPERIMENT.to_be_bytes());
        Ok(Source {
            pool,
            home,
            header,
            size,
            pages,
            left: generator.count,
        })
    }
}

impl<P: Grants> Source<P> {
    fn has_room(&self) -> bool {
        self.pool.idle() > 0 && self.pool.free_pages() >= self.pages
    }

    fn make(&mut self) -> Option<Frame<P>> {
        if !self.has_room() {
            return None;
        }
        let mut frame = self.pool.take()?;
        let head = frame.make_head(self.size.min(HEAD)).ok()?;
        head[..self.header.len()].copy_from_slice(&self.header);
        head[self.header.len()..].fill(0);
        let mut left = self.size.saturating_sub(HEAD);
        while left > 0 {
            let len = left.min(PAGE_SIZE);
            let part = Part {
                page: Page::Local(self.pool.take_page()?),
                offset: 0,
                // At most a page.
                len: len as u16,
            };
            frame.push(part).ok()?;
            left -= len;
        }
        Some(frame)
    }
}

impl<P: Grants + Send + Sync + 'static> Port<P> for Source<P> {
    fn send(&mut self, _: &mut Vec<Frame<P>>, _: &Drops) {}

    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut Vec<Frame<P>>,
        most: usize,
    ) -> Poll<io::Result<()>> {
        if self.left == Some(0) {
            return Poll::Pending;
        }
        self.pool.collect(|_| {});
        while !self.has_room() {
            self.home.listen(cx);
            if !self.pool.collect(|_| {}) {
                return Poll::Pending;
            }
        }
        self.home.hush();
        let most = self.left.map_or(most, |left| {
            most.min(usize::try_from(left).unwrap_or(usize::MAX))
        });
        let before = into.len();
        into.extend((0..most).map_while(|_| self.make()));
        if let Some(left) = &mut self.left {
            *left -= (into.len() - before) as u64;
        }
        Poll::Ready(Ok(()))
    }

    fn is_quiet(&self) -> bool {
        self.left == Some(0)
    }
}
