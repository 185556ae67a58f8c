//! The control ring of a vif: how its frontend says which frames are for which queue, and which
//! pages stay mapped.
//!
//! | requests | what they are about | who does it |
//! |---|---|---|
//! | 1, 2, 3, 7 | hashes: which, with which key | [`Steering`] |
//! | 4, 5, 6 | the table of queues that they choose from | [`Steering`] |
//! | 8, 9, 10 | pages that stay mapped for a queue | that queue, by [`Orders`] |
//!
//! Requests are served one after the other, each to its end, and no faster than a frontend has any
//! use for: one that sends them without end waits.
//!
//! Source: `xen/include/public/io/netif.h`.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use futures_channel::oneshot;
use parapet_backend::limit::Limit;
use parapet_backend::rate::{Bucket, Rate};
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::prelude::*;
use parapet_hypervisor::seam::{Access, Backend, CopyEnd, CopyOp, OutOfMemory};
use parapet_packet::hash::LONGEST_KEY;
use parapet_ring::{Back, Peer, TooSmall, Violation};
use parapet_xen_sys::grant_table::GrantStatus;
use parapet_xen_sys::io::netif::{
    ControlRequest, ControlResponse, ControlStatus, ControlType, GrefFlags, GrefMapping,
    HashAlgorithm, HashTypes,
};
use parapet_xen_sys::{DomId, GrantRef};
use zerocopy::{FromZeros, IntoBytes};

use crate::frame::Static;
use crate::statics::{Order, Orders, PAGES};
use crate::steering::{LONGEST_MAPPING, Steering, TYPES, Unfit};
use crate::storm::Storm;

/// Requests a second, and at once: a frontend sends some ten when it connects, and then hardly any.
const RATE: Rate = Rate {
    per_second: 1000,
    burst: 256,
};

/// Pages that are mapped at the price of one request: what a frontend with eight queues asks for when
/// it connects is done at once.
const PAGES_OF_A_REQUEST: usize = 32;

/// Entries of a list in a page.
const LIST: usize = PAGE_SIZE / size_of::<GrefMapping>();

/// What a control ring's task is made of.
pub struct ControlSetup<P: Backend> {
    /// Where we run.
    pub place: P,
    /// Whose vif it is.
    pub peer: DomId,
    /// The ring's page.
    pub ring: Peer<P::Mapping>,
    /// Our end of its event channel.
    pub channel: P::Channel,
    /// The ways to all queues, in order.
    pub orders: Vec<Arc<Orders<P>>>,
    /// Where to set which frames are for which queue.
    pub steering: Arc<Steering>,
    /// How to complain.
    pub complaints: Limit,
}

/// Why a control ring is served no more.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The frontend broke the ring.
    #[error("control ring: {0}")]
    Violation(#[from] Violation),
    /// The ring cannot be taken up.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// The host has no memory for it.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// A control ring.
pub struct Control<P: Backend> {
    place: P,
    peer: DomId,
    ring: Back<Peer<P::Mapping>, ControlRequest, ControlResponse>,
    channel: P::Channel,
    orders: Vec<Arc<Orders<P>>>,
    steering: Arc<Steering>,
    complaints: Limit,
    /// Where the frontend's lists are copied to.
    page: P::Pages,
    rate: Bucket,
}

/// A request that is not done, and the status that says so.
type Refusal = ControlStatus;

fn unfit(unfit: Unfit) -> Refusal {
    match unfit {
        Unfit::Key(_) => ControlStatus::BUFFER_OVERFLOW,
        Unfit::Types(_) | Unfit::Size(_) | Unfit::Entries { .. } | Unfit::Queue(_) => {
            ControlStatus::INVALID_PARAMETER
        }
    }
}

impl<P: Backend> Control<P> {
    /// Takes up the frontend's control ring, and forgets what another frontend had set.
    ///
    /// # Errors
    /// The ring is too small, or the host has no memory.
    pub fn new(setup: ControlSetup<P>) -> Result<Self, ControlError> {
        let ControlSetup {
            place,
            peer,
            ring,
            channel,
            orders,
            steering,
            complaints,
        } = setup;
        steering.reset();
        let rate = Bucket::default();
        rate.set(Some(RATE));
        Ok(Control {
            peer,
            ring: Back::<_, ControlRequest, ControlResponse>::resume(ring)?,
            channel,
            orders,
            steering,
            complaints,
            page: place.allocate(1)?,
            rate,
            place,
        })
    }

    /// Serves the ring until `stop` is ready.
    ///
    /// # Errors
    /// The frontend broke the ring.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) -> Result<(), ControlError> {
        let mut stop = pin!(stop);
        let mut serve = pin!(self.serve());
        poll_fn(|cx| match stop.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => serve.as_mut().poll(cx),
        })
        .await
    }

    async fn serve(&mut self) -> Result<(), ControlError> {
        let mut storm = Storm::default();
        loop {
            while let Some(request) = self.ring.take()? {
                storm.calm();
                let now = self.place.now();
                let due = self.rate.charge(now, 1);
                if due > now {
                    self.place.sleep_until(due).await;
                }
                let response = self.answer(request).await;
                // What was taken has room for its answer.
                let _: Result<_, _> = self.ring.push(&response);
                if self.ring.publish() {
                    self.channel.notify();
                }
            }
            let event = poll_fn(|cx| {
                let event = self.channel.poll_wait(cx).is_ready();
                match self.ring.arm() {
                    Ok(false) if !event => Poll::Pending,
                    armed => Poll::Ready(armed.map(|work| event && !work)),
                }
            });
            let spurious = event.await?;
            if spurious {
                storm.weather(&self.place, || [&self.channel]).await;
            }
        }
    }

    async fn answer(&mut self, request: ControlRequest) -> ControlResponse {
        let ControlRequest { id, control, data } = request;
        let (status, data) = match self.obey(control, data).await {
            Ok(data) => (ControlStatus::SUCCESS, data),
            Err(refusal) => {
                let now = self.place.now();
                self.complaints.debug(now, || {
                    format!("control request {control} {data:?} was refused: {refusal}")
                });
                (refusal, 0)
            }
        };
        ControlResponse {
            id,
            control,
            status,
            data,
        }
    }

    async fn obey(&mut self, control: u16, data: [u32; 3]) -> Result<u32, Refusal> {
        const GET_FLAGS: u16 = ControlType::GetHashFlags as u16;
        const SET_FLAGS: u16 = ControlType::SetHashFlags as u16;
        const SET_KEY: u16 = ControlType::SetHashKey as u16;
        const GET_SIZE: u16 = ControlType::GetHashMappingSize as u16;
        const SET_SIZE: u16 = ControlType::SetHashMappingSize as u16;
        const SET_MAPPING: u16 = ControlType::SetHashMapping as u16;
        const SET_ALGORITHM: u16 = ControlType::SetHashAlgorithm as u16;
        const GET_GREFS: u16 = ControlType::GetGrefMappingSize as u16;
        const ADD_GREFS: u16 = ControlType::AddGrefMapping as u16;
        const DEL_GREFS: u16 = ControlType::DelGrefMapping as u16;
        let steering = &self.steering;
        match control {
            GET_FLAGS | SET_FLAGS if steering.algorithm() == HashAlgorithm::None => {
                Err(ControlStatus::NOT_SUPPORTED)
            }
            GET_FLAGS => Ok(TYPES.bits()),
            SET_FLAGS => {
                let types = HashTypes::from_bits_retain(data[0]);
                steering.set_types(types).map_err(unfit)?;
                Ok(0)
            }
            SET_KEY => {
                let len = data[1] as usize;
                if len > LONGEST_KEY {
                    return Err(unfit(Unfit::Key(len)));
                }
                let mut key = [0; LONGEST_KEY];
                let key = key.get_mut(..len).unwrap_or_default();
                self.fetch(GrantRef(data[0]), key)?;
                self.steering.set_key(key).map_err(unfit)?;
                Ok(0)
            }
            GET_SIZE => Ok(LONGEST_MAPPING as u32),
            SET_SIZE => {
                let entries = data[0] as usize;
                steering.set_mapping_size(entries).map_err(unfit)?;
                Ok(0)
            }
            SET_MAPPING => {
                let (count, from) = (data[1] as usize, data[2] as usize);
                let mut mapping = [0u32; LONGEST_MAPPING];
                let Some(entries) = mapping.get_mut(..count) else {
                    return Err(ControlStatus::INVALID_PARAMETER);
                };
                self.fetch(GrantRef(data[0]), entries.as_mut_bytes())?;
                let queues = self.orders.len();
                let set = self.steering.set_mapping(from, entries, queues);
                set.map_err(unfit)?;
                Ok(0)
            }
            SET_ALGORITHM => {
                let algorithm = match data[0] {
                    0 => HashAlgorithm::None,
                    1 => HashAlgorithm::Toeplitz,
                    _ => return Err(ControlStatus::INVALID_PARAMETER),
                };
                steering.set_algorithm(algorithm);
                Ok(0)
            }
            GET_GREFS => match self.queue(data[0]) {
                Some(_) => Ok(PAGES as u32),
                None => Err(ControlStatus::INVALID_PARAMETER),
            },
            ADD_GREFS => self.add(data).await.map(|()| 0),
            DEL_GREFS => self.remove(data).await,
            _ => Err(ControlStatus::NOT_SUPPORTED),
        }
    }

    /// Has pages that were mapped or unmapped count as requests: the next waits for longer.
    fn pay(&self, pages: usize) {
        let units = (pages / PAGES_OF_A_REQUEST) as u64;
        self.rate.charge(self.place.now(), units);
    }

    fn queue(&self, index: u32) -> Option<&Arc<Orders<P>>> {
        self.orders.get(index as usize)
    }

    /// Copies bytes out of the beginning of a page that the frontend has granted.
    fn fetch(&self, gref: GrantRef, to: &mut [u8]) -> Result<(), Refusal> {
        if to.is_empty() {
            return Ok(());
        }
        let theirs = CopyEnd::Granted {
            domid: self.peer,
            gref,
            offset: 0,
        };
        let ours = CopyEnd::Local {
            pages: &self.page,
            offset: 0,
        };
        self.copy(theirs, ours, to.len())?;
        let read = self.page.view().read_bytes(0, to);
        read.map_err(|_| ControlStatus::INVALID_PARAMETER)
    }

    fn copy(
        &self,
        from: CopyEnd<'_, P::Pages>,
        to: CopyEnd<'_, P::Pages>,
        len: usize,
    ) -> Result<(), Refusal> {
        let mut ops = [CopyOp {
            from,
            to,
            // At most a page.
            len: len as u16,
            status: GrantStatus::OKAY,
        }];
        match self.place.copy(&mut ops) {
            Ok(()) if ops[0].status == GrantStatus::OKAY => Ok(()),
            _ => Err(ControlStatus::INVALID_PARAMETER),
        }
    }

    /// The list of pages that a request names.
    fn list(&self, gref: u32, entries: u32) -> Result<Vec<GrefMapping>, Refusal> {
        let entries = entries as usize;
        if entries == 0 || entries > LIST {
            return Err(ControlStatus::INVALID_PARAMETER);
        }
        let mut list =
            GrefMapping::new_vec_zeroed(entries).map_err(|_| ControlStatus::BUFFER_OVERFLOW)?;
        self.fetch(GrantRef(gref), list.as_mut_bytes())?;
        Ok(list)
    }

    /// Has pages mapped for a queue: all, or none.
    async fn add(&self, [queue, list, entries]: [u32; 3]) -> Result<(), Refusal> {
        const INVALID: Refusal = ControlStatus::INVALID_PARAMETER;
        let orders = self.queue(queue).ok_or(INVALID)?;
        let list = self.list(list, entries)?;
        let mut refs: Vec<GrantRef> = list.iter().map(|entry| entry.gref).collect();
        refs.sort_unstable();
        let is_twice = refs.windows(2).any(|pair| pair[0] == pair[1]);
        let is_known = |entry: &GrefMapping| GrefFlags::READONLY.contains(entry.flags);
        if is_twice || !list.iter().all(is_known) {
            return Err(INVALID);
        }
        self.pay(list.len());
        let mut pages = Vec::new();
        for (flags, access) in [
            (GrefFlags::empty(), Access::ReadWrite),
            (GrefFlags::READONLY, Access::ReadOnly),
        ] {
            let of_these = list.iter().filter(|entry| entry.flags == flags);
            let refs: Box<[GrantRef]> = of_these.map(|entry| entry.gref).collect();
            if refs.is_empty() {
                continue;
            }
            let mapped = self.place.map(self.peer, &refs, access);
            let mapping = mapped.map_err(|error| {
                let now = self.place.now();
                self.complaints.debug(now, || error.to_string());
                INVALID
            })?;
            pages.push((Static { mapping, refs }, access));
        }
        let (done, added) = oneshot::channel();
        orders.send(Order::Add { pages, done });
        match added.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(INVALID),
        }
    }

    /// Has pages of a queue unmapped. How many were; each has its status in the list.
    async fn remove(&self, [queue, page, entries]: [u32; 3]) -> Result<u32, Refusal> {
        const INVALID: Refusal = ControlStatus::INVALID_PARAMETER;
        let orders = self.queue(queue).ok_or(INVALID)?;
        let mut list = self.list(page, entries)?;
        let refs = list.iter().map(|entry| entry.gref).collect();
        let (done, removed) = oneshot::channel();
        orders.send(Order::Remove { refs, done });
        let removed = removed.await.map_err(|_| INVALID)?;
        let mut count = 0;
        for (entry, &removed) in list.iter_mut().zip(&removed) {
            count += u32::from(removed);
            let status = match removed {
                true => ControlStatus::SUCCESS,
                false => INVALID,
            };
            // The field has half the width that its values have elsewhere.
            entry.status = status.0 as u16;
        }
        if count > 0 {
            // What shared a mapping with one of these was mapped anew.
            self.pay(PAGES);
        }
        let bytes = list.as_bytes();
        let written = self.page.view().write_bytes(0, bytes);
        written.map_err(|_| INVALID)?;
        let ours = CopyEnd::Local {
            pages: &self.page,
            offset: 0,
        };
        let theirs = CopyEnd::Granted {
            domid: self.peer,
            gref: GrantRef(page),
            offset: 0,
        };
        self.copy(ours, theirs, bytes.len())?;
        Ok(count)
    }
}
