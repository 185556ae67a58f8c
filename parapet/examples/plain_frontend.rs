//! A block frontend that is not Parapet's, against Parapet's backend: how a driver author tests a
//! driver of their own.
//!
//! It is as plain as a frontend can be: one page of ring, one page of data, one request at a time.
//! It is written with nothing but the seam, the ring, the ABI and a xenstore connection, so it runs
//! wherever those do. The test at the end is all that it takes to try it: a host, a backend and a
//! guest in one process.
//!
//! ```text
//! cargo run --example plain_frontend
//! cargo test --example plain_frontend
//! ```

#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use parapet::config::GuestConfig;
use parapet::host::Host;
use parapet_hypervisor::memory::{PAGE_SIZE, View};
use parapet_hypervisor::seam::{self, Access, Channel, Events, Grant, Memory, Pages};
use parapet_ring::{Front, FrontLink, Own};
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::blkif::native::{Request, Response};
use parapet_xen_sys::io::blkif::{Operation, Segment, Status};
use parapet_xen_sys::io::protocols;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::client::Client;

type Ring<G> = FrontLink<Own<<G as Memory>::Pages>, Request, Response, <G as Events>::Channel>;

/// A disk, one page at a time.
struct PlainDisk<G: seam::Guest> {
    store: Client,
    /// Our directory, and the backend's.
    path: String,
    backend: String,
    ring: Ring<G>,
    data: G::Pages,
    /// Of the ring's page, and of the data's.
    grants: [G::Grant; 2],
    requests: u64,
}

impl<G: seam::Guest> PlainDisk<G> {
    /// Does what a frontend has to do to be connected.
    async fn connect(guest: &G, store: &Client, path: &str) -> Result<Self> {
        let backend = text(store, &format!("{path}/backend")).await?;
        let domid = DomId(text(store, &format!("{path}/backend-id")).await?.parse()?);
        reaches(store, &backend, XenbusState::InitWait).await?;

        let (page, data) = (guest.allocate(1)?, guest.allocate(1)?);
        let grants = [
            guest.grant(&page, domid, Access::ReadWrite)?,
            guest.grant(&data, domid, Access::ReadWrite)?,
        ];
        let channel = guest.alloc_unbound(domid)?;
        let keys = [
            ("ring-ref", first_ref(&grants[0])?.0.to_string()),
            ("event-channel", channel.port().0.to_string()),
            ("protocol", protocols::X86_64.to_string()),
        ];
        let ring = FrontLink::new(Front::new(Own(page))?, channel);
        for (key, value) in keys {
            store.write(&format!("{path}/{key}"), value).await?;
        }
        say(store, path, XenbusState::Initialised).await?;
        reaches(store, &backend, XenbusState::Connected).await?;
        say(store, path, XenbusState::Connected).await?;
        Ok(PlainDisk {
            store: store.clone(),
            path: path.into(),
            backend,
            ring,
            data,
            grants,
            requests: 0,
        })
    }

    /// The page that goes to the disk, or came from it.
    fn page(&self) -> View<'_> {
        self.data.view()
    }

    /// Moves the page to or from the eight sectors that begin with `sector`.
    async fn request(&mut self, operation: Operation, sector: u64) -> Result<()> {
        self.requests += 1;
        let mut request = Request {
            operation: operation as u8,
            nr_segments: 1,
            id: self.requests,
            sector_number: sector,
            ..Default::default()
        };
        request.seg[0] = Segment {
            gref: first_ref(&self.grants[1])?,
            first_sect: 0,
            last_sect: (PAGE_SIZE / 512 - 1) as u8,
            ..Default::default()
        };
        self.ring.ring.push(&request)?;
        self.ring.publish();
        let response = self.ring.next().await?;
        ensure!(response.id == request.id, "an answer that nobody asked for");
        ensure!(
            response.status == Status::OKAY,
            "the disk failed the request"
        );
        Ok(())
    }

    /// Parts in peace: the backend lets go of our pages before we take them back.
    async fn close(self) -> Result<()> {
        say(&self.store, &self.path, XenbusState::Closing).await?;
        reaches(&self.store, &self.backend, XenbusState::Closing).await?;
        say(&self.store, &self.path, XenbusState::Closed).await?;
        reaches(&self.store, &self.backend, XenbusState::Closed).await?;
        for grant in self.grants {
            grant.end()?;
        }
        Ok(())
    }
}

fn first_ref(grant: &impl Grant) -> Result<parapet_xen_sys::GrantRef> {
    grant.refs().first().copied().context("a page has a grant")
}

async fn text(store: &Client, path: &str) -> Result<String> {
    Ok(String::from_utf8(store.read(path).await?)?)
}

async fn say(store: &Client, path: &str, state: XenbusState) -> Result<()> {
    store
        .write(&format!("{path}/state"), (state as u32).to_string())
        .await?;
    Ok(())
}

/// Waits until the other end is in `state`, or past it.
async fn reaches(store: &Client, path: &str, state: XenbusState) -> Result<()> {
    let path = format!("{path}/state");
    let mut watch = store.watch(&path).await?;
    loop {
        let there: u32 = text(store, &path).await?.parse()?;
        if there >= XenbusState::Closing as u32 && there > state as u32 {
            bail!("the backend has closed the disk");
        }
        if there >= state as u32 {
            return Ok(());
        }
        watch.next().await?;
    }
}

fn main() -> Result<()> {
    let host = Host::builder().pcpus(1).build()?;
    let mut config = GuestConfig::new("plain");
    config.disks.push("memory:1M,raw,xvda,rw".parse()?);
    let guest = host.start(&config, async |guest| {
        let disk = PlainDisk::connect(guest.domain(), guest.store(), "device/vbd/51712");
        let mut disk = disk.await?;
        disk.page().write_bytes(0, b"hello")?;
        disk.request(Operation::Write, 0).await?;
        disk.close().await
    })?;
    guest.wait()?;
    println!("A frontend of our own has written a page through Parapet's backend.");
    Ok(())
}

#[test]
fn the_disk_has_what_was_written_to_it() {
    let host = Host::builder().pcpus(1).build().unwrap();
    let mut config = GuestConfig::new("plain");
    config.disks.push("memory:1M,raw,xvda,rw".parse().unwrap());
    let guest = host.start(&config, async |guest| {
        let disk = PlainDisk::connect(guest.domain(), guest.store(), "device/vbd/51712");
        let mut disk = disk.await?;
        disk.page().write_bytes(0, &[7; PAGE_SIZE])?;
        disk.request(Operation::Write, 8).await?;
        let mut pages = Vec::new();
        for sector in [0, 8] {
            disk.request(Operation::Read, sector).await?;
            let mut page = [0; PAGE_SIZE];
            disk.page().read_bytes(0, &mut page)?;
            pages.push(page);
        }
        disk.close().await?;
        Ok(pages)
    });
    assert_eq!(
        guest.unwrap().wait().unwrap(),
        [[0; PAGE_SIZE], [7; PAGE_SIZE]]
    );
    let stats = host.disks()[0].stats.sum();
    assert_eq!(
        (stats.writes.operations.get(), stats.reads.operations.get()),
        (1, 2)
    );
}
