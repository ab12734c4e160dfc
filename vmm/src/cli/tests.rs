//! Tests of the command line as a whole.

use std::ffi::OsString;
use std::path::Path;

use sluice_block::backend::ErrorPolicy;
use sluice_block::job::OnError;

use super::{CommandLine, MonitorConfig, PiixModel, Refusal, parse};
use crate::chardev::{Backend, SocketAddress, SocketConfig, SocketEnd};
use crate::exit::ExitStatus;
use crate::machine::config::{AcceleratorConfig, MIB, QtestConfig, SerialConfig};
use crate::qmp::MonitorMode;
use crate::qtest::QtestLog;
use crate::storage::{
    Attachment, DiskRoot, IdePosition, IoThreadConfig, LooseDeviceDefaults, LooseDriveConfig,
    PciAddress, VirtioBlkProperties, VirtioDiskConfig,
};

/// Splits at blanks; none of the tests needs a blank in an argument.
fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn accepted(line: &str) -> CommandLine {
    parse(words(line)).unwrap_or_else(|refusal| panic!("{line}: {refusal}"))
}

pub(super) fn with_kernel(line: &str) -> CommandLine {
    accepted(&format!("--kernel k {line}"))
}

pub(super) fn refused(line: &str) -> String {
    let refusal = parse(words(line)).expect_err(line);
    assert_eq!(refusal.status(), ExitStatus::Usage);
    refusal.to_string()
}

/// A virtio disk that nothing is said about, on one processor.
fn one_queue() -> VirtioDiskConfig {
    VirtioDiskConfig {
        iothreads: Vec::new(),
        address: None,
        num_queues: 1,
        properties: VirtioBlkProperties::default(),
    }
}

pub(super) const BLOCKDEV: &str = "--blockdev raw,node-name=d0,file.driver=file,file.filename=/img";

#[test]
fn one_dash_and_two_mean_the_same() {
    let line = "kernel k X-initrd i X-append -x X-m 1G X-smp 2 X-name n X-no-reboot X-S \
                X-serial null X-machine pc,ide=piix4 X-accel kvm X-display none X-nodefaults \
                X-qmp unix:/q,server=on,wait=off";
    for dashes in ["-", "--"] {
        let line = format!("{dashes}{}", line.replace("X-", dashes));
        let parsed = accepted(&line);
        let boot = parsed.machine.boot.unwrap();
        assert_eq!(boot.kernel, Path::new("k"));
        assert_eq!(boot.initrd.as_deref(), Some(Path::new("i")));
        assert_eq!(boot.append, "-x");
        assert_eq!(parsed.machine.memory, 1024 * MIB);
        assert_eq!(parsed.machine.cpus.get(), 2);
        assert_eq!(parsed.machine.name.as_deref(), Some("n"));
        assert!(parsed.machine.no_reboot && parsed.machine.start_paused);
        assert_eq!(parsed.machine.serial, SerialConfig::Null);
        assert_eq!(parsed.piix, PiixModel::Piix4);
        assert_eq!(parsed.machine.accelerator, AcceleratorConfig::Kvm);
        let socket = SocketConfig {
            address: SocketAddress::Unix("/q".into()),
            end: SocketEnd::Server,
            wait: false,
        };
        assert_eq!(parsed.chardevs[0].backend, Backend::Socket(socket));
        let monitor = MonitorConfig {
            chardev: parsed.chardevs[0].id.clone(),
            mode: MonitorMode::Control { pretty: false },
        };
        assert_eq!(parsed.monitors, [monitor]);
    }
}

#[test]
fn a_value_that_looks_like_an_option_stays_a_value() {
    let parsed = accepted("-kernel k -append -smp -M pc");
    assert_eq!(parsed.machine.boot.unwrap().append, "-smp");
}

#[test]
fn memory_sizes() {
    for (text, mib) in [
        ("512", 512),
        ("512M", 512),
        ("2G", 2048),
        ("size=1G", 1024),
        ("0x2M", 2),
    ] {
        assert_eq!(
            with_kernel(&format!("-m {text}")).machine.memory,
            mib * MIB,
            "for {text}"
        );
    }
    for text in [
        "0",
        "1",
        "1.5",
        "12Q",
        "100k",
        "99999999999999999999",
        "size=",
        "maxmem=2G",
    ] {
        let message = refused(&format!("--kernel k -m {text}"));
        assert!(message.contains("-m "), "{message}");
    }
}

#[test]
fn defaults() {
    let parsed = with_kernel("");
    assert_eq!(parsed.machine.memory, 256 * MIB);
    assert_eq!(parsed.machine.cpus.get(), 1);
    assert_eq!(parsed.machine.serial, SerialConfig::Stdio);
    assert_eq!(parsed.piix, PiixModel::Piix3);
    assert!(parsed.storage.disks.is_empty() && parsed.monitors.is_empty());
    assert_eq!(
        with_kernel("--nodefaults").machine.serial,
        SerialConfig::None
    );
}

#[test]
fn a_drive_is_a_node_and_a_device() {
    let parsed =
        with_kernel("--drive file=/a,,b,format=raw --drive file=/v,if=virtio,id=vd,cache=none");
    let [ide, virtio] = parsed.storage.disks.as_slice() else {
        panic!("{:?}", parsed.storage);
    };
    assert_eq!(ide.backend, "ide0-hd0");
    assert_eq!(
        ide.attachment,
        Attachment::Ide(IdePosition {
            channel: 0,
            unit: 0
        })
    );
    assert!(ide.write_cache);
    assert_eq!(virtio.backend, "vd");
    let anywhere = Attachment::VirtioPci(one_queue());
    assert_eq!(virtio.attachment, anywhere);
    assert!(parsed.storage.nodes.is_empty(), "a drive's node is its own");
}

#[test]
fn a_device_says_more_about_errors_than_its_drive() {
    let parsed = with_kernel(
        "--drive file=a,if=virtio,werror=stop,detect-zeroes=on \
         --drive file=b,if=none,id=b,rerror=stop,werror=ignore,cache=writethrough \
         --device virtio-blk-pci,drive=b,werror=report \
         --blockdev null-co,node-name=n --device ide-hd,drive=n,write-cache=off",
    );
    let [first, second, third] = parsed.storage.disks.as_slice() else {
        panic!("{:?}", parsed.storage);
    };
    assert_eq!(first.errors, ErrorPolicy::new(OnError::Auto, OnError::Stop));
    let both = ErrorPolicy::new(OnError::Stop, OnError::Report);
    assert_eq!((second.errors, second.write_cache), (both, false));
    assert_eq!(
        (third.errors, third.write_cache),
        (ErrorPolicy::default(), false)
    );
    assert!(refused("--drive file=a,werror=nonsense").contains("nonsense"));
}

#[test]
fn ide_disks_find_their_places() {
    let parsed = with_kernel(
        "--drive file=a,index=1 --drive file=b --drive file=c,bus=1,unit=1 --drive file=d",
    );
    let places: Vec<_> = parsed
        .storage
        .disks
        .iter()
        .map(|disk| match &disk.attachment {
            Attachment::Ide(place) => (place.channel, place.unit),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(places, [(0, 1), (0, 0), (1, 1), (1, 0)]);
}

#[test]
fn devices_stand_on_nodes_and_drives() {
    let parsed = with_kernel(&format!(
        "--object iothread,id=io0 {BLOCKDEV} --drive file=b,if=none,id=x,readonly=on,serial=S1 \
         --device virtio-blk-pci,drive=d0,iothread=io0,id=v,addr=0x5 \
         --device ide-hd,drive=x,bus=ide.1,unit=0 --device isa-debug-exit,iobase=0xf4,iosize=4"
    ));
    assert_eq!(parsed.storage.iothreads[0].id, "io0");
    let [virtio, ide] = parsed.storage.disks.as_slice() else {
        panic!("{:?}", parsed.storage);
    };
    assert_eq!(virtio.backend, "v");
    assert_eq!(virtio.root, DiskRoot::Named("d0".into()));
    assert_eq!(virtio.id.as_deref(), Some("v"));
    let address = PciAddress {
        slot: 5,
        function: 0,
    };
    let place = Attachment::VirtioPci(VirtioDiskConfig {
        iothreads: vec!["io0".into()],
        address: Some(address),
        ..one_queue()
    });
    assert_eq!(virtio.attachment, place);
    assert_eq!(ide.backend, "x");
    assert_eq!(
        ide.attachment,
        Attachment::Ide(IdePosition {
            channel: 1,
            unit: 0
        })
    );
    assert_eq!(ide.serial.as_deref(), Some("S1"));
    let debug_exit = parsed.machine.debug_exit.unwrap();
    assert_eq!((debug_exit.iobase, debug_exit.iosize), (0xf4, 4));
}

#[test]
fn drives_that_no_device_uses_are_disks_all_the_same() {
    let parsed = with_kernel("--drive if=none,id=z,file=a,index=3");
    let [loose] = parsed.storage.loose_drives.as_slice() else {
        panic!("{:?}", parsed.storage);
    };
    assert_eq!(loose.id, "z");
    assert!(matches!(loose.root, DiskRoot::Own(_)));
    assert!(parsed.storage.disks.is_empty());
}

#[test]
fn drives_may_be_empty_or_hold_what_is_never_written() {
    let parsed = with_kernel(
        "--drive if=none,id=cd0,media=cdrom --drive if=none,id=stick \
         --drive if=none,id=ro,readonly=on --drive if=none,id=x,file=b,media=cdrom \
         --device virtio-blk-pci,drive=x",
    );
    let empty = |id: &str, read_only| LooseDriveConfig {
        id: id.to_owned(),
        root: DiskRoot::Empty,
        read_only,
        limits: None,
        device: LooseDeviceDefaults {
            write_cache: true,
            rerror: OnError::Auto,
            werror: OnError::Auto,
            serial: None,
        },
    };
    let expected = [empty("cd0", true), empty("ro", true), empty("stick", false)];
    assert_eq!(parsed.storage.loose_drives, expected);
    let [disk] = parsed.storage.disks.as_slice() else {
        panic!("{:?}", parsed.storage);
    };
    let DiskRoot::Own(medium) = &disk.root else {
        panic!("{disk:?}");
    };
    let medium = serde_json::to_value(medium).unwrap();
    assert_eq!(medium["read-only"], true);
    assert_eq!(medium["file"]["read-only"], true);
}

#[test]
fn cd_rom_drives_may_be_empty_or_hold_what_is_never_written() {
    let parsed = with_kernel(
        "--drive if=none,id=cd0 --drive media=cdrom,file=c.iso \
         --cdrom a,b.iso --device ide-cd,drive=cd0,bus=ide.1,unit=1 \
         --device ide-cd,id=dev,rerror=stop",
    );
    let disks = &parsed.storage.disks;
    let places: Vec<_> = disks
        .iter()
        .map(|disk| (&*disk.backend, &disk.attachment))
        .collect();
    let at = |channel, unit| Attachment::IdeCd(IdePosition { channel, unit });
    let expected = [
        ("ide0-cd0", &at(0, 0)),
        ("ide1-cd0", &at(1, 0)),
        ("cd0", &at(1, 1)),
        ("dev", &at(0, 1)),
    ];
    assert_eq!(places, expected);
    let [first, cdrom, drive, device] = disks.as_slice() else {
        panic!("{disks:?}");
    };
    for (disk, file) in [(first, "c.iso"), (cdrom, "a,b.iso")] {
        let DiskRoot::Own(medium) = &disk.root else {
            panic!("{disk:?}");
        };
        let medium = serde_json::to_value(medium).unwrap();
        assert_eq!(medium["read-only"], true);
        assert_eq!(medium["file"]["filename"], file);
    }
    assert_eq!(drive.root, DiskRoot::Empty);
    assert_eq!(device.root, DiskRoot::Empty);
    assert!(parsed.storage.loose_drives.is_empty());
}

#[test]
fn a_drive_may_copy_what_it_reads() {
    let parsed = with_kernel("--drive file=a,node-name=n,copy-on-read=on,discard=unmap");
    let DiskRoot::Own(root) = &parsed.storage.disks[0].root else {
        panic!("{:?}", parsed.storage);
    };
    let root = serde_json::to_value(root).unwrap();
    assert_eq!(root["driver"], "copy-on-read");
    assert_eq!(root["discard"], "unmap");
    assert_eq!(root["file"]["driver"], "raw");
    assert_eq!(root["file"]["node-name"], "n");
    let text = refused("--kernel k --drive file=a,copy-on-read=on,readonly=on");
    assert!(text.contains("needs a drive that can be written"), "{text}");
}

#[test]
fn a_drive_says_which_engine_serves_its_file() {
    for (given, engine) in [
        (",aio=threads", "threads"),
        (",aio=io_uring", "io_uring"),
        ("", "io_uring"),
    ] {
        let parsed = with_kernel(&format!("--drive file=a{given}"));
        let DiskRoot::Own(root) = &parsed.storage.disks[0].root else {
            panic!("{:?}", parsed.storage);
        };
        let root = serde_json::to_value(root).unwrap();
        assert_eq!(root["file"]["aio"], engine, "{root}");
    }
    let text = refused("--kernel k --drive file=a,aio=native");
    assert!(
        text.contains("native") && text.contains("io_uring"),
        "{text}"
    );
}

#[test]
fn no_read_fails_for_want_of_room() {
    let text = refused("--kernel k --drive file=a,rerror=enospc");
    assert!(
        text.contains("'enospc' invalid read error action"),
        "{text}"
    );
    with_kernel("--drive file=a,werror=enospc,rerror=auto");
}

#[test]
fn a_drive_that_says_nothing_of_errors_stops_the_machine_for_want_of_room() {
    let parsed = with_kernel(
        "--drive file=a --drive file=b,if=virtio --drive media=cdrom,file=c \
         --drive file=d,if=none,id=d --device ide-hd,drive=d --drive file=e,rerror=stop",
    );
    let policies: Vec<_> = parsed
        .storage
        .disks
        .iter()
        .map(|disk| disk.errors)
        .collect();
    let default = ErrorPolicy::new(OnError::Report, OnError::Enospc);
    let read_stops = ErrorPolicy::new(OnError::Stop, OnError::Enospc);
    assert_eq!(policies, [default, default, default, read_stops, default]);
}

#[test]
fn iothreads_have_properties() {
    let parsed = with_kernel(
        "--object iothread,id=io0 \
         --object iothread,id=io1,poll-max-ns=5000,poll-grow=3,poll-shrink=4,aio-max-batch=8,\
         thread-pool-min=1,thread-pool-max=2",
    );
    let [plain, given] = parsed.storage.iothreads.as_slice() else {
        panic!("{:?}", parsed.storage);
    };
    assert_eq!(*plain, IoThreadConfig::new("io0"));
    let expected = IoThreadConfig {
        poll_max_ns: 5000,
        poll_grow: 3,
        poll_shrink: 4,
        aio_max_batch: 8,
        thread_pool_min: 1,
        thread_pool_max: 2,
        ..IoThreadConfig::new("io1")
    };
    assert_eq!(*given, expected);
    for (properties, problem) in [
        ("poll-max-ns=-1", "poll-max-ns value must be in range"),
        ("poll-max-ns=soon", "poll-max-ns"),
        (
            "thread-pool-min=65",
            "bad thread-pool-min/thread-pool-max values",
        ),
        ("poll-weight=1", "poll-weight"),
    ] {
        let line = format!("--kernel k --object iothread,id=io0,{properties}");
        let refusal = refused(&line);
        assert!(refusal.contains(problem), "{refusal}");
    }
}

#[test]
fn throttle_groups_have_limits_and_names_of_their_own() {
    let parsed = with_kernel(
        "--object throttle-group,id=g,limits.bps-total=50M,x-iops-read=7 --object iothread,id=io0 \
         --blockdev throttle,node-name=t,throttle-group=g,file.driver=null-co",
    );
    let [group] = parsed.storage.throttle_groups.as_slice() else {
        panic!("{:?}", parsed.storage);
    };
    assert_eq!(group.id, "g");
    assert_eq!(
        (group.limits.bps_total, group.limits.iops_read),
        (50 << 20, 7)
    );
}

#[test]
fn json_is_as_good_as_pairs() {
    let arguments = [
        "--kernel",
        "k",
        "--blockdev",
        "{'driver': 'raw', 'node-name': 'd0', 'file': {'driver': 'file', 'filename': '/a b'}}",
        "--device",
        r#"{"driver": "ide-hd", "drive": "d0", "unit": 1}"#,
    ];
    let parsed = parse(arguments.map(OsString::from)).unwrap();
    let place = Attachment::Ide(IdePosition {
        channel: 0,
        unit: 1,
    });
    assert_eq!(parsed.storage.disks[0].attachment, place);
}

#[test]
fn qtest_needs_no_kernel() {
    let parsed = accepted("--accel qtest --qtest unix:/t,server=on");
    let expected = QtestConfig {
        chardev: Some("qtest".to_owned()),
        log: QtestLog::Stderr,
    };
    assert_eq!(
        parsed.machine.accelerator,
        AcceleratorConfig::Qtest(expected)
    );
    assert!(parsed.machine.boot.is_none());
}

/// As scripts of QEMU's put lines together.
#[test]
fn what_says_the_same_twice_is_no_contradiction() {
    let twice = "--accel qtest --display none --vga none --audio none --nodefaults -S --no-reboot";
    let parsed = accepted(&format!("{twice} --qtest unix:/t,server=on {twice}"));
    assert!(matches!(
        parsed.machine.accelerator,
        AcceleratorConfig::Qtest(_)
    ));
    assert!(parsed.machine.start_paused && parsed.machine.no_reboot);
    let said = refused("--kernel k --accel kvm --accel qtest");
    assert!(
        said.contains("--accel qtest: contradicts the --accel before it"),
        "{said}"
    );
}

#[test]
fn a_virtio_disk_has_qemus_short_name_as_well() {
    for name in ["virtio-blk", "virtio-blk-pci"] {
        let parsed = accepted(&format!(
            "--kernel k {BLOCKDEV} --device {name},drive=d0,id=v,num-queues=1"
        ));
        let place = Attachment::VirtioPci(one_queue());
        assert_eq!(parsed.storage.disks[0].attachment, place);
    }
}

/// A command line and what its refusal must say: the option, the thing at fault and the remedy.
#[test]
fn refusals_name_the_option_the_fault_and_the_remedy() {
    let disk = "--kernel k --drive file=a";
    let node = format!("--kernel k {BLOCKDEV}");
    let cases: &[(String, &[&str])] = &[
        (String::new(), &["--kernel", "nothing to boot"]),
        ("--kernel k --frobnicate".into(), &["--frobnicate"]),
        ("--kernel k -frobnicate".into(), &["unexpected argument"]),
        ("-hda disk.img".into(), &["unexpected argument '--hda'"]),
        ("-Value".into(), &["unexpected argument '--Value'"]),
        (
            "--kernel k -mem-path /huge".into(),
            &["unexpected argument '--mem-path'"],
        ),
        ("--kernel k --vga std".into(), &["--vga", "'std'", "none"]),
        (
            "--kernel k --audiodev id=a,driver=alsa".into(),
            &["--audiodev", "'alsa' is not available", "none"],
        ),
        ("--kernel k --machine q35".into(), &["'q35'", "pc"]),
        ("--kernel k --display gtk".into(), &["'gtk'", "none"]),
        ("--kernel k --accel tcg".into(), &["'tcg'", "kvm, qtest"]),
        ("--kernel k stray".into(), &["stray"]),
        (
            "--kernel a --kernel b".into(),
            &["--kernel", "multiple times"],
        ),
        ("--kernel".into(), &["--kernel"]),
        (
            "--initrd i".into(),
            &["--initrd", "only allowed with --kernel"],
        ),
        (
            "--append x --accel qtest --qtest unix:/t".into(),
            &["--append", "--kernel"],
        ),
        (
            "--kernel k --smp 0".into(),
            &["--smp 0", "Invalid SMP CPUs 0", "1 to 254"],
        ),
        ("--kernel k --smp 255".into(), &["--smp 255", "1 to 254"]),
        (
            "--kernel k --smp cpus=2,cores=2".into(),
            &["--smp", "'cores' is unexpected", "cpus"],
        ),
        (
            "--kernel k --accel tcg".into(),
            &["--accel tcg", "'tcg'", "kvm, qtest"],
        ),
        (
            "--kernel k -M q35".into(),
            &["--machine q35", "'q35'", "pc"],
        ),
        (
            "--kernel k -M pc,ide=ahci".into(),
            &["'ahci'", "piix3, piix4"],
        ),
        (
            "--kernel k --display gtk".into(),
            &["--display gtk", "none"],
        ),
        (
            "--kernel k --serial tcp:x".into(),
            &["--serial tcp:x", "stdio, null, none or file:PATH"],
        ),
        (
            "--kernel k --qtest unix:/t".into(),
            &["--qtest", "--accel qtest"],
        ),
        (
            "--accel qtest".into(),
            &["--accel qtest", "--qtest unix:PATH"],
        ),
        (
            "--kernel k --qmp tcp:1".into(),
            &["--qmp tcp:1", "unix:PATH"],
        ),
        (
            "--kernel k --qmp unix:".into(),
            &["--qmp", "'path' is missing"],
        ),
        (
            "--kernel k --qmp unix:/q,server=off,wait=on".into(),
            &["wait=on", "client sockets", "server=on"],
        ),
        (
            "--kernel k --qmp unix:/q,foo=1".into(),
            &["--qmp unix:/q,foo=1", "'foo' is unexpected"],
        ),
        (
            "--kernel k --qmp unix:/q --qmp unix:/q".into(),
            &["--qmp", "/q", "another socket"],
        ),
        (
            format!("--kernel k --qmp unix:/{}", "x".repeat(200)),
            &["longer than 107"],
        ),
        (
            "--kernel k --object rng,id=r".into(),
            &["--object", "rng", "iothread"],
        ),
        (
            "--kernel k --object iothread".into(),
            &["--object", "'id' is missing"],
        ),
        (
            "--kernel k --object iothread,id=1".into(),
            &["--object", "identifier"],
        ),
        (
            "--kernel k --object iothread,id=a --object iothread,id=a".into(),
            &["duplicate ID 'a'"],
        ),
        (
            "--kernel k --drive format=raw".into(),
            &["--drive", "'file' is missing"],
        ),
        (
            format!("{disk},if=scsi"),
            &["--drive", "'if'", "'scsi'", "ide, virtio, none"],
        ),
        (
            format!("{disk},readonly=maybe"),
            &["'readonly' expects 'on' or 'off'"],
        ),
        (
            format!("{disk},wibble=1"),
            &["'wibble' is unexpected", "readonly"],
        ),
        (
            format!("{disk},format=qcow2"),
            &["'format'", "'qcow2'", "raw"],
        ),
        (format!("{disk},file=b"), &["'file' is given twice"]),
        (
            format!("{disk},media"),
            &["Expected '=' after parameter 'media'"],
        ),
        (
            format!("{disk},index=4"),
            &["no such place", "index is 0 to 3"],
        ),
        (
            format!("{disk},index=1,unit=1"),
            &["index cannot be used with bus and unit"],
        ),
        (format!("{disk},if=virtio,unit=1"), &["belong to if=ide"]),
        (
            format!("{disk},serial=123456789012345678901"),
            &["at most 20"],
        ),
        (
            format!("{disk},id=a --drive file=b,id=a"),
            &["Duplicate ID 'a'"],
        ),
        (
            format!("{disk},index=0 --drive file=b,index=0"),
            &["IDE bus 0, unit 0 is in use"],
        ),
        (
            format!("{disk}{}", " --drive file=b".repeat(4)),
            &["no place is left", "virtio-blk-pci"],
        ),
        (
            format!("{disk},id=a --device virtio-blk-pci,drive=a"),
            &["'a' is already in use", "if=none"],
        ),
        (
            "--kernel k --drive if=none,id=e --device ide-hd,drive=e".into(),
            &["Device needs media, but drive is empty", "id=e"],
        ),
        (
            "--kernel k --drive if=virtio".into(),
            &["Parameter 'file' is missing", "file=disk.img"],
        ),
        (
            "--kernel k --drive if=none,id=e,node-name=n".into(),
            &["node-name needs a file"],
        ),
        (
            format!("{disk},media=cdrom,if=virtio"),
            &["media=cdrom goes with if=ide or if=none"],
        ),
        (
            format!("{node} --drive if=none,id=d0"),
            &["node-name=d0 is conflicting with a device id"],
        ),
        (
            format!("{node} --blockdev raw,node-name=d0,file=x"),
            &["Duplicate nodes", "'d0'"],
        ),
        (
            "--kernel k --blockdev raw,node-name=d,file.driver=file,file.filname=x".into(),
            &["--blockdev raw,node-name=d", "'file.filename' is missing"],
        ),
        (
            "--kernel k --blockdev qcow9,node-name=d".into(),
            &["'driver'", "'qcow9'", "raw"],
        ),
        (
            "--kernel k --blockdev raw,file=x".into(),
            &["--blockdev", "'node-name' must be"],
        ),
        (
            format!("{node} --device ide-hd"),
            &["--device", "No drive specified"],
        ),
        (
            format!("{node} --device ide-hd,drive=x"),
            &["no drive or node 'x'", "--blockdev"],
        ),
        (
            format!("{node} --device e1000,drive=x"),
            &["'e1000' is not a valid device model"],
        ),
        (
            format!("{node} --device ide-hd,drive=d0,unit=2"),
            &["unit 2", "unit is 0 or 1"],
        ),
        (
            format!("{node} --device ide-hd,drive=d0,bus=ide.7"),
            &["'ide.7' not found"],
        ),
        (
            format!("{node} --device ide-hd,drive=d0 --device virtio-blk-pci,drive=d0"),
            &["'d0' is already in use"],
        ),
        (
            format!("{node} --device virtio-blk-pci,drive=d0,iothread=t"),
            &["Cannot find iothread 't'", "--object iothread,id=t"],
        ),
        (
            format!("{node} --device virtio-blk-pci,drive=d0,queues=2"),
            &[
                "--device virtio-blk-pci,drive=d0,queues=2",
                "'queues' is unexpected",
                "iothread",
            ],
        ),
        (
            format!("{node} --device virtio-blk-pci,drive=d0,addr=1"),
            &["slot 1", "in use"],
        ),
        (
            format!("{node} --device virtio-blk-pci,drive=d0,addr=zz"),
            &["'addr'", "'zz'"],
        ),
        (
            "--kernel k --device {\"driver\":".into(),
            &["--device", "JSON parse error"],
        ),
    ];
    for (line, expected) in cases {
        let message = refused(line);
        for part in *expected {
            assert!(
                message.contains(part),
                "{line}\n gives: {message}\n lacks: {part}"
            );
        }
        assert!(message.starts_with("sluice: "), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn a_letter_may_have_its_value_attached_and_devices_be_switched_off_in_any_order() {
    assert_eq!(with_kernel("-m512").machine.memory, 512 * MIB);
    with_kernel("--audiodev id=a,driver=none --audio driver=none,model=hda");
}

#[test]
fn help_and_version_are_no_failure() {
    for line in ["--help", "-help", "-h"] {
        let refusal = parse(words(line)).unwrap_err();
        assert_eq!(refusal.status(), ExitStatus::Success);
        let text = refusal.to_string();
        for part in [
            "--blockdev",
            "Examples:",
            "What to boot",
            "Exit status:",
            "--kernel bzImage",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
    let version = parse(words("-version")).unwrap_err();
    assert!(matches!(&version, Refusal::Information(text) if text.starts_with("sluice ")));
}

#[cfg(feature = "test-hooks")]
#[test]
fn builds_for_tests_can_switch_postponing_off() {
    let postpones = |option: &str| {
        let parsed = with_kernel(&format!("{BLOCKDEV} --device ide-hd,drive=d0{option}"));
        parsed.storage.disks[0].postpone
    };
    assert!(postpones(""));
    assert!(!postpones(",x-postpone=off"));
}

#[cfg(not(feature = "test-hooks"))]
#[test]
fn no_other_build_can_switch_postponing_off() {
    let line = format!("--kernel k {BLOCKDEV} --device ide-hd,drive=d0,x-postpone=off");
    assert!(refused(&line).contains("'x-postpone' is unexpected"));
}
