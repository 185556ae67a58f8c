//! A queue against a frontend that is no more than rings: honest, and not.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod balance;
mod control;
mod hostile;
mod patience;
mod receive;
mod transmit;
mod world;
