//! Uses a disk by our blkfront in the user space of a Linux domain, against whoever serves it: the
//! front half meets a backend that nobody here wrote.
//!
//! The whole disk is written in pieces of many sizes, flushed, read back in others, and compared;
//! then a part is forgotten, if the backend does that. What the two ends agreed on goes to
//! standard output, in lines of `key value`.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use parapet_blkfront::{Disk, Info};
use parapet_hypervisor::block_on;
use parapet_hypervisor::xen::Xen;
use parapet_xen_sys::io::blkif::SECTOR_SIZE;
use parapet_xenstore::client::{Client, blocking};
use parapet_xenstore::host::{self, SocketTransport};

const USAGE: &str = "\
Writes all of a disk, reads it back and compares, by Parapet's frontend in this Linux domain.

Usage: disk-exercise VBD

  VBD   the disk's number, as 51728 for xvdb; the kernel's own xen-blkfront must not be loaded

What was on the disk is lost.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        [vbd] => exercise(vbd),
        _ => Err(anyhow::anyhow!("one disk is expected; see --help")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("disk-exercise: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How long xenstored has to tell which domain this is.
const PATIENCE: Duration = Duration::from_secs(20);

/// Lengths of reads and writes in sectors, taken in turn: within a page, across pages, of more
/// than a direct request and of more than an indirect one has.
const WRITES: [usize; 8] = [1, 8, 3, 88, 89, 64, 256, 2500];
const READS: [usize; 6] = [2049, 7, 8, 128, 1, 500];

fn exercise(vbd: &str) -> Result<()> {
    let mut client = blocking::Client::new(host::connect()?);
    client.set_patience(Some(PATIENCE));
    let domid = client.domid().context("asking which domain this is")?;
    drop(client);
    let place = Xen::open(domid)?;
    let transport = SocketTransport::new(&place, host::connect()?)?;
    let store = Client::start(&place, transport);
    block_on(async {
        let path = format!("device/vbd/{vbd}");
        let disk = Disk::connect(&place, &store, &path).await?;
        let info = disk.info();
        println!("sectors {}", info.sectors);
        println!("flush {}", info.flush);
        println!("persistent {}", info.persistent);
        let bytes = usize::try_from(info.sectors)? * SECTOR_SIZE;
        write_and_read(&disk, &info, bytes).await?;
        println!("verified {bytes}");
        disk.close(parapet_blkfront::Gone::Closed);
        drop(disk);
        closed(&store, &path).await
    })
}

async fn write_and_read(disk: &Disk<Xen>, info: &Info, bytes: usize) -> Result<()> {
    // Each eight bytes are a number that no other place has.
    let content: Vec<u8> = (0..bytes as u64 / 8)
        .flat_map(|word| (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ bytes as u64).to_le_bytes())
        .collect();
    for (at, piece) in pieces(bytes, &WRITES) {
        disk.write_at(at as u64, &content[at..at + piece]).await?;
    }
    if info.flush {
        disk.flush().await?;
    }
    let mut read = vec![0; bytes];
    for (at, piece) in pieces(bytes, &READS) {
        disk.read_at(at as u64, &mut read[at..at + piece]).await?;
    }
    let wrong = content.iter().zip(&read).position(|(a, b)| a != b);
    ensure!(wrong.is_none(), "byte {wrong:?} is not what was written");
    Ok(())
}

/// Offsets and lengths that cover `bytes`, in turn as long as `sectors` says.
fn pieces(bytes: usize, sectors: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    let mut lengths = sectors.iter().cycle();
    let mut at = 0;
    std::iter::from_fn(move || {
        let len = (lengths.next()? * SECTOR_SIZE).min(bytes - at);
        at += len;
        (len > 0).then_some((at - len, len))
    })
}

/// Waits until the backend has let go too.
async fn closed(store: &Client, path: &str) -> Result<()> {
    let key = format!("{path}/state");
    let mut watch = store.watch(&key).await?;
    while store.read(&key).await? != b"6" {
        watch.next().await?;
    }
    Ok(())
}
