//! Two real threads at the two ends, who sleep whenever they may, and a third who scribbles.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use parapet_hypervisor::memory::{PAGE_SIZE, Scratch};
use parapet_ring::{End, Own, XenstoreRing};

use crate::common::{pair, request, response, scribble};

/// An event channel between threads.
#[derive(Default)]
struct Event {
    pending: Mutex<bool>,
    raised: Condvar,
}

impl Event {
    fn notify(&self) {
        *self.pending.lock().unwrap() = true;
        self.raised.notify_one();
    }

    fn wait(&self) {
        let pending = self.pending.lock().unwrap();
        *self
            .raised
            .wait_while(pending, |pending| !*pending)
            .unwrap() = false;
    }
}

#[test]
fn two_threads_that_sleep_when_they_may_exchange_every_entry() {
    const COUNT: u32 = 100_000;
    let (mut front, mut back, _) = pair(1, u32::MAX - COUNT / 2);
    let to_back = Arc::new(Event::default());
    let to_front = Arc::new(Event::default());
    let backend = thread::spawn({
        let (to_back, to_front) = (to_back.clone(), to_front.clone());
        move || {
            let mut number = 0;
            while number < COUNT {
                while let Some(taken) = back.take().unwrap() {
                    assert_eq!(taken, request(number));
                    back.push(&response(number)).unwrap();
                    number += 1;
                }
                if back.publish() {
                    to_front.notify();
                }
                if number < COUNT && !back.arm().unwrap() {
                    to_back.wait();
                }
            }
        }
    });
    let (mut asked, mut answered) = (0, 0);
    while answered < COUNT {
        while asked < COUNT && front.push(&request(asked)).is_ok() {
            asked += 1;
        }
        if front.publish() {
            to_back.notify();
        }
        // Now one at a time, now in batches.
        if !front.arm_after(1 + answered % 20).unwrap() {
            to_front.wait();
        }
        while let Some(taken) = front.take().unwrap() {
            assert_eq!(taken, response(answered));
            answered += 1;
        }
    }
    backend.join().unwrap();
}

#[test]
fn a_stream_of_bytes_between_two_threads_arrives_whole() {
    const LEN: usize = 1 << 20;
    let memory = Scratch::new(PAGE_SIZE);
    let mut guest = XenstoreRing::attach(Own(memory.clone()), End::Guest).unwrap();
    let mut host = XenstoreRing::attach(Own(memory), End::Host).unwrap();
    let to_host = Arc::new(Event::default());
    let to_guest = Arc::new(Event::default());
    let byte = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 11) as u8;
    let reader = thread::spawn({
        let (to_host, to_guest) = (to_host.clone(), to_guest.clone());
        move || {
            let mut got = Vec::with_capacity(LEN);
            let mut to = [0; 700];
            while got.len() < LEN {
                match host.read(&mut to).unwrap() {
                    0 => to_host.wait(),
                    len => {
                        got.extend_from_slice(&to[..len]);
                        to_guest.notify();
                    }
                }
            }
            got
        }
    });
    let sent: Vec<u8> = (0..LEN).map(byte).collect();
    let mut rest = &sent[..];
    while !rest.is_empty() {
        match guest.write(&rest[..rest.len().min(900)]).unwrap() {
            0 => to_guest.wait(),
            len => {
                rest = &rest[len..];
                to_host.notify();
            }
        }
    }
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn both_ends_survive_a_thread_that_scribbles_over_the_page_all_the_time() {
    for round in 0..200u32 {
        let (mut front, mut back, memory) = pair(1, round.wrapping_mul(0x9e37_79b9));
        let stop = Arc::new(AtomicBool::new(false));
        let scribbler = thread::spawn({
            let stop = stop.clone();
            let memory = memory.clone();
            move || {
                let mut random = round.wrapping_mul(2).wrapping_add(1);
                while !stop.load(Ordering::Relaxed) {
                    random ^= random << 13;
                    random ^= random >> 17;
                    random ^= random << 5;
                    let word = (random >> 8) as usize % 20;
                    scribble(&memory, word * 4, random);
                }
            }
        });
        let (mut front_broken, mut back_broken) = (None, None);
        for number in 0..2000 {
            _ = front.push(&request(number));
            _ = front.publish();
            for outcome in [back.take().map(|_| ()), back.arm().map(|_| ())] {
                match (outcome, back_broken) {
                    (Err(violation), None) => back_broken = Some(violation),
                    (outcome, Some(violation)) => assert_eq!(outcome, Err(violation)),
                    (Ok(()), None) => {}
                }
            }
            _ = back.push(&response(number));
            _ = back.publish();
            for outcome in [front.take().map(|_| ()), front.arm().map(|_| ())] {
                match (outcome, front_broken) {
                    (Err(violation), None) => front_broken = Some(violation),
                    (outcome, Some(violation)) => assert_eq!(outcome, Err(violation)),
                    (Ok(()), None) => {}
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        scribbler.join().unwrap();
        assert!(front.free() <= front.slots() && back.unanswered() <= back.slots());
    }
}
