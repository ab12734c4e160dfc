//! A virtio disk: its window, its rings and its doorbells, with sections, held requests and resets in between.

use std::sync::Arc;

use sluice_devices::doorbell::{DoorbellAddress, DoorbellError, Doorbells};
use sluice_devices::pci::layout::{Command, offset};
use sluice_devices::pci::{BarIndex, PciFunction as _};
use sluice_devices::virtio::{
    RingFeatures, Status, VirtioBlk, VirtioBlkConfig, VirtioPci, VirtioPciParts,
};
use vmm_sys_util::eventfd::EventFd;

use crate::input::Input;
use crate::world::{Line, RAM, SECTORS, Vectors, World};

/// The structures of the window, one a page (VIRTIO 1.2, section 4.1.4).
const COMMON: u64 = 0;
const NOTIFY: u64 = 0x3000;
const STRUCTURES: [u64; 4] = [COMMON, 0x1000, 0x2000, NOTIFY];
const WINDOW: BarIndex = BarIndex::BAR4;
const MSIX: BarIndex = BarIndex::BAR1;
/// Bytes between two doorbells.
const STRIDE: u64 = 4;

/// Offsets in the common configuration (section 4.1.4.3).
mod common {
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 8;
    pub(super) const DRIVER_FEATURE: u64 = 12;
    pub(super) const DEVICE_STATUS: u64 = 20;
    pub(super) const QUEUE_SELECT: u64 = 22;
    pub(super) const QUEUE_SIZE: u64 = 24;
    pub(super) const QUEUE_ENABLE: u64 = 28;
    pub(super) const QUEUE_DESC: u64 = 32;
    pub(super) const QUEUE_DRIVER: u64 = 40;
    pub(super) const QUEUE_DEVICE: u64 = 48;
    pub(super) const QUEUE_RESET: u64 = 58;
    pub(super) const LEN: u64 = 60;
}

const VERSION_1: u64 = 1 << 32;
/// Features that change how rings and requests are read: FLUSH, CONFIG_WCE, DISCARD, WRITE_ZEROES, indirect
/// descriptors, event index, ring reset.
const CHOICES: [u64; 8] = [
    1 << 9,
    1 << 11,
    1 << 13,
    1 << 14,
    1 << 28,
    1 << 29,
    1 << 40,
    1 << 12,
];

const QUEUES: u16 = 2;
const ENTRIES: u16 = 8;
/// Where the driver has queue N's descriptors; the rings follow a page each.
fn area(queue: u16) -> u64 {
    0x1_0000 * (u64::from(queue) + 1)
}
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where headers, data and status bytes are.
const HEADERS: u64 = 0x4_0000;
const DATA: u64 = 0x5_0000;
const STATUSES: u64 = 0x4_8000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Request types (section 5.2.6), the last one unknown.
const IN: u32 = 0;
const TYPES: [u32; 8] = [IN, 1, 4, 8, 11, 13, 1, 77];

/// Doorbells that are rung by the device's own handler only.
struct NoDoorbells;

impl Doorbells for NoDoorbells {
    fn attach(&self, _address: DoorbellAddress, _fd: &EventFd) -> Result<(), DoorbellError> {
        Ok(())
    }

    fn detach(&self, _address: DoorbellAddress, _fd: &EventFd) -> Result<(), DoorbellError> {
        Ok(())
    }
}

/// How a disk is plugged in.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    /// What is offered besides the disk's own features.
    features: RingFeatures,
    /// Bits for the rest: what the disk offers, its blocks, queues, their entries and its vectors.
    choices: u16,
}

impl Settings {
    /// The usual disk.
    pub(crate) const USUAL: Self = Self {
        features: RingFeatures::USUAL,
        choices: 0,
    };

    /// What three bytes choose.
    pub(crate) fn chosen(input: &mut Input<'_>) -> Self {
        let left_out = input.u8();
        let each = [
            RingFeatures::INDIRECT_DESC,
            RingFeatures::EVENT_IDX,
            RingFeatures::RING_RESET,
            RingFeatures::ACCESS_PLATFORM,
        ];
        let offered = (0..).zip(each).filter(|(bit, _)| left_out >> bit & 1 == 0);
        Self {
            features: offered.map(|(_, feature)| feature).collect(),
            choices: input.u16(),
        }
    }

    /// What a driver must accept.
    fn must(self) -> u64 {
        (self.features & RingFeatures::ACCESS_PLATFORM).bits()
    }

    fn has(self, bit: u8) -> bool {
        self.choices >> bit & 1 != 0
    }

    fn apply(self, config: &mut VirtioBlkConfig) {
        config.num_queues = if self.has(0) { 1 } else { QUEUES };
        config.queue_size = ENTRIES << (self.choices >> 1 & 3);
        config.discard = !self.has(3);
        config.write_zeroes = !self.has(4);
        config.config_wce = !self.has(5);
        config.write_cache = !self.has(6);
        config.seg_max_adjust = !self.has(7);
        if self.has(8) {
            config.physical_block_size = BLOCK;
            config.logical_block_size = if self.has(9) { BLOCK } else { 1024 };
        }
        if self.has(10) {
            (config.max_discard_sectors, config.max_write_zeroes_sectors) = (16, 8);
        }
    }

    /// Vectors of MSI-X, if it is not one for each use.
    fn vectors(self) -> Option<usize> {
        self.has(11).then_some(usize::from(self.choices >> 12 & 3))
    }
}

/// The largest block, in bytes.
const BLOCK: u32 = 4096;

/// A virtio disk on a backend of `world`, as a function.
pub(crate) fn function(
    world: &World,
    disk: usize,
    line: &Arc<Line>,
    settings: Settings,
) -> Arc<VirtioPci> {
    let backend = Arc::clone(&world.disks[disk].backend);
    let mut config = VirtioBlkConfig::new(backend, world.context());
    settings.apply(&mut config);
    let parts = VirtioPciParts {
        memory: Arc::clone(&world.memory),
        msi: &Vectors,
        vectors: settings.vectors(),
        features: settings.features,
        doorbells: Arc::new(NoDoorbells),
        intx: Some((Arc::clone(line) as _, 11)),
    };
    VirtioPci::new(VirtioBlk::new(config).unwrap(), parts).unwrap()
}

fn status_of(function: &VirtioPci) -> Status {
    let mut status = [0];
    function.bar_read(WINDOW, common::DEVICE_STATUS, &mut status);
    Status::from_bits_retain(status[0])
}

struct Guest {
    world: World,
    line: Arc<Line>,
    function: Arc<VirtioPci>,
    settings: Settings,
    /// Heads that the driver has put into each ring.
    avail: [u16; QUEUES as usize],
    /// Chains made so far, which tells where the next one's parts are.
    chains: u16,
}

impl Guest {
    fn new() -> Self {
        // The second disk is nobody's: it is there to be spared.
        let world = World::new(2);
        let line = Arc::new(Line::default());
        let function = function(&world, 0, &line, Settings::USUAL);
        let guest = Self {
            world,
            line,
            function,
            settings: Settings::USUAL,
            avail: [0; QUEUES as usize],
            chains: 0,
        };
        guest.set_command(Command::MEMORY | Command::BUS_MASTER);
        guest
    }

    fn set_command(&self, command: Command) {
        self.function
            .write_config(offset::COMMAND, &command.bits().to_le_bytes());
    }

    fn write(&self, at: u64, data: &[u8]) {
        self.function.bar_write(WINDOW, at, data);
    }

    fn set_status(&self, status: Status) {
        self.write(common::DEVICE_STATUS, &[status.bits()]);
    }

    /// Negotiates `features` and enables both queues on cleared rings.
    fn bring_up(&mut self, features: u64) {
        self.set_status(Status::ACKNOWLEDGE | Status::DRIVER);
        for (select, word) in [(0_u32, features), (1, features >> 32)] {
            self.write(common::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            self.write(common::DRIVER_FEATURE, &word.to_le_bytes()[..4]);
        }
        self.set_status(Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK);
        for queue in 0..QUEUES {
            self.enable(queue);
        }
        self.set_status(
            Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK | Status::DRIVER_OK,
        );
    }

    fn enable(&mut self, queue: u16) {
        let base = area(queue);
        self.world.poke(base, &[0; 0x3000]);
        self.avail[usize::from(queue)] = 0;
        self.write(common::QUEUE_SELECT, &queue.to_le_bytes());
        self.write(common::QUEUE_SIZE, &ENTRIES.to_le_bytes());
        for (register, address) in [
            (common::QUEUE_DESC, base),
            (common::QUEUE_DRIVER, base + AVAIL),
            (common::QUEUE_DEVICE, base + USED),
        ] {
            self.write(register, &address.to_le_bytes()[..4]);
            self.write(register + 4, &address.to_le_bytes()[4..]);
        }
        self.write(common::QUEUE_ENABLE, &[1, 0]);
    }

    fn describe(&self, at: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = at + 16 * u64::from(index % ENTRIES);
        self.world.poke(at, &address.to_le_bytes());
        self.world.poke(at + 8, &len.to_le_bytes());
        self.world.poke(at + 12, &flags.to_le_bytes());
        self.world.poke(at + 14, &next.to_le_bytes());
    }

    /// Puts a head into a ring.
    fn offer(&mut self, queue: u16, head: u16) {
        let avail = &mut self.avail[usize::from(queue)];
        let ring = area(queue) + AVAIL;
        self.world.poke(
            ring + 4 + 2 * u64::from(*avail % ENTRIES),
            &head.to_le_bytes(),
        );
        *avail = avail.wrapping_add(1);
        self.world.poke(ring + 2, &avail.to_le_bytes());
    }

    /// A request of three descriptors, as a driver makes them. Returns where its status byte is.
    fn request(&mut self, queue: u16, kind: u32, sector: u64, len: u32) -> u64 {
        let slot = u64::from(self.chains % 64);
        self.chains = self.chains.wrapping_add(1);
        let (header, data, status) = (HEADERS + 32 * slot, DATA + 0x400 * slot, STATUSES + slot);
        self.world.poke(header, &kind.to_le_bytes());
        self.world.poke(header + 8, &sector.to_le_bytes());
        self.world.poke(status, &[0xff]);
        let first = self.avail[usize::from(queue)].wrapping_mul(3) % ENTRIES;
        let [second, third] = [1, 2].map(|more| (first + more) % ENTRIES);
        let to_device = if kind == IN || kind == 8 { WRITE } else { 0 };
        self.describe(area(queue), first, header, 16, NEXT, second);
        self.describe(area(queue), second, data, len, NEXT | to_device, third);
        self.describe(area(queue), third, status, 1, WRITE, 0);
        self.offer(queue, first);
        status
    }

    fn kick(&self, queue: u16) {
        self.write(NOTIFY + STRIDE * u64::from(queue), &queue.to_le_bytes());
    }

    fn machine_reset(&mut self) {
        // It waits for what runs.
        self.world.release();
        let resetting = self.function.reset();
        self.world.run(resetting);
    }

    /// Takes the disk away, whatever it does, and plugs one in that is set up otherwise.
    fn replug(&mut self, settings: Settings) {
        self.world.release();
        let retiring = self.function.retire();
        self.world.run(retiring);
        assert!(!self.line.is_high(), "what has gone interrupts");
        self.settings = settings;
        self.function = function(&self.world, 0, &self.line, settings);
        self.avail = [0; QUEUES as usize];
        self.set_command(Command::MEMORY | Command::BUS_MASTER);
    }

    fn check(&self) {
        self.world.check();
        let command = Command::from_bits_retain(self.function.config().read_u16(offset::COMMAND));
        let may_interrupt = !command.contains(Command::INTX_DISABLE);
        assert!(
            may_interrupt || !self.line.is_high(),
            "INTx although it is disabled"
        );
    }

    /// Ends the attack: requests end, the neighbour is unharmed, and after a reset the disk works.
    fn end(mut self) {
        self.world.settle();
        assert!(self.world.disks[1].is_untouched(), "another disk was hit");
        self.set_status(Status::empty());
        let function = Arc::clone(&self.function);
        self.world
            .wait("the reset", |_| status_of(&function).is_empty());
        self.set_command(Command::MEMORY | Command::BUS_MASTER);
        // A block that the disk has, however large its blocks are.
        self.world.resize(0, SECTORS);
        self.bring_up(VERSION_1 | self.settings.must());
        let status = self.request(0, IN, 8, BLOCK);
        self.kick(0);
        self.world.wait("a read after the reset", |world| {
            world.peek(area(0) + USED + 2) == [1, 0]
        });
        assert_eq!(self.world.peek(status), [0]);
        self.machine_reset();
        let retiring = self.function.retire();
        self.world.run(retiring);
        self.world.settle();
    }
}

/// An address in memory, at its edges, in the hole or anywhere.
fn address(input: &mut Input<'_>) -> u64 {
    let kind = input.u8();
    let value = u64::from(input.u16());
    let [(_, low_len), (high_base, high_len)] = RAM;
    match kind % 8 {
        0..=3 => HEADERS + value,
        4 => low_len as u64 - 0x100 + value % 0x200,
        5 => high_base + high_len as u64 - value % 0x200,
        6 => area(0) + value % 0x2_0000,
        _ => u64::MAX - (value << 32 | value),
    }
}

/// The features that the bits of a byte choose.
fn features(byte: u8) -> u64 {
    let chosen = CHOICES
        .iter()
        .enumerate()
        .filter(|(bit, _)| byte >> bit & 1 != 0);
    chosen.fold(VERSION_1, |all, (_, feature)| all | feature)
}

fn step(guest: &mut Guest, kind: u8, input: &mut Input<'_>) {
    let queue = |input: &mut Input<'_>| u16::from(input.u8()) % QUEUES;
    match kind {
        0 => {
            let features = features(input.u8());
            guest.bring_up(features);
        }
        1 | 2 => {
            let queue = queue(input);
            let kind = TYPES[usize::from(input.u8()) % TYPES.len()];
            let (sector, len) = (u64::from(input.u16()) % 0x180, u32::from(input.u16()));
            guest.request(queue, kind, sector, len);
            if input.flag() {
                guest.kick(queue);
            }
        }
        3 => {
            let (queue, index, address) = (queue(input), input.u16(), address(input));
            let (len, flags, next) = (input.u16(), input.u8(), input.u16());
            let len = if flags & 0x40 == 0 {
                u32::from(len)
            } else {
                u32::MAX - u32::from(len)
            };
            guest.describe(
                area(queue),
                index,
                address,
                len,
                u16::from(flags % 8),
                next % (ENTRIES + 1),
            );
        }
        4 => {
            let (queue, head) = (queue(input), input.u16());
            guest.offer(queue, head % (ENTRIES + 2));
        }
        5 => {
            // Any index: the ring may seem to have more than it can.
            let (queue, index) = (queue(input), input.u16());
            guest
                .world
                .poke(area(queue) + AVAIL + 2, &index.to_le_bytes());
        }
        6 => guest.kick(queue(input)),
        7 => guest.world.turns(),
        8 => guest.world.drain(0),
        9 => guest.world.undrain(0),
        10 => guest.world.hold(0, input.u8()),
        11 => guest.world.release(),
        12 => guest.machine_reset(),
        13 => guest.set_status(Status::from_bits_retain(input.u8())),
        14 => {
            let (at, width) = (u64::from(input.u8()) % common::LEN, input.width());
            guest.write(COMMON + at, &input.array::<4>()[..width]);
        }
        15 => {
            let structure = STRUCTURES[usize::from(input.u8()) % STRUCTURES.len()];
            let (at, width) = (structure + u64::from(input.u16() % 0x100), input.width());
            if input.flag() {
                guest.write(at, &input.array::<4>()[..width]);
            } else {
                guest.function.bar_read(WINDOW, at, &mut [0; 4][..width]);
            }
        }
        16 => {
            let queue = queue(input);
            guest.write(common::QUEUE_SELECT, &queue.to_le_bytes());
            guest.write(common::QUEUE_RESET, &[1, 0]);
        }
        17 => {
            let queue = queue(input);
            guest.enable(queue);
        }
        18 => {
            let at = u64::from(input.u8() % 0x40);
            guest.function.bar_write(MSIX, at, &input.array::<4>());
        }
        19 => guest.set_command(Command::from_bits_retain(input.u16())),
        20 => {
            let address = address(input);
            guest.world.poke(address, input.bytes(64));
        }
        21 => guest.world.fail(0, input.u8()),
        22 => guest.world.stop_on_errors(0, input.flag()),
        23 => guest.world.resume(),
        24 => {
            let sectors = u64::from(input.u16()) % (2 * SECTORS);
            guest.world.resize(0, sectors);
        }
        25 => {
            let settings = Settings::chosen(input);
            guest.replug(settings);
        }
        26 => {
            let features = features(input.u8());
            let must = guest.settings.must();
            guest.bring_up(features | must);
        }
        _ => guest.world.turns(),
    }
}

/// Takes the steps of an input; panics when something does not hold.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut guest = Guest::new();
    while let Some(kind) = input.step() {
        step(&mut guest, kind, &mut input);
        guest.check();
    }
    guest.end();
}
