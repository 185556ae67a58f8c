//! What the two ends of a vif, the toolstack and the operator say in the xenstore.

use parapet_netback::negotiation::{Answer, Assignment, Ports, rate};
use parapet_xen_sys::DomId;

/// The nodes of both ends of a vif, a line `key=value` each: what is accepted can be acted on, and
/// what is said of the rest fits a line of a log and a node.
pub fn vif_keys(data: &[u8]) {
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
            let mut pages: Vec<u32> = Vec::new();
            for queue in &answer.queues {
                pages.extend([queue.tx.0, queue.rx.0]);
                if let Ports::Split { tx, rx } = queue.ports {
                    assert_ne!(tx, rx);
                }
            }
            pages.extend(answer.control.map(|control| control.ring.0));
            let count = pages.len();
            pages.sort_unstable();
            pages.dedup();
            assert_eq!(pages.len(), count, "a page of two rings");
        }
        Err(error) => errors.push(error),
    }
    match Assignment::parse(get) {
        Ok(assignment) => {
            for named in [false, true] {
                let vif = assignment.clone().vif(DomId(7), 3, named);
                assert!(vif.mac.is_station() && vif.mtu >= 68);
                assert!(!vif.name.is_empty() && vif.name.len() < 16);
                assert!(!vif.name.contains(['/', ' ', '\0']));
            }
        }
        Err(error) => errors.push(error),
    }
    match rate(get("rate").as_deref()) {
        Ok(rate) => assert!(rate.is_none_or(|rate| rate.per_second > 0 && rate.burst > 0)),
        Err(error) => errors.push(error),
    }
    for error in errors {
        let error = error.to_string();
        assert!(
            !error.is_empty() && !error.contains('\n') && error.len() < 1024,
            "{error:?}"
        );
    }
}
