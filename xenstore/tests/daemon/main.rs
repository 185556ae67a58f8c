//! xenstored on the loopback hypervisor, with our own clients: by its unix socket, and over guests'
//! rings. Xen's own tools and library meet it as a daemon, in `parapet/tests/xenstored`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that panics is a test that failed"
)]

mod clients;
mod hostile;
mod world;
