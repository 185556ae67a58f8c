//! Our own halves, in one process on the loopback hypervisor: blkfront's queue in a guest, blkback's
//! in domain 0, each domain on the core of its half.

use crate::contender::{Contender, Standing};
use crate::measure::{Counted, CpuScope, Queue, Sample, closed_loop, together};
use crate::placement::{Cores, Placement};
use crate::workload::{Disk, Workload};
use anyhow::{Context, Result, anyhow, bail};
use parapet_blkback::device::POLL;
use parapet_blkback::grants::PERSISTENT_PAGES;
use parapet_blkback::image::{Access as ImageAccess, Spec};
use parapet_blkback::limit::Limit;
use parapet_blkback::queue::{ImageOf, Queue as Back, QueueSetup};
use parapet_blkback::request::X86_64;
use parapet_blkback::stats::QueueStats;
use parapet_blkback::terms::Terms;
use parapet_blkfront::{Buffer, Direction, Queue as Front};
use parapet_hypervisor::loopback::{Config, Domain, DomainConfig, Hypervisor, Idle};
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::prelude::*;
use parapet_hypervisor::seam::{Access, yield_now};
use parapet_ring::Peer;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// How long a polling backend looks before it sleeps: longer than any run.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// How often a polling frontend looks before it lets its hypervisor do something.
const LOOKS: u32 = 256;

/// blkfront and blkback.
pub(crate) struct Halves;

impl Contender for Halves {
    fn name(&self) -> &'static str {
        "parapet"
    }

    fn standing(&self) -> Standing {
        Standing::Ours
    }

    fn serves(&self, _: &Workload, _: Placement) -> bool {
        true
    }

    fn run(&mut self, workload: &Workload, placement: Placement, cores: Cores) -> Result<Sample> {
        let same = cores.front == cores.back;
        let hypervisor = Hypervisor::new(Config {
            pcpus: if same { 1 } else { 2 },
            cores: if same {
                vec![cores.front]
            } else {
                vec![cores.front, cores.back]
            },
            idle: if placement.polls() {
                Idle::Poll
            } else {
                Idle::Sleep
            },
            policy: None,
        })?;
        let domain = |name: &str, pcpu| {
            hypervisor.create(DomainConfig {
                name: name.into(),
                pinned: Some(pcpu),
                ..DomainConfig::default()
            })
        };
        let dom0 = domain("backend", usize::from(!same))?;

        let polls = placement.polls();
        let shared = match workload.disk {
            Disk::Overlays { .. } => None,
            _ => Some(image(&workload.disk, 0)?),
        };
        let (result, counted) = mpsc::channel();
        for number in 0..workload.guests {
            let guest = domain(&format!("frontend-{number}"), 0)?;
            let image = match &shared {
                Some(image) => Arc::clone(image),
                None => image(&workload.disk, number)?,
            };
            for lane in 0..workload.queues {
                let mut queue = GuestQueue::new(&guest, &dom0, workload, polls)?;
                let back = back(&dom0, &guest, &mut queue, Arc::clone(&image), placement)?;
                let backend_result = result.clone();
                dom0.run(async move |_| {
                    if let Err(error) = back.run(std::future::pending()).await {
                        let _ = backend_result.send(Err(error.into()));
                    }
                });
                let guest_result = result.clone();
                let workload = Workload {
                    stream: (number * workload.queues + lane) as u64,
                    ..workload.clone()
                };
                guest.run(async move |_| {
                    let scope = CpuScope::new().process(nix::unistd::getpid());
                    let counted = closed_loop(&mut queue, &workload, &scope).await;
                    let _ = guest_result.send(counted.map(|counted| (number, counted)));
                });
            }
        }
        let mut guests: Vec<Vec<Counted>> = (0..workload.guests).map(|_| Vec::new()).collect();
        for _ in 0..workload.guests * workload.queues {
            let (guest, counted) = counted.recv().context("a guest ended without a result")??;
            guests[guest].push(counted);
        }
        Ok(together(guests, workload.block))
    }
}

/// The backend of one queue, and where it counts.
fn back(
    dom0: &Domain,
    guest: &Domain,
    queue: &mut GuestQueue,
    image: Arc<ImageOf<Domain>>,
    placement: Placement,
) -> Result<Back<Domain, X86_64>> {
    let stats = Arc::new(QueueStats::default());
    queue.stats = Arc::clone(&stats);
    let ring = dom0.map(guest.domid(), queue.front.ring_refs(), Access::ReadWrite)?;
    Ok(Back::new(QueueSetup {
        place: dom0.clone(),
        peer: guest.domid(),
        ring: Peer::new(ring).map_err(|_| anyhow!("the ring was mapped read-only"))?,
        channel: dom0.bind(guest.domid(), queue.front.port())?,
        terms: Arc::new(Terms::new(image.sectors())),
        image,
        discard: None,
        persistent: PERSISTENT_PAGES,
        poll: match placement {
            Placement::SplitPolling => FOR_EVER,
            // What the daemon has by itself: none if there is one processor.
            Placement::SplitEvented => POLL,
            Placement::SameCore => Duration::ZERO,
        },
        stats,
        complaints: Limit::new("the benchmark"),
    })?)
}

/// The image of a guest's disk.
fn image(disk: &Disk, guest: usize) -> Result<Arc<ImageOf<Domain>>> {
    let name = |path: &Path| path.to_str().map(str::to_owned);
    let (text, access) = match disk {
        Disk::Null { size } => (Some(format!("null:{size}")), ImageAccess::ReadOnly),
        Disk::File { path, .. } => (name(path), ImageAccess::ReadOnly),
        Disk::Overlays { paths, .. } => {
            let path = paths.get(guest).context("an overlay for each guest")?;
            let text = name(path).map(|path| format!("overlay:{path}"));
            (text, ImageAccess::ReadWrite)
        }
    };
    let spec: Spec = text.context("the image's name is not UTF-8")?.parse()?;
    Ok(spec.open(access)?)
}

/// The frontend's queue with a buffer for each slot of the workload.
struct GuestQueue {
    front: Front<Domain>,
    buffers: Vec<Buffer<Domain>>,
    block: usize,
    polls: bool,
    notifications: u64,
    stats: Arc<QueueStats>,
}

impl GuestQueue {
    fn new(guest: &Domain, dom0: &Domain, workload: &Workload, polls: bool) -> Result<Self> {
        let block = workload.block as usize;
        // 32 requests fit the first page of a ring, and twice as many twice the pages.
        let ring = workload.depth.div_ceil(32).next_power_of_two();
        let mut front = Front::new(guest, dom0.domid(), ring)?;
        let pages = block.div_ceil(PAGE_SIZE);
        front.allow_segments(guest, pages)?;
        let buffers = (0..workload.depth)
            .map(|_| Buffer::new(guest, dom0.domid(), pages))
            .collect::<Result<_, _>>()?;
        Ok(GuestQueue {
            front,
            buffers,
            block,
            polls,
            notifications: 0,
            stats: Arc::default(),
        })
    }

    fn take(&mut self, done: &mut Vec<usize>) -> Result<()> {
        while let Some(completion) = self.front.complete()? {
            completion.result?;
            done.push(completion.token as usize);
        }
        Ok(())
    }
}

impl Queue for GuestQueue {
    fn submit(&mut self, slot: usize, offset: u64) -> Result<()> {
        let (sector, buffer) = (offset / 512, &self.buffers[slot]);
        self.front
            .submit(slot as u64, Direction::Read, sector, buffer, 0..self.block)?;
        Ok(())
    }

    fn kick(&mut self) -> Result<()> {
        self.notifications += u64::from(self.front.publish());
        Ok(())
    }

    async fn reap(&mut self, done: &mut Vec<usize>) -> Result<()> {
        self.take(done)?;
        while done.is_empty() {
            if self.polls {
                let mut looks = 0;
                while done.is_empty() && looks < LOOKS {
                    std::hint::spin_loop();
                    self.take(done)?;
                    looks += 1;
                }
                if looks == LOOKS {
                    yield_now().await;
                }
            } else {
                self.front.wait().await?;
                self.take(done)?;
            }
        }
        if self.front.capacity() < self.buffers.len() {
            bail!("the ring is smaller than the workload's depth");
        }
        Ok(())
    }

    fn notifications(&mut self) -> Option<u64> {
        Some(self.notifications + self.stats.notifications.get())
    }
}
