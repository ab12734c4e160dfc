//! Tests of the configuration mechanism and of moving BARs, through the ports as a guest does it.

use proptest::prelude::*;

use super::*;
use crate::clock::HostClock;
use crate::pci::layout::{Command, class, offset};
use crate::pci::{Bridge, ConfigBuilder, Identity, PciConfig};
use crate::reset::settled;

/// A function whose BARs echo offsets and that remembers where it was placed.
struct Probe {
    config: PciConfig,
    writes: Mutex<Vec<(BarIndex, u64, Vec<u8>)>>,
    places: Mutex<Vec<(BarIndex, Option<u64>)>>,
    retired: AtomicU32,
}

impl Probe {
    fn new() -> Arc<Self> {
        let identity = Identity {
            vendor: 0x1234,
            device: 1,
            revision: 0,
            class: class::IDE,
        };
        let config = ConfigBuilder::new(identity)
            .bar(BarIndex::BAR0, BarKind::Memory32, 0x1000)
            .unwrap()
            .bar(BarIndex::BAR4, BarKind::Io, 16)
            .unwrap()
            .build();
        Arc::new(Self {
            config,
            writes: Mutex::default(),
            places: Mutex::default(),
            retired: AtomicU32::new(0),
        })
    }
}

impl PciFunction for Probe {
    fn config(&self) -> &PciConfig {
        &self.config
    }

    fn bar_read(&self, _bar: BarIndex, offset: u64, data: &mut [u8]) {
        data.fill(offset.to_le_bytes()[0]);
    }

    fn bar_write(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        self.writes.lock().push((bar, offset, data.to_vec()));
    }

    fn bar_placed(&self, bar: BarIndex, place: Option<u64>) {
        self.places.lock().push((bar, place));
    }

    fn reset(&self) -> Resetting {
        settled()
    }

    fn retire(&self) -> Resetting {
        self.retired.fetch_add(1, Ordering::Relaxed);
        settled()
    }
}

struct Machine {
    pio: Arc<PioBus>,
    mmio: Arc<MmioBus>,
    bus: Arc<PciBus>,
}

impl Machine {
    fn new() -> Self {
        let (pio, mmio) = (Arc::new(PioBus::new()), Arc::new(MmioBus::new()));
        let bus = PciBus::new(
            Arc::clone(&pio),
            Arc::clone(&mmio),
            Arc::new(HostClock::new()),
        );
        pio.insert(CONFIG_PORTS, Arc::clone(&bus) as _).unwrap();
        bus.add(Address::new(0, 0), Bridge::host()).unwrap();
        Self { pio, mmio, bus }
    }

    fn select(&self, device: u8, function: u8, register: u8) {
        let selector = ADDRESS_ENABLE
            | u32::from(device) << 11
            | u32::from(function) << 8
            | u32::from(register & 0xfc);
        assert!(self.pio.write(CONFIG_ADDRESS, &selector.to_le_bytes()));
    }

    fn read(&self, device: u8, function: u8, register: u8, len: usize) -> Vec<u8> {
        self.select(device, function, register);
        let mut data = vec![0; len];
        assert!(
            self.pio
                .read(CONFIG_DATA + u16::from(register & 3), &mut data)
        );
        data
    }

    fn write(&self, device: u8, function: u8, register: u8, data: &[u8]) {
        self.select(device, function, register);
        assert!(self.pio.write(CONFIG_DATA + u16::from(register & 3), data));
    }

    fn write32(&self, device: u8, register: usize, value: u32) {
        self.write(
            device,
            0,
            u8::try_from(register).unwrap(),
            &value.to_le_bytes(),
        );
    }

    fn pio_answers(&self, port: u16) -> bool {
        self.pio.read(port, &mut [0])
    }

    fn mmio_answers(&self, address: u64) -> bool {
        self.mmio.read(address, &mut [0])
    }
}

#[test]
fn mechanism_1_reads_in_every_width() {
    let machine = Machine::new();
    assert_eq!(machine.read(0, 0, 0, 4), [0x86, 0x80, 0x37, 0x12]);
    assert_eq!(machine.read(0, 0, 2, 2), [0x37, 0x12]);
    assert_eq!(machine.read(0, 0, 1, 1), [0x80]);
    assert_eq!(
        machine.read(0, 0, 3, 2),
        [0x12, 0xff],
        "no access leaves its doubleword"
    );
}

#[test]
fn absent_functions_and_a_cleared_enable_bit_read_all_ones() {
    let machine = Machine::new();
    assert_eq!(machine.read(0, 1, 0, 4), [0xff; 4]);
    assert_eq!(machine.read(7, 0, 0, 4), [0xff; 4]);
    machine.write(7, 0, 4, &[7, 0]);
    machine.pio.write(CONFIG_ADDRESS, &0_u32.to_le_bytes());
    let mut data = [0; 4];
    machine.pio.read(CONFIG_DATA, &mut data);
    assert_eq!(data, [0xff; 4]);
    let other_bus = ADDRESS_ENABLE | 1 << 16;
    machine.pio.write(CONFIG_ADDRESS, &other_bus.to_le_bytes());
    machine.pio.read(CONFIG_DATA, &mut data);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn config_address_takes_doublewords_only() {
    let machine = Machine::new();
    machine.select(0, 0, 0x40);
    machine.pio.write(CONFIG_ADDRESS, &[0]);
    machine.pio.write(CONFIG_ADDRESS + 3, &[1]);
    let mut data = [0; 4];
    machine.pio.read(CONFIG_ADDRESS, &mut data);
    assert_eq!(u32::from_le_bytes(data), ADDRESS_ENABLE | 0x40);
}

#[test]
fn bytes_are_addressed_by_the_port_or_by_the_address() {
    let machine = Machine::new();
    let probe = Probe::new();
    machine.bus.add(Address::new(3, 0), probe).unwrap();
    let read = |register: u8, port: u16, len: usize| {
        let mut data = [0; 4];
        let selector = ADDRESS_ENABLE | 3 << 11 | u32::from(register);
        machine.pio.write(CONFIG_ADDRESS, &selector.to_le_bytes());
        machine.pio.read(port, &mut data[..len]);
        u32::from_le_bytes(data)
    };
    let whole = read(0, CONFIG_DATA, 4);
    assert_eq!(read(2, CONFIG_DATA, 2), whole >> 16);
    assert_eq!(read(0, CONFIG_DATA + 2, 2), whole >> 16);
    assert_eq!(read(3, CONFIG_DATA, 1), whole >> 24);
    // No access leaves its doubleword.
    assert_eq!(read(2, CONFIG_DATA, 4), whole >> 16 | 0xffff_0000);
    assert_eq!(read(0xff, CONFIG_DATA, 4) >> 8, 0xff_ffff);
}

#[test]
fn bars_appear_move_and_vanish() {
    let machine = Machine::new();
    let probe = Probe::new();
    machine.bus.add(Address::new(3, 0), probe.clone()).unwrap();
    machine.bus.assign_bars(BarAllocator::default()).unwrap();
    assert!(!machine.pio_answers(0xc000) && !machine.mmio_answers(0xe000_0000));

    machine.write32(3, offset::COMMAND, 3);
    assert!(machine.pio_answers(0xc00f) && !machine.pio_answers(0xc010));
    let mut data = [0; 4];
    assert!(machine.mmio.read(0xe000_0010, &mut data));
    assert_eq!(data, [0x10; 4]);
    assert!(machine.mmio.read(0xe000_0ffe, &mut data));
    assert_eq!(
        data,
        [0xfe, 0xfe, 0xff, 0xff],
        "an access over the end is clipped"
    );

    machine.write32(3, 0x10, 0xf000_0000);
    assert!(!machine.mmio_answers(0xe000_0000) && machine.mmio_answers(0xf000_0000));
    machine.mmio.write(0xf000_0020, &[1, 2]);
    assert_eq!(*probe.writes.lock(), [(BarIndex::BAR0, 0x20, vec![1, 2])]);

    machine.write32(3, offset::COMMAND, 0);
    assert!(!machine.pio_answers(0xc000) && !machine.mmio_answers(0xf000_0000));
    let places: Vec<_> = probe
        .places
        .lock()
        .iter()
        .filter(|(bar, _)| *bar == BarIndex::BAR0)
        .map(|(_, place)| *place)
        .collect();
    assert_eq!(places, [Some(0xe000_0000), None, Some(0xf000_0000), None]);
}

#[test]
fn an_overlapped_bar_answers_when_the_other_leaves() {
    let machine = Machine::new();
    let (first, second) = (Probe::new(), Probe::new());
    machine.bus.add(Address::new(3, 0), first.clone()).unwrap();
    machine.bus.add(Address::new(4, 0), second.clone()).unwrap();
    machine.bus.assign_bars(BarAllocator::default()).unwrap();
    machine.write32(3, offset::COMMAND, 2);
    machine.write32(4, 0x10, 0xe000_0000);
    machine.write32(4, offset::COMMAND, 2);
    machine.mmio.write(0xe000_0000, &[1]);
    assert_eq!(
        (first.writes.lock().len(), second.writes.lock().len()),
        (1, 0)
    );
    machine.write32(3, offset::COMMAND, 0);
    machine.mmio.write(0xe000_0000, &[1]);
    assert_eq!(
        (first.writes.lock().len(), second.writes.lock().len()),
        (1, 1)
    );
}

#[test]
fn a_slot_is_taken_once() {
    let machine = Machine::new();
    assert!(matches!(
        machine.bus.add(Address::new(0, 0), Bridge::isa()),
        Err(PciError::SlotTaken(_))
    ));
    machine.bus.add(Address::new(1, 0), Bridge::isa()).unwrap();
    assert_eq!(machine.bus.free_device(1).unwrap(), 2);
}

#[test]
fn a_function_that_was_taken_out_answers_nowhere() {
    let machine = Machine::new();
    let (first, second) = (Probe::new(), Probe::new());
    let place = Address::new(3, 0);
    machine.bus.add(place, first.clone()).unwrap();
    machine.bus.add(Address::new(4, 0), second.clone()).unwrap();
    machine.bus.assign_bars(BarAllocator::default()).unwrap();
    machine.write32(3, offset::COMMAND, 3);
    machine.write32(4, 0x10, 0xe000_0000);
    machine.write32(4, offset::COMMAND, 2);
    let taken = machine.bus.remove(place).unwrap();
    assert!(machine.bus.remove(place).is_none());
    assert_eq!(machine.read(3, 0, 0, 4), [0xff; 4]);
    assert!(!machine.pio_answers(0xc000));
    let last = |probe: &Probe| probe.places.lock().last().copied();
    assert_eq!(last(&first), Some((BarIndex::BAR4, None)));
    // What the other's window had hidden answers now.
    machine.mmio.write(0xe000_0000, &[1]);
    assert_eq!(first.writes.lock().len(), 0);
    assert_eq!(second.writes.lock().len(), 1);
    drop(taken);
    assert_eq!(Arc::strong_count(&first), 1, "a window still has it");
    machine.bus.add(place, Probe::new()).unwrap();
    assert_eq!(machine.read(3, 0, 0, 2), [0x34, 0x12]);
}

#[test]
fn what_was_plugged_in_gets_its_bars_at_a_reset() {
    let machine = Machine::new();
    machine.bus.add(Address::new(3, 0), Probe::new()).unwrap();
    machine.bus.assign_bars(BarAllocator::default()).unwrap();
    machine.bus.add(Address::new(5, 0), Probe::new()).unwrap();
    let bar = |device| u32::from_le_bytes(machine.read(device, 0, 0x10, 4).try_into().unwrap());
    assert_eq!((bar(3), bar(5)), (0xe000_0000, 0));
    machine.bus.remove(Address::new(3, 0)).unwrap();
    let mut reset = Arc::clone(&machine.bus).reset();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(reset.as_mut().poll(&mut context).is_ready());
    assert_eq!(bar(5), 0xe000_0000);
}

#[test]
fn reset_puts_bars_back_where_firmware_put_them() {
    let machine = Machine::new();
    machine.bus.add(Address::new(3, 0), Probe::new()).unwrap();
    machine.bus.assign_bars(BarAllocator::default()).unwrap();
    machine.write32(3, offset::COMMAND, 3);
    machine.write32(3, 0x10, 0xf000_0000);
    let mut reset = Arc::clone(&machine.bus).reset();
    let waker = futures_util::task::noop_waker();
    let polled = reset
        .as_mut()
        .poll(&mut std::task::Context::from_waker(&waker));
    assert!(polled.is_ready());
    assert!(!machine.mmio_answers(0xf000_0000));
    assert_eq!(machine.read(3, 0, 0x10, 4), 0xe000_0000_u32.to_le_bytes());
    assert_eq!(machine.read(3, 0, 4, 2), [0, 0]);
    machine.write32(3, offset::COMMAND, u32::from(Command::MEMORY.bits()));
    assert!(machine.mmio_answers(0xe000_0000));
}

#[test]
fn every_function_is_retired() {
    let machine = Machine::new();
    let probes = [Probe::new(), Probe::new()];
    for (device, probe) in (3..).zip(&probes) {
        let address = Address::new(device, 0);
        machine.bus.add(address, Arc::clone(probe) as _).unwrap();
    }
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let retiring = std::pin::pin!(machine.bus.retire());
    assert!(retiring.poll(&mut context).is_ready());
    assert!(
        probes
            .iter()
            .all(|probe| probe.retired.load(Ordering::Relaxed) == 1)
    );
}

proptest! {
    /// Whatever a guest writes to the ports, in any width: nobody panics, and each BAR answers
    /// exactly where it says.
    #[test]
    fn windows_follow_the_registers(
        accesses in prop::collection::vec((0xcf8_u16..0xd00, any::<u32>(), 0_usize..3), 0..200)
    ) {
        let machine = Machine::new();
        let probe = Probe::new();
        machine.bus.add(Address::new(3, 0), probe.clone()).unwrap();
        machine.bus.assign_bars(BarAllocator::default()).unwrap();
        for (port, value, width) in accesses {
            // Mostly aim at the function's header, or hardly any write would hit it.
            machine.select(3, 0, value.to_le_bytes()[3] & 0x3c);
            machine.pio.write(port, &value.to_le_bytes()[..1 << width]);
        }
        for bar in [BarIndex::BAR0, BarIndex::BAR4] {
            let place = probe.config.bar_place(bar);
            let answers = match (bar, place) {
                (BarIndex::BAR4, Some(port)) => machine.pio_answers(u16::try_from(port).unwrap()),
                (_, Some(address)) => machine.mmio_answers(address),
                (_, None) => false,
            };
            // The configuration ports themselves are the only claim a BAR can collide with here.
            let collides = place.is_some_and(|port| bar == BarIndex::BAR4 && port == 0xcf0);
            prop_assert!(answers == place.is_some() || collides);
        }
    }
}

#[test]
fn writes_to_a_functions_windows_are_timed() {
    let machine = Machine::new();
    let times = machine.bus.add(Address::new(3, 0), Probe::new()).unwrap();
    machine.bus.assign_bars(BarAllocator::default()).unwrap();
    machine.write32(3, offset::COMMAND, 3);
    machine.mmio.write(0xe000_0000, &[1]);
    machine.pio.write(0xc000, &[1]);
    machine.pio_answers(0xc000);
    let count = |times: &ExitTimes| times.writes().buckets().map(|(_, count)| count).sum();
    let counts: Vec<(Address, u64)> = machine
        .bus
        .exit_times()
        .iter()
        .map(|(address, times)| (*address, count(times)))
        .collect();
    assert_eq!(counts, [(Address::new(0, 0), 0), (Address::new(3, 0), 2)]);
    assert_eq!(count(&times), 2);
}
