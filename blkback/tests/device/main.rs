//! The life of a vbd: a toolstack's nodes, a plain frontend, and the service between them.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod changes;
mod crashes;
mod hostile;
mod life;
#[path = "../plain/mod.rs"]
mod plain;
mod removal;
mod toolstack;
mod world;
