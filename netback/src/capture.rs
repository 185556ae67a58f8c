//! Frames of vifs to a pcapng file, while they run.
//!
//! ```text
//!   queue ─ is somebody capturing? ─▶ a copy ─▶ Session ══ bounded ══▶ Recorder ─▶ file
//!            one load a batch                    what does not fit is counted
//! ```
//!
//! A queue that is captured copies each frame, and never waits: what the [`Recorder`] is too slow
//! for is counted, and the count stands in the file. A frame is recorded as it crosses the vif, so
//! one that is to be cut into segments later is one; its checksum, if that is left to be made, is
//! made in the copy.
//!
//! Source: the pcapng draft (draft-ietf-opsawg-pcapng).

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use parapet_hypervisor::seam::{Grants, Instant};
use parapet_packet::checksum::Sum;
use parapet_packet::headers::Headers;
use parapet_packet::{Checksum, Mac, Offloads};
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{
    InterfaceStatisticsBlock, InterfaceStatisticsOption,
};
use pcap_file::pcapng::{PcapNgBlock, PcapNgWriter};
use pcap_file::{DataLink, Endianness, PcapError};

use crate::frame::Frame;
use crate::stats::QueueStats;

/// Frames that wait to be written.
const WAITING: usize = 4096;
/// Their bytes, all together.
const WAITING_BYTES: usize = 16 << 20;

/// Which way a frame goes, as the host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the guest: inbound.
    FromGuest,
    /// To the guest: outbound.
    ToGuest,
}

/// Where a queue looks whether it is captured. It belongs to what is counted of the queue, and
/// like that outlives its connections.
#[derive(Debug, Default)]
pub struct Capture {
    on: AtomicBool,
    session: Mutex<Option<Arc<Session>>>,
}

impl Capture {
    /// Who captures, if anybody does.
    #[inline]
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        if !self.on.load(Ordering::Relaxed) {
            return None;
        }
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, session: Option<Arc<Session>>) {
        let mut current = self.lock();
        self.on.store(session.is_some(), Ordering::Relaxed);
        *current = session;
    }
}

/// One vif that is captured: what all its queues share.
pub struct Session {
    interface: u32,
    longest: usize,
    records: SyncSender<Record>,
    /// Bytes that wait, of all vifs of the recording.
    waiting: Arc<AtomicUsize>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    seen: AtomicU64,
    lost: AtomicU64,
}

/// A frame, copied.
pub(crate) struct Record {
    interface: u32,
    when: Instant,
    direction: Direction,
    len: usize,
    offloads: Offloads,
    bytes: Vec<u8>,
}

impl Session {
    /// A copy of a frame, to be [given](Session::give) when it has crossed.
    pub(crate) fn copy<P: Grants>(
        &self,
        when: Instant,
        direction: Direction,
        frame: &Frame<P>,
    ) -> Option<Record> {
        let len = frame.len().min(self.longest);
        self.counts.seen.fetch_add(1, Ordering::Relaxed);
        if self.waiting.fetch_add(len, Ordering::Relaxed) + len > WAITING_BYTES {
            self.lose(len);
            return None;
        }
        let mut bytes = vec![0; len];
        let copied = frame.copy_out(0, &mut bytes);
        bytes.truncate(copied);
        Some(Record {
            interface: self.interface,
            when,
            direction,
            len: frame.len(),
            offloads: frame.offloads(),
            bytes,
        })
    }

    /// Has it written, unless too many wait.
    pub(crate) fn give(&self, record: Record) {
        let len = record.bytes.len();
        if self.records.try_send(record).is_err() {
            self.lose(len);
        }
    }

    /// Takes back a copy of a frame that did not cross.
    pub(crate) fn forget(&self, record: Record) {
        self.counts.seen.fetch_sub(1, Ordering::Relaxed);
        self.waiting
            .fetch_sub(record.bytes.len(), Ordering::Relaxed);
    }

    fn lose(&self, len: usize) {
        self.waiting.fetch_sub(len, Ordering::Relaxed);
        self.counts.lost.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({:?})", self.counts)
    }
}

/// A vif to capture.
#[derive(Debug, Clone)]
pub struct Interface {
    /// What it is called.
    pub name: String,
    /// Its guest's address.
    pub mac: Mac,
    /// All its queues.
    pub queues: Vec<Arc<QueueStats>>,
}

/// Somebody captures the vif already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is captured already: end that first")]
pub struct Captured(pub String);

/// The time that vifs are captured: until this is dropped.
#[derive(Debug)]
pub struct Recording {
    queues: Vec<(Arc<QueueStats>, Arc<Session>)>,
}

/// Writes what is captured. Whoever has it decides on which thread.
pub struct Recorder {
    interfaces: Vec<(Interface, Arc<Counts>)>,
    longest: usize,
    records: Receiver<Record>,
    waiting: Arc<AtomicUsize>,
    /// The same moment on two clocks: the place's, and the world's.
    begun: (Instant, SystemTime),
}

/// Begins to capture vifs, the first `longest` bytes of each frame. `now` is the time at the vifs'
/// place, and `today` the same on the world's clock.
///
/// # Errors
/// One of them is captured already.
pub fn start(
    interfaces: Vec<Interface>,
    longest: usize,
    now: Instant,
    today: SystemTime,
) -> Result<(Recording, Recorder), Captured> {
    let (sender, records) = mpsc::sync_channel(WAITING);
    let waiting = Arc::new(AtomicUsize::new(0));
    let mut recording = Recording { queues: Vec::new() };
    let mut all = Vec::new();
    for (number, interface) in (0..).zip(interfaces) {
        let counts = Arc::<Counts>::default();
        let session = Arc::new(Session {
            interface: number,
            longest,
            records: sender.clone(),
            waiting: Arc::clone(&waiting),
            counts: Arc::clone(&counts),
        });
        for queue in &interface.queues {
            if queue.capture.lock().is_some() {
                return Err(Captured(interface.name));
            }
            queue.capture.set(Some(Arc::clone(&session)));
            let queue = (Arc::clone(queue), Arc::clone(&session));
            recording.queues.push(queue);
        }
        all.push((interface, counts));
    }
    let recorder = Recorder {
        interfaces: all,
        longest,
        records,
        waiting,
        begun: (now, today),
    };
    Ok((recording, recorder))
}

impl Drop for Recording {
    fn drop(&mut self) {
        for (queue, session) in &self.queues {
            let ours = queue.capture.lock().as_ref().map(Arc::as_ptr);
            if ours == Some(Arc::as_ptr(session)) {
                queue.capture.set(None);
            }
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Frames in the file.
    pub frames: u64,
    /// Frames that there was no time for.
    pub lost: u64,
}

impl Recorder {
    /// Writes until the [`Recording`] has ended and all that it got is written.
    ///
    /// # Errors
    /// The writer's. What is captured then goes nowhere, until the recording is ended.
    pub fn write(self, to: impl Write) -> io::Result<Written> {
        let mut file = PcapNgWriter::with_endianness(to, Endianness::Little).map_err(host)?;
        for (interface, _) in &self.interfaces {
            let block = InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: u32::try_from(self.longest).unwrap_or(0),
                options: vec![
                    InterfaceDescriptionOption::IfName(Cow::Borrowed(&interface.name)),
                    InterfaceDescriptionOption::IfMacAddr(Cow::Borrowed(&interface.mac.0)),
                    // Nanoseconds.
                    InterfaceDescriptionOption::IfTsResol(9),
                ],
            };
            file.write_block(&block.into_block()).map_err(host)?;
        }
        let mut written = Written::default();
        let mut last = self.begun.0;
        loop {
            let record = match self.records.try_recv() {
                Ok(record) => record,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    // Whoever reads it meanwhile is to see all that there is.
                    file.get_mut().flush()?;
                    match self.records.recv() {
                        Ok(record) => record,
                        Err(_) => break,
                    }
                }
            };
            self.waiting
                .fetch_sub(record.bytes.len(), Ordering::Relaxed);
            last = last.max(record.when);
            let block = self.block(record);
            file.write_block(&block.into_block()).map_err(host)?;
            written.frames += 1;
        }
        let at = self.time(last).as_nanos();
        for (number, (_, counts)) in (0..).zip(&self.interfaces) {
            let lost = counts.lost.load(Ordering::Relaxed);
            written.lost += lost;
            let block = InterfaceStatisticsBlock {
                interface_id: number,
                // The format has the upper half first, and the library the lower one, in a file of
                // this byte order.
                timestamp: (at as u64).rotate_left(32),
                options: vec![
                    InterfaceStatisticsOption::IsbIfRecv(counts.seen.load(Ordering::Relaxed)),
                    InterfaceStatisticsOption::IsbIfDrop(lost),
                ],
            };
            file.write_block(&block.into_block()).map_err(host)?;
        }
        file.get_mut().flush()?;
        Ok(written)
    }

    fn time(&self, when: Instant) -> Duration {
        let (begun, today) = self.begun;
        let since_1970 = today.duration_since(SystemTime::UNIX_EPOCH);
        since_1970.unwrap_or_default() + when.since(begun)
    }

    fn block(&self, record: Record) -> EnhancedPacketBlock<'static> {
        let flags = match record.direction {
            Direction::FromGuest => 1,
            Direction::ToGuest => 2,
        };
        EnhancedPacketBlock {
            interface_id: record.interface,
            timestamp: self.time(record.when),
            // No frame is longer than 64 KiB.
            original_len: record.len as u32,
            options: vec![EnhancedPacketOption::Flags(flags)],
            data: Cow::Owned(finished(record)),
        }
    }
}

/// The bytes of a frame, with its checksum made, unless it was cut short.
fn finished(record: Record) -> Vec<u8> {
    let Record {
        len,
        offloads,
        mut bytes,
        ..
    } = record;
    if offloads.checksum != Checksum::Blank || bytes.len() < len {
        return bytes;
    }
    let place = Headers::parse(&bytes, len).ok();
    if let Some(place) = place.and_then(|headers| headers.checksum())
        && let Some(covered) = bytes.get(place.covers.clone())
    {
        let value = place.value(Sum::new().and(covered));
        if let Some(field) = bytes.get_mut(place.field..place.field + 2) {
            field.copy_from_slice(&value);
        }
    }
    bytes
}

fn host(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use parapet_hypervisor::loopback::{Config, DomainConfig, Hypervisor};
    use parapet_hypervisor::seam::prelude::*;
    use parapet_packet::checksum::pseudo;
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;
    use crate::frame::Pool;

    fn interface(name: &str) -> Interface {
        Interface {
            name: name.into(),
            mac: Mac([0, 0x16, 0x3e, 0, 0, 1]),
            queues: vec![Arc::default()],
        }
    }

    fn begin(
        interfaces: Vec<Interface>,
        longest: usize,
    ) -> Result<(Recording, Recorder), Captured> {
        let today = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        start(interfaces, longest, Instant::from_nanos(7), today)
    }

    /// A datagram whose checksum is left to be made.
    fn datagram() -> Vec<u8> {
        let mut bytes = vec![0xFF; 12];
        bytes.extend([8, 0, 0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0, 0]);
        bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        let blank = pseudo(&bytes[26..34], 17, 13).folded();
        bytes.extend([0, 7, 0, 9, 0, 13]);
        bytes.extend(blank.to_be_bytes());
        bytes.extend(b"hello");
        bytes
    }

    /// Sends a frame of these bytes through an interface's first queue.
    fn cross(interface: &Interface, when: u64, direction: Direction, bytes: &[u8]) {
        let config = Config {
            pcpus: 1,
            ..Config::default()
        };
        let hypervisor = Hypervisor::new(config).unwrap();
        let place = hypervisor.create(DomainConfig::default()).unwrap();
        let mut pool = Pool::new(&place, place.domid(), 1, 1, Arc::default()).unwrap();
        let mut frame = pool.take().unwrap();
        frame.make_head(bytes.len()).unwrap().copy_from_slice(bytes);
        frame.set_offloads(Offloads {
            checksum: Checksum::Blank,
            gso: None,
        });
        if let Some(session) = interface.queues[0].capture.session() {
            let record = session.copy(Instant::from_nanos(when), direction, &frame);
            record.into_iter().for_each(|record| session.give(record));
        }
    }

    fn blocks(file: &[u8]) -> Vec<Block<'static>> {
        let mut reader = PcapNgReader::new(file).unwrap();
        let mut blocks = Vec::new();
        while let Some(block) = reader.next_block() {
            blocks.push(block.unwrap().into_owned());
        }
        blocks
    }

    fn frames(file: &[u8]) -> Vec<EnhancedPacketBlock<'static>> {
        let blocks = blocks(file).into_iter();
        blocks.filter_map(Block::into_enhanced_packet).collect()
    }

    #[test]
    fn a_file_has_the_frames_of_both_ways_with_their_checksums_made() {
        let vif = interface("vif5.0");
        cross(&vif, 1, Direction::FromGuest, &[1; 60]);
        let (recording, recorder) = begin(vec![vif.clone()], 65535).unwrap();
        cross(&vif, 10, Direction::FromGuest, &datagram());
        cross(&vif, 17, Direction::ToGuest, &[2; 60]);
        drop(recording);
        cross(&vif, 20, Direction::ToGuest, &[3; 60]);
        let mut file = Vec::new();
        let written = recorder.write(&mut file).unwrap();
        assert_eq!(written, Written { frames: 2, lost: 0 });

        let frames = frames(&file);
        let Headers {
            network: Some(network),
            ..
        } = Headers::parse(&frames[0].data, frames[0].data.len()).unwrap()
        else {
            panic!("a datagram")
        };
        let transport = &frames[0].data[network.transport_at..network.end];
        let sum = pseudo(&frames[0].data[26..34], 17, 13).and(transport);
        assert!(sum.is_intact());
        let whole = Duration::from_secs(1000);
        assert_eq!(frames[0].timestamp, whole + Duration::from_nanos(3));
        assert_eq!(frames[1].timestamp, whole + Duration::from_nanos(10));
        let flags: Vec<_> = frames.iter().map(|frame| frame.options.clone()).collect();
        assert_eq!(flags[0], [EnhancedPacketOption::Flags(1)]);
        assert_eq!(flags[1], [EnhancedPacketOption::Flags(2)]);
        assert_eq!(frames[1].data[..], [2; 60]);
    }

    #[test]
    fn a_frame_may_be_cut_and_says_how_long_it_was() {
        let vif = interface("vif5.0");
        let (recording, recorder) = begin(vec![vif.clone()], 20).unwrap();
        cross(&vif, 10, Direction::FromGuest, &datagram());
        drop(recording);
        let mut file = Vec::new();
        recorder.write(&mut file).unwrap();
        let frame = &frames(&file)[0];
        assert_eq!((frame.data.len(), frame.original_len), (20, 47));
    }

    #[test]
    fn what_there_is_no_time_for_is_counted_in_the_file() {
        let vif = interface("vif5.0");
        let (recording, recorder) = begin(vec![vif.clone()], 65535).unwrap();
        let session = vif.queues[0].capture.session().unwrap();
        let record = || Record {
            interface: 0,
            when: Instant::from_nanos(10),
            direction: Direction::FromGuest,
            len: 0,
            offloads: Offloads::default(),
            bytes: Vec::new(),
        };
        for _ in 0..WAITING + 3 {
            session.give(record());
        }
        drop((session, recording));
        let mut file = Vec::new();
        let written = recorder.write(&mut file).unwrap();
        let expected = Written {
            frames: WAITING as u64,
            lost: 3,
        };
        assert_eq!(written, expected);
        let blocks = blocks(&file);
        let Some(Block::InterfaceStatistics(statistics)) = blocks.last() else {
            panic!("{:?}", blocks.last())
        };
        let lost = InterfaceStatisticsOption::IsbIfDrop(3);
        assert!(statistics.options.contains(&lost));
    }

    #[test]
    fn a_vif_is_captured_once_at_a_time() {
        let vifs = vec![interface("vif5.0"), interface("vif6.0")];
        let (recording, _recorder) = begin(vifs[1..].to_vec(), 100).unwrap();
        let error = begin(vifs.clone(), 100).err();
        assert_eq!(error, Some(Captured("vif6.0".into())));
        assert!(
            vifs[0].queues[0].capture.session().is_none(),
            "let go again"
        );
        assert!(vifs[1].queues[0].capture.session().is_some());
        drop(recording);
        assert!(begin(vifs, 100).is_ok());
    }

    #[test]
    fn a_file_that_cannot_be_written_costs_the_vif_nothing() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let vif = interface("vif5.0");
        let (_recording, recorder) = begin(vec![vif.clone()], 100).unwrap();
        let error = recorder.write(Full).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        cross(&vif, 10, Direction::FromGuest, &[1; 60]);
    }
}
