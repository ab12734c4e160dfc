//! An IDE controller at its ports, with a drive under attack and up to three others, on its cable and on the other channel.

use std::sync::Arc;

use sluice_devices::bus::PioDevice as _;
use sluice_devices::ide::{DriveConfig, DriveKind, IdeConfig, IdeController, IdeVariant};
use sluice_devices::pci::layout::offset;
use sluice_devices::pci::{BarIndex, PciFunction as _};
use sluice_devices::posted::PostedWrites as _;

use crate::input::Input;
use crate::posted::Queue;
use crate::world::{Line, RAM, World};

/// Ports of the primary channel.
pub(crate) mod port {
    pub(crate) const DATA: u16 = 0x1f0;
    pub(crate) const FEATURES: u16 = 0x1f1;
    pub(crate) const COUNT: u16 = 0x1f2;
    pub(crate) const LBA_LOW: u16 = 0x1f3;
    pub(crate) const LBA_MID: u16 = 0x1f4;
    pub(crate) const LBA_HIGH: u16 = 0x1f5;
    pub(crate) const DEVICE: u16 = 0x1f6;
    pub(crate) const COMMAND: u16 = 0x1f7;
    pub(crate) const CONTROL: u16 = 0x3f6;
    /// What the secondary channel's ports are lower by.
    const SECONDARY: u16 = 0x80;

    /// The same port of a channel.
    pub(crate) const fn of(channel: usize, port: u16) -> u16 {
        if channel == 0 { port } else { port - SECONDARY }
    }
}

/// Device register: LBA, and device 1.
const LBA: u8 = 1 << 6;
pub(crate) const DEVICE_1: u8 = 1 << 4;
const BSY: u8 = 1 << 7;
const DRQ: u8 = 1 << 3;
pub(crate) const SRST: u8 = 1 << 2;
pub(crate) const PACKET: u8 = 0xa0;
const IDENTIFY: u8 = 0xec;
/// PCI command register: I/O space and bus master.
const IO_AND_BUS_MASTER: u8 = 0b101;

/// Bus master registers of the primary channel.
const BM_COMMAND: u64 = 0;
const BM_TABLE: u64 = 4;
const BM_START: u8 = 1;
/// Bytes of the bus master's window, and of a channel's half.
const BM_LEN: u64 = 16;
const BM_CHANNEL: u64 = 8;
/// Where the window is.
pub(crate) const BM_BASE: u16 = 0xc000;

/// Where the guest has its descriptor tables.
const TABLE: u32 = 0x1000;
const DESCRIPTOR_LEN: u32 = 8;
const END_OF_TABLE: u32 = 1 << 31;

/// Channels of the controller, and places of drives on them: two on each.
pub(crate) const CHANNELS: usize = 2;
pub(crate) const PLACES: usize = 4;

/// See the [module](self).
pub(crate) struct Pc {
    pub(crate) world: World,
    pub(crate) ide: Arc<IdeController>,
    pub(crate) posted: Arc<Queue>,
    lines: [Arc<Line>; CHANNELS],
    /// What is in each place: disk N of the world in place N.
    pub(crate) kinds: [Option<DriveKind>; PLACES],
    /// The guest has written a Device register, or a command, that may be for this place.
    named: [bool; PLACES],
    control: [u8; CHANNELS],
}

impl Pc {
    /// The drive under attack is of this kind; a disk is its slave, and another the master of the other channel.
    pub(crate) fn new(kind: DriveKind) -> Self {
        let disk = Some(DriveKind::Disk);
        Self::with([Some(kind), disk, disk, None])
    }

    /// With such drives: master and slave of the primary channel, and of the secondary.
    pub(crate) fn with(kinds: [Option<DriveKind>; PLACES]) -> Self {
        let world =
            World::new(PLACES - kinds.iter().rev().take_while(|kind| kind.is_none()).count());
        let lines = [Arc::new(Line::default()), Arc::new(Line::default())];
        let drive = |place: usize| {
            let backend = || Arc::clone(&world.disks[place].backend);
            kinds[place].map(|kind| match kind {
                DriveKind::Disk => DriveConfig::new(backend()),
                DriveKind::CdRom => DriveConfig::cd_rom(backend()),
            })
        };
        let posted = Arc::new(Queue::default());
        let config = IdeConfig {
            memory: Arc::clone(&world.memory),
            context: world.context(),
            irq: [lines[0].clone(), lines[1].clone()],
            posted: Arc::clone(&posted) as _,
            variant: IdeVariant::Piix3,
            drives: [[drive(0), drive(1)], [drive(2), drive(3)]],
        };
        let ide = IdeController::new(&config).unwrap();
        posted.connect(&ide);
        ide.bar_placed(BarIndex::BAR4, Some(BM_BASE.into()));
        let pc = Self {
            world,
            ide,
            posted,
            lines,
            kinds,
            named: [true, false, false, false],
            control: [0; CHANNELS],
        };
        pc.set_pci_command(IO_AND_BUS_MASTER);
        pc
    }

    pub(crate) fn set_pci_command(&self, value: u8) {
        self.posted.flush();
        self.ide.write_config(offset::COMMAND, &[value]);
    }

    /// A read of a port, several of them if there is more than `width` bytes.
    pub(crate) fn read(&self, port: u16, width: usize, data: &mut [u8]) {
        self.posted.flush();
        self.ide.read_string(port, width, data);
    }

    /// The counterpart of [`Pc::read`].
    pub(crate) fn write(&mut self, port: u16, width: usize, data: &[u8]) {
        for access in data.chunks(width) {
            for (port, byte) in (port..).zip(access) {
                self.note(port, *byte);
            }
        }
        self.posted.flush();
        self.ide.write_string(port, width, data);
    }

    /// A store that the host may queue: it comes to the controller before anything else looks at that.
    pub(crate) fn post(&mut self, port: u16, byte: u8) {
        self.note(port, byte);
        self.posted.store(port, byte);
    }

    /// Notes which drive the guest names. A wide access to the data register is one to it alone, but noting too much
    /// only asserts less.
    fn note(&mut self, port: u16, byte: u8) {
        for channel in 0..CHANNELS {
            let of = |register| port::of(channel, register);
            if port == of(port::DEVICE) {
                self.named[2 * channel + 1] |= byte & DEVICE_1 != 0;
            } else if port == of(port::COMMAND) {
                self.named[2 * channel] = true;
            } else if port == of(port::CONTROL) {
                self.control[channel] = byte;
            }
        }
    }

    pub(crate) fn out(&mut self, port: u16, value: u8) {
        self.write(port, 1, &[value]);
    }

    pub(crate) fn status(&self, channel: usize) -> u8 {
        let mut status = [0];
        self.read(port::of(channel, port::CONTROL), 1, &mut status);
        status[0]
    }

    /// Sets the address registers of device 0 and gives a command.
    pub(crate) fn command(&mut self, lba: u32, count: u8, command: u8) {
        self.command_at(0, lba, count, command);
    }

    /// Sets the address registers of a place's drive and gives a command.
    pub(crate) fn command_at(&mut self, place: usize, lba: u32, count: u8, command: u8) {
        let [low, mid, high, _] = lba.to_le_bytes();
        let device = if place.is_multiple_of(2) {
            LBA
        } else {
            LBA | DEVICE_1
        };
        for (register, value) in [
            (port::DEVICE, device),
            (port::COUNT, count),
            (port::LBA_LOW, low),
            (port::LBA_MID, mid),
            (port::LBA_HIGH, high),
            (port::COMMAND, command),
        ] {
            self.out(port::of(place / 2, register), value);
        }
    }

    pub(crate) fn bus_master_write(&self, at: u64, data: &[u8]) {
        self.posted.flush();
        self.ide.bar_write(BarIndex::BAR4, at, data);
    }

    /// Stops the bus master of the primary channel, points it to the table and starts it.
    pub(crate) fn start_bus_master(&self, direction: u8) {
        self.start_bus_master_of(0, direction);
    }

    /// The same of either channel.
    pub(crate) fn start_bus_master_of(&self, channel: usize, direction: u8) {
        let registers = BM_CHANNEL * channel as u64;
        self.bus_master_write(registers + BM_COMMAND, &[0]);
        self.bus_master_write(registers + BM_TABLE, &TABLE.to_le_bytes());
        self.bus_master_write(registers + BM_COMMAND, &[BM_START | direction]);
    }

    pub(crate) fn stop_bus_master(&self) {
        self.bus_master_write(BM_COMMAND, &[0]);
    }

    /// A descriptor table made of the input: regions in memory, at its edges, in the hole and beyond.
    pub(crate) fn table(&self, input: &mut Input<'_>) {
        let entries = input.u8() % 8;
        for entry in 0..u32::from(entries) {
            let kind = input.u8();
            let value = u32::from(input.u16());
            let [(_, low_len), (high_base, high_len)] = RAM;
            let base = match kind % 8 {
                0..=3 => 0x2000 + value,
                4 => u32::try_from(low_len).unwrap() - 0x200 + value % 0x400,
                5 => u32::try_from(high_base).unwrap() + value,
                6 => {
                    u32::try_from(high_base).unwrap() + u32::try_from(high_len).unwrap()
                        - value % 0x400
                }
                _ => value << 16 | value,
            };
            let count = u32::from(input.u16());
            let last = if kind & 0x80 != 0 { END_OF_TABLE } else { 0 };
            let descriptor = u64::from(base) | u64::from(count | last) << 32;
            let at = u64::from(TABLE + entry * DESCRIPTOR_LEN);
            self.world.poke(at, &descriptor.to_le_bytes());
        }
    }

    /// A table that has room for anything.
    pub(crate) fn roomy_table(&self) {
        for (entry, base) in [0x1_0000_u64, 0x2_0000, 0x3_0000, 0x4_0000]
            .into_iter()
            .enumerate()
        {
            let last = if entry == 3 { END_OF_TABLE } else { 0 };
            let descriptor = base | u64::from(last) << 32;
            let at = u64::from(TABLE) + u64::from(DESCRIPTOR_LEN) * entry as u64;
            self.world.poke(at, &descriptor.to_le_bytes());
        }
    }

    /// Reads or writes so many bytes of the bus master's window.
    pub(crate) fn bus_master(&self, input: &mut Input<'_>) {
        let width = input.width();
        let at = u64::from(input.u8()) % (BM_LEN - width as u64 + 1);
        if input.flag() {
            self.bus_master_write(at, &input.array::<4>()[..width]);
        } else {
            self.posted.flush();
            self.ide.bar_read(BarIndex::BAR4, at, &mut [0; 4][..width]);
        }
    }

    pub(crate) fn software_reset(&mut self) {
        self.software_reset_of(0);
    }

    pub(crate) fn software_reset_of(&mut self, channel: usize) {
        self.out(port::of(channel, port::CONTROL), SRST);
        self.out(port::of(channel, port::CONTROL), 0);
    }

    pub(crate) fn machine_reset(&mut self) {
        // It waits for what runs.
        self.world.release();
        let resetting = self.ide.reset();
        self.world.run(resetting);
        self.control = [0; CHANNELS];
    }

    /// Requests of a channel: those that wait for a section's end, and those that run.
    fn requests(&self, channel: usize) -> (usize, usize) {
        let gates = || {
            let disks = self.world.disks.iter().skip(2 * channel).take(2);
            disks.map(|disk| disk.backend.gate())
        };
        (
            gates().map(|gate| gate.parked()).sum(),
            gates().map(|gate| gate.in_flight()).sum(),
        )
    }

    /// What must hold after every step.
    pub(crate) fn check(&mut self) {
        for channel in 0..CHANNELS {
            self.check_channel(channel);
        }
        self.world.check();
    }

    fn check_channel(&mut self, channel: usize) {
        let status = self.status(channel);
        assert_ne!(status & (BSY | DRQ), BSY | DRQ, "busy and wanting data");
        let (parked, running) = self.requests(channel);
        if parked + running > 1 || (parked + running == 1 && status & BSY == 0) {
            // One that was given its token at a section's end takes it, and one that was killed leaves, when the loop
            // comes by.
            self.world.turns();
            let (parked, running) = self.requests(channel);
            let busy = self.status(channel) & BSY != 0;
            assert!(parked + running <= 1, "a channel has more than one request");
            assert!(parked == 0 || busy, "parked, and the drive is not busy");
            assert!(
                running == 0 || busy,
                "a request runs, and the drive is not busy"
            );
        }
    }

    /// Ends the attack. Every command comes to its end, nobody else was hurt, and the drives answer.
    pub(crate) fn end(mut self) {
        self.world.settle();
        for channel in 0..CHANNELS {
            let held = self.control[channel] & SRST != 0;
            assert!(held || self.status(channel) & BSY == 0, "busy for ever");
            let named = self.named[2 * channel] || self.named[2 * channel + 1];
            let is_high = self.lines[channel].is_high();
            assert!(named || !is_high, "a channel interrupts that nobody used");
        }
        for (place, disk) in self.world.disks.iter().enumerate() {
            let kind = self.kinds[place];
            let may_change = self.named[place] && kind == Some(DriveKind::Disk);
            assert!(may_change || disk.is_untouched(), "disk {place} was hit");
        }
        self.machine_reset();
        for place in 0..PLACES {
            self.command_at(place, 0, 0, IDENTIFY);
            self.software_reset_of(place / 2);
            assert_eq!(self.status(place / 2) & (BSY | DRQ), 0);
        }
        let retiring = self.ide.retire();
        self.world.run(retiring);
        self.world.settle();
    }
}
