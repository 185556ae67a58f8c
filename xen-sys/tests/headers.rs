//! Puts every claim of this crate to a C compiler that reads Xen's own headers.
//!
//! The claims are the very lines that the crate is made of (`parapet_xen_sys::CLAIMS`). Those on
//! x86_64 become the rows of a table in a C program, which is compiled and run and prints what each
//! expression is worth; those on 32-bit x86 become static assertions, for which no 32-bit C library
//! is needed. Headers are those of Debian's `libxen-dev`, or of the folder that `XEN_INCLUDE` names
//! (one that holds `xen/xen.h` and `xen/sys/gntdev.h`).
//!
//! Where no compiler or no headers are, the test says so and passes, unless `CI` is set.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use parapet_xen_sys::CLAIMS;
use parapet_xen_sys::abi::{Claim, Target};

const MISSING: &str = "Xen's headers were NOT compared: `cc` cannot compile `#include <xen/xen.h>`. \
                       Install both with: apt-get install gcc libc6-dev libxen-dev";

/// What every program begins with. `__XEN_TOOLS__` asks for the newest interface of the headers.
const PRELUDE: &str = "#define __XEN_TOOLS__ 1\n#include <stdint.h>\n#include <stddef.h>\n";

/// What the claims on x86_64 use of the C library, and of the kernel's headers.
const LIBRARY: &str =
    "#include <errno.h>\n#include <stdio.h>\n#include <string.h>\n#include <sys/ioctl.h>\n";

/// A C compiler in a temporary folder.
struct Compiler {
    folder: tempfile::TempDir,
}

impl Compiler {
    /// Compiles `source` with `flags`; the output file, if any, is [`Self::program`].
    fn compile(&self, source: &str, flags: &[&str]) -> std::io::Result<Output> {
        let file = self.folder.path().join("claims.c");
        std::fs::write(&file, source)?;
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-w"]).args(flags);
        if let Some(include) = std::env::var_os("XEN_INCLUDE") {
            cc.arg("-I").arg(include);
        }
        cc.arg(&file).output()
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("claims")
    }

    /// Compiles `source` and fails the test with the compiler's words if that fails.
    fn must_compile(&self, source: &str, flags: &[&str]) {
        let output = self.compile(source, flags).expect("cc runs");
        assert!(
            output.status.success(),
            "the headers contradict this crate, or lack what it does not mark as newer:\n{}",
            String::from_utf8_lossy(&output.stderr),
        );
    }

    /// Whether `expression` means anything to the headers.
    fn knows(&self, prelude: &str, expression: &str) -> bool {
        let source =
            format!("{prelude}long long probe(void) {{ return (long long)({expression}); }}\n");
        self.compile(&source, &["-fsyntax-only"])
            .expect("cc runs")
            .status
            .success()
    }
}

/// Says what was and what was not compared, even where the output of tests that pass is hidden.
fn report(message: &str) {
    writeln!(std::io::stderr(), "{message}").expect("standard error takes a line");
}

/// A compiler that finds Xen's headers; `None`, with a message, where there is none and need not be.
fn compiler() -> Option<Compiler> {
    let compiler = Compiler {
        folder: tempfile::tempdir().expect("a temporary folder"),
    };
    let found = compiler
        .compile(
            &format!("{PRELUDE}{LIBRARY}#include <xen/xen.h>\n"),
            &["-fsyntax-only"],
        )
        .is_ok_and(|output| output.status.success());
    if found {
        return Some(compiler);
    }
    assert!(std::env::var_os("CI").is_none(), "{MISSING}");
    report(MISSING);
    None
}

/// The includes of all headers on `target`, each once.
fn includes(target: Target) -> String {
    let mut lines: Vec<_> = CLAIMS
        .iter()
        .filter(|header| header.target == target)
        .map(|header| header.include)
        .collect();
    lines.dedup();
    lines.iter().fold(String::new(), |text, include| {
        text + &format!("#include <{include}>\n")
    })
}

fn claims(target: Target) -> impl Iterator<Item = &'static Claim> {
    CLAIMS
        .iter()
        .filter(move |header| header.target == target)
        .flat_map(|header| header.iter())
}

/// The values of the expressions, as a program made of them prints them.
fn evaluate(compiler: &Compiler, prelude: &str, claims: &[&Claim]) -> Vec<i64> {
    let mut source = format!("{prelude}int main(void) {{\n");
    for claim in claims {
        writeln!(source, "    printf(\"%lld\\n\", (long long)({}));", claim.c)
            .expect("a string grows");
    }
    source.push_str("    return 0;\n}\n");
    let program = compiler.program();
    compiler.must_compile(&source, &["-o", path(&program)]);
    let output = Command::new(&program).output().expect("the program runs");
    assert!(
        output.status.success(),
        "the program ended with {}",
        output.status
    );
    let printed = String::from_utf8(output.stdout).expect("numbers");
    let values: Vec<i64> = printed
        .lines()
        .map(|line| line.parse().expect("a number"))
        .collect();
    assert_eq!(values.len(), claims.len(), "one line for each claim");
    values
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a temporary folder with a plain name")
}

#[test]
fn every_size_offset_and_constant_is_that_of_xens_headers() {
    let Some(compiler) = compiler() else { return };
    let prelude = format!("{PRELUDE}{LIBRARY}{}", includes(Target::X86_64));

    let mut probes = BTreeMap::new();
    let (checkable, newer): (Vec<_>, Vec<_>) = claims(Target::X86_64).partition(|claim| {
        claim.newer.is_none_or(|probe| {
            *probes
                .entry(probe)
                .or_insert_with(|| compiler.knows(&prelude, probe))
        })
    });

    let mut wrong = String::new();
    for (claim, value) in checkable
        .iter()
        .zip(evaluate(&compiler, &prelude, &checkable))
    {
        if value != claim.value {
            writeln!(wrong, "  {}: {value} in C, {} here", claim.c, claim.value)
                .expect("a string grows");
        }
    }
    assert!(wrong.is_empty(), "Xen's headers say otherwise:\n{wrong}");

    report(&format!(
        "{} claims hold in Xen's headers for x86_64",
        checkable.len()
    ));
    if !newer.is_empty() {
        let list: Vec<_> = newer.iter().map(|claim| claim.c).collect();
        report(&format!(
            "{} are UNCHECKED, being newer than these headers: {}",
            list.len(),
            list.join(", "),
        ));
    }
}

#[test]
fn the_layouts_of_32_bit_frontends_are_those_of_a_32_bit_compiler() {
    let Some(compiler) = compiler() else { return };
    let mut source = format!("{PRELUDE}{}", includes(Target::X86_32));
    let mut count = 0;
    for Claim { c, value, .. } in claims(Target::X86_32) {
        writeln!(
            source,
            "_Static_assert({c} == {value}, \"{c} is not {value}\");"
        )
        .expect("a string grows");
        count += 1;
    }
    compiler.must_compile(&source, &["-m32", "-ffreestanding", "-fsyntax-only"]);
    report(&format!(
        "{count} claims hold in Xen's headers for 32-bit x86"
    ));
}
