//! qcow2 images, beside those of QEMU's tools.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use parapet_blkback::image::qcow2::{self, Backed, Trust, snapshots};
use parapet_blkback::image::{
    Access, Image, Job, OpenError, Operation, Qcow2Image, SECTOR_SIZE, Sectors, Spec, Submitted,
};
use parapet_hypervisor::memory::Scratch;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::disk::*;

/// What a tool of QEMU prints.
#[track_caller]
fn qemu_img(args: &[&str]) -> String {
    let done = Command::new("qemu-img").args(args).output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let errors = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "qemu-img {args:?}: {text}{errors}");
    text
}

#[track_caller]
fn is_sound(path: &Path) {
    let text = qemu_img(&["check", path.to_str().unwrap()]);
    assert!(text.contains("No errors were found"), "{text}");
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().into()
    }

    /// An image made by us.
    fn create(&self, name: &str, bytes: u64, backed: Option<(&str, &str)>) -> PathBuf {
        let path = self.path(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        let backed = backed.map(|(name, format)| Backed {
            name: name.into(),
            format: format.into(),
        });
        qcow2::create(&file, bytes, backed).unwrap();
        path
    }
}

fn open(path: &Path, trust: Trust) -> Qcow2Image {
    Qcow2Image::open(path, Access::ReadWrite, &trust).unwrap()
}

fn refusal(path: &Path, trust: Trust) -> OpenError {
    let error = Qcow2Image::open(path, Access::ReadWrite, &trust).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    assert!(!text.contains('\n'), "{text}");
    error
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_qcow2_image_is_a_disk(steps in steps()) {
        let folder = Folder::new();
        let path = folder.create("a.qcow2", SECTORS * SECTOR_SIZE as u64, None);
        let image = open(&path, Trust::Nothing);
        follows_the_model(&image, &steps);
        drop(image);
        is_sound(&path);
    }

    /// QEMU made the image, with the smallest clusters, over a base.
    #[test]
    fn an_overlay_of_qemus_is_a_disk(steps in steps()) {
        let folder = Folder::new();
        fs::write(folder.path("base"), [0; 20 * SECTOR_SIZE]).unwrap();
        let path = folder.path("top.qcow2");
        let size = (SECTORS * SECTOR_SIZE as u64).to_string();
        qemu_img(&[
            "create", "-q", "-f", "qcow2", "-o", "cluster_size=1k", "-F", "raw", "-b", "base",
            path.to_str().unwrap(), &size,
        ]);
        let image = open(&path, Trust::Beside);
        follows_the_model(&image, &steps);
        drop(image);
        is_sound(&path);
    }
}

/// Bytes that are different everywhere.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

#[test]
fn qemu_reads_what_we_wrote_and_we_read_what_qemu_wrote() {
    let folder = Folder::new();
    let raw = folder.path("raw");
    let bytes = pattern(3 << 20, 1);
    fs::write(&raw, &bytes).unwrap();
    let raw = raw.to_str().unwrap();
    // Theirs, also in the old version and compressed.
    for (name, options) in [
        ("v3", &["-o", "compat=1.1"][..]),
        ("v2", &["-o", "compat=0.10"]),
        ("compressed", &["-c"]),
        ("small", &["-o", "cluster_size=512"]),
        ("wide", &["-o", "cluster_size=2M,refcount_bits=64"]),
    ] {
        let path = folder.name(name);
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2"];
        args.extend_from_slice(options);
        args.extend_from_slice(&[raw, &path]);
        qemu_img(&args);
        let image = open(Path::new(&path), Trust::Nothing);
        let sectors = Image::<Memory>::sectors(&image);
        assert_eq!(sectors * 512, bytes.len() as u64, "{name}");
        let mut queue = open_queue(&image);
        for first in (0..sectors).step_by(1000) {
            let count = 1000.min(sectors - first);
            let at = first as usize * 512;
            let read = read(&mut queue, Sectors { first, count }).unwrap();
            assert!(read == bytes[at..at + count as usize * 512], "{name}");
        }
    }
    // Ours.
    let path = folder.create("ours", bytes.len() as u64, None);
    let image = open(&path, Trust::Nothing);
    let mut queue = open_queue(&image);
    for (i, chunk) in bytes
        .chunks(777 * 512)
        .enumerate()
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
    {
        write(&mut queue, i as u64 * 777, chunk).unwrap();
    }
    drop((queue, image));
    is_sound(&path);
    let compared = qemu_img(&[
        "compare",
        "-f",
        "raw",
        "-F",
        "qcow2",
        raw,
        path.to_str().unwrap(),
    ]);
    assert!(compared.contains("identical"), "{compared}");
}

/// This process may be killed after any answer.
#[test]
fn what_was_answered_is_in_the_file() {
    let folder = Folder::new();
    let path = folder.create("a.qcow2", 256 << 20, None);
    let image = open(&path, Trust::Nothing);
    let mut queue = open_queue(&image);
    let bytes = pattern(4096, 7);
    for round in 0..24 {
        // In clusters that are new, old, and far apart.
        write(&mut queue, round * 20_011, &bytes).unwrap();
        if round % 3 == 0 {
            write(&mut queue, round * 20_011 + 8, &bytes).unwrap();
        }
        if round % 5 == 4 {
            let whole = Sectors {
                first: round * 20_011 / 128 * 128,
                count: 128,
            };
            discard(&mut queue, whole);
        }
        // As the file is now, with us in the middle of everything.
        let copy = folder.path("copy");
        fs::copy(&path, &copy).unwrap();
        is_sound(&copy);
        let seen = open(&copy, Trust::Nothing);
        let mut seen = open_queue(&seen);
        for past in 0..=round {
            let sectors = Sectors {
                first: past * 20_011,
                count: 8,
            };
            assert_eq!(
                read(&mut seen, sectors).unwrap(),
                read(&mut queue, sectors).unwrap()
            );
        }
    }
}

#[test]
fn many_writers_at_once_leave_a_sound_image_with_what_they_wrote() {
    let folder = Folder::new();
    let path = folder.create("a.qcow2", 64 << 20, None);
    let image = Arc::new(open(&path, Trust::Nothing));
    thread::scope(|scope| {
        for writer in 0..4u64 {
            let image = Arc::clone(&image);
            scope.spawn(move || {
                let mut queue = open_queue(&*image);
                let mut free: Vec<u32> = (0..u32::from(LIMITS.depth)).collect();
                let mut next = 0;
                let mut done = 0;
                while done < 256 {
                    while let (true, Some(tag)) = (next < 256, free.pop()) {
                        // All writers in each cluster.
                        let first = (next * 4 + writer) * 16;
                        let memory = Memory::of(&pattern(16 * 512, first + 1));
                        let operation = Operation::Write(Sectors { first, count: 16 });
                        let job = Job {
                            tag,
                            operation,
                            lease: memory,
                        };
                        assert!(matches!(queue.submit(job), Submitted::Started));
                        next += 1;
                    }
                    queue.kick().unwrap();
                    match queue.complete() {
                        Some(completion) => {
                            completion.result.unwrap();
                            free.push(completion.tag);
                            done += 1;
                        }
                        None => thread::yield_now(),
                    }
                }
            });
        }
    });
    let mut queue = open_queue(&*image);
    for first in (0..256 * 4 * 16).step_by(16) {
        let read = read(&mut queue, Sectors { first, count: 16 }).unwrap();
        assert!(read == pattern(16 * 512, first + 1), "at {first}");
    }
    drop((queue, image));
    is_sound(&path);
}

#[test]
fn an_image_that_forgets_gives_its_room_back() {
    let folder = Folder::new();
    let path = folder.create("a.qcow2", 8 << 20, None);
    let image = open(&path, Trust::Nothing);
    shrinks(&image, &File::open(&path).unwrap());
    drop(image);
    is_sound(&path);
}

#[test]
fn what_is_forgotten_does_not_show_the_base_again() {
    let folder = Folder::new();
    fs::write(folder.path("base"), vec![9; 1 << 20]).unwrap();
    let path = folder.create("top", 1 << 20, Some(("base", "raw")));
    let image = open(&path, Trust::Beside);
    let mut queue = open_queue(&image);
    let all = Sectors {
        first: 0,
        count: 2048,
    };
    assert!(read(&mut queue, all).unwrap() == vec![9; 1 << 20]);
    discard(
        &mut queue,
        Sectors {
            first: 1,
            count: 2046,
        },
    );
    let mut expected = vec![0; 1 << 20];
    expected[..512].fill(9);
    expected[(1 << 20) - 512..].fill(9);
    assert!(read(&mut queue, all).unwrap() == expected);
    drop((queue, image));
    is_sound(&path);
    assert!(fs::read(folder.path("base")).unwrap() == vec![9; 1 << 20]);
}

#[test]
fn an_image_that_grows_shows_zeroes_and_not_its_base() {
    let folder = Folder::new();
    fs::write(folder.path("base"), vec![9; 1 << 20]).unwrap();
    let path = folder.create("top", 1 << 19, Some(("base", "raw")));
    let image = open(&path, Trust::Beside);
    let image: &dyn Image<Memory> = &image;
    image.resize(4096).unwrap();
    assert_eq!(image.sectors(), 4096);
    let mut queue = open_queue(image);
    let old = Sectors {
        first: 1000,
        count: 24,
    };
    assert!(read(&mut queue, old).unwrap() == vec![9; 24 * 512]);
    let new = Sectors {
        first: 1024,
        count: 3072,
    };
    assert!(read(&mut queue, new).unwrap() == vec![0; 3072 * 512]);
    image.resize(512).unwrap();
    assert!(read(&mut queue, old).is_err(), "behind the end");
    drop(queue);
    assert_eq!(qcow2::info(&path).unwrap().header.bytes, 512 * 512);
}

#[test]
fn what_was_cut_off_is_not_there_when_an_image_grows_again() {
    let folder = Folder::new();
    let path = folder.create("a", 1 << 20, None);
    let image = open(&path, Trust::Nothing);
    let image: &dyn Image<Memory> = &image;
    let mut queue = open_queue(image);
    let all = Sectors {
        first: 0,
        count: 2048,
    };
    for piece in 0..16 {
        write(&mut queue, piece * 128, &vec![9; 1 << 16]).unwrap();
    }
    // Within a cluster.
    image.resize(1000).unwrap();
    image.resize(2048).unwrap();
    let mut expected = vec![0; 1 << 20];
    expected[..512_000].fill(9);
    assert!(read(&mut queue, all).unwrap() == expected);
    drop(queue);
}

#[test]
fn no_image_is_larger_than_one_that_can_be_opened() {
    let folder = Folder::new();
    let file = File::create_new(folder.path("new")).unwrap();
    qcow2::create(&file, 1 << 62, None).unwrap_err();
    let path = folder.create("a", 1 << 20, None);
    let image = open(&path, Trust::Nothing);
    let image: &dyn Image<Memory> = &image;
    image.resize((2 << 50) / 512 + 1).unwrap_err();
    assert_eq!(image.sectors(), 2048);
    image.resize((2 << 50) / 512).unwrap();
    assert_eq!(qcow2::info(&path).unwrap().header.bytes, 2 << 50);
}

#[test]
fn a_base_is_opened_only_if_that_was_asked_for() {
    let folder = Folder::new();
    fs::create_dir(folder.path("images")).unwrap();
    fs::write(folder.path("base"), vec![9; 1 << 16]).unwrap();
    fs::write(folder.path("images/base"), vec![8; 1 << 16]).unwrap();
    symlink(folder.path("base"), folder.path("images/link")).unwrap();
    let beside = folder.create("images/a", 1 << 16, Some(("base", "raw")));
    let above = folder.create("images/b", 1 << 16, Some(("../base", "raw")));
    let link = folder.create("images/c", 1 << 16, Some(("link", "raw")));
    let password = folder.create("images/d", 1 << 16, Some(("/etc/passwd", "raw")));

    let refused = |path: &Path, trust| matches!(refusal(path, trust), OpenError::Backing { .. });
    for path in [&beside, &above, &link, &password] {
        assert!(refused(path, Trust::Nothing), "{path:?}");
    }
    for path in [&above, &link, &password] {
        assert!(refused(path, Trust::Beside), "{path:?}");
    }
    assert!(refused(&password, Trust::Below(folder.0.path().into())));
    open(&beside, Trust::Beside);
    for path in [&beside, &above, &link] {
        open(path, Trust::Below(folder.0.path().into()));
    }
    // As an operator says it.
    let spec: Spec = format!("qcow2:{}", beside.display()).parse().unwrap();
    assert!(spec.open::<Memory>(Access::ReadOnly).is_err());
    let spec: Spec = format!("overlay:{}", beside.display()).parse().unwrap();
    spec.open::<Memory>(Access::ReadOnly).unwrap();
    let name = format!("overlay={}:{}", folder.0.path().display(), above.display());
    name.parse::<Spec>()
        .unwrap()
        .open::<Memory>(Access::ReadOnly)
        .unwrap();
}

#[test]
fn the_format_of_a_base_is_never_guessed() {
    let folder = Folder::new();
    // Raw, whatever a guest has written into it.
    let hostile = folder.create("hostile", 1 << 16, Some(("/etc/passwd", "raw")));
    let path = folder.create("top", 1 << 16, Some(("hostile", "raw")));
    let image = open(&path, Trust::Beside);
    let mut queue = open_queue(&image);
    let first = Sectors { first: 0, count: 1 };
    assert_eq!(
        read(&mut queue, first).unwrap(),
        fs::read(&hostile).unwrap()[..512]
    );
    drop((queue, image));
    // Unsaid.
    let path = folder.name("unsaid");
    qemu_img(&["create", "-q", "-f", "qcow2", &path, "64k"]);
    qemu_img(&[
        "rebase", "-q", "-u", "-f", "qcow2", "-b", "hostile", "-F", "raw", &path,
    ]);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes
        .windows(4)
        .position(|at| at == 0xe279_2acau32.to_be_bytes())
        .unwrap();
    bytes[at..at + 4].copy_from_slice(&1u32.to_be_bytes());
    fs::write(&path, bytes).unwrap();
    let error = refusal(Path::new(&path), Trust::Beside);
    assert!(
        error.to_string().contains("does not say its format"),
        "{error}"
    );
}

#[test]
fn chains_that_have_no_end_are_refused() {
    let folder = Folder::new();
    // Each behind the other.
    let a = folder.create("a", 1 << 16, Some(("b", "qcow2")));
    folder.create("b", 1 << 16, Some(("a", "qcow2")));
    let error = Qcow2Image::open(&a, Access::ReadOnly, &Trust::Beside).unwrap_err();
    assert!(error.to_string().contains("behind itself"), "{error}");
    let own = folder.create("own", 1 << 16, Some(("own", "qcow2")));
    refusal(&own, Trust::Beside);
    // As many as may be, and one more.
    folder.create("0", 1 << 16, None);
    for i in 1..=17 {
        let below = (i - 1).to_string();
        folder.create(&i.to_string(), 1 << 16, Some((&below, "qcow2")));
    }
    open(&folder.path("16"), Trust::Beside);
    let too_many = |name| {
        let image = Qcow2Image::open(&folder.path(name), Access::ReadWrite, &Trust::Beside);
        let error = image.unwrap_err();
        assert!(error.to_string().contains("more than 16"), "{error}");
    };
    too_many("17");
    // Also if all but the last are open already.
    let held = Qcow2Image::open(&folder.path("16"), Access::ReadOnly, &Trust::Beside);
    let _held = held.unwrap();
    fs::copy(folder.path("17"), folder.path("again")).unwrap();
    too_many("again");
}

#[test]
fn a_base_cannot_be_written_while_it_is_behind_somebody() {
    let folder = Folder::new();
    let base = folder.create("base", 1 << 16, None);
    let tops: Vec<_> = (0..64)
        .map(|i| folder.create(&format!("top{i}"), 1 << 16, Some(("base", "qcow2"))))
        .collect();
    let images: Vec<_> = tops.iter().map(|top| open(top, Trust::Beside)).collect();
    assert!(matches!(
        refusal(&base, Trust::Nothing),
        OpenError::Busy { .. }
    ));
    let held = Command::new("qemu-img")
        .args(["snapshot", "-c", "s", base.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(!held.status.success(), "QEMU, too, finds it locked");
    // All work at once, and none sees another.
    let mut queues: Vec<_> = images.iter().map(|image| open_queue(image)).collect();
    for (i, queue) in queues.iter_mut().enumerate() {
        write(queue, 3, &[i as u8 + 1; SECTOR_SIZE]).unwrap();
    }
    for (i, queue) in queues.iter_mut().enumerate() {
        let three = Sectors { first: 3, count: 1 };
        assert_eq!(read(queue, three).unwrap(), [i as u8 + 1; SECTOR_SIZE]);
    }
    drop((queues, images));
    open(&base, Trust::Nothing);
}

#[test]
fn an_overlay_is_put_into_its_base() {
    let folder = Folder::new();
    for (base, format) in [("raw", "raw"), ("qcow2", "qcow2")] {
        let bytes = pattern(1 << 20, 3);
        fs::write(folder.path("source"), &bytes).unwrap();
        let source = folder.name("source");
        qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            format,
            &source,
            &folder.name(base),
        ]);
        let top = folder.create(&format!("top-{base}"), 2 << 20, Some((base, format)));
        let image = open(&top, Trust::Beside);
        let mut queue = open_queue(&image);
        write(&mut queue, 100, &pattern(300 * 512, 5)).unwrap();
        write(&mut queue, 3000, &pattern(512, 6)).unwrap();
        discard(
            &mut queue,
            Sectors {
                first: 1024,
                count: 256,
            },
        );
        let all = Sectors {
            first: 0,
            count: 4096,
        };
        let before = read(&mut queue, all).unwrap();
        drop((queue, image));
        assert!(matches!(
            qcow2::commit(&top, &Trust::Nothing, |_, _| {}),
            Err(OpenError::Backing { .. })
        ));
        let mut heard = 0;
        let into = qcow2::commit(&top, &Trust::Beside, |done, total| {
            assert!(done >= heard && total == 2 << 20);
            heard = done;
        });
        assert_eq!(into.unwrap(), folder.path(base));
        assert_eq!(heard, 2 << 20);
        is_sound(&top);
        // The base alone is now what the overlay showed, and the overlay shows no other.
        fs::write(folder.path("before"), &before).unwrap();
        for (path, format) in [(folder.path(base), format), (top.clone(), "qcow2")] {
            let path = path.to_str().unwrap();
            let text = qemu_img(&[
                "compare",
                "-f",
                "raw",
                "-F",
                format,
                &folder.name("before"),
                path,
            ]);
            assert!(text.contains("identical"), "{text}");
        }
        // It has nothing itself any more.
        let text = qemu_img(&["map", "--output=json", top.to_str().unwrap()]);
        assert!(
            !text.contains(r#""depth": 0, "present": true, "zero": false"#),
            "{text}"
        );
    }
}

#[test]
fn images_that_are_unsound_are_refused_in_one_line() {
    let folder = Folder::new();
    let sound = folder.create("sound", 1 << 20, None);
    {
        let image = open(&sound, Trust::Nothing);
        let mut queue = open_queue(&image);
        write(&mut queue, 0, &pattern(1 << 20, 1)).unwrap();
    }
    let bytes = fs::read(&sound).unwrap();
    for (name, len) in [
        ("empty", 0),
        ("few", 40),
        ("header", 104),
        ("tables", 200_000),
    ] {
        fs::write(folder.path(name), &bytes[..len]).unwrap();
        let error = refusal(&folder.path(name), Trust::Nothing);
        assert!(matches!(error, OpenError::Format { .. }), "{name}: {error}");
    }
    let error = refusal(&folder.path("none"), Trust::Nothing);
    assert!(matches!(error, OpenError::Missing(_)));
    assert!(matches!(
        refusal(folder.0.path(), Trust::Nothing),
        OpenError::NotADisk { .. }
    ));
    fs::write(folder.path("raw"), [0; 1 << 16]).unwrap();
    let error = refusal(&folder.path("raw"), Trust::Nothing);
    assert!(
        error.to_string().contains("does not begin like one"),
        "{error}"
    );
}

/// Tables that name what is not there, in any word.
#[test]
fn no_table_makes_us_panic_or_read_zeroes_for_what_is_gone() {
    let folder = Folder::new();
    let path = folder.create("a", 1 << 20, None);
    {
        let image = open(&path, Trust::Nothing);
        let mut queue = open_queue(&image);
        write(&mut queue, 0, &pattern(1 << 20, 1)).unwrap();
    }
    let len = fs::metadata(&path).unwrap().len();
    // Its data cut off, but not its tables.
    let file = File::options().write(true).open(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    file.set_len(len - (2 << 16)).unwrap();
    let image = open(&path, Trust::Nothing);
    let mut queue = open_queue(&image);
    let lost = (0..16).filter(|&i| {
        let sectors = Sectors {
            first: i * 128,
            count: 128,
        };
        match read(&mut queue, sectors) {
            Ok(bytes) => {
                assert!(bytes == pattern(1 << 20, 1)[i as usize * 65536..][..65536]);
                false
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
                true
            }
        }
    });
    assert_eq!(lost.count(), 2);
    drop((queue, image));
    // Every word of every table wrong in turn.
    for at in (0..6 << 16).step_by(8).filter(|at| at % 16384 < 64) {
        for word in [
            u64::MAX,
            1 << 63 | 512,
            1 << 62 | 0x10000,
            1 << 63 | 1 << 40,
        ] {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
            fs::write(&path, &bytes).unwrap();
            if let Ok(image) = Qcow2Image::open(&path, Access::ReadWrite, &Trust::Beside) {
                let mut queue = open_queue(&image);
                let some = Sectors {
                    first: 0,
                    count: 130,
                };
                let _ = read(&mut queue, some);
                let _ = write(&mut queue, 100, &[1; 40 * 512]);
            }
        }
        if at % 65536 == 0 {
            // The file had been grown by wrong tables.
            file.set_len(len).unwrap();
        }
    }
}

#[test]
fn a_full_file_system_is_an_error_of_the_write_and_of_no_other() {
    if !nix::unistd::geteuid().is_root() {
        return; // Only root mounts.
    }
    let folder = Folder::new();
    let room = folder.path("room");
    fs::create_dir(&room).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "none"])
        .arg(&room)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        return; // Nor may every root.
    }
    let path = folder.create("room/a", 16 << 20, None);
    let image = open(&path, Trust::Nothing);
    let mut queue = open_queue(&image);
    let chunk = pattern(1 << 16, 5);
    let mut written = Vec::new();
    let mut failed = 0;
    for i in 0..32 {
        match write(&mut queue, i * 128, &chunk) {
            Ok(()) => written.push(i),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(nix::libc::ENOSPC), "{error}");
                failed += 1;
            }
        }
    }
    assert!(failed > 0 && !written.is_empty());
    for i in &written {
        let sectors = Sectors {
            first: i * 128,
            count: 128,
        };
        assert!(read(&mut queue, sectors).unwrap() == chunk);
    }
    // What is forgotten makes room.
    discard(
        &mut queue,
        Sectors {
            first: 0,
            count: 256,
        },
    );
    write(&mut queue, 0, &chunk).unwrap();
    drop((queue, image));
    is_sound(&path);
    let _ = Command::new("umount").arg(&room).status();
}

#[test]
fn a_file_that_is_read_while_it_changes_is_somebody_elses() {
    let folder = Folder::new();
    let path = folder.create("a", 1 << 20, None);
    let image = open(&path, Trust::Nothing);
    assert!(matches!(
        refusal(&path, Trust::Nothing),
        OpenError::Busy { .. }
    ));
    // Though anybody may look at what it is.
    assert_eq!(qcow2::info(&path).unwrap().header.bytes, 1 << 20);
    drop(image);
    let reader = Qcow2Image::open(&path, Access::ReadOnly, &Trust::Nothing).unwrap();
    Qcow2Image::open(&path, Access::ReadOnly, &Trust::Nothing).unwrap();
    let mut queue = open_queue(&reader);
    let flush = Memory(Scratch::new(SECTOR_SIZE));
    run(&mut queue, Operation::Flush, flush).result.unwrap();
    assert!(Image::<Memory>::resize(&reader, 8).is_err());
    assert_eq!(Image::<Memory>::discard(&reader), None);
    let file = File::open(&path).unwrap();
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).unwrap();
    assert_eq!(&magic, b"QFI\xfb");
}

#[test]
fn snapshots_are_listed_as_qemu_made_them() {
    let folder = Folder::new();
    let path = folder.create("a", 1 << 20, None);
    let name = path.to_str().unwrap();
    for snapshot in ["first", "a second one, with a longer name"] {
        qemu_img(&["snapshot", "-c", snapshot, name]);
        qemu_img(&["resize", "-q", "-f", "qcow2", name, "+1M"]);
    }
    let info = qcow2::info(&path).unwrap();
    let snapshots = info.snapshots.iter();
    let snapshots: Vec<_> = snapshots.map(|s| (&*s.id, &*s.name, s.bytes)).collect();
    let second = "a second one, with a longer name";
    assert_eq!(snapshots, [("1", "first", 1 << 20), ("2", second, 2 << 20)]);
    assert_eq!(info.header.bytes, 3 << 20);
}

/// What a snapshot has is not ours to change.
#[test]
fn a_write_leaves_a_snapshot_as_it_is() {
    let folder = Folder::new();
    let path = folder.create("a", 1 << 20, None);
    let old = pattern(1 << 20, 1);
    write(&mut open_queue(&open(&path, Trust::Nothing)), 0, &old).unwrap();
    qemu_img(&["snapshot", "-c", "s", path.to_str().unwrap()]);
    {
        let image = open(&path, Trust::Nothing);
        let mut queue = open_queue(&image);
        write(&mut queue, 300, &pattern(900 * 512, 2)).unwrap();
        discard(
            &mut queue,
            Sectors {
                first: 1500,
                count: 500,
            },
        );
    }
    is_sound(&path);
    let raw = folder.name("raw");
    let path = path.to_str().unwrap();
    qemu_img(&["convert", "-l", "s", "-O", "raw", path, &raw]);
    assert!(fs::read(raw).unwrap() == old);
}

/// What QEMU finds in a snapshot.
fn of_snapshot(folder: &Folder, path: &Path, snapshot: &str) -> Vec<u8> {
    let raw = folder.name("of-snapshot");
    let _ = fs::remove_file(&raw);
    qemu_img(&[
        "convert",
        "-l",
        snapshot,
        "-O",
        "raw",
        path.to_str().unwrap(),
        &raw,
    ]);
    fs::read(raw).unwrap()
}

fn all_of(path: &Path) -> Vec<u8> {
    let image = open(path, Trust::Beside);
    let count = Image::<Memory>::sectors(&image);
    read(&mut open_queue(&image), Sectors { first: 0, count }).unwrap()
}

#[test]
fn snapshots_are_made_applied_and_deleted_as_qemu_understands_them() {
    let folder = Folder::new();
    let source = folder.name("source");
    fs::write(&source, pattern(1 << 20, 9)).unwrap();
    for options in [
        &["-o", "cluster_size=512"][..],
        &["-o", "compat=0.10"],
        &["-c"],
        &["-o", "refcount_bits=64"],
        &["-o", "refcount_bits=4,cluster_size=4k"],
    ] {
        let name = folder.name("image");
        let path = folder.path("image");
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2"];
        args.extend_from_slice(options);
        args.extend_from_slice(&[&source, &name]);
        qemu_img(&args);
        let scribble = |seed: u64| {
            let image = open(&path, Trust::Nothing);
            let mut queue = open_queue(&image);
            for i in 0..8 {
                write(
                    &mut queue,
                    (seed * 131 + i * 257) % 2000,
                    &pattern(40 * 512, seed),
                )
                .unwrap();
            }
        };
        let mut known = Vec::new();
        for (seed, snapshot) in [(1, "one"), (2, "two"), (3, "three")] {
            scribble(seed);
            snapshots::create(&path, snapshot).unwrap();
            is_sound(&path);
            known.push((snapshot, all_of(&path)));
        }
        assert!(snapshots::create(&path, "two").is_err());
        scribble(4);
        is_sound(&path);
        for (snapshot, bytes) in &known {
            assert!(
                &of_snapshot(&folder, &path, snapshot) == bytes,
                "{snapshot} {options:?}"
            );
        }
        snapshots::delete(&path, "one").unwrap();
        is_sound(&path);
        // QEMU's and ours take turns.
        qemu_img(&["snapshot", "-c", "theirs", &name]);
        let theirs = all_of(&path);
        snapshots::apply(&path, "two").unwrap();
        is_sound(&path);
        assert!(all_of(&path) == known[1].1);
        scribble(5);
        is_sound(&path);
        assert!(of_snapshot(&folder, &path, "two") == known[1].1);
        assert!(of_snapshot(&folder, &path, "theirs") == theirs);
        qemu_img(&["snapshot", "-d", "two", &name]);
        qemu_img(&["snapshot", "-a", "three", &name]);
        assert!(all_of(&path) == known[2].1);
        for snapshot in ["three", "theirs"] {
            snapshots::delete(&path, snapshot).unwrap();
            is_sound(&path);
        }
        assert!(all_of(&path) == known[2].1);
        assert!(snapshots::delete(&path, "three").is_err());
        assert!(qcow2::info(&path).unwrap().snapshots.is_empty());
        scribble(6);
        is_sound(&path);
    }
}

#[test]
fn a_snapshot_is_of_the_size_that_the_disk_had() {
    let folder = Folder::new();
    let path = folder.create("a", 1 << 20, None);
    let bytes = pattern(1 << 20, 4);
    write(&mut open_queue(&open(&path, Trust::Nothing)), 0, &bytes).unwrap();
    snapshots::create(&path, "small").unwrap();
    let resized = Image::<Memory>::resize(&open(&path, Trust::Nothing), (3 << 30) / 512);
    resized.unwrap();
    is_sound(&path);
    snapshots::create(&path, "large").unwrap();
    snapshots::apply(&path, "small").unwrap();
    is_sound(&path);
    assert!(all_of(&path) == bytes);
    snapshots::apply(&path, "large").unwrap();
    is_sound(&path);
    assert_eq!(qcow2::info(&path).unwrap().header.bytes, 3 << 30);
    let found = qcow2::info(&path).unwrap().snapshots;
    assert_eq!((found[0].bytes, found[1].bytes), (1 << 20, 3 << 30));
    // Nobody changes what somebody uses.
    let _reader = Qcow2Image::open(&path, Access::ReadOnly, &Trust::Nothing).unwrap();
    assert!(matches!(
        snapshots::delete(&path, "small"),
        Err(OpenError::Busy { .. })
    ));
}
