//! What the fuzz targets do with a string of bytes, as plain functions: `fuzz/` gives them to a
//! fuzzer, and `tests/fuzz_corpus.rs` runs them over what is kept in `fuzz/corpus`.
//!
//! Each panics when a promise is broken, and on nothing else that the bytes can say.

use parapet_blkback::image::qcow2::header::{Header, extent};
use parapet_blkback::negotiation::{Answer, Assignment, MAX_RING_PAGE_ORDER, Rates, resize_to};
use parapet_hypervisor::memory::{PAGE_SIZE, Scratch};
use parapet_ring::{Back, Front, Own};
use parapet_xenstore::migration::{Reader, Record, Writer};
use parapet_xenstore::server::restore;
use parapet_xenstore::store::Quotas;

mod block;
mod block_queue;
mod model;
mod net;
mod vif_keys;
mod xenstore;

pub use block::block_request;
pub use block_queue::block_queue;
pub use net::{net_control, net_queue, net_receive, net_switch, net_transmit};
pub use vif_keys::vif_keys;
pub use xenstore::{xenstore_model, xenstore_ring, xenstore_wire, xenstored};

/// A fuzz target.
pub type Target = fn(&[u8]);

/// All of them, by the name of their file in `fuzz/fuzz_targets` and folder in `fuzz/corpus`.
pub const TARGETS: [(&str, Target); 17] = [
    ("xenstore_wire", xenstore_wire),
    ("xenstore_ring", xenstore_ring),
    ("xenstore_model", xenstore_model),
    ("xenstored", xenstored),
    ("migration", migration),
    ("block_request", block_request),
    ("block_queue", block_queue),
    ("shared_ring", shared_ring),
    ("guest_config", guest_config),
    ("vbd_keys", vbd_keys),
    ("vif_keys", vif_keys),
    ("qcow2_header", qcow2_header),
    ("net_transmit", net_transmit),
    ("net_receive", net_receive),
    ("net_control", net_control),
    ("net_queue", net_queue),
    ("net_switch", net_switch),
];

/// A migration stream, whoever wrote it: what can be read can be written, and is then the same. A
/// server is made of it, or it is refused; of what cannot be read there is none.
pub fn migration(data: &[u8]) {
    let readable = Reader::new(data).is_ok_and(|mut reader| reader.all(|next| next.is_ok()));
    let restored = restore(data, Quotas::default(), 1);
    assert!(readable || restored.is_err());
    let Ok(reader) = Reader::new(data) else {
        return;
    };
    let header = reader.header();
    let Ok(records) = reader.map(|next| next.map(|(_, record)| record)).collect() else {
        return;
    };
    let records: Vec<Record<'_>> = records;
    let mut writer = Writer::new(header);
    for record in &records {
        writer.push(record).expect("what was read fits");
    }
    let again = writer.finish();
    let again: Result<Vec<_>, _> = Reader::new(&again)
        .expect("a header of our own")
        .map(|next| next.map(|(_, record)| record))
        .collect();
    assert_eq!(again.as_ref(), Ok(&records));
}

/// Both ends of a ring in one page, and somebody who writes anywhere into it. An end may find a
/// violation; it takes no more than there can be.
pub fn shared_ring(data: &[u8]) {
    let page = Scratch::new(PAGE_SIZE);
    let (Ok(mut front), Ok(mut back)) = (
        Front::<_, [u8; 112], [u8; 16]>::new(Own(page.clone())),
        Back::<_, [u8; 112], [u8; 16]>::attach(Own(page.clone())),
    ) else {
        panic!("a page is a ring");
    };
    let slots = u64::from(front.slots());
    let (mut pushed, mut taken, mut answered, mut completed) = (0u64, 0u64, 0u64, 0u64);
    for step in data.chunks_exact(3) {
        match step[0] % 8 {
            0 => pushed += u64::from(front.push(&[step[1]; 112]).is_ok()),
            1 => _ = front.publish(),
            2 => taken += u64::from(matches!(back.take(), Ok(Some(_)))),
            3 => answered += u64::from(back.push(&[step[1]; 16]).is_ok()),
            4 => _ = back.publish(),
            5 => completed += u64::from(matches!(front.take(), Ok(Some(_)))),
            6 => _ = (front.arm(), back.arm()),
            _ => {
                let at = usize::from(step[1]) * 16;
                page.view()
                    .write(at, &step[2])
                    .expect("256 times 16 bytes are a page");
            }
        }
        assert!(answered <= taken, "more answers than requests");
        assert!(completed <= pushed, "more completions than requests");
        assert!(taken - answered <= slots && pushed - completed <= slots);
    }
}

/// A guest's configuration file, of which anybody may have written any line.
pub fn guest_config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Err(error) = parapet::config::HostConfig::parse(&text, "fuzz.toml") {
        let error = error.to_string();
        assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
    }
}

/// The nodes of both ends of a vbd, a line `key=value` each: what is accepted can be acted on, and
/// what is said of the rest fits a line of a log and a node.
pub fn vbd_keys(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let get = |wanted: &str| {
        let mut pairs = text.lines().filter_map(|line| line.split_once('='));
        let (_, value) = pairs.find(|(key, _)| *key == wanted)?;
        Some(value.to_owned())
    };
    let mut errors = Vec::new();
    match Answer::parse(8, get) {
        Ok(answer) => {
            assert!((1..=8).contains(&answer.queues.len()));
            for queue in answer.queues {
                assert!(queue.ring.len().is_power_of_two());
                assert!(queue.ring.len() <= 1 << MAX_RING_PAGE_ORDER);
            }
        }
        Err(error) => errors.push(error),
    }
    errors.extend(Assignment::parse(get).err());
    errors.extend(Rates::parse(get).err());
    errors.extend(get("resize-to").and_then(|size| resize_to(size).err()));
    for error in errors {
        let error = error.to_string();
        assert!(
            !error.is_empty() && !error.contains('\n') && error.len() < 1024,
            "{error:?}"
        );
    }
}

/// The beginning of a qcow2 image, and how long its file is said to be: what passes names tables
/// that lie within the file and are small enough to be read whole, and the rest is said in a line.
pub fn qcow2_header(data: &[u8]) {
    let Some((len, bytes)) = data.split_first_chunk() else {
        return;
    };
    let file = u64::from_be_bytes(*len);
    match Header::parse(bytes, file) {
        Ok(header) => {
            assert_eq!(extent(bytes), Ok(header.cluster() as usize));
            assert!(header.bytes > 0 && header.bytes % 512 == 0);
            let l1 = u64::from(header.l1_entries) * 8;
            assert!(l1 <= 32 << 20 && header.l1_offset + l1 <= file);
            let refcounts = u64::from(header.refcount_clusters) * header.cluster();
            assert!(refcounts <= 8 << 20 && header.refcount_offset + refcounts <= file);
            if let Some(backing) = header.backing {
                assert!((1..=1023).contains(&backing.name.len()));
            }
        }
        Err(error) => {
            let error = error.to_string();
            assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
        }
    }
}
