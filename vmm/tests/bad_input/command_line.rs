//! Command lines that contradict themselves or the manual.

use crate::harness::{Scene, refusal, status};

const NODE: [&str; 2] = ["--blockdev", "null-co,node-name=n"];
const OTHER_NODE: [&str; 2] = ["--blockdev", "null-co,node-name=m"];

/// Each with what the error names.
#[test]
fn unknown_words() {
    let scene = Scene::new();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--bogus"], &["--bogus", "--help"]),
        (&["-bogus"], &["--bogus", "--help"]),
        (&["--blockdve", "x"], &["--blockdve", "--blockdev"]),
        (&["-blockdve", "x"], &["--blockdve", "--blockdev"]),
        (&["stray"], &["stray"]),
        (&["--machine", "q35"], &["--machine", "q35"]),
        (
            &["--machine", "pc,ide=ahci"],
            &["--machine", "ahci", "piix3"],
        ),
        (&["--display", "gtk"], &["--display", "gtk", "none"]),
        (
            &["--blockdev", "tape,node-name=t"],
            &["--blockdev", "'tape'", "raw"],
        ),
        (
            &["--blockdev", "null-co,node-name=t,weight=3"],
            &["'weight'", "size"],
        ),
        (
            &["--device", "sb16"],
            &["--device", "'sb16'", "virtio-blk-pci"],
        ),
        (
            &["--device", "virtio-blk-pci,drive=x,colour=red"],
            &["'colour'", "drive"],
        ),
        (
            &["--device", "virtio-blk-pci,drive=nobody"],
            &["'nobody'", "--blockdev"],
        ),
        (
            &["--device", "ide-hd,drive=nobody"],
            &["'nobody'", "--blockdev"],
        ),
        (
            &["--object", "teapot,id=x"],
            &["--object", "teapot", "iothread"],
        ),
        (
            &["--object", "iothread,id=x,poll=1"],
            &["--object", "'poll'"],
        ),
        (
            &["--drive", "file=x,format=qcow2"],
            &["--drive", "'qcow2'", "raw"],
        ),
        (
            &["--drive", "file=x,format=raw,if=floppy"],
            &["'floppy'", "ide"],
        ),
        (&["--drive", "file=x,format=raw,speed=high"], &["'speed'"]),
        (&["--smp", "0"], &["--smp", "0", "254"]),
        (&["--smp", "255"], &["--smp", "255", "254"]),
        (&["--smp", "many"], &["--smp", "many"]),
    ];
    for (arguments, words) in cases {
        refusal(&scene, arguments).expect(status::USAGE, words);
    }
    let tcg = crate::harness::refusal_of(&[crate::harness::SLUICE, "--accel", "tcg"]);
    tcg.expect(status::USAGE, &["--accel", "tcg", "kvm"]);
    for place in ["vc", "file:"] {
        let arguments = ["--accel", "qtest", "--qtest", "unix:x", "--serial", place];
        let command: Vec<_> = std::iter::once(crate::harness::SLUICE)
            .chain(arguments)
            .collect();
        let refused = crate::harness::refusal_of(&command);
        refused.expect(status::USAGE, &["--serial", place, "stdio"]);
    }
}

#[test]
fn missing_words() {
    let scene = Scene::new();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--blockdev"], &["--blockdev", "value"]),
        (&["-blockdev"], &["--blockdev", "value"]),
        (
            &["--blockdev", "null-co"],
            &["--blockdev null-co", "'node-name'"],
        ),
        (
            &["--blockdev", "file,node-name=f"],
            &["'filename'", "missing"],
        ),
        (&["--blockdev", "raw,node-name=r"], &["'file'", "missing"]),
        (&["--blockdev", "node-name=r"], &["'driver'", "missing"]),
        (&["--device", ""], &["--device", "'driver'"]),
        (
            &["--device", "virtio-blk-pci"],
            &["drive property", "--drive"],
        ),
        (&["--object", "iothread"], &["'id'", "missing"]),
        (&["--drive", "format=raw,if=ide"], &["--drive", "file"]),
    ];
    for (arguments, words) in cases {
        refusal(&scene, arguments).expect(status::USAGE, words);
    }
}

#[test]
fn malformed_values() {
    let scene = Scene::new();
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["--blockdev", "null-co,node-name"],
            &["'node-name'", "key=value"],
        ),
        (&["--blockdev", "null-co,=x"], &["--blockdev null-co,=x"]),
        (
            &["--blockdev", "null-co,node-name=n,node-name=m"],
            &["node-name"],
        ),
        (&["--blockdev", "null-co,node-name=no good"], &["no good"]),
        (
            &["--blockdev", "null-co,node-name=n,size=large"],
            &["'size'"],
        ),
        (
            &["--blockdev", "null-co,node-name=n,read-only=perhaps"],
            &["'read-only'"],
        ),
        (
            &["--blockdev", "raw,node-name=n,file=f,file.driver=null-co"],
            &["file"],
        ),
        (
            &["--blockdev", "{\"driver\":\"null-co\""],
            &["--blockdev {", "JSON"],
        ),
        (&["--blockdev", "{driver:1}"], &["--blockdev {", "JSON"]),
        (&["--blockdev", "{} {}"], &["--blockdev {", "JSON"]),
        (
            &["--blockdev", "{\"driver\":7,\"node-name\":\"n\"}"],
            &["'driver'", "string"],
        ),
        (
            &[
                "--blockdev",
                "{\"driver\":\"null-co\",\"node-name\":\"n\",\"size\":\"1\"}",
            ],
            &["'size'"],
        ),
        (
            &["--object", "iothread,id=no good"],
            &["'id'", "identifier"],
        ),
        (
            &[
                NODE[0],
                NODE[1],
                "--device",
                "virtio-blk-pci,drive=n,addr=20",
            ],
            &["'addr'", "20"],
        ),
        (
            &[
                NODE[0],
                NODE[1],
                "--device",
                "virtio-blk-pci,drive=n,addr=5.8",
            ],
            &["'addr'", "5.8"],
        ),
        (
            &[
                NODE[0],
                NODE[1],
                "--device",
                "virtio-blk-pci,drive=n,bus=pci.7",
            ],
            &["pci.7"],
        ),
        (
            &[NODE[0], NODE[1], "--device", "ide-hd,drive=n,unit=2"],
            &["unit 2"],
        ),
        (
            &[NODE[0], NODE[1], "--device", "ide-hd,drive=n,bus=ide.2"],
            &["ide.2"],
        ),
        (
            &[
                NODE[0],
                NODE[1],
                "--device",
                "ide-hd,drive=n,serial=123456789012345678901",
            ],
            &["'serial'", "20"],
        ),
    ];
    for (arguments, words) in cases {
        refusal(&scene, arguments).expect(status::USAGE, words);
    }
}

#[test]
fn two_of_what_there_is_one_of() {
    let scene = Scene::new();
    let both = [NODE[0], NODE[1], OTHER_NODE[0], OTHER_NODE[1]];
    let with = |more: &[&'static str]| [&both[..], more].concat();
    let cases: &[(Vec<&str>, &[&str])] = &[
        (
            with(&[
                "--device",
                "ide-hd,drive=n,unit=1",
                "--device",
                "ide-hd,drive=m,unit=1",
            ]),
            &["drive=m", "unit 1", "in use"],
        ),
        (
            with(&[
                "--device",
                "virtio-blk-pci,drive=n,addr=5",
                "--device",
                "virtio-blk-pci,drive=m,addr=5",
            ]),
            &["drive=m", "slot 5", "in use"],
        ),
        (
            with(&["--device", "virtio-blk-pci,drive=n,addr=0"]),
            &["slot 0", "in use"],
        ),
        (
            with(&["--device", "virtio-blk-pci,drive=n,addr=1.1"]),
            &["addr=1.1", "in use"],
        ),
        (
            with(&[
                "--device",
                "ide-hd,drive=n",
                "--device",
                "virtio-blk-pci,drive=n",
            ]),
            &["'n'", "in use by another device"],
        ),
        (
            with(&[
                "--device",
                "ide-hd,drive=n,id=x",
                "--device",
                "ide-hd,drive=m,id=x",
            ]),
            &["Duplicate", "'x'"],
        ),
        (
            with(&["--device", "ide-hd,drive=n,id=m"]),
            &["m", "conflicting"],
        ),
        (with(&NODE), &["Duplicate", "'n'"]),
        (
            vec!["--object", "iothread,id=io", "--object", "iothread,id=io"],
            &["duplicate", "'io'"],
        ),
        (
            with(&["--device", "virtio-blk-pci,drive=n,iothread=io"]),
            &["'io'", "--object iothread,id=io"],
        ),
        (
            vec![
                "--drive",
                "file=/x,format=raw,if=ide,index=0",
                "--drive",
                "file=/y,format=raw,if=ide,bus=0,unit=0",
            ],
            &["file=/y", "bus 0, unit 0", "in use"],
        ),
        (
            vec![
                "--drive",
                "file=/x,format=raw,if=virtio,id=d",
                "--drive",
                "file=/y,format=raw,if=virtio,id=d",
            ],
            &["file=/y", "Duplicate", "'d'"],
        ),
        (
            vec![
                "--drive",
                "file=/x,format=raw,if=ide,id=d",
                "--device",
                "virtio-blk-pci,drive=d",
            ],
            &["'d'", "in use", "if=none"],
        ),
        (vec!["-m", "64", "-m", "128"], &["memory", "multiple times"]),
        (
            vec!["--name", "a", "-name", "b"],
            &["--name", "multiple times"],
        ),
    ];
    for (arguments, words) in cases {
        refusal(&scene, arguments).expect(status::USAGE, words);
    }
}

/// A fifth disk for four places.
#[test]
fn more_disks_than_the_controller_has_places() {
    let scene = Scene::new();
    let nodes = ["a", "b", "c", "d", "e"];
    let mut arguments = Vec::new();
    for node in nodes {
        arguments.extend(["--blockdev".to_owned(), format!("null-co,node-name={node}")]);
        arguments.extend(["--device".to_owned(), format!("ide-hd,drive={node}")]);
    }
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    refusal(&scene, &arguments).expect(status::USAGE, &["drive=e", "IDE"]);
}

#[test]
fn contradictions() {
    let scene = Scene::new();
    let refused = crate::harness::refusal_of(&[crate::harness::SLUICE, "--accel", "qtest"]);
    refused.expect(status::USAGE, &["--accel qtest", "--qtest"]);
    let refused =
        crate::harness::refusal_of(&[crate::harness::SLUICE, "--kernel", "x", "--qtest", "unix:x"]);
    refused.expect(status::USAGE, &["--qtest", "--accel qtest"]);
    let cases: &[(&[&str], &[&str])] = &[
        (&["--initrd", "x"], &["--initrd", "--kernel"]),
        (&["--append", "x"], &["--append", "--kernel"]),
        (
            &["--drive", "file=/x,format=raw,if=virtio,bus=0"],
            &["file=/x", "bus"],
        ),
    ];
    for (arguments, words) in cases {
        refusal(&scene, arguments).expect(status::USAGE, words);
    }
}
