//! What a connected device sees to beside its frontend: how large its image is, and how large the
//! operator wants it to be.
//!
//! Looking at an image's size, and even more so changing it, may take as long as a file server
//! takes to answer, so it is done aside, one thing at a time.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parapet_hypervisor::host;
use parapet_hypervisor::seam;

use crate::queue::ImageOf;

/// How often to look how large the image is.
const LOOK: Duration = Duration::from_secs(1);

type Work = Pin<Box<dyn Future<Output = Option<io::Result<()>>> + Send>>;

/// What came to its end.
#[derive(Debug)]
pub(super) enum Done {
    /// The image was looked at: it may have another size than before.
    Measured,
    /// It was resized to so many sectors, or was not.
    Resized(u64, io::Result<()>),
}

/// What goes on aside for one connection.
pub(super) struct Upkeep<P: seam::Backend> {
    place: P,
    image: Arc<ImageOf<P>>,
    next_look: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// What is being done, and the size that it is to get by that, if so.
    work: Option<(Work, Option<u64>)>,
    /// How many sectors it is to have, as soon as nothing else is being done.
    wanted: Option<u64>,
}

impl<P: seam::Backend> Upkeep<P> {
    pub(super) fn new(place: P, image: Arc<ImageOf<P>>) -> Self {
        Upkeep {
            next_look: Box::pin(place.sleep(LOOK)),
            place,
            image,
            work: None,
            wanted: None,
        }
    }

    /// Gives the image another size, as soon as possible. One that it is getting anyway is not given
    /// twice: what is asked for next would be undone by the second.
    pub(super) fn resize(&mut self, sectors: u64) {
        if self.coming() != Some(sectors) {
            self.wanted = Some(sectors);
        }
    }

    /// So many sectors, but not more than the image is going to have.
    pub(super) fn at_most(&self, sectors: u64) -> u64 {
        self.coming().map_or(sectors, |coming| coming.min(sectors))
    }

    /// The size that the image is going to have, if it is to have another.
    fn coming(&self) -> Option<u64> {
        let under_way = self.work.as_ref().and_then(|(_, sectors)| *sectors);
        self.wanted.or(under_way)
    }

    /// Ready when something was done.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Done> {
        loop {
            if let Some((work, resizes)) = &mut self.work {
                let Poll::Ready(outcome) = work.as_mut().poll(cx) else {
                    return Poll::Pending;
                };
                let resizes = *resizes;
                self.work = None;
                self.next_look = Box::pin(self.place.sleep(LOOK));
                let outcome = outcome.unwrap_or_else(|| Err(io::Error::other("it panicked")));
                return Poll::Ready(match (resizes, outcome) {
                    (Some(sectors), outcome) => Done::Resized(sectors, outcome),
                    (None, outcome) => {
                        if let Err(error) = outcome {
                            // It has the size that it had; who uses it will see.
                            log::debug!("an image cannot be measured: {error}");
                        }
                        Done::Measured
                    }
                });
            }
            let image = Arc::clone(&self.image);
            let (begun, resizes) = if let Some(sectors) = self.wanted.take() {
                (aside(move || image.resize(sectors)), Some(sectors))
            } else if self.next_look.as_mut().poll(cx).is_ready() {
                (aside(move || image.measure()), None)
            } else {
                return Poll::Pending;
            };
            self.work = Some((begun, resizes));
        }
    }

    /// Waits for what is being done, so that nobody has the image.
    pub(super) async fn stop(self) {
        if let Some((work, _)) = self.work {
            work.await;
        }
    }
}

/// Begins something; that there is no thread for it is an outcome like any other.
fn aside(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Work {
    match host::aside(work) {
        Ok(work) => Box::pin(work),
        Err(error) => Box::pin(std::future::ready(Some(Err(error)))),
    }
}
