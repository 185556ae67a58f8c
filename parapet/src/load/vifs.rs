//! Guests with vifs, on a host of their own, under load: what is measured and printed by
//! `parapet net bench` and by the benchmarks beside peers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_channel::mpsc;
use futures_util::StreamExt;
use parapet_hypervisor::seam::prelude::*;
use parapet_netfront::{Config, Queue};
use parapet_packet::Mac;

use super::net::{self, Counted, Load};
use crate::config::{GuestConfig, NetworkConfig, NetworkKind, VifConfig};
use crate::guest::Guest;
use crate::host::HostBuilder;

/// Where the frames go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// To the back half, where they end.
    Back,
    /// To a TAP device of the host.
    Tap {
        /// What it is called.
        name: String,
        /// The network namespace that it is in, if that is not the process's own.
        namespace: Option<PathBuf>,
    },
    /// Each guest's to the next guest, the last one's to the first if there are more than two.
    Guests,
}

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the frames go.
    pub to: To,
    /// How many guests there are; two at least if they go to guests.
    pub guests: usize,
    /// Whether of two guests both send.
    pub both_ways: bool,
    /// Queues of each vif.
    pub queues: u32,
    /// How long a backend looks for frames before it sleeps.
    pub poll: Duration,
    /// What is sent.
    pub load: Load,
}

/// What was counted.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// By each guest that sends, or where they go to guests, by each that receives.
    pub guests: Vec<Counted>,
}

impl Outcome {
    /// All of it.
    ///
    /// # Errors
    /// None: all was counted alike.
    pub fn total(&self) -> Result<Counted> {
        let mut total = net::nothing()?;
        for guest in &self.guests {
            total.add(guest)?;
        }
        Ok(total)
    }

    /// Jain's index over the guests' rates: 1 if all got the same, 1/n if one of n got everything.
    pub fn fairness(&self) -> f64 {
        let rates: Vec<f64> = self.guests.iter().map(Counted::bits_per_second).collect();
        let sum: f64 = rates.iter().sum();
        let squares: f64 = rates.iter().map(|rate| rate * rate).sum();
        match squares > 0.0 {
            true => sum * sum / (rates.len() as f64 * squares),
            false => 0.0,
        }
    }
}

/// The guest's address.
fn mac(guest: usize) -> Mac {
    let [high, low] = (guest as u16).to_be_bytes();
    Mac([0x00, 0x16, 0x3e, 0x00, high, low])
}

/// Measures on a host of its own, which `builder` makes.
///
/// # Errors
/// The host, a guest or a vif cannot be had, or the network fails.
pub fn run(builder: HostBuilder, plan: &Plan) -> Result<Outcome> {
    let kind = match &plan.to {
        To::Back => NetworkKind::Null,
        To::Guests => NetworkKind::Isolated,
        To::Tap { namespace, .. } => NetworkKind::Bridged {
            bridge: None,
            namespace: namespace.clone(),
        },
    };
    let network = NetworkConfig {
        name: "load".into(),
        kind,
    };
    let builder = builder.poll(plan.poll).queues(plan.queues);
    let host = builder.networks(vec![network]).build()?;
    let guests = match plan.to {
        To::Guests => plan.guests.max(2),
        _ => plan.guests.max(1),
    };
    let meeting = Arc::new(Meeting::of(guests));
    let mut running = Vec::new();
    for number in 0..guests {
        let config = GuestConfig {
            memory: 64 << 20,
            vifs: vec![VifConfig {
                mac: Some(mac(number)),
                name: match &plan.to {
                    To::Tap { name, .. } => Some(name.clone()),
                    _ => None,
                },
                ..VifConfig::default()
            }],
            ..GuestConfig::new(format!("guest-{number}"))
        };
        let part = Part::of(number, guests, plan);
        let (plan, meeting) = (plan.clone(), Arc::clone(&meeting));
        running.push(host.start(&config, async move |guest: Guest| {
            program(&guest, &plan, part, &meeting).await
        })?);
    }
    let mut counted = Vec::new();
    for guest in running {
        counted.extend(guest.wait()?);
    }
    if counted.is_empty() {
        bail!("nobody counted anything");
    }
    Ok(Outcome { guests: counted })
}

/// What one guest does: its share of the sending and of the receiving, and what it counted, if
/// it was to count.
async fn program(
    guest: &Guest,
    plan: &Plan,
    part: Part,
    meeting: &Arc<Meeting>,
) -> Result<Option<Counted>> {
    let config = Config::new().queues(plan.queues);
    let (_interface, queues) = guest.interface_as(0, config).await?;
    meeting.everybody(guest).await;
    let domain = guest.domain();
    let counts_arrivals = plan.to == To::Guests;
    let (result, mut results) = mpsc::unbounded();
    let mut idle = Vec::new();
    for queue in queues {
        let Queue {
            mut sender,
            mut receiver,
        } = queue;
        if part.receives {
            let (guest, load, result) = (domain.clone(), plan.load.clone(), result.clone());
            domain.spawn(async move {
                let counted = net::receive(&guest, &mut receiver, &load).await;
                // Nobody listens any more if another has failed.
                let _ = result.unbounded_send((true, counted));
                // The vif goes on taking frames until all have counted.
                std::future::pending::<()>().await;
            });
        } else {
            idle.push(receiver);
        }
        if let Some(to) = part.sends_to {
            let (guest, load, result) = (domain.clone(), plan.load.clone(), result.clone());
            let (way, meeting) = ((mac(part.number), mac(to)), Arc::clone(meeting));
            domain.spawn(async move {
                let over = &meeting.over;
                let counted = net::transmit(&guest, &mut sender, &load, way, over).await;
                let _ = result.unbounded_send((false, counted));
            });
        }
    }
    drop(result);
    let mut total = net::nothing()?;
    let (mut arrivals, mut departures) = (0, 0);
    let count = |of: bool| if of { plan.queues } else { 0 };
    if !part.receives {
        domain.sleep(plan.load.warm_up + plan.load.time).await;
    }
    if part.receives {
        while arrivals < count(part.receives) {
            match results.next().await.context("a task is gone")? {
                (true, counted) => {
                    total.add(&counted?)?;
                    arrivals += 1;
                }
                (false, counted) => {
                    counted?;
                    departures += 1;
                }
            }
        }
    }
    meeting.leave(guest).await;
    while departures < count(part.sends_to.is_some()) {
        let (_, counted) = results.next().await.context("a task is gone")?;
        if !counts_arrivals {
            total.add(&counted?)?;
        }
        departures += 1;
    }
    Ok((part.receives || !counts_arrivals).then_some(total))
}

/// What a guest does.
#[derive(Debug, Clone, Copy)]
struct Part {
    number: usize,
    sends_to: Option<usize>,
    receives: bool,
}

impl Part {
    fn of(number: usize, guests: usize, plan: &Plan) -> Self {
        let (sends, receives) = match plan.to {
            To::Guests if guests == 2 && !plan.both_ways => (number == 0, number == 1),
            To::Guests => (true, true),
            To::Back | To::Tap { .. } => (true, false),
        };
        Part {
            number,
            sends_to: sends.then_some((number + 1) % guests.max(2)),
            receives,
        }
    }
}

/// Where all wait for each other, before and after.
struct Meeting {
    guests: usize,
    here: AtomicUsize,
    done: AtomicUsize,
    over: AtomicBool,
}

/// How often one who waits looks.
const LOOK: Duration = Duration::from_millis(1);

impl Meeting {
    fn of(guests: usize) -> Self {
        Meeting {
            guests,
            here: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        }
    }

    /// Waits until all are there, so that all begin together.
    async fn everybody(&self, guest: &Guest) {
        self.here.fetch_add(1, Ordering::SeqCst);
        while self.here.load(Ordering::SeqCst) < self.guests {
            guest.domain().sleep(LOOK).await;
        }
    }

    /// Waits until all have counted; then nobody sends any more.
    async fn leave(&self, guest: &Guest) {
        if self.done.fetch_add(1, Ordering::SeqCst) + 1 == self.guests {
            self.over.store(true, Ordering::SeqCst);
        }
        while !self.over.load(Ordering::SeqCst) {
            guest.domain().sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;

    #[test]
    fn frames_from_guest_to_guest_are_counted_where_they_arrive() {
        for (guests, both_ways) in [(2, false), (2, true), (5, true)] {
            let plan = Plan {
                to: To::Guests,
                guests,
                both_ways,
                queues: 1,
                poll: Duration::ZERO,
                load: Load {
                    sizes: vec![64, 1514, 65226],
                    touch: true,
                    poll: false,
                    warm_up: Duration::from_millis(10),
                    time: Duration::from_millis(50),
                },
            };
            let outcome = run(Host::builder().pcpus(2), &plan).unwrap();
            let counting = if both_ways { guests } else { 1 };
            assert_eq!(outcome.guests.len(), counting);
            assert!(outcome.guests.iter().all(|counted| counted.frames > 0));
        }
    }
}
