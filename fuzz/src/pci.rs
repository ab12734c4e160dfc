//! Configuration space at its ports, at every width, whatever BARs are moved to, and a device that is plugged in and out.

use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex, Weak};

use sluice_devices::bus::{MmioBus, PioBus};
use sluice_devices::clock::HostClock;
use sluice_devices::ide::{DriveConfig, IdeConfig, IdeController, IdeVariant};
use sluice_devices::legacy::{Ejector, GpeBlock, PciHotplug};
use sluice_devices::pci::layout::{CONFIG_SPACE_LEN, Command, offset};
use sluice_devices::pci::{
    Address, BarAllocator, BarIndex, BarKind, Bridge, CONFIG_PORTS, PciBus, PciFunction,
};
use sluice_devices::posted::Unposted;
use sluice_devices::reset::{ResetHook as _, Resetting, settled};

use crate::input::Input;
use crate::virtio::{self, Settings};
use crate::world::{Line, RAM, World};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const HOTPLUG_PORTS: RangeInclusive<u16> = PciHotplug::BASE..=PciHotplug::LAST;
const ENABLE: u32 = 1 << 31;

/// The functions: host bridge, ISA bridge, IDE, virtio.
const ADDRESSES: [Address; 4] = [
    Address::new(0, 0),
    Address::new(1, 0),
    Address::new(1, 1),
    Address::new(2, 0),
];
const IDE: usize = 2;
const VIRTIO: usize = 3;
/// Where a header has its BARs.
const BARS: Range<usize> = 0x10..0x28;
/// The primary channel's Alternate Status, and what it shows at rest.
const ALTERNATE_STATUS: u16 = 0x3f6;
const READY: u8 = 0x50;

/// Takes what the guest ejects off the bus; its end comes in the next step.
struct Hand {
    bus: Weak<PciBus>,
    ejected: Mutex<Vec<Arc<dyn PciFunction>>>,
}

impl Ejector for Hand {
    fn eject(&self, slot: u8) {
        // The functions of the bridges' slot stay, as the machine has them.
        if let Some(bus) = self.bus.upgrade()
            && slot == ADDRESSES[VIRTIO].device()
        {
            self.ejected
                .lock()
                .unwrap()
                .extend(bus.remove(ADDRESSES[VIRTIO]));
        }
    }

    fn ejected(&self) -> Resetting {
        settled()
    }
}

struct Guest {
    world: World,
    line: Arc<Line>,
    pio: Arc<PioBus>,
    mmio: Arc<MmioBus>,
    bus: Arc<PciBus>,
    hotplug: Arc<PciHotplug>,
    hand: Arc<Hand>,
    functions: [Arc<dyn PciFunction>; ADDRESSES.len()],
    /// Whether the virtio disk is on the bus.
    plugged: bool,
    /// It is another one than at first.
    replugged: bool,
    at_first: [[u8; CONFIG_SPACE_LEN]; ADDRESSES.len()],
    /// A function may have been allowed to access memory.
    mastered: bool,
    /// A port of the IDE controller may have been written.
    attacked: bool,
}

fn space(function: &dyn PciFunction) -> [u8; CONFIG_SPACE_LEN] {
    let mut bytes = [0; CONFIG_SPACE_LEN];
    function.config().read(0, &mut bytes);
    bytes
}

impl Guest {
    fn new() -> Self {
        let world = World::new(2);
        let line = Arc::new(Line::default());
        let (pio, mmio) = (Arc::new(PioBus::new()), Arc::new(MmioBus::new()));
        let bus = PciBus::new(
            Arc::clone(&pio),
            Arc::clone(&mmio),
            Arc::new(HostClock::new()),
        );
        pio.insert(CONFIG_PORTS, Arc::clone(&bus) as _).unwrap();
        let ide = IdeController::new(&IdeConfig {
            memory: Arc::clone(&world.memory),
            context: world.context(),
            irq: [Arc::new(Line::default()), Arc::new(Line::default())],
            posted: Arc::new(Unposted),
            variant: IdeVariant::Piix3,
            drives: [
                [
                    Some(DriveConfig::new(Arc::clone(&world.disks[0].backend))),
                    None,
                ],
                [None, None],
            ],
        })
        .unwrap();
        for ports in IdeController::ports() {
            pio.insert(ports, Arc::clone(&ide) as _).unwrap();
        }
        let functions: [Arc<dyn PciFunction>; ADDRESSES.len()] = [
            Bridge::host(),
            Bridge::isa(),
            ide,
            virtio::function(&world, 1, &line, Settings::USUAL),
        ];
        for (address, function) in ADDRESSES.into_iter().zip(&functions) {
            bus.add(address, Arc::clone(function)).unwrap();
        }
        bus.assign_bars(BarAllocator::default()).unwrap();
        let gpe = Arc::new(GpeBlock::new(Arc::new(Line::default())));
        pio.insert(GpeBlock::BASE..=GpeBlock::LAST, Arc::clone(&gpe) as _)
            .unwrap();
        let hotplug = PciHotplug::new(gpe);
        pio.insert(HOTPLUG_PORTS, Arc::clone(&hotplug) as _)
            .unwrap();
        let hand = Arc::new(Hand {
            bus: Arc::downgrade(&bus),
            ejected: Mutex::default(),
        });
        hotplug.connect(Arc::downgrade(&hand) as _);
        let at_first = functions
            .each_ref()
            .map(|function| space(function.as_ref()));
        Self {
            world,
            line,
            pio,
            mmio,
            bus,
            hotplug,
            hand,
            functions,
            plugged: true,
            replugged: false,
            at_first,
            mastered: false,
            attacked: false,
        }
    }

    fn out(&mut self, port: u16, data: &[u8]) {
        self.attacked |= !CONFIG_PORTS.contains(&port);
        self.pio.write(port, data);
    }

    /// Writes a register as a driver does: address, then data.
    fn configure(&mut self, function: usize, register: u8, data: &[u8]) {
        let address = ADDRESSES[function];
        let selector = ENABLE
            | u32::from(address.device()) << 11
            | u32::from(address.function()) << 8
            | u32::from(register & !3);
        self.out(CONFIG_ADDRESS, &selector.to_le_bytes());
        self.out(CONFIG_DATA + u16::from(register & 3), data);
    }

    fn command(&self, function: usize) -> Command {
        let command = self.functions[function].config().read_u16(offset::COMMAND);
        Command::from_bits_retain(command)
    }

    /// Brings what the guest has ejected to its end.
    fn end_ejected(&mut self) {
        let ejected = std::mem::take(&mut *self.hand.ejected.lock().unwrap());
        for function in ejected {
            self.plugged = false;
            self.world.run(function.retire());
            assert!(!self.line.is_high(), "what has gone interrupts");
        }
    }

    /// Plugs a disk in, if there is none.
    fn plug(&mut self, settings: Settings) {
        if self.plugged {
            return;
        }
        self.functions[VIRTIO] = virtio::function(&self.world, 1, &self.line, settings);
        let function = Arc::clone(&self.functions[VIRTIO]);
        self.bus.add(ADDRESSES[VIRTIO], function).unwrap();
        self.at_first[VIRTIO] = space(self.functions[VIRTIO].as_ref());
        (self.plugged, self.replugged) = (true, true);
        self.hotplug.plugged(ADDRESSES[VIRTIO].device());
    }

    fn machine_reset(&mut self) {
        let resetting = Arc::clone(&self.hotplug).reset();
        self.world.run(resetting);
        self.end_ejected();
        let resetting = Arc::clone(&self.bus).reset();
        self.world.run(resetting);
    }

    /// Where an I/O or memory BAR answers, if it does.
    fn window(function: &dyn PciFunction, bar: BarIndex) -> Option<(BarKind, u64, u64)> {
        let (kind, size) = function.config().bar(bar)?;
        let place = function.config().bar_place(bar)?;
        assert_eq!(place % size, 0, "a BAR is not aligned to its size");
        Some((kind, place, size))
    }

    fn check(&mut self) {
        self.end_ejected();
        self.world.check();
        let mut id = [0; 4];
        self.bus.config_read(ADDRESSES[VIRTIO], 0, &mut id);
        assert_eq!(
            id != [0xff; 4],
            self.plugged,
            "a slot is not as it should be"
        );
        for (function, first) in self.functions.iter().zip(&self.at_first) {
            let now = space(function.as_ref());
            for identity in [0..4, 8..12, 0x2c..0x30] {
                assert_eq!(
                    now[identity.clone()],
                    first[identity],
                    "an identity changed"
                );
            }
            assert_eq!(now[offset::HEADER_TYPE], first[offset::HEADER_TYPE]);
            capabilities(&now);
            for bar in BarIndex::ALL {
                Self::window(function.as_ref(), bar);
            }
        }
        self.mastered |= [IDE, VIRTIO]
            .iter()
            .any(|function| self.command(*function).contains(Command::BUS_MASTER));
        let quiet = self.command(VIRTIO).contains(Command::INTX_DISABLE);
        assert!(
            !quiet || !self.line.is_high(),
            "INTx although it is disabled"
        );
        // Nothing that a BAR is moved to takes ports from those who have them.
        let mut status = [0];
        assert!(self.pio.read(ALTERNATE_STATUS, &mut status));
        assert!(
            self.attacked || status == [READY],
            "another device answers: {status:x?}"
        );
        let mut selector = [0; 4];
        assert!(self.pio.read(CONFIG_ADDRESS, &mut selector));
        assert_eq!(u32::from_le_bytes(selector) & 0x7f00_0000, 0);
    }

    /// Ends the attack: memory that nobody was allowed to access is untouched, and a reset undoes everything.
    fn end(mut self) {
        self.world.settle();
        if !self.mastered {
            let mut bytes = vec![0; RAM[0].1];
            vm_memory::Bytes::read_slice(
                &*self.world.memory,
                &mut bytes,
                vm_memory::GuestAddress(0),
            )
            .unwrap();
            assert!(
                bytes.iter().all(|byte| *byte == 0),
                "memory was written without a bus master"
            );
        }
        self.machine_reset();
        if !self.plugged {
            self.plug(Settings::USUAL);
            self.machine_reset();
        }
        for (index, (function, mut first)) in self.functions.iter().zip(self.at_first).enumerate() {
            let now = space(function.as_ref());
            if index == VIRTIO && self.replugged {
                // It was not given its places when it was plugged in, but at the reset.
                first[BARS].copy_from_slice(&now[BARS]);
            }
            assert_eq!(now, first, "a reset left something behind");
        }
        self.configure(IDE, 4, &[Command::IO.bits().to_le_bytes()[0]]);
        let window = Self::window(self.functions[IDE].as_ref(), BarIndex::BAR4);
        let (_, place, _) = window.unwrap();
        let mut status = [0];
        assert!(
            self.pio
                .read(u16::try_from(place).unwrap() + 2, &mut status),
            "BAR 4 does not answer"
        );
        assert_eq!(status, [0]);
        let retiring = Arc::clone(&self.bus);
        self.world.run(async move { retiring.retire().await });
        self.world.settle();
        // The bus and the ports have each other.
        self.pio.remove(CONFIG_PORTS).unwrap();
    }
}

/// The list of capabilities ends, and each is within the space.
fn capabilities(space: &[u8; CONFIG_SPACE_LEN]) {
    const LEAST: usize = 4;
    const MOST: usize = CONFIG_SPACE_LEN / LEAST;
    let mut at = usize::from(space[offset::CAPABILITIES]);
    for _ in 0..MOST {
        if at == 0 {
            return;
        }
        assert!((offset::DEVICE_SPECIFIC..=CONFIG_SPACE_LEN - LEAST).contains(&at));
        at = usize::from(space[at + 1]);
    }
    panic!("the list of capabilities has no end");
}

fn step(guest: &mut Guest, kind: u8, input: &mut Input<'_>) {
    match kind {
        0..=2 => {
            let function = usize::from(input.u8()) % ADDRESSES.len();
            let (register, width) = (input.u8(), input.width());
            let register = match kind {
                // The header's BARs, the command register.
                1 => 0x10 + register % 0x18,
                2 => 0x04,
                _ => register,
            };
            guest.configure(function, register, &input.array::<4>()[..width]);
        }
        3 => {
            let port = CONFIG_ADDRESS + u16::from(input.u8() % 8);
            let width = input.width();
            guest.out(port, &input.array::<4>()[..width]);
        }
        4 => {
            let port = CONFIG_ADDRESS + u16::from(input.u8() % 8);
            let width = input.width();
            guest.pio.read(port, &mut [0; 4][..width]);
        }
        5 => {
            let (port, width) = (input.u16(), input.width());
            guest.out(port, &input.array::<4>()[..width]);
        }
        6 => {
            let (address, width) = (u64::from(input.u32()), input.width());
            guest.attacked = true;
            guest.mmio.write(address, &input.array::<4>()[..width]);
        }
        7 => {
            let (port, address, width) = (input.u16(), u64::from(input.u32()), input.width());
            guest.attacked = true;
            guest.pio.read(port, &mut [0; 4][..width]);
            guest.mmio.read(address, &mut [0; 4][..width]);
        }
        8 => within_a_bar(guest, input),
        9 => guest.world.turns(),
        10 => guest.machine_reset(),
        11 => {
            let (port, width) = (input.u8(), input.width());
            let port = PciHotplug::BASE + u16::from(port % PciHotplug::LENGTH);
            let data = input.array::<4>();
            guest.out(port, &data[..width]);
            guest.pio.read(port, &mut [0; 4][..width]);
        }
        12 => {
            let slot = 1_u32 << ADDRESSES[VIRTIO].device();
            guest.pio.write(PciHotplug::EJECT, &slot.to_le_bytes());
        }
        13 => {
            let settings = Settings::chosen(input);
            guest.plug(settings);
        }
        14 => guest.hotplug.request_unplug(ADDRESSES[VIRTIO].device()),
        15 => {
            let (port, width) = (input.u8(), input.width());
            let port = GpeBlock::BASE + u16::from(port % GpeBlock::LENGTH);
            guest.out(port, &input.array::<4>()[..width]);
        }
        _ => guest.world.turns(),
    }
}

/// An access where a BAR answers, or just at its end.
fn within_a_bar(guest: &mut Guest, input: &mut Input<'_>) {
    let function = if input.flag() { IDE } else { VIRTIO };
    let bar = BarIndex::ALL[usize::from(input.u8()) % BarIndex::COUNT];
    let (at, width) = (u64::from(input.u16()), input.width());
    let data = input.array::<4>();
    let Some((kind, place, size)) = Guest::window(guest.functions[function].as_ref(), bar) else {
        return;
    };
    let at = place + at % size;
    guest.attacked = true;
    match (kind, u16::try_from(at)) {
        (BarKind::Io, Ok(port)) => guest.out(port, &data[..width]),
        _ => drop(guest.mmio.write(at, &data[..width])),
    }
}

/// Takes the steps of an input; panics when something does not hold.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut guest = Guest::new();
    guest.check();
    while let Some(kind) = input.step() {
        step(&mut guest, kind, &mut input);
        guest.check();
    }
    guest.end();
}
