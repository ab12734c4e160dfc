//! Kernels that are none, and no KVM to run them. What is wrong with a kernel is found before
//! `/dev/kvm` is opened, so that it is told on any host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::{Refusal, SLUICE, Scene, refusal_of, status, with_mount};

/// Offsets in a bzImage (Linux, Documentation/arch/x86/boot.rst).
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const INITRD_ADDR_MAX: usize = 0x22c;
const XLOADFLAGS: usize = 0x236;
const INIT_SIZE: usize = 0x260;

/// The least that passes for a 64-bit bzImage: one sector of setup, 4 KiB of kernel.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024 + 4096];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(SETUP_SECTS, &[1]);
    put(SYSSIZE, &256_u32.to_le_bytes());
    put(MAGIC, b"HdrS");
    put(VERSION, &0x020f_u16.to_le_bytes());
    put(LOADFLAGS, &[1]);
    put(INITRD_ADDR_MAX, &0x7fff_ffff_u32.to_le_bytes());
    put(XLOADFLAGS, &1_u16.to_le_bytes());
    put(INIT_SIZE, &0x10_0000_u32.to_le_bytes());
    image
}

/// An ELF header for x86-64 with the program headers given as (type, offset, size).
fn elf(segments: &[(u32, u64, u64)]) -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(64, 0);
    image[16] = 2;
    image[18] = 62;
    image[32] = 64;
    image[54] = 56;
    image[56] = u8::try_from(segments.len()).unwrap();
    for (kind, offset, size) in segments {
        let mut header = [0; 56];
        header[0..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&offset.to_le_bytes());
        header[24..32].copy_from_slice(&0x10_0000_u64.to_le_bytes());
        header[32..40].copy_from_slice(&size.to_le_bytes());
        header[40..48].copy_from_slice(&size.to_le_bytes());
        image.extend(header);
    }
    image
}

#[track_caller]
fn boot(kernel: &str, arguments: &[&str]) -> Refusal {
    let mut command = vec![SLUICE, "--serial", "none", "-m", "64M", "--kernel", kernel];
    command.extend(arguments);
    refusal_of(&command)
}

#[test]
fn files_that_are_no_kernels() {
    let scene = Scene::new();
    let pipe = scene.text("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    fs::create_dir(scene.path("directory")).unwrap();
    let mut bzimage_32 = bzimage();
    bzimage_32[XLOADFLAGS] = 0;
    let mut bzimage_old = bzimage();
    bzimage_old[VERSION..VERSION + 2].copy_from_slice(&0x0204_u16.to_le_bytes());
    let mut elf_32 = elf(&[(1, 0, 64)]);
    elf_32[4] = 1;
    let mut elf_arm = elf(&[(1, 0, 64)]);
    elf_arm[18] = 183;
    let cases = [
        (scene.text("missing"), &["No such file"][..]),
        (scene.text("directory"), &["directory"]),
        (pipe, &["not a regular file"]),
        (
            scene.write("text", "#!/bin/sh\necho no kernel\n"),
            &["not a kernel"],
        ),
        (scene.write("empty", ""), &["not a kernel"]),
        (scene.write("zeroes", [0; 65536]), &["not a kernel"]),
        (scene.write("bzimage-old", bzimage_old), &["not a kernel"]),
        (scene.write("bzimage-32", bzimage_32), &["64-bit"]),
        (
            scene.write("bzimage-cut", &bzimage()[..1100]),
            &["cut off", "1100", "5120"],
        ),
        (
            scene.write("header-only", &bzimage()[..0x210]),
            &["not a kernel"],
        ),
        (scene.write("elf-32", elf_32), &["not a kernel"]),
        (scene.write("elf-arm", elf_arm), &["not a kernel"]),
        (
            scene.write("elf-cut", &elf(&[(1, 0, 64)])[..70]),
            &["not a kernel"],
        ),
        (scene.write("elf-nothing", elf(&[])), &["not a kernel"]),
        (scene.write("elf-no-note", elf(&[(1, 0, 64)])), &["PVH"]),
        (
            // Notes, but none of them PVH's: one whose sizes reach beyond all of them.
            scene.write("elf-notes", {
                let mut image = elf(&[(1, 0, 64), (4, 64 + 112, 32)]);
                image.extend([0xff; 32]);
                image
            }),
            &["PVH"],
        ),
        (
            scene.write("elf-short", elf(&[(1, 0, 1 << 20), (4, 0, 64)])),
            &["cut off", "1048576"],
        ),
        // The program itself: a proper ELF executable, but no kernel.
        (SLUICE.to_owned(), &["PVH"]),
    ];
    for (path, words) in cases {
        let refused = boot(&path, &[]);
        refused.expect(status::BOOT_IMAGE, words);
        refused.expect(status::BOOT_IMAGE, &["kernel", &path]);
    }
}

#[test]
fn no_kernel_at_all() {
    let refused = refusal_of(&[SLUICE, "--serial", "none"]);
    refused.expect(status::USAGE, &["--kernel", "nothing to boot"]);
    for option in ["--initrd", "--append"] {
        let refused = refusal_of(&[SLUICE, "--serial", "none", option, "x"]);
        refused.expect(status::USAGE, &[option, "--kernel"]);
    }
}

#[test]
fn what_the_kernel_does_not_get() {
    let scene = Scene::new();
    let kernel = scene.write("kernel", bzimage());
    let missing = scene.text("missing");
    let words = ["initrd", &missing, "No such file"];
    boot(&kernel, &["--initrd", &missing]).expect(status::BOOT_IMAGE, &words);

    let directory = scene.text("");
    let words = ["initrd", &directory, "directory"];
    boot(&kernel, &["--initrd", &directory]).expect(status::BOOT_IMAGE, &words);

    let large = scene.file("large", 64 << 20);
    let words = ["initrd", &large, "does not fit", "-m"];
    boot(&kernel, &["--initrd", &large]).expect(status::BOOT_IMAGE, &words);

    let line = "x".repeat(2048);
    boot(&kernel, &["--append", &line]).expect(status::BOOT_IMAGE, &["--append", "2048", "2047"]);
}

/// Runs `command` with a good kernel, which it must not get as far as to boot.
#[track_caller]
fn without_kvm(scene: &Scene, mut command: Vec<String>, words: &[&str]) {
    let kernel = scene.write("kernel", bzimage());
    command.extend(["--serial", "none", "--kernel", &kernel].map(str::to_owned));
    refusal_of(&command).expect(status::NO_KVM, words);
}

#[test]
fn no_kvm_to_run_it() {
    let scene = Scene::new();
    let hiding = "mount -t tmpfs none /dev";
    if let Some(command) = with_mount(hiding) {
        let words = ["/dev/kvm", "does not exist", "--accel qtest"];
        without_kvm(&scene, command, &words);
    }
    if !Path::new("/dev/kvm").exists() {
        println!("SKIPPED in part: there is no /dev/kvm to put something else in the place of");
        return;
    }
    if let Some(command) = with_mount("mount --bind /dev/null /dev/kvm") {
        without_kvm(&scene, command, &["/dev/kvm", "version"]);
    }
}

#[test]
fn kvm_that_is_not_for_everybody() {
    let scene = Scene::new();
    let Some(command) = scene.unprivileged() else {
        return;
    };
    let open_to_all = fs::metadata("/dev/kvm").map(|kvm| kvm.permissions().mode() & 0o006 != 0);
    let is_root = rustix::process::geteuid().is_root();
    if !is_root || open_to_all.unwrap_or(true) {
        println!("SKIPPED: /dev/kvm is missing, open to everybody, or perhaps to this user");
        return;
    }
    without_kvm(&scene, command, &["/dev/kvm", "may not be opened", "group"]);
}

#[test]
fn a_kernel_that_needs_more_memory() {
    let scene = Scene::new();
    let mut image = bzimage();
    image[INIT_SIZE..INIT_SIZE + 4].copy_from_slice(&(64_u32 << 20).to_le_bytes());
    let kernel = scene.write("kernel", image);
    boot(&kernel, &[]).expect(
        status::BOOT_IMAGE,
        &["kernel", &kernel, "does not fit", "-m"],
    );
}
