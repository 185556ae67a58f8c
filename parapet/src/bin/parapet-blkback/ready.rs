//! What must be there before a disk can be served, beside what every backend needs.

use std::path::Path;

use anyhow::anyhow;
use parapet::daemon::Failure;
use parapet_blkback::journal::Journals;

/// The folder of the journals.
pub(crate) fn journals(folder: &Path) -> Result<Journals, Failure> {
    Journals::in_folder(folder).map_err(|error| {
        Failure::NotReady(anyhow!(
            "no journals can be kept in {}: {error}. Name another folder with --journal, or do \
             without one (--no-journal), in which case guests notice when this daemon ends",
            folder.display()
        ))
    })
}

/// How many mappings this process may have, as the kernel whose files are in `proc` says.
pub(crate) fn mappings(proc: &Path) -> Option<usize> {
    let text = std::fs::read_to_string(proc.join("sys/vm/max_map_count")).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_how_many_mappings_there_may_be() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(mappings(proc.path()), None);
        std::fs::create_dir_all(proc.path().join("sys/vm")).unwrap();
        std::fs::write(proc.path().join("sys/vm/max_map_count"), "65530\n").unwrap();
        assert_eq!(mappings(proc.path()), Some(65530));
    }
}
