//! The kernel's own connection to xenstored, shared with this process, as a socket.
//!
//! The device takes one message a write, and forgets what follows in the same one. It answers
//! some requests itself, and then a second request that comes before the answer to the first may
//! hold up the kernel and all its users; a refusal may come as the write's error. So a thread
//! stands between: it passes on one request at a time, waits for the answer, and makes answers of
//! errors. Events pass through.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::vec::Vec;

use nix::errno::Errno as HostErrno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parapet_xen_sys::Errno;
use parapet_xen_sys::io::xs_wire::{MessageHeader, Operation};
use zerocopy::IntoBytes;

use crate::wire::{Decoder, Message, TooLong, encode, error_name};

/// A socket that leads to `device`, for as long as it is open.
pub(super) fn relay<D>(device: D) -> io::Result<UnixStream>
where
    D: Read + Write + AsFd + Send + 'static,
{
    let (theirs, client) = UnixStream::pair()?;
    let relay = Relay {
        device,
        client,
        requests: Decoder::default(),
        answers: Decoder::default(),
        unanswered: false,
    };
    thread::Builder::new()
        .name("xenbus".into())
        .spawn(move || match relay.run() {
            Ok(()) => {}
            Err(error) => log::error!("the kernel's connection to xenstored failed: {error}"),
        })?;
    Ok(theirs)
}

struct Relay<D> {
    device: D,
    client: UnixStream,
    requests: Decoder,
    answers: Decoder,
    /// A request is with the kernel.
    unanswered: bool,
}

impl<D: Read + Write + AsFd> Relay<D> {
    /// Until the client closes its end.
    fn run(mut self) -> io::Result<()> {
        let mut bytes = [0; 8192];
        loop {
            while !self.unanswered
                && let Some(request) = self.requests.message().map_err(too_long)?
            {
                self.pass_on(&request)?;
            }
            let (device, client) = self.wait()?;
            if device && let Some(answer) = read(&mut self.device, &mut bytes)? {
                if answer.is_empty() {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                self.answers.push(answer);
                while let Some(message) = self.answers.message().map_err(too_long)? {
                    let event = message.operation == u32::from(Operation::WatchEvent);
                    self.unanswered &= event;
                }
                self.client.write_all(answer)?;
            }
            if client && let Some(requests) = read(&mut self.client, &mut bytes)? {
                if requests.is_empty() {
                    return Ok(());
                }
                self.requests.push(requests);
            }
        }
    }

    /// Waits for the device; and for the client, if it may ask. Which of them have something.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let asks = if self.unanswered {
            // Its end of the connection is noticed all the same.
            PollFlags::empty()
        } else {
            PollFlags::POLLIN
        };
        let mut both = [
            PollFd::new(self.device.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.client.as_fd(), asks),
        ];
        match poll(&mut both, PollTimeout::NONE) {
            Ok(_) | Err(HostErrno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [device, client] = both.map(|end| end.any().unwrap_or(false));
        Ok((device, client))
    }

    /// Gives the kernel one request.
    fn pass_on(&mut self, request: &Message) -> io::Result<()> {
        let header = MessageHeader {
            operation: request.operation,
            req_id: request.req_id,
            tx_id: request.tx_id,
            len: u32::try_from(request.payload.len()).unwrap_or(u32::MAX),
        };
        let mut whole = Vec::from(header.as_bytes());
        whole.extend_from_slice(&request.payload);
        // Said before: an answer may be there when the write returns.
        self.unanswered = true;
        let Err(error) = self.device.write_all(&whole) else {
            return Ok(());
        };
        self.unanswered = false;
        let name = error_name(error.raw_os_error().map_or(Errno::EIO, Errno));
        let mut answer = Vec::new();
        let (id, tx) = (request.req_id, request.tx_id);
        let payload: [&[u8]; 2] = [name.as_bytes(), b"\0"];
        encode(&mut answer, Operation::Error, id, tx, &payload).map_err(too_long)?;
        self.client.write_all(&answer)
    }
}

fn too_long(error: TooLong) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

/// What there is to read, and nothing at the end; none if a signal came first.
fn read<'a>(from: &mut impl Read, to: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
    match from.read(to) {
        Ok(len) => Ok(to.get(..len)),
        Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::string::String;
    use std::{format, vec};

    use super::*;
    use crate::client::{Error, blocking::Client};

    /// The device's other end: takes a request, says that it has, and answers it with its own
    /// payload, an event first; refuses a watch by an error of the write.
    struct Device(UnixStream);

    impl Read for Device {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            self.0.read(to)
        }
    }

    impl Write for Device {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut decoder = Decoder::default();
            decoder.push(bytes);
            let request = decoder.message().unwrap().expect("a whole message a write");
            assert!(decoder.is_empty(), "one message a write");
            if request.operation == u32::from(Operation::Watch) {
                return Err(io::Error::from_raw_os_error(28));
            }
            self.0.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsFd for Device {
        fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    /// A kernel that answers each request with its payload, and panics if there are two at once.
    fn kernel(mut end: UnixStream) {
        let mut decoder = Decoder::default();
        let mut bytes = [0; 8192];
        loop {
            let len = end.read(&mut bytes).unwrap();
            if len == 0 {
                return;
            }
            decoder.push(&bytes[..len]);
            let Some(request) = decoder.message().unwrap() else {
                continue;
            };
            assert!(decoder.is_empty(), "a request before the answer");
            let mut out = vec![];
            encode(&mut out, Operation::WatchEvent, 0, 0, &[b"/w\0t\0"]).unwrap();
            let operation = Operation::try_from(request.operation).unwrap();
            let (id, tx) = (request.req_id, request.tx_id);
            encode(&mut out, operation, id, tx, &[&request.payload]).unwrap();
            end.write_all(&out).unwrap();
        }
    }

    #[test]
    fn the_device_gets_one_request_at_a_time_and_whole() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let served = thread::spawn(move || kernel(theirs));
        let mut client = relay(Device(ours)).unwrap();
        let mut burst = vec![];
        for id in 0..200 {
            let path = format!("/{}{id}\0", "x".repeat(id as usize));
            encode(&mut burst, Operation::Read, id, 0, &[path.as_bytes()]).unwrap();
        }
        // In pieces that are no messages.
        for piece in burst.chunks(1000) {
            client.write_all(piece).unwrap();
        }
        let (mut decoder, mut bytes) = (Decoder::default(), [0; 4096]);
        let (mut answers, mut events) = (0, 0);
        while answers < 200 {
            let len = client.read(&mut bytes).unwrap();
            decoder.push(&bytes[..len]);
            while let Some(message) = decoder.message().unwrap() {
                if message.operation == u32::from(Operation::WatchEvent) {
                    events += 1;
                } else {
                    assert_eq!(message.req_id, answers);
                    answers += 1;
                }
            }
        }
        assert_eq!(events, 200);
        drop(client);
        served.join().unwrap();
    }

    #[test]
    fn a_refusal_by_the_device_is_an_answer_and_the_connection_lives() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let served = thread::spawn(move || kernel(theirs));
        let mut client = Client::new(relay(Device(ours)).unwrap());
        let refused = client.watch("/a", "t").unwrap_err();
        assert!(
            matches!(refused, Error::Refused { error, .. } if error == Errno::ENOSPC),
            "{refused}"
        );
        let answer = String::from_utf8(client.read("/a").unwrap()).unwrap();
        assert_eq!(answer, "/a\0");
        drop(client);
        served.join().unwrap();
    }
}
