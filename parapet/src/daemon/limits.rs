//! What the host lets a process have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises how many files this process may have open as far as the host lets it. Grants, event
/// channels and clients are descriptors, and a shell's usual limit is soon reached.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        log::warn!("the limit of open files stays as it is: {error}");
    }
}
