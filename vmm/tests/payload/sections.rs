//! Drained sections under two real processors: one writes an IDE disk through the data register, whose commands are
//! postponed, while the other one rings the doorbell of a virtio disk, whose requests are not.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Output};

use serde_json::json;

use crate::image::{Code, port};
use crate::monitor::Monitor;
use crate::posted::{start_second, store8};
use crate::rates::{DOORBELL, machine, place, virtio_set_up};
use crate::{WAIT_FOR_INPUT, start_in, told};

const SECTOR: usize = 512;
/// Sectors that the second processor writes, from 1 on.
const LAST: u8 = 96;
/// Sectors of the virtio disk that the first one writes in turn.
const TURN: u32 = 64;
const DISK_LEN: usize = 1 << 20;
/// Sections that are opened while both go on.
const SECTIONS: usize = 40;

/// The sector that the second processor has written last, and whether a command of its failed.
const DONE: u32 = 0x9000;
const FAILED: u32 = 0x9001;

/// Writes each sector with its number, one WRITE SECTORS after the other (real mode).
const IDE_WRITER: [u8; 86] = [
    0x31,
    0xc0, // xor ax, ax
    0x8e,
    0xd8, // mov ds, ax
    0xb1,
    0x01, // mov cl, 1
    0xba,
    0xf2,
    0x01, // next: mov dx, COUNT
    0xb0,
    0x01,
    0xee, // mov al, 1; out dx, al
    0x42,
    0x88,
    0xc8,
    0xee, // inc dx; mov al, cl; out dx, al: the address
    0x42,
    0x30,
    0xc0,
    0xee, // inc dx; xor al, al; out dx, al
    0x42,
    0xee, // inc dx; out dx, al
    0x42,
    0xb0,
    0xe0,
    0xee, // inc dx; mov al, LBA; out dx, al
    0x42,
    0xb0,
    0x30,
    0xee, // inc dx; mov al, WRITE SECTORS; out dx, al
    0xba,
    0xf6,
    0x03, // mov dx, ALTERNATE STATUS
    0xec,
    0xa8,
    0x08,
    0x74,
    0xfb, // again: in al, dx; test al, DRQ; jz again
    0xba,
    0xf0,
    0x01, // mov dx, DATA
    0x88,
    0xcc,
    0x88,
    0xc8, // mov ah, cl; mov al, cl
    0xbb,
    0x00,
    0x01, // mov bx, 256
    0xef,
    0x4b,
    0x75,
    0xfc, // again: out dx, ax; dec bx; jnz again
    0xba,
    0xf6,
    0x03, // mov dx, ALTERNATE STATUS
    0xec,
    0xa8,
    0x80,
    0x75,
    0xfb, // again: in al, dx; test al, BSY; jnz again
    0xba,
    0xf7,
    0x01,
    0xec, // mov dx, STATUS; in al, dx
    0xa8,
    0x01,
    0x74,
    0x05, // test al, ERR; jz good
    0xc6,
    0x06,
    0x01,
    0x90,
    0x01, // mov byte [FAILED], 1
    0x88,
    0x0e,
    0x00,
    0x90, // good: mov [DONE], cl
    0xfe,
    0xc1, // inc cl
    0x80,
    0xf9,
    LAST + 1, // cmp cl, LAST + 1
    0x75,
    0xb2, // jne next
    0xfa,
    0xf4, // cli; hlt
];

/// Writes the virtio disk, each time with the number of the request, until the other processor is done. That number
/// is in EBX then.
fn virtio_writer(code: Code) -> Code {
    const OUT: u32 = 1;
    const NEXT: u32 = 1;
    const NO_INTERRUPTS: u16 = 1;
    let code = code
        .store32(place::HEADER, OUT)
        .store32(place::DESCRIPTORS + 16 + 8, 512)
        .store32(place::DESCRIPTORS + 16 + 12, 2 << 16 | NEXT)
        .store16(place::AVAILABLE, NO_INTERRUPTS)
        .bytes(&[0xbb, 1, 0, 0, 0]); // mov ebx, 1
    let again = code.here();
    let code = code
        .bytes(&[0x89, 0xd8, 0x83, 0xe0, TURN.to_le_bytes()[0] - 1]) // mov eax, ebx; and eax, TURN - 1
        .bytes(&[0xa3]) // mov [HEADER + 8], eax
        .bytes(&(place::HEADER + 8).to_le_bytes())
        .bytes(&[0xbf]) // mov edi, DATA
        .bytes(&place::DATA.to_le_bytes())
        .bytes(&[0x89, 0xd8]) // mov eax, ebx
        .bytes(&[0xb9, 128, 0, 0, 0, 0xfc, 0xf3, 0xab]) // mov ecx, 128; cld; rep stosd
        .bytes(&[0x66, 0xff, 0x05]) // inc word [AVAILABLE + 2]
        .bytes(&(place::AVAILABLE + 2).to_le_bytes())
        .store16(DOORBELL, 0)
        .bytes(&[0x66, 0x39, 0x1d]) // wait: cmp [USED + 2], bx
        .bytes(&(place::USED + 2).to_le_bytes())
        .bytes(&[0x75, 0xf7]) // jne wait
        .bytes(&[0x43]) // inc ebx
        .bytes(&[0x80, 0x3d]) // cmp byte [DONE], LAST
        .bytes(&DONE.to_le_bytes())
        .bytes(&[LAST, 0x0f, 0x85]); // jne again
    let back = again.wrapping_sub(code.here() + 4);
    code.bytes(&back.to_le_bytes()).bytes(&[0x4b]) // dec ebx
}

/// Both writers. At the end the guest says so, waits for a byte, and tells whether anything failed and how many
/// virtio requests there were.
fn payload() -> Code {
    let code = virtio_set_up(machine());
    let code = store8(store8(code, DONE, 0), FAILED, 0);
    let code = virtio_writer(start_second(code, &IDE_WRITER))
        .print(".")
        .bytes(&WAIT_FOR_INPUT)
        .in8(port::SERIAL)
        .bytes(&[0xa0]) // mov al, [FAILED]
        .bytes(&FAILED.to_le_bytes())
        .out_al(port::SERIAL);
    // mov al, bl; out dx, al; shr ebx, 8
    (0..4)
        .fold(code, |code, _| {
            code.bytes(&[0x88, 0xd8])
                .out_al(port::SERIAL)
                .bytes(&[0xc1, 0xeb, 0x08])
        })
        .power_off()
}

/// The process, which does not outlive a test that fails.
struct Process(Option<Child>);

impl Process {
    fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    fn end(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The machine, whose processors stand still, with its IDE disk `disk`, a target `copy` for that and its virtio disk.
fn start(directory: &tempfile::TempDir) -> (Process, Monitor) {
    let image = |name: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, vec![0; DISK_LEN]).unwrap();
        path.display().to_string()
    };
    let qmp = directory.path().join("qmp.sock");
    let arguments = [
        "-S".to_owned(),
        "--smp".to_owned(),
        "2".to_owned(),
        "--qmp".to_owned(),
        format!("unix:{},server=on,wait=off", qmp.display()),
        "--object".to_owned(),
        "iothread,id=io0".to_owned(),
        "--blockdev".to_owned(),
        format!("file,node-name=disk,filename={}", image("disk")),
        "--blockdev".to_owned(),
        format!(
            "blkdebug,node-name=copy,image.driver=file,image.filename={}",
            image("copy")
        ),
        "--blockdev".to_owned(),
        format!("file,node-name=fast,filename={}", image("fast")),
        "--device".to_owned(),
        "ide-hd,drive=disk,id=ide".to_owned(),
        "--device".to_owned(),
        "virtio-blk-pci,drive=fast,iothread=io0".to_owned(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let process = Process(Some(start_in(directory, &payload(), &arguments)));
    let monitor = Monitor::connect(&qmp);
    (process, monitor)
}

/// Mirrors the IDE disk, up to the flush inside the section in which its guest is to be switched to the copy: the
/// section stays open until that is let go.
fn open_section(monitor: &mut Monitor) {
    let held = |tag: &str| json!({"node-name": "copy", "tag": tag});
    let flush = |tag: &str| json!({"node-name": "copy", "tag": tag, "event": "flush_to_disk"});
    let mirror = json!({"job-id": "job", "device": "disk", "target": "copy", "sync": "full"});
    monitor.execute_with("blockdev-mirror", &mirror);
    while monitor.execute("query-block-jobs")[0]["ready"] != true {}
    monitor.execute_with("x-debug-break", &flush("before"));
    monitor.execute_with("block-job-complete", &json!({"device": "job"}));
    monitor.execute_with("x-debug-wait-break", &held("before"));
    // The flushes while the guest runs: of the approach, and of the last stretch.
    monitor.execute_with("x-debug-break", &flush("stretch"));
    monitor.execute_with("x-debug-resume", &held("before"));
    monitor.execute_with("x-debug-wait-break", &held("stretch"));
    monitor.execute_with("x-debug-break", &flush("within"));
    monitor.execute_with("x-debug-resume", &held("stretch"));
    monitor.execute_with("x-debug-wait-break", &held("within"));
}

/// Requests of the IDE disk that wait for a section's end.
fn parked(monitor: &mut Monitor) -> u64 {
    let drains = monitor.execute("x-query-block-drains");
    let disks = drains.as_array().unwrap().iter();
    let mut ide = disks.filter(|disk| disk["device"] == "ide");
    ide.next().unwrap()["parked"].as_u64().unwrap()
}

fn sectors(path: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    bytes.chunks(SECTOR).map(<[u8]>::to_vec).collect()
}

#[test]
fn what_one_processor_writes_waits_while_the_other_goes_on_and_all_arrives() {
    let directory = tempfile::tempdir().unwrap();
    let [disk, copy, fast] = ["disk", "copy", "fast"].map(|name| directory.path().join(name));
    let (mut process, mut monitor) = start(&directory);
    open_section(&mut monitor);
    monitor.execute("cont");
    // The one waits within its first command, and the other one comes round twice.
    let expect_blank = || {
        for path in [&disk, &copy] {
            assert!(sectors(path).iter().flatten().all(|byte| *byte == 0));
        }
    };
    while parked(&mut monitor) == 0 {
        expect_blank();
    }
    let round = || u32::from_le_bytes(sectors(&fast)[0][..4].try_into().unwrap());
    while round() < 2 * TURN {}
    assert_eq!(parked(&mut monitor), 1);
    expect_blank();
    let held = json!({"node-name": "copy", "tag": "within"});
    monitor.execute_with("x-debug-resume", &held);
    while monitor.execute("query-block-jobs") != json!([]) {}
    // Sections while both go on, and what was written is always a beginning of what will be.
    for section in 0..SECTIONS {
        let size = DISK_LEN + SECTOR * (section % 2);
        let resize = json!({"node-name": "copy", "size": size});
        monitor.execute_with("block_resize", &resize);
        let written = sectors(&copy);
        let first_blank = (1..).find(|at| written[*at][SECTOR - 1] == 0).unwrap();
        let blank = &written[first_blank + 1..];
        assert!(blank.iter().flatten().all(|byte| *byte == 0), "{section}");
    }
    let mut dot = [0];
    let child = process.child();
    child.stdout.as_mut().unwrap().read_exact(&mut dot).unwrap();
    child.stdin.take().unwrap().write_all(b"Z").unwrap();
    let output = process.end();
    assert_eq!(output.status.code(), Some(0), "{:?}", told(&output));
    let [failed, requests @ ..] = output.stdout.as_slice() else {
        panic!("{:?}", told(&output));
    };
    assert_eq!(*failed, 0);
    assert!(sectors(&disk).iter().flatten().all(|byte| *byte == 0));
    for (number, sector) in (0..).zip(sectors(&copy)) {
        let expected = if (1..=LAST).contains(&number) {
            number
        } else {
            0
        };
        assert_eq!(sector, [expected; SECTOR], "sector {number}");
        if number > LAST {
            break;
        }
    }
    // Each virtio sector has the last of the requests that were for it.
    let requests = u32::from_le_bytes(requests.try_into().unwrap());
    for (number, sector) in (0..TURN).zip(sectors(&fast)) {
        let last = requests - (requests - number) % TURN;
        assert_eq!(sector, last.to_le_bytes().repeat(SECTOR / 4), "{number}");
    }
}
