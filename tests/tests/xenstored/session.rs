//! One run of steps at one daemon, and what came of each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use parapet_xen_sys::io::xs_wire::Operation;

use crate::daemon::{Fate, Message, Who, Xenstored};
use crate::{GUESTS, LOCALS};

/// A step of a sequence.
#[derive(Clone)]
pub(crate) enum Step {
    /// A client asks; the transaction is one of its own, by place, or a number as it is.
    Ask(Who, u32, Transaction, Vec<u8>),
    /// A client sends bytes that are no request.
    Raw(Who, Vec<u8>),
    /// A domain is born, shuts down, or dies.
    Fate(u16, Fate),
}

/// In which transaction a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transaction {
    None,
    /// The last that it began in this place.
    Own(usize),
    Unknown,
}

impl Step {
    /// A request outside any transaction; `|` in the payload is a zero.
    pub(crate) fn ask(who: Who, operation: Operation, payload: &str) -> Self {
        Step::ask_in(who, operation, Transaction::None, payload)
    }

    pub(crate) fn ask_in(who: Who, operation: Operation, tx: Transaction, payload: &str) -> Self {
        let payload = payload.replace('|', "\0").into_bytes();
        Step::Ask(who, operation.into(), tx, payload)
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Ask(who, operation, tx, payload) => {
                let message = Message {
                    operation: *operation,
                    req_id: 0,
                    tx_id: 0,
                    payload: payload.clone(),
                };
                write!(f, "{who:?} {tx:?}: {message:?}")
            }
            Step::Raw(who, bytes) => write!(f, "{who:?} sends {}", bytes.escape_ascii()),
            Step::Fate(domid, fate) => write!(f, "domain {domid}: {fate:?}"),
        }
    }
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Outcome {
    /// The answer; none if the client is served no more, or did not ask.
    pub(crate) answer: Option<Message>,
    /// What every client was told, in order.
    pub(crate) events: Vec<(Who, Message)>,
    /// The clients that are served no more since.
    pub(crate) lost: Vec<Who>,
}

/// The number of the requests that only find out what came before their answer.
const BARRIER: u32 = u32::MAX;

pub(crate) struct Session<D> {
    daemon: D,
    /// Who is served.
    connected: BTreeSet<Who>,
    transactions: BTreeMap<(Who, usize), u32>,
    /// Those in which the store may look different since they began.
    disturbed: BTreeSet<(Who, usize)>,
    /// Whose rights another domain was lent.
    targets: BTreeSet<u16>,
    /// The generations that were told of a node's children, in order: daemons count differently.
    generations: BTreeMap<Vec<u8>, Vec<Vec<u8>>>,
}

impl<D: Xenstored> Session<D> {
    pub(crate) fn new(daemon: D) -> Self {
        let locals = (0..LOCALS).map(Who::Local);
        Session {
            daemon,
            connected: locals.chain([Who::Guest(0)]).collect(),
            transactions: BTreeMap::new(),
            disturbed: BTreeSet::new(),
            targets: BTreeSet::new(),
            generations: BTreeMap::new(),
        }
    }

    /// Does a step, and waits for all that comes of it. A client that is not connected does nothing.
    pub(crate) fn step(&mut self, step: &Step) -> Outcome {
        let mut outcome = Outcome::default();
        match step {
            Step::Ask(who, operation, tx, payload) if self.connected.contains(who) => {
                let place = match tx {
                    Transaction::Own(place) => Some(*place),
                    _ => None,
                };
                let tx_id = match tx {
                    Transaction::None => 0,
                    Transaction::Own(place) => {
                        *self.transactions.get(&(*who, *place)).unwrap_or(&0)
                    }
                    Transaction::Unknown => 0x7654,
                };
                let starts = *operation == u32::from(Operation::TransactionStart);
                let tx_id = if starts && place.is_some() { 0 } else { tx_id };
                let request = Message {
                    operation: *operation,
                    req_id: 7,
                    tx_id,
                    payload: payload.clone(),
                };
                self.daemon.send(*who, &request.bytes());
                self.collect(*who, 7, &mut outcome);
                if let Some(answer) = &mut outcome.answer {
                    // Its number is the daemon's choice.
                    if starts && answer.operation == request.operation {
                        let text = String::from_utf8_lossy(&answer.payload).into_owned();
                        let id = text.trim_end_matches('\0').parse().expect("a number");
                        self.transactions.insert((*who, place.unwrap_or(0)), id);
                        self.disturbed.remove(&(*who, place.unwrap_or(0)));
                    }
                    if tx_id != 0 && answer.tx_id == tx_id {
                        answer.tx_id = 1;
                    }
                }
                if let Ok(asked) = Operation::try_from(*operation) {
                    self.note(*who, asked, payload, &mut outcome);
                }
            }
            Step::Raw(who, bytes) if self.connected.contains(who) => self.daemon.send(*who, bytes),
            Step::Fate(domid, fate) => {
                if *fate == Fate::Dead {
                    self.connected.remove(&Who::Guest(*domid));
                    self.daemon.forget(Who::Guest(*domid));
                }
                self.daemon.befall(*domid, *fate);
                self.disturb();
            }
            Step::Ask(..) | Step::Raw(..) => return outcome,
        }
        for who in self.connected.clone() {
            let mut barrier = Message::new(Operation::GetDomainPath, 0, b"0\0");
            barrier.req_id = BARRIER;
            self.daemon.send(who, &barrier.bytes());
            let answer = outcome.answer.take();
            self.collect(who, BARRIER, &mut outcome);
            outcome.answer = answer;
        }
        outcome
    }

    /// Something was done to the store, or may have been.
    fn disturb(&mut self) {
        self.disturbed.extend(self.transactions.keys());
    }

    /// Whether what a client sees in this transaction may be another state than the present.
    pub(crate) fn is_disturbed(&self, who: Who, tx: Transaction) -> bool {
        matches!(tx, Transaction::Own(place) if self.disturbed.contains(&(who, place)))
    }

    /// Whether another domain was lent the rights of this one.
    pub(crate) fn is_target(&self, domid: u16) -> bool {
        self.targets.contains(&domid)
    }

    /// Receives events up to the answer.
    fn collect(&mut self, who: Who, req_id: u32, outcome: &mut Outcome) {
        loop {
            match self.daemon.receive(who) {
                Some(message) if message.is_event() => outcome.events.push((who, message)),
                Some(answer) => {
                    assert_eq!(answer.req_id, req_id, "{answer:?}");
                    outcome.answer = Some(answer);
                    return;
                }
                None => {
                    outcome.lost.push(who);
                    self.connected.remove(&who);
                    return;
                }
            }
        }
    }

    /// Follows what the answer means for who is connected, and takes the daemon's own numbering out.
    fn note(&mut self, who: Who, asked: Operation, payload: &[u8], outcome: &mut Outcome) {
        let Some(answer) = &mut outcome.answer else {
            return;
        };
        if answer.operation != u32::from(asked) {
            return;
        }
        let domid = atoi(payload, 0);
        if !matches!(
            asked,
            Operation::Read
                | Operation::Directory
                | Operation::GetPerms
                | Operation::Watch
                | Operation::TransactionStart
        ) {
            self.disturb();
        }
        match asked {
            Operation::SetTarget => {
                self.targets.insert(atoi(payload, 1));
            }
            Operation::Introduce => {
                if domid > GUESTS {
                    return;
                }
                let guest = Who::Guest(domid);
                self.daemon.forget(guest);
                self.connected.insert(guest);
                self.transactions.retain(|(of, _), _| *of != guest);
            }
            Operation::Release => {
                self.connected.remove(&Who::Guest(domid));
                self.daemon.forget(Who::Guest(domid));
            }
            Operation::ResetWatches => self.transactions.retain(|(of, _), _| *of != who),
            Operation::TransactionStart => answer.payload = b"number\0".to_vec(),
            Operation::DirectoryPart => {
                let path = payload.split(|&byte| byte == 0).next().unwrap_or(&[]);
                let end = answer.payload.iter().position(|&byte| byte == 0).unwrap();
                let rest = answer.payload.split_off(end);
                let told = self.generations.entry(path.to_vec()).or_default();
                let generation = std::mem::take(&mut answer.payload);
                let known = told.iter().position(|known| *known == generation);
                let number = known.unwrap_or_else(|| {
                    told.push(generation);
                    told.len() - 1
                });
                answer.payload = [format!("generation {number}").into_bytes(), rest].concat();
            }
            _ => {}
        }
    }
}

/// The domain that one of a payload's strings names, as both daemons read it.
pub(crate) fn domid(payload: &[u8], at: usize) -> Option<u16> {
    let text = payload.split(|&byte| byte == 0).nth(at)?;
    std::str::from_utf8(text).ok()?.trim_start().parse().ok()
}

/// The same as `atoi` reads it, whatever follows the number.
fn atoi(payload: &[u8], at: usize) -> u16 {
    let text = payload.split(|&byte| byte == 0).nth(at).unwrap_or(&[]);
    let text = text.trim_ascii_start();
    let digits = text.strip_prefix(b"+").unwrap_or(text);
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |sum: u16, digit| {
        sum.wrapping_mul(10).wrapping_add(u16::from(digit - b'0'))
    })
}
