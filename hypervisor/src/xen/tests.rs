//! What needs no Xen: workers, and channels of other descriptors.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::Duration;

use super::channel::Channel;
use super::worker::Workers;
use crate::block_on;
use crate::seam::Channel as _;
use crate::wait::Sleep;

/// A pipe whose reading end interrupts.
fn interrupt(
    workers: &std::sync::Arc<Workers>,
) -> (std::io::PipeReader, std::io::PipeWriter, Channel) {
    let (reader, writer) = std::io::pipe().unwrap();
    let channel = Channel::of_descriptor(workers, reader.as_fd()).unwrap();
    (reader, writer, channel)
}

#[test]
fn a_channel_follows_its_task_from_worker_to_worker() {
    let workers = Workers::start(3).unwrap();
    let (mut reader, mut writer, channel) = interrupt(&workers);
    let (asked, ask) = mpsc::channel();
    let (done, wait) = mpsc::channel();
    let mut holder = Some(channel);
    for round in 0..200u8 {
        // Each task is on the worker that is next in turn.
        let (channel, asked, done) = (holder.take().unwrap(), asked.clone(), done.clone());
        workers.spawn(async move {
            asked.send(()).unwrap();
            channel.wait().await;
            done.send(channel).unwrap();
        });
        ask.recv().unwrap();
        writer.write_all(&[round]).unwrap();
        holder = Some(wait.recv().unwrap());
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [round]);
    }
}

#[test]
fn an_event_before_the_first_wait_is_not_lost() {
    let workers = Workers::start(2).unwrap();
    for _ in 0..200 {
        let (_reader, mut writer, channel) = interrupt(&workers);
        writer.write_all(b"x").unwrap();
        block_on(channel.wait());
    }
}

#[test]
fn a_masked_event_comes_with_the_unmasking() {
    let workers = Workers::start(1).unwrap();
    let (_reader, mut writer, channel) = interrupt(&workers);
    for _ in 0..100 {
        channel.mask();
        writer.write_all(b"x").unwrap();
        assert!(!channel.take());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| block_on(channel.wait()));
            channel.unmask();
            waiting.join().unwrap();
        });
    }
}

#[test]
fn a_channel_may_be_dropped_while_events_come() {
    let workers = Workers::start(2).unwrap();
    for _ in 0..200 {
        let (mut reader, mut writer, channel) = interrupt(&workers);
        let (reading, writing) = (
            std::thread::spawn(move || {
                let mut bytes = [0; 16];
                while reader.read(&mut bytes).unwrap() > 0 {}
            }),
            std::thread::spawn(move || {
                for _ in 0..20 {
                    writer.write_all(b"x").unwrap();
                }
            }),
        );
        workers.spawn(async move { channel.wait().await });
        writing.join().unwrap();
        reading.join().unwrap();
    }
}

#[test]
fn a_task_that_panics_takes_no_other_with_it() {
    let workers = Workers::start(1).unwrap();
    let (done, wait) = mpsc::channel();
    for round in 0..4 {
        let done = done.clone();
        workers.spawn(async move {
            assert!(round % 2 == 0, "as it is meant to");
            done.send(round).unwrap();
        });
    }
    assert_eq!([wait.recv().unwrap(), wait.recv().unwrap()], [0, 2]);
}

#[test]
fn a_timer_set_elsewhere_wakes_a_worker_that_sleeps_longer() {
    let workers = Workers::start(1).unwrap();
    let later = |duration| Sleep::new(workers.clone(), workers.now().after(duration));
    workers.spawn(later(Duration::from_secs(3600)));
    for _ in 0..20 {
        let before = workers.now();
        block_on(later(Duration::from_millis(1)));
        assert!(workers.now().since(before) >= Duration::from_millis(1));
    }
}

#[test]
fn a_task_that_never_waits_leaves_room_for_timers_and_events() {
    let workers = Workers::start(1).unwrap();
    let (stop, stopped) = mpsc::channel();
    workers.spawn(async move {
        while stopped.try_recv().is_err() {
            crate::seam::yield_now().await;
        }
    });
    let (_reader, mut writer, channel) = interrupt(&workers);
    writer.write_all(b"x").unwrap();
    block_on(channel.wait());
    block_on(Sleep::new(
        workers.clone(),
        workers.now().after(Duration::from_millis(1)),
    ));
    stop.send(()).unwrap();
}
