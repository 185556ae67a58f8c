//! What a backend does with mapped pages on its host: files are read and written straight into
//! them, by io_uring and by system calls.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parapet_hypervisor::host::{self, Extent, Lease, Operation, Uring};
use parapet_hypervisor::memory::{PAGE_SIZE, ReadOnly, View};
use parapet_hypervisor::seam::{Access, Backend, Grant, Mapping, Pages};

use super::fill;

/// A mapped run, shared by the operations on it.
struct Mapped<M>(Arc<M>, Option<u16>);

impl<M: Mapping> host::Page for Mapped<M> {
    fn view(&self) -> View<'_> {
        self.0.view_mut().unwrap()
    }
}

impl<M: Mapping> Lease for Mapped<M> {
    type Page = Mapped<M>;

    fn targets(&self) -> impl Iterator<Item = View<'_>> {
        self.0.view_mut().into_iter()
    }

    fn sources(&self) -> impl Iterator<Item = View<'_, ReadOnly>> {
        std::iter::once(self.0.view())
    }

    fn registered(&self) -> Option<u16> {
        self.1
    }
}

/// A file of no name.
fn file() -> File {
    let path = std::env::temp_dir().join(format!("seam-{}", std::process::id()));
    let options = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(path).unwrap();
    options
}

/// Granted pages with some content, written to a file and read back into others, by `transfer`.
fn there_and_back<P: Backend>(
    (a, b): (&P, &P),
    mut transfer: impl FnMut(&File, Operation, Arc<P::Mapping>),
) {
    let (sent, received) = (a.allocate(2).unwrap(), a.allocate(2).unwrap());
    let bytes = fill(&sent, 11);
    let file = file();
    let extent = Extent {
        offset: 512,
        skip: 0,
        len: 2 * PAGE_SIZE,
    };
    for (pages, operation) in [
        (&sent, Operation::Write(extent)),
        (&received, Operation::Read(extent)),
    ] {
        let grant = a.grant(pages, b.domid(), Access::ReadWrite).unwrap();
        let mapped = b.map(a.domid(), grant.refs(), Access::ReadWrite).unwrap();
        transfer(&file, operation, Arc::new(mapped));
        grant.end().unwrap();
    }
    let mut seen = vec![0; 2 * PAGE_SIZE];
    received.view().read_bytes(0, &mut seen).unwrap();
    assert_eq!(seen, bytes);
    file.read_exact_at(&mut seen, 512).unwrap();
    assert_eq!(seen, bytes);
}

/// Through io_uring; `register` as a registered buffer.
fn by_uring<P: Backend>(places: (&P, &P), register: bool) {
    there_and_back(places, |file, operation, mapped| {
        let made = Uring::new(file.try_clone().unwrap(), 4, 4, u16::from(register));
        let mut uring = match made {
            Ok(uring) => uring,
            // A host may forbid it; then backends do without.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                eprintln!("skipped: io_uring is forbidden here");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let mut place = (register && uring.buffers() > 0).then_some(0);
        // A paravirtual domain 0 cannot pin what is not its own memory for long: then it goes on
        // as if it had not asked.
        if place.is_some()
            && uring
                .register(0, Mapped(Arc::clone(&mapped), None))
                .is_err()
        {
            eprintln!("mapped pages cannot be registered here");
            place = None;
        }
        let lease = Mapped(Arc::clone(&mapped), place);
        assert!(uring.start(7, operation, lease).is_ok());
        uring.wait().unwrap();
        let done = uring.complete().unwrap();
        assert_eq!(done.result.unwrap(), 2 * PAGE_SIZE);
    });
}

pub(super) fn io_uring_reaches_mapped_pages<P: Backend>(a: &P, b: &P) {
    by_uring((a, b), false);
}

pub(super) fn registering_mapped_pages_does_no_harm<P: Backend>(a: &P, b: &P) {
    by_uring((a, b), true);
}

pub(super) fn system_calls_reach_mapped_pages<P: Backend>(a: &P, b: &P) {
    there_and_back((a, b), |file, operation, mapped| {
        host::transfer(file, operation, &Mapped(mapped, None)).unwrap();
    });
}
