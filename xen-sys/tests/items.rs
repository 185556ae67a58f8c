//! How the kinds of items that this crate is made of behave.

use parapet_xen_sys::event_channel::EventWord;
use parapet_xen_sys::io::blkif::{self, x86_32, x86_64};
use parapet_xen_sys::io::netif::{ExtraGso, ExtraInfo, TxExtra, TxSlot};
use parapet_xen_sys::io::{ring, xs_wire};
use parapet_xen_sys::start_info::StartInfo;
use parapet_xen_sys::{DomId, GrantRef, GrantStatus, UnknownValue};
use zerocopy::{FromBytes, IntoBytes, transmute};

#[test]
fn a_number_outside_an_enumeration_is_an_error_that_names_both() {
    assert_eq!(
        xs_wire::Operation::try_from(19),
        Ok(xs_wire::Operation::SetTarget)
    );
    let removed = xs_wire::Operation::try_from(20);
    assert_eq!(
        removed,
        Err(UnknownValue {
            enumeration: "Operation",
            value: 20
        })
    );
    assert_eq!(removed.unwrap_err().to_string(), "20 is no Operation");
}

#[test]
fn every_member_of_an_enumeration_is_had_back_from_its_number() {
    for &operation in xs_wire::Operation::ALL {
        assert_eq!(
            xs_wire::Operation::try_from(u32::from(operation)),
            Ok(operation)
        );
    }
    assert_eq!(
        xs_wire::Operation::ALL.len(),
        26,
        "0 to 26 without the 20 that was removed"
    );
}

#[test]
fn a_status_is_displayed_by_its_name_in_c_or_else_by_its_number() {
    assert_eq!(GrantStatus::BAD_GNTREF.to_string(), "GNTST_bad_gntref");
    assert_eq!(GrantStatus(-77).to_string(), "GrantStatus -77");
}

#[test]
fn flags_keep_the_bits_that_they_do_not_know() {
    let word = EventWord::PENDING | EventWord::from_bits_retain(42);
    assert_eq!((word - EventWord::PENDING).bits(), 42);
}

#[test]
fn only_ids_below_the_reserved_ones_are_domains() {
    assert!(DomId::ZERO.is_domain());
    assert!(DomId(0x7FEF).is_domain());
    assert!(
        ![DomId::SELF, DomId::IO, DomId::INVALID, DomId(0xFFFF)]
            .iter()
            .any(|id| id.is_domain())
    );
}

#[test]
fn a_ring_has_a_power_of_two_of_slots_or_none() {
    assert_eq!(ring::slots(ring::HEADER_SIZE + 4 * 16, 16), 4);
    assert_eq!(ring::slots(ring::HEADER_SIZE + 8 * 16 - 1, 16), 4);
    assert_eq!(ring::slots(ring::HEADER_SIZE + 15, 16), 0);
    assert_eq!(ring::slots(ring::HEADER_SIZE, 16), 0);
    assert_eq!(ring::slots(0, 16), 0);
    assert_eq!(ring::slots(4096, 0), 0);
}

#[test]
fn the_same_request_lies_elsewhere_in_the_slot_of_a_32_bit_frontend() {
    let mut long: x86_64::Slot = [0xAA; 112];
    let mut short: x86_32::Slot = [0xAA; 108];
    long[8..16].copy_from_slice(&7u64.to_ne_bytes());
    short[4..12].copy_from_slice(&7u64.to_ne_bytes());
    let long: x86_64::Request = transmute!(long);
    let short: x86_32::Request = transmute!(short);
    assert_eq!(long.id, 7);
    assert_eq!({ short.id }, 7);
}

#[test]
fn a_response_made_by_name_has_no_byte_unwritten() {
    let response = x86_64::Response {
        id: u64::MAX,
        operation: 1,
        status: blkif::Status::ERROR,
        ..Default::default()
    };
    assert_eq!(response.as_bytes()[8..], [1, 0, 0xFF, 0xFF, 0, 0, 0, 0]);
}

#[test]
fn extra_information_is_read_from_a_slot_of_either_ring() {
    let gso = ExtraGso {
        extra: 1,
        size: 1448,
        gso: 2,
        ..Default::default()
    };
    let slot: TxSlot = transmute!(TxExtra {
        info: transmute!(gso),
        ..Default::default()
    });
    assert_eq!(
        ExtraInfo::read_from_prefix(&slot).map(|(info, _)| info.extra),
        Ok(1)
    );
    let read: ExtraGso = transmute!(TxExtra::read_from_bytes(&slot).unwrap().info);
    assert_eq!(read, gso);
}

#[test]
fn a_page_of_zeroes_is_a_start_info() {
    let page = [0; parapet_xen_sys::PAGE_SIZE];
    let (info, _) = StartInfo::read_from_prefix(&page).unwrap();
    assert_eq!(info, StartInfo::default());
}

#[test]
fn a_grant_to_copy_from_fills_the_whole_page_field() {
    let place = parapet_xen_sys::grant_table::CopyPtr::granted(DomId(3), GrantRef(9), 512);
    assert_eq!(
        place.page, 9,
        "the upper half must not hold what was there before"
    );
    assert_eq!(
        place.as_bytes(),
        [9, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 2, 0, 0, 0, 0]
    );
}
