//! Streams there and back, and streams that are none.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::{Access, Permission};

fn header(version: Version) -> Header {
    Header {
        version,
        order: ByteOrder::Little,
    }
}

fn written(header: Header, records: &[Record<'_>]) -> Vec<u8> {
    let mut writer = Writer::new(header);
    for record in records {
        writer.push(record).unwrap();
    }
    writer.finish()
}

fn read(stream: &[u8]) -> Result<Vec<Record<'_>>, Malformed> {
    Reader::new(stream)?
        .map(|next| next.map(|(_, record)| record))
        .collect()
}

/// What is wrong with a stream, and at which byte.
fn fault(stream: &[u8]) -> (usize, Fault) {
    let Malformed { place, fault } = read(stream).unwrap_err();
    (place.offset, fault)
}

const NODE: Record<'static> = Record::Transaction(Transaction {
    connection: 1,
    transaction: 2,
});

/// A stream with one record, of this type and body, after the header.
fn one(version: Version, kind: u32, body: &[u8]) -> Vec<u8> {
    let mut stream = written(header(version), &[]);
    stream.truncate(stream.len() - 8);
    stream.extend(kind.to_le_bytes());
    stream.extend((body.len() as u32).to_le_bytes());
    stream.extend(body);
    stream.resize(stream.len() + padding(stream.len()), 0);
    stream.extend([0; 8]);
    stream
}

#[test]
fn a_stream_has_the_documents_layout() {
    let records = [
        Record::Global(Global {
            socket: Some(3),
            event_channels: None,
        }),
        Record::Watch(Watch {
            connection: 7,
            path: b"/a",
            token: b"t",
            depth: Some(2),
        }),
        Record::Node(Node {
            pending: None,
            path: b"/",
            value: b"v",
            permissions: vec![Entry {
                permission: "b5".parse().unwrap(),
                stale: true,
            }],
        }),
    ];
    let stream = written(header(Version::V2), &records);
    let expected: [&[u8]; 16] = [
        b"xenstore\0\0\0\x02\0\0\0\0",
        &[1, 0, 0, 0, 8, 0, 0, 0],
        &[3, 0, 0, 0, 255, 255, 255, 255],
        &[8, 0, 0, 0, 24, 0, 0, 0],
        &[7, 0, 0, 0, 3, 0, 2, 0, 2, 0, 0, 0],
        b"/a\0t\0",
        &[0; 7],
        &[5, 0, 0, 0, 24, 0, 0, 0],
        &[0, 0, 0, 0, 0, 0, 0, 0],
        &[2, 0, 1, 0],
        &[0, 0, 1, 0],
        &[b'b', 1, 5, 0],
        b"/\0",
        b"v",
        &[0],
        &[0; 8],
    ];
    assert_eq!(stream, expected.concat());
    assert_eq!(read(&stream).unwrap(), records);
}

#[test]
fn padding_counts_whether_or_not_the_length_says_so() {
    let body = [1, 0, 0, 0, 3, 0, 2, 0, b'/', b'a', 0, b't', 0];
    let padded = [&body[..], &[9, 9, 9]].concat();
    for body in [&body[..], &padded] {
        let stream = one(Version::V1, 3, body);
        let watch = Watch {
            connection: 1,
            path: b"/a",
            token: b"t",
            depth: None,
        };
        assert_eq!(read(&stream).unwrap(), [Record::Watch(watch)]);
    }
    let too_long = [&body[..], &[0; 8]].concat();
    let stream = one(Version::V1, 3, &too_long);
    assert_eq!(fault(&stream), (16, Fault::Length));
}

#[test]
fn what_is_no_stream_is_told_from_one_that_is_not_known() {
    let good = written(header(Version::V1), &[]);
    assert_eq!(read(&good).unwrap(), []);
    let with = |at: usize, byte: u8| {
        let mut stream = good.clone();
        stream[at] = byte;
        fault(&stream)
    };
    assert_eq!(fault(b""), (0, Fault::NoStream));
    assert_eq!(fault(&good[..15]), (0, Fault::CutOff));
    assert_eq!(with(0, b'X'), (0, Fault::NoStream));
    assert_eq!(with(11, 0), (0, Fault::Version(0)));
    assert_eq!(with(11, 3), (0, Fault::Version(3)));
    assert_eq!(with(12, 2), (0, Fault::Flags(2)));
    assert_eq!(with(12, 1), (0, Fault::Flags(1)), "neither order");
    assert_eq!(with(16, 9), (16, Fault::Type(9)));
}

#[test]
fn nothing_is_missing_at_the_end_and_nothing_follows_it() {
    let stream = written(header(Version::V1), &[NODE]);
    for len in 16..stream.len() {
        let (offset, fault) = fault(&stream[..len]);
        assert_eq!(offset, if len < 32 { 16 } else { 32 }, "cut at {len}");
        assert_eq!(fault, Fault::CutOff, "cut at {len}");
    }
    let more = [&stream[..], &[0]].concat();
    assert_eq!(fault(&more), (32, Fault::NotTheEnd));
}

#[test]
fn a_fault_is_told_with_its_record_and_place() {
    let mut stream = written(header(Version::V1), &[NODE, NODE]);
    stream[32 + 8] = 0;
    let error = read(&stream).unwrap_err();
    assert_eq!(
        error.to_string(),
        "record 2 (TRANSACTION_DATA) at byte 32: its conn-id cannot be 0x0"
    );
}

#[test]
fn fields_that_say_what_they_cannot_are_refused() {
    let ring = |domid: u16, target: u16| {
        let mut body = vec![1, 0, 0, 0, 0, 0, 0, 0];
        body.extend(domid.to_le_bytes());
        body.extend(target.to_le_bytes());
        body.extend([0; 12]);
        body
    };
    let invalid = DomId::INVALID.0;
    assert!(read(&one(Version::V1, 2, &ring(5, invalid))).is_ok());
    let node = |permission: [u8; 2]| {
        let mut body = vec![0; 8];
        body.extend([2, 0, 0, 0, 0, 0, 1, 0]);
        body.extend(permission);
        body.extend([0, 0, b'/', 0]);
        body
    };
    assert!(read(&one(Version::V1, 5, &node([b'n', 1]))).is_ok());
    let bad: [(u32, Vec<u8>, Fault); 11] = [
        (2, ring(0x7ff0, invalid), Fault::Value("domid", 0x7ff0)),
        (2, ring(5, 0x7ff5), Fault::Value("tdomid", 0x7ff5)),
        (
            2,
            [&[1, 0, 0, 0, 2, 0, 0, 0][..], &[0; 16]].concat(),
            Fault::Value("conn-type", 2),
        ),
        (
            2,
            [&[1, 0, 0, 0, 1, 0, 2, 0][..], &[0; 16]].concat(),
            Fault::Flags(2),
        ),
        (
            2,
            [&[1, 0, 0, 0, 1, 0, 0, 0][..], &[255; 4], &[0; 12]].concat(),
            Fault::Value("socket-fd", u32::MAX),
        ),
        (
            2,
            [&ring(5, invalid)[..18], &[1, 0, 0, 0, 0, 0]].concat(),
            Fault::Length,
        ),
        (
            3,
            vec![1, 0, 0, 0, 2, 0, 1, 0, b'/', b'a', 0],
            Fault::Text("wpath"),
        ),
        (3, vec![1, 0, 0, 0, 0, 0, 1, 0, 0], Fault::Text("wpath")),
        (5, node([b'x', 0]), Fault::Value("perm", b'x'.into())),
        (5, node([b'r', 2]), Fault::Flags(2)),
        (
            7,
            vec![1, 0, 1, 0, 0, 0, 0, 0, 9, 0, 0, 0, b'q'],
            Fault::Length,
        ),
    ];
    for (kind, body, expected) in bad {
        let stream = one(Version::V1, kind, &body);
        assert_eq!(fault(&stream), (16, expected), "{kind} {body:?}");
    }
}

#[test]
fn a_depth_is_of_version_2_and_all_levels_are_none() {
    let deep = |depth: u8| [1, 0, 0, 0, 2, 0, 1, 0, depth, depth, 0, 0, b'/', 0, 0];
    assert_eq!(fault(&one(Version::V1, 8, &deep(1))), (16, Fault::NotYet));
    let stream = one(Version::V2, 8, &deep(255));
    let [Record::Watch(watch)] = read(&stream).unwrap()[..] else {
        panic!("it is one watch");
    };
    assert_eq!(watch.depth, None);

    let record = Record::Watch(Watch {
        depth: Some(1),
        ..watch
    });
    let mut writer = Writer::new(header(Version::V1));
    assert_eq!(writer.push(&record).unwrap_err().field, "depth");
    assert_eq!(writer.finish(), written(header(Version::V1), &[]));
}

#[test]
fn what_does_not_fit_its_length_is_not_written() {
    let value = vec![0; 65536];
    let node = |value| {
        Record::Node(Node {
            pending: None,
            path: b"/a",
            value,
            permissions: vec![],
        })
    };
    let mut writer = Writer::new(header(Version::V1));
    let error = writer.push(&node(&value)).unwrap_err();
    assert_eq!((error.field, error.len), ("value", 65536));
    writer.push(&node(&value[1..])).unwrap();
}

fn text(chars: &'static str) -> impl Strategy<Value = String> {
    proptest::string::string_regex(chars).unwrap()
}

fn quotas() -> impl Strategy<Value = Vec<(String, u32)>> {
    proptest::collection::vec((text("[a-z-]{1,12}"), any::<u32>()), 0..4)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..40)
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let access = prop_oneof![
        Just(Access::None),
        Just(Access::Read),
        Just(Access::Write),
        Just(Access::Both)
    ];
    let entry = (any::<u16>(), access, any::<bool>());
    let entry = entry.prop_map(|(domid, access, stale)| Entry {
        permission: Permission {
            domid: DomId(domid),
            access,
        },
        stale,
    });
    proptest::collection::vec(entry, 1..4)
}

/// A record's parts, owned.
#[derive(Debug, Clone)]
enum Parts {
    Global(Option<i32>, Option<i32>),
    Connection(u32, End, Vec<u8>, Vec<u8>, Option<u64>),
    Watch(u32, String, String, Option<u16>),
    Transaction(u32, u32),
    Node(Option<Pending>, String, Vec<u8>, Vec<Entry>),
    Quotas(Vec<(String, u32)>, Vec<(String, u32)>),
    Domain(u16, u32, Vec<(String, u32)>),
}

fn parts() -> impl Strategy<Value = Parts> {
    let fd = || proptest::option::of(0i32..5000);
    let domid = || 0u16..0x7ff0;
    let target = proptest::option::of(domid().prop_map(DomId));
    let end = prop_oneof![
        (domid(), target, any::<u32>()).prop_map(|(domid, target, port)| End::Ring {
            domid: DomId(domid),
            target,
            port: Port(port)
        }),
        (0i32..5000).prop_map(End::Socket),
    ];
    let pending = (1..u32::MAX, any::<u32>(), any::<bool>(), any::<bool>());
    let pending = pending.prop_map(|(connection, transaction, read, written)| Pending {
        of: Transaction {
            connection,
            transaction,
        },
        read,
        written,
    });
    let unique_id = proptest::option::of(any::<u64>());
    prop_oneof![
        (fd(), fd()).prop_map(|(a, b)| Parts::Global(a, b)),
        (1..u32::MAX, end, bytes(), bytes(), unique_id)
            .prop_map(|(id, end, i, o, u)| Parts::Connection(id, end, i, o, u)),
        (
            1..u32::MAX,
            text("[a-z/@]{0,20}"),
            text("[ -~]{0,20}"),
            proptest::option::of(0..ALL_LEVELS)
        )
            .prop_map(|(c, p, t, d)| Parts::Watch(c, p, t, d)),
        (1..u32::MAX, any::<u32>()).prop_map(|(c, t)| Parts::Transaction(c, t)),
        (
            proptest::option::of(pending),
            text("/[a-z/]{0,20}"),
            bytes(),
            entries()
        )
            .prop_map(|(t, p, v, e)| Parts::Node(t, p, v, e)),
        (quotas(), quotas()).prop_map(|(d, g)| Parts::Quotas(d, g)),
        (domid(), any::<u32>(), quotas()).prop_map(|(d, f, q)| Parts::Domain(d, f, q)),
    ]
}

fn borrowed(quotas: &[(String, u32)]) -> Vec<Quota<'_>> {
    let quotas = quotas.iter();
    quotas
        .map(|(name, value)| Quota {
            name,
            value: *value,
        })
        .collect()
}

fn record(parts: &Parts) -> Record<'_> {
    match parts {
        Parts::Global(socket, event_channels) => Record::Global(Global {
            socket: *socket,
            event_channels: *event_channels,
        }),
        Parts::Connection(id, end, input, output, unique_id) => Record::Connection(Connection {
            id: *id,
            end: *end,
            input,
            output,
            partial: output.len() / 2,
            unique_id: *unique_id,
        }),
        Parts::Watch(connection, path, token, depth) => Record::Watch(Watch {
            connection: *connection,
            path: path.as_bytes(),
            token: token.as_bytes(),
            depth: *depth,
        }),
        Parts::Transaction(connection, transaction) => Record::Transaction(Transaction {
            connection: *connection,
            transaction: *transaction,
        }),
        Parts::Node(pending, path, value, permissions) => Record::Node(Node {
            pending: *pending,
            path: path.as_bytes(),
            value,
            permissions: permissions.clone(),
        }),
        Parts::Quotas(domains, global) => Record::GlobalQuotas(GlobalQuotas {
            domains: borrowed(domains),
            global: borrowed(global),
        }),
        Parts::Domain(domid, features, quotas) => Record::Domain(Domain {
            domid: DomId(*domid),
            features: *features,
            quotas: borrowed(quotas),
        }),
    }
}

proptest! {
    #[test]
    fn every_record_comes_back_in_either_byte_order(
        parts in proptest::collection::vec(parts(), 0..8),
    ) {
        let records: Vec<_> = parts.iter().map(record).collect();
        for order in [ByteOrder::Little, ByteOrder::Big] {
            let header = Header { version: Version::V2, order };
            let stream = written(header, &records);
            prop_assert_eq!(stream.len() % ALIGNMENT, 0);
            prop_assert_eq!(Reader::new(&stream).unwrap().header(), header);
            prop_assert_eq!(&read(&stream).unwrap(), &records);
        }
    }

    #[test]
    fn a_stream_with_a_byte_changed_is_read_or_refused(
        parts in proptest::collection::vec(parts(), 1..6),
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let records: Vec<_> = parts.iter().map(record).collect();
        let mut stream = written(header(Version::V2), &records);
        let at = at.index(stream.len());
        stream[at] = byte;
        if let Err(error) = read(&stream) {
            prop_assert!(error.place.offset <= stream.len());
        }
    }
}
