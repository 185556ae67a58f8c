//! A backend that dies, and what the next one makes of what it left.

use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::Process;
use parapet_hypervisor::seam::{Channel, Grant};
use parapet_xen_sys::io::netif::Status;

use crate::front::{BUFFERS, Queue, frame};
use crate::world::{Host, Vif, boot_without, works};

/// A host with two connected vifs, and the backend that serves them.
struct Stage {
    host: Host,
    process: Process,
    vifs: [Vif; 2],
    fronts: [Queue; 2],
}

impl Stage {
    fn new() -> Self {
        let mut host = boot_without();
        let process = host.begin();
        let vifs = [host.attach(0), host.attach(1)];
        let fronts = [0, 1].map(|at| host.connect(&vifs[at]));
        let mut stage = Stage {
            host,
            process,
            vifs,
            fronts,
        };
        stage.works();
        stage
    }

    fn works(&mut self) {
        let [one, other] = &self.vifs;
        let [near, far] = &mut self.fronts;
        works((one, near), (other, far));
    }

    fn crash(&self) {
        block_on(self.process.kill());
        assert_eq!(self.host.backend.mappings(), 0);
    }

    fn begin(&mut self) {
        self.process = self.host.begin();
    }

    /// All nodes by which a frontend could notice something.
    fn nodes(&self) -> Vec<(String, String)> {
        let mut nodes = Vec::new();
        for vif in &self.vifs {
            for folder in [&vif.back, &vif.front] {
                for name in block_on(self.host.store.list(folder)).unwrap() {
                    let value = self.host.get(folder, &name);
                    nodes.push((format!("{folder}/{name}"), value));
                }
            }
        }
        nodes
    }
}

#[test]
fn a_frontend_sees_nothing_of_a_crash_but_that_what_it_had_sent_is_lost() {
    let mut stage = Stage::new();
    let nodes = stage.nodes();
    for round in 0..10 {
        stage.crash();
        // Nobody is there, and a frontend does not know.
        let [one, other] = &stage.vifs;
        for filler in 0..4 {
            stage.fronts[0].push(&frame(one.mac, other.mac, filler));
        }
        stage.fronts[0].channels[0].notify();
        stage.begin();
        let answers: Vec<_> = (0..4).map(|_| stage.fronts[0].answer()).collect();
        let ids = answers.iter().map(|(id, _)| *id);
        let first = answers[0].0;
        assert!(
            ids.eq((0..4).map(|at| (first + at) % BUFFERS)),
            "{answers:?}"
        );
        assert!(answers.iter().all(|(_, status)| *status == Status::DROPPED));
        // The first may find the other vif not there yet.
        let sign = frame(stage.vifs[0].mac, stage.vifs[1].mac, 9);
        while stage.host.report(&stage.vifs[1]).connections == 0 {
            std::thread::yield_now();
        }
        assert_eq!(stage.fronts[0].send(&sign), Status::OKAY);
        assert_eq!(stage.fronts[1].receive(), sign);
        stage.works();
        assert_eq!(stage.nodes(), nodes, "round {round}");
    }
}

#[test]
fn a_vif_that_was_taken_up_closes_as_any_other() {
    let mut stage = Stage::new();
    stage.crash();
    stage.begin();
    let vif = &stage.vifs[0];
    stage.host.detach(vif);
    stage.host.set(&vif.front, "state", "6");
    stage.host.wait(vif, "6");
    let [near, _far] = stage.fronts;
    near.tx_grant.end().unwrap();
    near.rx_grant.end().unwrap();
    near.grant.end().unwrap();
}

#[test]
fn a_frontend_with_a_control_ring_has_to_connect_again() {
    let stage = Stage::new();
    let vif = &stage.vifs[0];
    // What it had set is not there any more, whatever it was.
    stage.host.set(&vif.front, "ctrl-ring-ref", "7");
    stage.host.set(&vif.front, "event-channel-ctrl", "8");
    stage.crash();
    let mut stage = stage;
    stage.begin();
    let vif = &stage.vifs[0];
    stage.host.wait(vif, "5");
    stage.host.set(&vif.front, "state", "6");
    stage.host.wait(vif, "6");
    for key in ["ctrl-ring-ref", "event-channel-ctrl"] {
        let path = format!("{}/{key}", vif.front);
        block_on(stage.host.store.remove(&path)).unwrap();
    }
    stage.host.set(&vif.front, "state", "1");
    stage.fronts[0] = stage.host.connect(&stage.vifs[0]);
    stage.works();
}

#[test]
fn a_guest_that_went_while_nobody_was_there_leaves_nothing() {
    let mut host = boot_without();
    let process = host.begin();
    let vif = host.attach(0);
    let front = host.connect(&vif);
    block_on(process.kill());
    drop(front);
    block_on(host.store.remove(&vif.front)).unwrap();
    host.detach(&vif);
    let _process = host.begin();
    host.wait(&vif, "6");
    block_on(host.store.remove(&vif.back)).unwrap();
    host.nothing_is_left(&vif);
}

#[test]
fn a_frontend_that_wants_more_queues_after_a_crash_than_it_was_offered_has_to_connect_again() {
    let mut stage = Stage::new();
    stage.crash();
    let vif = &stage.vifs[0];
    stage.host.set(&vif.front, "multi-queue-num-queues", "64");
    stage.begin();
    let vif = &stage.vifs[0];
    stage.host.wait(vif, "5");
    stage.host.set(&vif.front, "state", "6");
    stage.host.wait(vif, "6");
    stage.host.set(&vif.front, "state", "1");
    stage.fronts[0] = stage.host.connect(&stage.vifs[0]);
    stage.works();
}
