//! The driver of a virtio disk on PCI bus 0: as little of virtio 1.2 as a few requests take.

use std::time::Instant;

use crate::machine::{LIMIT, Qtest, SECTOR};

/// Where the test puts the registers (section 4.1.4).
const WINDOW: u64 = 0xfe00_0000;
/// Where a queue's rings are, and the requests behind them.
const DESCRIPTORS: u64 = 0x10_0000;
const AVAILABLE: u64 = 0x10_1000;
const USED: u64 = 0x10_2000;
const REQUESTS: u64 = 0x11_0000;
/// From one queue's memory to the next one's.
const QUEUE_STRIDE: u64 = 0x10_0000;
const STRIDE: u64 = 0x1000;
const QUEUE_SIZE: u64 = 16;
/// Descriptors of a request: header, data, status.
const CHAIN: u64 = 3;

/// A disk, or of a disk with several queues one of them.
pub struct Virtio {
    /// Where the structures are (section 4.1.4).
    common: u64,
    interrupt_status: u64,
    configuration: u64,
    doorbell: u64,
    /// Of the queue's memory, from that of the first.
    offset: u64,
    made: u64,
}

/// A function's configuration space (mechanism #1).
struct Config<'a> {
    qtest: &'a mut Qtest,
    device: u32,
}

impl Config<'_> {
    fn select(&mut self, register: u32) {
        let address = 0x8000_0000 | self.device << 11 | register & 0xfc;
        self.qtest.ask(&format!("outl 0xcf8 {address:#x}"));
    }

    fn read(&mut self, register: u32) -> u32 {
        self.select(register);
        u32::try_from(self.qtest.number("inl 0xcfc")).unwrap()
    }

    fn write(&mut self, register: u32, value: u32) {
        self.select(register);
        self.qtest.ask(&format!("outl 0xcfc {value:#x}"));
    }

    /// Offset in the window and last word of the capability of this kind.
    fn capability(&mut self, kind: u32) -> (u64, u32) {
        let mut at = self.read(0x34) & 0xfc;
        while at != 0 {
            let head = self.read(at);
            if head & 0xff == 9 && head >> 24 == kind {
                assert_eq!(self.read(at + 4) & 0xff, self.bar(), "in another BAR");
                return (u64::from(self.read(at + 8)), self.read(at + 16));
            }
            at = head >> 8 & 0xfc;
        }
        panic!("no capability {kind}");
    }

    /// The BAR that the common configuration is in.
    fn bar(&mut self) -> u32 {
        let mut at = self.read(0x34) & 0xfc;
        loop {
            let head = self.read(at);
            if head & 0xff == 9 {
                return self.read(at + 4) & 0xff;
            }
            at = head >> 8 & 0xfc;
        }
    }
}

impl Virtio {
    pub const IO_ERROR: u8 = 1;

    /// Makes the disk at this device number of bus 0 ready, with one queue.
    pub fn bring_up(qtest: &mut Qtest, device: u32) -> Self {
        Self::bring_up_queues(qtest, device, 1).remove(0)
    }

    /// The same with several queues.
    pub fn bring_up_queues(qtest: &mut Qtest, device: u32, queues: u64) -> Vec<Self> {
        let mut config = Config { qtest, device };
        let bar = config.bar();
        config.write(0x10 + 4 * bar, u32::try_from(WINDOW).unwrap());
        config.write(0x14 + 4 * bar, 0);
        // Memory and bus master.
        config.write(4, 6);
        let (common, _) = config.capability(1);
        let (notify, multiplier) = config.capability(2);
        let (interrupt_status, _) = config.capability(3);
        let (configuration, _) = config.capability(4);
        let common = WINDOW + common;
        let mut set = |width: &str, at: u64, value: u64| {
            qtest.ask(&format!("write{width} {:#x} {value:#x}", common + at));
        };
        set("b", 20, 0);
        set("b", 20, 3);
        // VERSION_1 and MQ, if there are queues for it.
        let multiqueue = if queues > 1 { 1 << 12 } else { 0 };
        set("l", 8, 0);
        set("l", 12, multiqueue);
        set("l", 8, 1);
        set("l", 12, 1);
        set("b", 20, 11);
        for queue in 0..queues {
            set("w", 22, queue);
            set("w", 24, QUEUE_SIZE);
            for (at, address) in [(32, DESCRIPTORS), (40, AVAILABLE), (48, USED)] {
                set("l", at, address + queue * QUEUE_STRIDE);
                set("l", at + 4, 0);
            }
            set("w", 28, 1);
        }
        set("b", 20, 15);
        let mut doorbell = |queue: u64| {
            qtest.ask(&format!("writew {:#x} {queue}", common + 22));
            let offset = qtest.number(&format!("readw {:#x}", common + 30));
            WINDOW + notify + offset * u64::from(multiplier)
        };
        let queues = (0..queues).map(|queue| Self {
            common,
            interrupt_status: WINDOW + interrupt_status,
            configuration: WINDOW + configuration,
            doorbell: doorbell(queue),
            offset: queue * QUEUE_STRIDE,
            made: 0,
        });
        queues.collect()
    }

    /// Asks for a reset of the device.
    pub fn begin_reset(&self, qtest: &mut Qtest) {
        qtest.ask(&format!("writeb {:#x} 0", self.common + 20));
    }

    /// Whether nothing of its life before is in flight any more.
    pub fn is_reset(&self, qtest: &mut Qtest) -> bool {
        qtest.number(&format!("readb {:#x}", self.common + 20)) == 0
    }

    /// Waits for that.
    pub fn wait_reset(&self, qtest: &mut Qtest) {
        let began = Instant::now();
        while !self.is_reset(qtest) {
            assert!(began.elapsed() < LIMIT, "waits for ever");
        }
    }

    /// `num_queues` of the disk's configuration.
    pub fn queues(&self, qtest: &mut Qtest) -> u64 {
        qtest.number(&format!("readw {:#x}", self.configuration + 34))
    }

    /// `capacity` in sectors, read by halves as drivers must (section 4.1.3.1).
    pub fn capacity(&self, qtest: &mut Qtest) -> u64 {
        let at = self.configuration;
        let [low, high] = [at, at + 4].map(|at| qtest.number(&format!("readl {at:#x}")));
        high << 32 | low
    }

    /// `config_generation`.
    pub fn generation(&self, qtest: &mut Qtest) -> u64 {
        qtest.number(&format!("readb {:#x}", self.common + 21))
    }

    /// The interrupt status, which is clear afterwards: bit 0 a queue, bit 1 the configuration.
    pub fn take_interrupt_status(&self, qtest: &mut Qtest) -> u64 {
        qtest.number(&format!("readb {:#x}", self.interrupt_status))
    }

    /// Makes a write of a sector available, without ringing.
    pub fn begin_write(&mut self, qtest: &mut Qtest, sector: u64, byte: u8) {
        self.begin(qtest, 1, sector, byte);
    }

    /// Makes a read of a sector available, without ringing.
    pub fn begin_read(&mut self, qtest: &mut Qtest, sector: u64) {
        self.begin(qtest, 0, sector, 0xaa);
    }

    /// The data of a request, by the order in which they were made: all its bytes are the same.
    #[track_caller]
    pub fn data(&self, qtest: &mut Qtest, made: u64) -> u8 {
        let at = self.request(made) + 0x200;
        let words: Vec<u64> = (0..SECTOR as u64 / 8)
            .map(|word| qtest.number(&format!("readq {:#x}", at + word * 8)))
            .collect();
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{bytes:x?}");
        bytes[0]
    }

    fn begin(&mut self, qtest: &mut Qtest, kind: u32, sector: u64, byte: u8) {
        let request = self.request(self.made);
        let (data, status) = (request + 0x200, request + 0x100);
        qtest.ask(&format!("writel {request:#x} {kind}"));
        qtest.ask(&format!("writeq {:#x} {sector:#x}", request + 8));
        qtest.ask(&format!("memset {data:#x} {SECTOR} {byte:#x}"));
        qtest.ask(&format!("writeb {status:#x} 0xff"));
        let first = self.made * CHAIN;
        let (next, writable) = (1, 2);
        // What a read moves, the device writes.
        let direction = if kind == 0 { writable } else { 0 };
        let chain = [
            (request, 16, next, first + 1),
            (data, SECTOR, next | direction, first + 2),
            (status, 1, writable, 0),
        ];
        for (at, (address, length, flags, next)) in (first..).zip(chain) {
            let descriptor = DESCRIPTORS + self.offset + at * 16;
            qtest.ask(&format!("writeq {descriptor:#x} {address:#x}"));
            qtest.ask(&format!("writel {:#x} {length:#x}", descriptor + 8));
            qtest.ask(&format!("writew {:#x} {flags:#x}", descriptor + 12));
            qtest.ask(&format!("writew {:#x} {next:#x}", descriptor + 14));
        }
        let available = AVAILABLE + self.offset;
        let slot = available + 4 + self.made * 2;
        qtest.ask(&format!("writew {slot:#x} {first:#x}"));
        self.made += 1;
        qtest.ask(&format!("writew {:#x} {:#x}", available + 2, self.made));
    }

    pub fn kick(&self, qtest: &mut Qtest) {
        qtest.ask(&format!("writew {:#x} 0", self.doorbell));
    }

    /// How many requests were answered.
    #[track_caller]
    pub fn used(&self, qtest: &mut Qtest) -> u64 {
        qtest.number(&format!("readw {:#x}", USED + self.offset + 2))
    }

    /// Waits until so many requests were answered.
    #[track_caller]
    pub fn wait_used(&self, qtest: &mut Qtest, count: u64) {
        let began = Instant::now();
        while self.used(qtest) != count {
            assert!(began.elapsed() < LIMIT, "waits for ever");
        }
    }

    /// Where a request is.
    fn request(&self, made: u64) -> u64 {
        REQUESTS + self.offset + made * STRIDE
    }

    /// The status byte of a request, by the order in which they were made.
    pub fn status(&self, qtest: &mut Qtest, made: u64) -> u8 {
        let at = self.request(made) + 0x100;
        qtest.number(&format!("readb {at:#x}")).to_le_bytes()[0]
    }
}
