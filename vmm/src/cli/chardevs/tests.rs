//! Character devices on the command line, and what stands on them.

use std::ffi::OsString;

use super::*;
use crate::chardev::SocketEnd::{Client, Found, Server};
use crate::cli::{CommandLine, Refusal, parse as parse_line};
use crate::machine::config::{AcceleratorConfig, MachineKind, SerialConfig};
use crate::qtest::QtestLog;

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn accepted(line: &str) -> CommandLine {
    parse_line(words(line)).unwrap_or_else(|refusal| panic!("{line}: {refusal}"))
}

fn refused(line: &str) -> String {
    match parse_line(words(line)) {
        Err(Refusal::Usage(text)) => text,
        other => panic!("{line}: {other:?}"),
    }
}

fn socket(address: SocketAddress, end: SocketEnd, wait: bool) -> Backend {
    Backend::Socket(SocketConfig { address, end, wait })
}

fn inet(port: u16) -> SocketAddress {
    let host = "127.0.0.1".to_owned();
    SocketAddress::Inet { host, port }
}

/// What libqtest starts a machine with, word for word.
#[test]
fn libqtests_own_arguments_are_taken() {
    let parsed = accepted(
        "-trace x -qtest unix:/p -qtest-log /dev/null -chardev socket,path=/q,id=char0 \
         -mon chardev=char0,mode=control -display none -audio none -machine none -nodefaults \
         -no-shutdown -vga none -net none -S -accel qtest",
    );
    assert_eq!(parsed.machine.kind, MachineKind::None);
    assert!(parsed.machine.no_shutdown && parsed.machine.start_paused);
    let AcceleratorConfig::Qtest(qtest) = &parsed.machine.accelerator else {
        panic!("{parsed:?}");
    };
    assert_eq!(qtest.chardev.as_deref(), Some("qtest"));
    assert_eq!(qtest.log, QtestLog::File("/dev/null".into()));
    let expected = [
        (
            "char0",
            socket(SocketAddress::Unix("/q".into()), Client, false),
        ),
        (
            "qtest",
            socket(SocketAddress::Unix("/p".into()), Client, false),
        ),
    ];
    let found: Vec<_> = parsed
        .chardevs
        .iter()
        .map(|chardev| (chardev.id.as_str(), chardev.backend.clone()))
        .collect();
    assert_eq!(found, expected);
    let monitor = MonitorConfig {
        chardev: "char0".to_owned(),
        mode: MonitorMode::Control { pretty: false },
    };
    assert_eq!(parsed.monitors, [monitor]);
}

#[test]
fn places_have_long_and_short_forms() {
    let unix = || SocketAddress::Unix("/s".into());
    let cases = [
        (
            "-chardev socket,id=c,path=/s",
            socket(unix(), Client, false),
        ),
        (
            "-chardev socket,id=c,path=/s,server=on",
            socket(unix(), Server, true),
        ),
        (
            "-chardev socket,id=c,path=/s,server,nowait",
            socket(unix(), Server, false),
        ),
        (
            "-chardev socket,id=c,fd=7",
            socket(SocketAddress::Descriptor(7), Client, false),
        ),
        (
            "-chardev socket,id=c,port=7,server=on,wait=off",
            socket(inet(7), Server, false),
        ),
        ("-chardev stdio,id=c", Backend::Stdio),
        ("-chardev null,id=c", Backend::Null),
        ("-qmp unix:/s", socket(unix(), Found, false)),
        ("-qmp unix:/s,wait=off", socket(unix(), Server, false)),
        ("-qmp-pretty unix:/s", socket(unix(), Found, false)),
        ("-monitor unix:/s", socket(unix(), Server, false)),
        ("-qmp unix:path=/s,wait=on", socket(unix(), Server, true)),
        ("-qmp unix:/s,server=off", socket(unix(), Client, false)),
        ("-qmp tcp:127.0.0.1:7", socket(inet(7), Server, false)),
        ("-qmp tcp::7,server=off", socket(inet(7), Client, false)),
        ("-qmp stdio", Backend::Stdio),
        ("-monitor null", Backend::Null),
        ("-qtest unix:/s", socket(unix(), Client, false)),
    ];
    for (option, backend) in cases {
        let parsed = accepted(&format!("-accel qtest -monitor null {option}"));
        let last = parsed
            .chardevs
            .iter()
            .find(|chardev| chardev.backend != Backend::Null)
            .or(parsed.chardevs.first());
        assert_eq!(last.unwrap().backend, backend, "{option}");
    }
}

#[test]
fn several_monitors_stand_on_devices_of_their_own() {
    let parsed = accepted(
        "-accel qtest -chardev socket,id=a,path=/a -chardev null,id=b -chardev null,id=t \
         -mon a,mode=control,pretty=on -mon b -qmp-pretty unix:/q -monitor none -qtest chardev:t",
    );
    let found: Vec<_> = parsed
        .monitors
        .iter()
        .map(|monitor| (monitor.chardev.as_str(), monitor.mode))
        .collect();
    let pretty = MonitorMode::Control { pretty: true };
    let expected = [
        ("compat_monitor0", pretty),
        ("a", pretty),
        ("b", MonitorMode::Readline),
    ];
    assert_eq!(found, expected);
}

#[test]
fn the_serial_port_leaves_standard_input_to_others() {
    let kvm = "--kernel k";
    let serial = |line: &str| accepted(line).machine.serial;
    assert_eq!(serial(kvm), SerialConfig::Stdio);
    assert_eq!(serial(&format!("{kvm} -qmp stdio")), SerialConfig::Null);
    assert_eq!(serial("-accel qtest -qtest unix:/t"), SerialConfig::Null);
    let text = refused(&format!("{kvm} -qmp stdio -serial stdio"));
    assert!(text.contains("multiple character devices"), "{text}");
}

#[test]
fn refusals_say_what_is_wrong() {
    let cases: &[(&str, &[&str])] = &[
        ("-chardev socket,path=/a", &["'id' is missing"]),
        ("-chardev socket,id=a", &["'path' is missing"]),
        ("-chardev socket,id=a,path=/a,port=1", &["one address"]),
        ("-chardev pipe,id=a", &["'pipe'", "socket"]),
        (
            "-chardev null,id=a -chardev null,id=a",
            &["'a' already exists"],
        ),
        ("-chardev socket,id=a,path=/a,wait=on", &["client sockets"]),
        ("-mon a", &["\"a\" not found", "--chardev"]),
        (
            "-mon chardev=a,mode=x -chardev null,id=a",
            &["'x'", "control"],
        ),
        ("-chardev null,id=a -mon a -mon a", &["'a' is in use"]),
        ("-chardev null,id=a -mon a,pretty=on", &["'pretty'", "HMP"]),
        ("-qmp tcp:here", &["HOST:PORT"]),
        ("-qmp tcp:here:http", &["'http'", "port"]),
        ("-qmp pty", &["'pty'", "unix:PATH"]),
        ("-qmp stdio -monitor stdio", &["multiple character devices"]),
        ("-uuid 1-2", &["--uuid", "wrong format"]),
        ("-vga std", &["--vga std", "'std'", "none"]),
        ("-nic user,id=n", &["--nic", "'user'"]),
        (
            "-machine none -device ide-hd,drive=x",
            &["No 'IDE' bus", "pc"],
        ),
    ];
    for (line, expected) in cases {
        let text = refused(&format!("-accel qtest -qtest unix:/t {line}"));
        for part in *expected {
            assert!(text.contains(part), "{line}: {text}");
        }
    }
}

#[test]
fn globals_are_what_devices_do_not_say() {
    let parsed = accepted(
        "-accel qtest -qtest unix:/t -global ide-hd.serial=s1 -global \
         driver=ide-hd,property=ver,value=v1 -global ide-cd.serial=c -global sb16.irq=5 \
         -drive file=/a,format=raw -blockdev null-co,node-name=n -device ide-hd,drive=n,serial=own",
    );
    let serials: Vec<_> = parsed
        .storage
        .disks
        .iter()
        .map(|disk| (disk.serial.as_deref(), disk.ide.version.as_deref()))
        .collect();
    assert_eq!(
        serials,
        [(Some("s1"), Some("v1")), (Some("own"), Some("v1"))]
    );
    let [unused, unknown] = parsed.warnings.as_slice() else {
        panic!("{:?}", parsed.warnings);
    };
    assert!(
        unused.contains("global ide-cd.serial=c not used"),
        "{unused}"
    );
    assert!(
        unknown.contains("global sb16.irq has invalid class name"),
        "{unknown}"
    );
    let text = refused("-accel qtest -qtest unix:/t -global ide-hd.x=1 -drive file=/a,format=raw");
    assert!(text.contains("'x' is unexpected"), "{text}");
}

#[test]
fn lists_are_shown_when_asked_for() {
    let cases = [
        ("-machine help", "pc                   PC"),
        ("-M help", "alias of pc-i440fx-10.0"),
        ("-device help", "name \"virtio-blk-pci\", bus PCI"),
        ("-drive format=help", "Supported formats: raw\n"),
        ("-accel help", "qtest"),
        ("-object help", "throttle-group"),
        ("-chardev help", "socket"),
    ];
    for (line, part) in cases {
        match parse_line(words(line)) {
            Err(Refusal::Information(text)) => assert!(text.contains(part), "{line}: {text}"),
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn images_may_be_named_by_their_protocol() {
    let root = |drive: &str| {
        let parsed = accepted(&format!("-accel qtest -qtest unix:/t -drive {drive}"));
        let disk = parsed.storage.disks.into_iter().next().unwrap();
        let crate::storage::DiskRoot::Own(node) = disk.root else {
            panic!("{drive}: no node of its own");
        };
        serde_json::to_value(node).unwrap()["file"].clone()
    };
    assert_eq!(root("file=/a,format=raw")["filename"], "/a");
    assert_eq!(root("file=file:/a:b,format=raw")["filename"], "/a:b");
    assert_eq!(root("file=./nbd:x,format=raw")["filename"], "./nbd:x");
    for name in ["nbd:x", "blkdebug::nbd:x"] {
        let said = refused(&format!(
            "-accel qtest -qtest unix:/t -drive file={name},format=raw"
        ));
        assert!(
            said.contains("Unknown protocol 'nbd'; write './nbd:x'"),
            "{said}"
        );
    }
    let faulty = root("file=blkdebug:/rules:/a,format=raw,readonly=on");
    assert_eq!(faulty["config"], "/rules");
    assert_eq!(faulty["image"]["filename"], "/a");
    assert_eq!(root("file=blkdebug::/a,format=raw")["driver"], "blkdebug");
    // The engine is that of the file, wherever it is.
    assert_eq!(root("file=/a,format=raw,aio=threads")["aio"], "threads");
    let nested = root("file=blkdebug::blkdebug::/a,format=raw,aio=threads");
    assert_eq!(nested["image"]["image"]["aio"], "threads");
    assert!(nested["image"].get("aio").is_none());
    let own = root("file=/a,file.aio=io_uring,format=raw,aio=threads");
    assert_eq!(own["aio"], "io_uring");
    let none = root("file=blkdebug::null-co://,format=raw,aio=threads");
    assert_eq!(none["image"]["driver"], "null-co");
    let zeroes = root("file=null-co://,file.read-zeroes=on,format=raw,auto-read-only=off");
    assert_eq!(zeroes["driver"], "null-co");
    assert_eq!(zeroes["read-zeroes"], true);
    assert_eq!(
        root("file.driver=null-co,file.size=1M,format=raw")["size"],
        1 << 20
    );
}
