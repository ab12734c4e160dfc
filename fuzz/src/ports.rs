//! An IDE controller at its ports, with a drive under attack, a neighbour on its cable and one on the other channel.

use std::sync::Arc;

use sluice_devices::bus::PioDevice as _;
use sluice_devices::ide::{DriveConfig, DriveKind, IdeConfig, IdeController, IdeVariant};
use sluice_devices::pci::layout::offset;
use sluice_devices::pci::{BarIndex, PciFunction as _};
use sluice_devices::posted::Unposted;

use crate::input::Input;
use crate::world::{Line, RAM, World};

/// Ports of the primary channel, and the last of the secondary's command block.
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
    pub(crate) const SECONDARY_COMMAND: u16 = 0x177;
}

/// Device register: LBA, and device 1.
const LBA: u8 = 1 << 6;
const DEVICE_1: u8 = 1 << 4;
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
/// Bytes of the bus master's window.
const BM_LEN: u64 = 16;

/// Where the guest has its descriptor tables.
const TABLE: u32 = 0x1000;
const DESCRIPTOR_LEN: u32 = 8;
const END_OF_TABLE: u32 = 1 << 31;

/// The disks: the one under attack, and those that may be left alone.
const ATTACKED: usize = 0;
const SLAVE: usize = 1;
const SECONDARY: usize = 2;

/// See the [module](self).
pub(crate) struct Pc {
    pub(crate) world: World,
    pub(crate) ide: Arc<IdeController>,
    lines: [Arc<Line>; 2],
    /// The guest has written a Device register, or a command, that may be for this disk.
    named: [bool; 3],
    control: u8,
}

impl Pc {
    /// The drive under attack is of this kind.
    pub(crate) fn new(kind: DriveKind) -> Self {
        let world = World::new(3);
        let lines = [Arc::new(Line::default()), Arc::new(Line::default())];
        let backend = |index: usize| Arc::clone(&world.disks[index].backend);
        let attacked = match kind {
            DriveKind::Disk => DriveConfig::new(backend(ATTACKED)),
            DriveKind::CdRom => DriveConfig::cd_rom(backend(ATTACKED)),
        };
        let config = IdeConfig {
            memory: Arc::clone(&world.memory),
            context: world.context(),
            irq: [lines[0].clone(), lines[1].clone()],
            posted: Arc::new(Unposted),
            variant: IdeVariant::Piix3,
            drives: [
                [Some(attacked), Some(DriveConfig::new(backend(SLAVE)))],
                [Some(DriveConfig::new(backend(SECONDARY))), None],
            ],
        };
        let ide = IdeController::new(&config).unwrap();
        let pc = Self {
            world,
            ide,
            lines,
            named: [true, false, false],
            control: 0,
        };
        pc.set_pci_command(IO_AND_BUS_MASTER);
        pc
    }

    pub(crate) fn set_pci_command(&self, value: u8) {
        self.ide.write_config(offset::COMMAND, &[value]);
    }

    /// A read of a port, several of them if there is more than `width` bytes.
    pub(crate) fn read(&self, port: u16, width: usize, data: &mut [u8]) {
        self.ide.read_string(port, width, data);
    }

    /// The counterpart of [`Pc::read`].
    pub(crate) fn write(&mut self, port: u16, width: usize, data: &[u8]) {
        for access in data.chunks(width) {
            for (port, byte) in (port..).zip(access) {
                self.note(port, *byte);
            }
        }
        self.ide.write_string(port, width, data);
    }

    /// Notes which disk the guest names. A wide access to the data register is one to it alone, but noting too much
    /// only asserts less.
    fn note(&mut self, port: u16, byte: u8) {
        match port {
            port::DEVICE => self.named[SLAVE] |= byte & DEVICE_1 != 0,
            port::SECONDARY_COMMAND => self.named[SECONDARY] = true,
            port::CONTROL => self.control = byte,
            _ => {}
        }
    }

    pub(crate) fn out(&mut self, port: u16, value: u8) {
        self.write(port, 1, &[value]);
    }

    pub(crate) fn status(&self) -> u8 {
        let mut status = [0];
        self.read(port::CONTROL, 1, &mut status);
        status[0]
    }

    /// Sets the address registers of device 0 and gives a command.
    pub(crate) fn command(&mut self, lba: u32, count: u8, command: u8) {
        let [low, mid, high, _] = lba.to_le_bytes();
        self.out(port::DEVICE, LBA);
        self.out(port::COUNT, count);
        self.out(port::LBA_LOW, low);
        self.out(port::LBA_MID, mid);
        self.out(port::LBA_HIGH, high);
        self.out(port::COMMAND, command);
    }

    pub(crate) fn bus_master_write(&self, at: u64, data: &[u8]) {
        self.ide.bar_write(BarIndex::BAR4, at, data);
    }

    /// Stops the bus master, points it to the table and starts it.
    pub(crate) fn start_bus_master(&self, direction: u8) {
        self.bus_master_write(BM_COMMAND, &[0]);
        self.bus_master_write(BM_TABLE, &TABLE.to_le_bytes());
        self.bus_master_write(BM_COMMAND, &[BM_START | direction]);
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
            self.ide.bar_read(BarIndex::BAR4, at, &mut [0; 4][..width]);
        }
    }

    pub(crate) fn software_reset(&mut self) {
        self.out(port::CONTROL, SRST);
        self.out(port::CONTROL, 0);
    }

    pub(crate) fn machine_reset(&mut self) {
        // It waits for what runs.
        self.world.release();
        let resetting = self.ide.reset();
        self.world.run(resetting);
        self.control = 0;
    }

    /// Requests of the channel under attack: those that wait for a section's end, and those that run.
    fn requests(&self) -> (usize, usize) {
        let gates = || {
            self.world.disks[..=SLAVE]
                .iter()
                .map(|disk| disk.backend.gate())
        };
        (
            gates().map(|gate| gate.parked()).sum(),
            gates().map(|gate| gate.in_flight()).sum(),
        )
    }

    /// What must hold after every step.
    pub(crate) fn check(&mut self) {
        let status = self.status();
        assert_ne!(status & (BSY | DRQ), BSY | DRQ, "busy and wanting data");
        let (parked, running) = self.requests();
        if parked + running > 1 || (parked + running == 1 && status & BSY == 0) {
            // One that was given its token at a section's end takes it, and one that was killed leaves, when the loop
            // comes by.
            self.world.turns();
            let (parked, running) = self.requests();
            let busy = self.status() & BSY != 0;
            assert!(parked + running <= 1, "a channel has more than one request");
            assert!(parked == 0 || busy, "parked, and the drive is not busy");
            assert!(
                running == 0 || busy,
                "a request runs, and the drive is not busy"
            );
        }
        self.world.check();
    }

    /// Ends the attack. Every command comes to its end, nobody else was hurt, and the drives answer.
    pub(crate) fn end(mut self) {
        self.world.settle();
        let held = self.control & SRST != 0;
        assert!(held || self.status() & BSY == 0, "busy for ever");
        for disk in [SLAVE, SECONDARY] {
            let spared = !self.named[disk];
            assert!(
                !spared || self.world.disks[disk].is_untouched(),
                "disk {disk} was hit"
            );
        }
        assert!(
            self.named[SECONDARY] || !self.lines[1].is_high(),
            "the other channel interrupts"
        );
        self.machine_reset();
        for device in [LBA, LBA | DEVICE_1] {
            self.out(port::DEVICE, device);
            self.out(port::COMMAND, IDENTIFY);
            self.software_reset();
            assert_eq!(self.status() & (BSY | DRQ), 0);
        }
        let retiring = self.ide.retire();
        self.world.run(retiring);
        self.world.settle();
    }
}
