//! Events that a frontend sends for nothing (XSA-332, XSA-391).

use std::time::Duration;

use parapet_hypervisor::seam::{Channel, Clock, yield_now};

/// Events for nothing that are put up with in a row. An honest frontend sends one now and then: for
/// what was found before the event was.
const PATIENCE: u32 = 8;

/// How long events are held back from a frontend that goes on: twice as long each time, from the
/// first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(100));

/// How many came in a row.
#[derive(Debug, Default)]
pub(crate) struct Storm(u32);

impl Storm {
    /// There was something to do.
    #[inline]
    pub(crate) fn calm(&mut self) {
        self.0 = 0;
    }

    /// One more came over one of these channels: keeps away from them for a while, if it were many.
    pub(crate) async fn weather<'a, C, I>(&mut self, clock: &impl Clock, channels: impl Fn() -> I)
    where
        C: Channel,
        I: IntoIterator<Item = &'a C>,
    {
        self.0 = self.0.saturating_add(1);
        let Some(times) = self.0.checked_sub(PATIENCE) else {
            return yield_now().await;
        };
        let (first, longest) = BACKOFF;
        let pause = first.saturating_mul(1 << times.min(16)).min(longest);
        channels().into_iter().for_each(Channel::mask);
        clock.sleep(pause).await;
        channels().into_iter().for_each(Channel::unmask);
    }
}
