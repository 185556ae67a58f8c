//! Runs the seam's conformance list on a real Xen host, by `/dev/xen/*`: the domain grants to
//! itself and loops events back to itself; where a peer has to die, a process of ours plays it.
//!
//! One line a check goes to standard output; the status is that of the whole list.

#![forbid(unsafe_code)]

use std::io::{self, BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use anyhow::{Context, anyhow};
use parapet_hypervisor::seam::Identity;
use parapet_hypervisor::xen::Xen;
use parapet_tests::conformance::{self, deaths::Death, deaths::Peer};
use parapet_xen_sys::DomId;

const USAGE: &str = "\
Checks that this Xen host does what Parapet's drivers rely on.

Usage: seam-conformance [DOMID]

  DOMID   the domain that this process runs in (default: 0)

Prints one line a check; the exit status is 0 if all of them passed.
";

/// What the process is told that is to die.
const TO_DIE: &str = "--to-die";

fn all_deaths() -> Vec<Death<Xen>> {
    let mut all = conformance::deaths::deaths::<Xen>();
    all.extend(conformance::xen::deaths());
    all
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match *arguments.as_slice() {
        ["--help" | "-h"] => {
            print!("{USAGE}");
            Ok(true)
        }
        [TO_DIE, domid, name] => play(domid, name).map(|()| true),
        [] => check_all("0"),
        [domid] => check_all(domid),
        _ => Err(anyhow!("more arguments than expected; see --help")),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("seam-conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn open(domid: &str) -> anyhow::Result<Xen> {
    let domid = domid.parse().context("the domain's number")?;
    Ok(Xen::open(DomId(domid))?)
}

fn check_all(domid: &str) -> anyhow::Result<bool> {
    let place = open(domid)?;
    let mut all_passed = true;
    let mut check = |name: &str, run: &mut dyn FnMut()| {
        let passed = catch_unwind(AssertUnwindSafe(run)).is_ok();
        println!("{} {name}", if passed { "ok  " } else { "FAIL" });
        all_passed &= passed;
    };
    for (name, run) in conformance::checks::<Xen>() {
        check(name, &mut || run(&place, &place));
    }
    for death in all_deaths() {
        check(death.name, &mut || {
            let mut peer = Process::start(place.domid(), death.name).expect("a process to die");
            (death.survivor)(&place, &mut peer);
        });
    }
    Ok(all_passed)
}

/// The part of one who is to die: takes numbers, does as it must, answers with numbers, and holds
/// on until it is killed.
fn play(domid: &str, name: &str) -> anyhow::Result<()> {
    let place = open(domid)?;
    let deaths = all_deaths();
    let death = deaths.iter().find(|death| death.name == name);
    let death = death.context("no such check")?;
    let numbers = read_numbers(&mut io::stdin().lock())?;
    let (answer, held) = (death.peer)(&place, place.domid(), &numbers);
    write_numbers(&mut io::stdout(), &answer)?;
    // Until we are killed; or the one who asked is gone, and nobody will.
    let mut rest = String::new();
    io::stdin().read_line(&mut rest)?;
    drop(held);
    Ok(())
}

fn write_numbers(to: &mut impl Write, numbers: &[u32]) -> io::Result<()> {
    let words: Vec<String> = numbers.iter().map(u32::to_string).collect();
    writeln!(to, "{}", words.join(" "))?;
    to.flush()
}

fn read_numbers(from: &mut impl BufRead) -> anyhow::Result<Vec<u32>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Err(anyhow!("the other process is gone"));
    }
    let numbers = line.split_whitespace().map(str::parse);
    Ok(numbers.collect::<Result<_, _>>()?)
}

/// A peer that is another process in the same domain.
struct Process {
    domid: DomId,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Process {
    fn start(domid: DomId, name: &str) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([TO_DIE, &domid.to_string(), name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let to = child.stdin.take().context("its input")?;
        let from = child.stdout.take().context("its output")?;
        Ok(Process {
            domid,
            child,
            to,
            from: BufReader::new(from),
        })
    }
}

impl Peer for Process {
    fn domid(&self) -> DomId {
        self.domid
    }

    fn ask(&mut self, numbers: &[u32]) -> Vec<u32> {
        write_numbers(&mut self.to, numbers).expect("the peer listens");
        read_numbers(&mut self.from).expect("the peer answers")
    }

    fn kill(&mut self) {
        // SIGKILL; and when it has been waited for, the kernel has let go of all it held.
        self.child.kill().expect("a process of ours can be killed");
        self.child.wait().expect("and waited for");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
