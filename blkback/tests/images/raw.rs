//! Raw images, memory, and nothing.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::thread;

use parapet_blkback::image::{
    Access, FileImage, Image, Job, MemoryImage, NullImage, OpenError, Operation, SECTOR_SIZE,
    Sectors, Submitted,
};
use parapet_hypervisor::memory::Scratch;
use proptest::prelude::*;

use crate::disk::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_memory_image_is_a_disk(steps in steps()) {
        follows_the_model(&MemoryImage::new(SECTORS, Access::ReadWrite).unwrap(), &steps);
    }

    #[test]
    fn a_file_is_a_disk(steps in steps()) {
        let file = file_of(SECTORS as usize * SECTOR_SIZE, &std::env::temp_dir());
        let image = FileImage::open(file.path(), Access::ReadWrite).unwrap();
        follows_the_model(&image, &steps);
    }

    #[test]
    fn a_file_in_memory_is_a_disk(steps in steps()) {
        let file = file_of(SECTORS as usize * SECTOR_SIZE, Path::new("/dev/shm"));
        let image = FileImage::open(file.path(), Access::ReadWrite).unwrap();
        follows_the_model(&image, &steps);
    }
}

#[test]
fn many_jobs_in_flight_each_complete_once_under_their_own_tag() {
    let file = file_of(SECTORS as usize * SECTOR_SIZE, &std::env::temp_dir());
    for sector in 0..SECTORS {
        file.as_file()
            .write_all_at(&[sector as u8; SECTOR_SIZE], sector * SECTOR_SIZE as u64)
            .unwrap();
    }
    let image = FileImage::open(file.path(), Access::ReadOnly).unwrap();
    let mut queue: Queue = open_queue(&image);
    let mut free: Vec<u32> = (0..u32::from(LIMITS.depth)).collect();
    let mut reading = [None; LIMITS.depth as usize];
    let (mut next, mut done) = (0, 0);
    while done < SECTORS {
        while next < SECTORS {
            let Some(tag) = free.pop() else { break };
            reading[tag as usize] = Some(next as u8);
            let job = Job {
                tag,
                operation: Operation::Read(Sectors {
                    first: next,
                    count: 1,
                }),
                lease: Memory(Scratch::new(SECTOR_SIZE)),
            };
            match queue.submit(job) {
                Submitted::Started => next += 1,
                other => panic!("{other:?}"),
            }
        }
        queue.kick().unwrap();
        while let Some(completion) = queue.complete() {
            completion.result.unwrap();
            let expected = reading[completion.tag as usize].take().expect("in flight");
            assert_eq!(completion.lease.bytes(), [expected; SECTOR_SIZE]);
            free.push(completion.tag);
            done += 1;
        }
        thread::yield_now();
    }
}

#[test]
fn a_null_image_leaves_memory_as_it_was() {
    let mut queue: Queue = open_queue(&NullImage::new(8));
    write(&mut queue, 0, &[1; SECTOR_SIZE]).unwrap();
    let sectors = Sectors { first: 0, count: 1 };
    let done = run(
        &mut queue,
        Operation::Read(sectors),
        Memory::of(&[9; SECTOR_SIZE]),
    );
    done.result.unwrap();
    assert_eq!(done.lease.bytes(), [9; SECTOR_SIZE]);
}

#[test]
fn an_image_that_shrank_gives_errors_and_never_old_success() {
    for folder in [std::env::temp_dir(), "/dev/shm".into()] {
        let file = file_of(64 * SECTOR_SIZE, &folder);
        let image = FileImage::open(file.path(), Access::ReadWrite).unwrap();
        let mut queue = open_queue(&image);
        file.as_file().set_len(16 * SECTOR_SIZE as u64).unwrap();
        let within = Sectors { first: 8, count: 8 };
        read(&mut queue, within).unwrap();
        let across = Sectors {
            first: 8,
            count: 16,
        };
        let error = read(&mut queue, across).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn what_is_no_disk_is_refused_in_one_line_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("odd"), [0; 1000]).unwrap();
    fs::write(path("empty"), []).unwrap();
    fs::write(path("secret"), [0; 512]).unwrap();
    fs::set_permissions(path("secret"), fs::Permissions::from_mode(0o000)).unwrap();
    nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();

    let refusal = |path: &Path| {
        let error = FileImage::open(path, Access::ReadWrite).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        assert!(!text.contains('\n'), "{text}");
        error
    };
    assert!(matches!(refusal(&path("none")), OpenError::Missing(_)));
    assert!(matches!(refusal(&path("empty")), OpenError::Empty(_)));
    assert!(matches!(
        refusal(&path("odd")),
        OpenError::Odd { bytes: 1000, .. }
    ));
    for (name, kind) in [
        (folder.path().to_path_buf(), "a directory"),
        (path("pipe"), "a named pipe"),
        ("/dev/zero".into(), "a character device"),
    ] {
        match refusal(&name) {
            OpenError::NotADisk { what, .. } => assert_eq!(what, kind),
            other => panic!("{other:?}"),
        }
    }
    if !nix::unistd::geteuid().is_root() {
        let error = refusal(&path("secret"));
        assert!(matches!(error, OpenError::Permission { .. }));
    }
}

#[test]
fn a_second_writer_is_refused_until_the_first_and_its_queues_are_gone() {
    let file = file_of(8 * SECTOR_SIZE, &std::env::temp_dir());
    let image = FileImage::open(file.path(), Access::ReadWrite).unwrap();
    let queue = open_queue(&image);
    let busy = |access| {
        matches!(
            FileImage::open(file.path(), access),
            Err(OpenError::Busy { .. })
        )
    };
    assert!(busy(Access::ReadWrite) && busy(Access::ReadOnly));
    drop(image);
    assert!(busy(Access::ReadWrite));
    drop(queue);
    let readers = [
        FileImage::open(file.path(), Access::ReadOnly).unwrap(),
        FileImage::open(file.path(), Access::ReadOnly).unwrap(),
    ];
    assert!(busy(Access::ReadWrite));
    drop(readers);
    FileImage::open(file.path(), Access::ReadWrite).unwrap();
}

/// A loop device on a file.
struct LoopDevice(String);

impl LoopDevice {
    fn on(file: &Path) -> Self {
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .unwrap();
        assert!(made.status.success(), "losetup: {made:?}");
        LoopDevice(String::from_utf8(made.stdout).unwrap().trim().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn a_file_that_forgets_gives_its_room_back() {
    for folder in [std::env::temp_dir(), "/dev/shm".into()] {
        let file = file_of(8 << 20, &folder);
        let image = FileImage::open(file.path(), Access::ReadWrite).unwrap();
        shrinks(&image, file.as_file());
    }
}

#[test]
fn a_device_that_forgets_gives_its_room_back() {
    if !nix::unistd::geteuid().is_root() {
        return; // Only root makes loop devices.
    }
    let file = file_of(8 << 20, &std::env::temp_dir());
    let device = LoopDevice::on(file.path());
    let image = FileImage::open(Path::new(&device.0), Access::ReadWrite).unwrap();
    shrinks(&image, file.as_file());
    assert_eq!(
        Image::<Memory>::resize(&image, 1).unwrap_err().kind(),
        io::ErrorKind::Unsupported
    );
}

#[test]
fn an_image_that_is_only_read_forgets_nothing() {
    let file = file_of(8 << 20, &std::env::temp_dir());
    let image = FileImage::open(file.path(), Access::ReadOnly).unwrap();
    assert_eq!(Image::<Memory>::discard(&image), None);
    assert!(Image::<Memory>::resize(&image, 8).is_err());
}

#[test]
fn a_file_that_grew_or_shrank_is_measured_and_may_be_resized() {
    let file = file_of(8 * SECTOR_SIZE, &std::env::temp_dir());
    let image = FileImage::open(file.path(), Access::ReadWrite).unwrap();
    let image: &dyn Image<Memory> = &image;
    let mut queue = open_queue(image);
    for sectors in [16, 4] {
        file.as_file()
            .set_len(sectors * SECTOR_SIZE as u64)
            .unwrap();
        image.measure().unwrap();
        assert_eq!(image.sectors(), sectors);
    }
    file.as_file().set_len(0).unwrap();
    image.measure().unwrap_err();
    assert_eq!(image.sectors(), 4, "as it was");
    image.resize(32).unwrap();
    assert_eq!(image.sectors(), 32);
    assert_eq!(file.as_file().metadata().unwrap().len(), 32 * 512);
    write(&mut queue, 31, &[3; SECTOR_SIZE]).unwrap();
    assert_eq!(
        image.resize(0).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
}
