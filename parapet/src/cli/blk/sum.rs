//! `parapet blk sum`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use parapet::config::GuestConfig;
use parapet::host::Host;
use parapet::programs::{Outcome, Sum};
use serde::Serialize;

use crate::cli::{guests, images, output};

/// Prints the SHA-256 of disk images, exactly as sha256sum would.
///
/// For each image a guest reads the whole of it through its disk. An image whose size is not a
/// multiple of 512 bytes is no disk, and is refused. After an error it goes on with the next
/// image; the exit status then is 1.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Raw images, or block devices.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,

    /// Prints one JSON object a line instead, with the size.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  parapet blk sum disk.img
  parapet blk sum a.img b.img > SHA256SUMS; sha256sum --check SHA256SUMS";

/// For scripts.
#[derive(Serialize)]
struct Line<'a> {
    image: &'a Path,
    bytes: u64,
    sha256: String,
}

pub(super) fn sum(args: &Args) -> Result<ExitCode> {
    let host = guests::boot(None, Vec::new())?;
    let mut status = ExitCode::SUCCESS;
    for image in &args.images {
        match sum_of(&host, image) {
            Ok(Sum { bytes, sha256, .. }) if args.json => output::json(&Line {
                image,
                bytes,
                sha256,
            })?,
            Ok(sum) => writeln!(io::stdout(), "{}", line(&sum.sha256, image))?,
            Err(error) => {
                output::complain(&error);
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}

fn sum_of(host: &Host, image: &Path) -> Result<Sum> {
    let guest = GuestConfig {
        disks: vec![images::disk("xvda", "ro", image)?],
        kernel: Some("sum".into()),
        ..GuestConfig::new("sum")
    };
    match guests::run_one(host, guest)? {
        (Outcome::Sum { mut sums }, _) if sums.len() == 1 => Ok(sums.remove(0)),
        (other, _) => bail!("{}: the guest {other}", image.display()),
    }
}

/// As sha256sum prints it: a name with a line break or a backslash is escaped, and the line then
/// begins with a backslash.
fn line(sum: &str, image: &Path) -> String {
    let name = image.display().to_string();
    let escaped = name
        .replace('\\', "\\\\")
        .replace('\n', "\\n")
        .replace('\r', "\\r");
    let mark = if escaped == name { "" } else { "\\" };
    format!("{mark}{sum}  {escaped}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_escaped_as_sha256sum_does() {
        assert_eq!(line("ab", Path::new("x y")), "ab  x y");
        assert_eq!(line("ab", Path::new("x\n\\")), "\\ab  x\\n\\\\");
    }
}
