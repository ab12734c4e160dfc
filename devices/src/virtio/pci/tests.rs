//! Tests of the transport with a device that does nothing but remember what it was told.

use std::sync::atomic::{AtomicU8, Ordering};

use sluice_aio::GuestRam;
use virtio_queue::QueueT;

use super::layout::{NO_VECTOR, STRUCTURES_LEN, common};
use super::*;
use crate::pci::layout::{CapabilityId, Command, offset};
use crate::virtio::testing::{Driver, Guest, RING_LEN};
use crate::virtio::{ActiveQueue, DeviceId, Settling, Status};

/// A device with two queues.
#[derive(Default)]
struct Fake {
    started: Mutex<Vec<ActiveQueue>>,
    settling: Mutex<Vec<(u16, Settling)>>,
    /// What the configuration is made of.
    seed: AtomicU8,
}

impl VirtioDevice for Fake {
    fn device_id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn features(&self) -> u64 {
        0b110
    }

    fn queue_sizes(&self) -> &[u16] {
        &[RING_LEN, RING_LEN]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(self.seed.load(Ordering::SeqCst) ^ 0xc0 | offset.to_le_bytes()[0]);
    }

    fn start_queue(&self, queue: ActiveQueue) {
        self.started.lock().push(queue);
    }

    fn stop_queue(&self, index: u16, settling: Settling) {
        self.settling.lock().push((index, settling));
    }
}

fn guest() -> (Arc<Fake>, Guest) {
    let fake = Arc::new(Fake::default());
    (Arc::clone(&fake), Guest::new(fake))
}

fn capabilities(guest: &Guest) -> Vec<(u8, usize)> {
    let config = guest.function.config();
    let mut found = Vec::new();
    let mut at = usize::from(config.read_u8(offset::CAPABILITIES));
    while at != 0 {
        found.push((config.read_u8(at), at));
        at = usize::from(config.read_u8(at + 1));
    }
    found
}

#[test]
fn a_guest_finds_the_structures() {
    let (_fake, guest) = guest();
    let config = guest.function.config();
    assert_eq!(config.read_u32(0), 0x1042_1af4);
    let vendor: Vec<_> = capabilities(&guest)
        .into_iter()
        .filter(|(id, _)| *id == 9)
        .collect();
    let mut types: Vec<_> = vendor
        .iter()
        .map(|(_, at)| config.read_u8(at + 3))
        .collect();
    types.sort_unstable();
    assert_eq!(types, [1, 2, 3, 4, 5]);
    for (_, at) in vendor {
        let kind = config.read_u8(at + 3);
        let long = kind == 2 || kind == 5;
        assert_eq!(config.read_u8(at + 2), if long { 20 } else { 16 });
        if kind != 5 {
            let end = config.read_u32(at + 8) + config.read_u32(at + 12);
            assert!(u64::from(end) <= STRUCTURES_LEN);
            assert_eq!(config.read_u8(at + 4), STRUCTURES_BAR.number());
        }
        if kind == 2 {
            assert_eq!(config.read_u32(at + 16), NOTIFY_STRIDE);
        }
    }
    assert_eq!(guest.read(Structure::Device, 3), [0xc3]);
}

#[test]
fn negotiation_follows_the_rules() {
    let (fake, guest) = guest();
    assert_eq!(guest.offered(), 0b110 | RingFeatures::USUAL.bits());
    guest.negotiate(0b110);
    assert!(
        !guest.status().contains(Status::FEATURES_OK),
        "VERSION_1 is required"
    );
    guest.set_status(Status::DRIVER_OK);
    assert!(!guest.status().contains(Status::DRIVER_OK));
    guest.negotiate(1 | RingFeatures::VERSION_1.bits());
    assert!(
        !guest.status().contains(Status::FEATURES_OK),
        "bit 0 was not offered"
    );
    guest.negotiate(0b10 | RingFeatures::VERSION_1.bits());
    assert!(guest.status().contains(Status::FEATURES_OK));
    guest.set_status(Status::DRIVER_OK);
    assert!(fake.started.lock().is_empty(), "no queue was enabled");
}

#[test]
fn who_is_offered_the_platforms_access_must_take_it() {
    let features = RingFeatures::ACCESS_PLATFORM | RingFeatures::EVENT_IDX;
    let guest = Guest::with(Arc::<Fake>::default(), None, features);
    let version_1 = RingFeatures::VERSION_1;
    assert_eq!(guest.offered(), 0b110 | (features | version_1).bits());
    guest.negotiate(version_1.bits());
    assert!(!guest.status().contains(Status::FEATURES_OK));
    guest.negotiate((version_1 | RingFeatures::ACCESS_PLATFORM).bits());
    assert!(guest.status().contains(Status::FEATURES_OK));
}

#[test]
fn a_ring_feature_that_is_not_offered_is_not_negotiated() {
    let guest = Guest::with(Arc::<Fake>::default(), None, RingFeatures::INDIRECT_DESC);
    guest.negotiate((RingFeatures::VERSION_1 | RingFeatures::EVENT_IDX).bits());
    assert!(!guest.status().contains(Status::FEATURES_OK));
}

#[test]
fn queues_start_when_the_driver_is_ready() {
    let (fake, guest) = guest();
    let drivers = guest.bring_up(RingFeatures::EVENT_IDX, 0b100, 2);
    let started = fake.started.lock();
    assert_eq!(started.len(), 2);
    for (queue, driver) in started.iter().zip(&drivers) {
        assert_eq!(queue.index, driver.queue);
        assert_eq!(queue.queue.desc_table(), driver.areas()[0]);
        assert!(queue.queue.event_idx_enabled());
        assert_eq!(queue.features & 0b111, 0b100);
    }
    assert!(!guest.status().contains(Status::NEEDS_RESET));
}

#[test]
fn a_misplaced_ring_breaks_the_device() {
    let (fake, guest) = guest();
    guest.use_msix();
    guest.common(common::CONFIG_MSIX_VECTOR, &[0, 0]);
    guest.negotiate(RingFeatures::VERSION_1.bits());
    guest.common(common::QUEUE_DESC, &u64::MAX.to_le_bytes());
    guest.common(common::QUEUE_ENABLE, &[1, 0]);
    guest.set_status(Status::DRIVER_OK);
    assert!(guest.status().contains(Status::NEEDS_RESET));
    assert_eq!(
        guest.msi.sent().len(),
        1,
        "told by one configuration interrupt"
    );
    assert!(fake.started.lock().is_empty());
    guest.set_status(Status::empty());
    assert_eq!(guest.status(), Status::empty());
}

#[test]
fn reset_shows_only_when_everything_has_settled() {
    let (fake, guest) = guest();
    guest.bring_up(RingFeatures::empty(), 0, 2);
    let live = guest.status();
    guest.set_status(Status::empty());
    assert_eq!(guest.status(), live);
    guest.negotiate(RingFeatures::VERSION_1.bits());
    guest.set_status(Status::empty());
    let mut settling = std::mem::take(&mut *fake.settling.lock());
    assert_eq!(settling.len(), 2, "each queue is stopped once");
    settling.pop();
    assert_eq!(guest.status(), live);
    settling.pop();
    assert_eq!(guest.status(), Status::empty());
    assert_eq!(guest.read_u16(common::QUEUE_MSIX_VECTOR), NO_VECTOR);
    assert_eq!(guest.read_u16(common::QUEUE_ENABLE), 0);
    guest.bring_up(RingFeatures::empty(), 0, 1);
    assert_eq!(fake.started.lock().len(), 3);
}

#[test]
fn nothing_starts_while_a_reset_goes_on() {
    let (fake, guest) = guest();
    guest.bring_up(RingFeatures::empty(), 0, 1);
    guest.set_status(Status::empty());
    Driver::new(&guest, 1);
    assert_eq!(fake.started.lock().len(), 1);
    fake.settling.lock().clear();
    assert_eq!(guest.read_u16(common::QUEUE_ENABLE), 0);
}

#[test]
fn a_machine_reset_waits_and_then_clears() {
    let (fake, guest) = guest();
    guest.bring_up(RingFeatures::empty(), 0, 1);
    let mut reset = guest.function.reset();
    let waker = futures_util::task::noop_waker();
    let mut cx = std::task::Context::from_waker(&waker);
    assert!(reset.as_mut().poll(&mut cx).is_pending());
    fake.settling.lock().clear();
    assert!(reset.as_mut().poll(&mut cx).is_ready());
    assert_eq!(guest.status(), Status::empty());
    let mut entry = [0; 16];
    guest.function.bar_read(MSIX_BAR, 0, &mut entry);
    assert_eq!(entry[12], 1, "vectors are masked again");
}

#[test]
fn a_queue_is_reset_alone_and_can_be_enabled_again() {
    let (fake, guest) = guest();
    let drivers = guest.bring_up(RingFeatures::RING_RESET, 0, 2);
    guest.common(common::QUEUE_SELECT, &[1, 0]);
    guest.common(common::QUEUE_RESET, &[1, 0]);
    assert_eq!(guest.read_u16(common::QUEUE_RESET), 1);
    assert_eq!(guest.read_u16(common::QUEUE_ENABLE), 0);
    guest.common(common::QUEUE_ENABLE, &[1, 0]);
    assert_eq!(
        guest.read_u16(common::QUEUE_ENABLE),
        0,
        "not before it has settled"
    );
    let settling = std::mem::take(&mut *fake.settling.lock());
    assert_eq!(
        settling.iter().map(|(index, _)| *index).collect::<Vec<_>>(),
        [1]
    );
    drop(settling);
    assert_eq!(guest.read_u16(common::QUEUE_RESET), 0);
    drivers[1].set_up();
    assert_eq!(fake.started.lock().last().unwrap().index, 1);
    assert!(guest.status().contains(Status::DRIVER_OK));
}

#[test]
fn a_reset_waits_for_queues_that_are_being_reset_alone() {
    let (fake, guest) = guest();
    guest.bring_up(RingFeatures::RING_RESET, 0, 2);
    let live = guest.status();
    for queue in [0, 1] {
        guest.common(common::QUEUE_SELECT, &[queue, 0]);
        guest.common(common::QUEUE_RESET, &[1, 0]);
    }
    guest.set_status(Status::empty());
    let mut settling = std::mem::take(&mut *fake.settling.lock());
    assert_eq!(settling.len(), 2, "each queue is stopped once");
    settling.remove(0);
    assert_eq!(guest.status(), live, "the second queue still runs");
    settling.clear();
    assert_eq!(guest.status(), Status::empty());
    guest.bring_up(RingFeatures::RING_RESET, 0, 2);
    assert_eq!(fake.started.lock().len(), 4);
}

#[test]
fn without_msix_the_line_and_the_status_register_speak() {
    let (_fake, guest) = guest();
    guest.function.queue(0);
    assert!(guest.line.level());
    assert_eq!(guest.read(Structure::Isr, 0), [1]);
    assert!(!guest.line.level());
    let function = &guest.function;
    function.vectors.raise_config(&function.msix, &function.pci);
    guest.function.queue(1);
    assert_eq!(guest.read(Structure::Isr, 0), [3]);
    assert_eq!(guest.read(Structure::Isr, 0), [0]);

    guest.function.queue(0);
    guest.use_msix();
    assert!(!guest.line.level(), "MSI-X and INTx exclude each other");
    guest.function.queue(0);
    assert_eq!(guest.msi.sent(), [], "no vector is assigned");
}

#[test]
fn a_function_without_vectors_speaks_by_its_line_alone() {
    let guest = Guest::with(Arc::<Fake>::default(), Some(0), RingFeatures::USUAL);
    let msix = CapabilityId::MsiX as u8;
    assert!(capabilities(&guest).iter().all(|(id, _)| *id != msix));
    assert_eq!(guest.function.config().bar(BarIndex::BAR1), None);
    guest.common(common::QUEUE_MSIX_VECTOR, &[0, 0]);
    assert_eq!(guest.read_u16(common::QUEUE_MSIX_VECTOR), NO_VECTOR);
    guest.function.queue(0);
    assert!(guest.line.level());
    let off = Command::MEMORY | Command::BUS_MASTER | Command::INTX_DISABLE;
    let write = |command: Command| {
        let bits = command.bits().to_le_bytes();
        guest.function.write_config(offset::COMMAND, &bits);
    };
    write(off);
    assert!(!guest.line.level(), "the driver wants no line");
    write(off - Command::INTX_DISABLE);
    assert!(guest.line.level(), "the cause is still there");
    assert_eq!(guest.read(Structure::Isr, 0), [1]);
    assert!(!guest.line.level());
}

#[test]
fn vectors_that_do_not_exist_are_refused() {
    let (_fake, guest) = guest();
    guest.common(common::QUEUE_MSIX_VECTOR, &[2, 0]);
    assert_eq!(guest.read_u16(common::QUEUE_MSIX_VECTOR), 2);
    guest.common(common::QUEUE_MSIX_VECTOR, &[3, 0]);
    assert_eq!(guest.read_u16(common::QUEUE_MSIX_VECTOR), NO_VECTOR);
}

#[test]
fn doorbells_follow_the_bar_and_ring_by_hand_too() {
    let (fake, guest) = guest();
    let drivers = guest.bring_up(RingFeatures::empty(), 0, 2);
    guest.function.bar_placed(STRUCTURES_BAR, Some(0xe000_0000));
    let expected = [0xe000_3000, 0xe000_3004].map(DoorbellAddress::Mmio);
    assert_eq!(*guest.doorbells.0.lock(), expected);
    guest.function.bar_placed(STRUCTURES_BAR, None);
    assert!(guest.doorbells.0.lock().is_empty());
    let started = fake.started.lock();
    started.iter().for_each(|queue| queue.kick.clear());
    drivers[1].kick();
    assert!(started[0].kick.event().read().is_err());
    assert_eq!(started[1].kick.event().read().unwrap(), 1);
}

#[test]
fn becoming_bus_master_looks_at_every_queue() {
    let (fake, guest) = guest();
    guest.bring_up(RingFeatures::empty(), 0, 1);
    let started = fake.started.lock();
    started[0].kick.clear();
    guest.function.write_config(offset::COMMAND, &[2, 0]);
    assert!(!guest.function.may_access_memory());
    assert!(started[0].kick.event().read().is_err());
    let command = Command::MEMORY | Command::BUS_MASTER;
    guest
        .function
        .write_config(offset::COMMAND, &command.bits().to_le_bytes());
    assert!(started[0].kick.event().read().is_ok());
}

#[test]
fn the_access_capability_reaches_the_structures() {
    let (_fake, guest) = guest();
    let config = guest.function.config();
    let (_, at) = capabilities(&guest)
        .into_iter()
        .find(|(id, at)| *id == 9 && config.read_u8(at + 3) == 5)
        .unwrap();
    guest
        .function
        .write_config(at + capability::BAR, &[STRUCTURES_BAR.number()]);
    let status = u32::try_from(common::DEVICE_STATUS).unwrap();
    guest
        .function
        .write_config(at + capability::OFFSET, &status.to_le_bytes());
    guest
        .function
        .write_config(at + capability::LENGTH, &1_u32.to_le_bytes());
    guest.function.write_config(at + capability::EXTRA, &[3]);
    assert_eq!(guest.status(), Status::ACKNOWLEDGE | Status::DRIVER);
    let mut data = [0];
    guest
        .function
        .read_config(at + capability::EXTRA, &mut data);
    assert_eq!(data, [3]);
    // Beyond the BAR: nothing happens.
    guest
        .function
        .write_config(at + capability::OFFSET, &u32::MAX.to_le_bytes());
    guest.function.write_config(at + capability::EXTRA, &[0]);
    assert_eq!(guest.status(), Status::ACKNOWLEDGE | Status::DRIVER);
}

#[test]
fn a_device_needs_queues() {
    struct None;
    impl VirtioDevice for None {
        fn device_id(&self) -> DeviceId {
            DeviceId::Block
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_sizes(&self) -> &[u16] {
            &[]
        }
        fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
        fn start_queue(&self, _queue: ActiveQueue) {}
        fn stop_queue(&self, _index: u16, _settling: Settling) {}
    }
    let parts = VirtioPciParts {
        memory: Arc::new(GuestRam::default()),
        msi: &*crate::pci::testing::RecordedMsi::new(),
        features: RingFeatures::USUAL,
        vectors: Option::None,
        doorbells: Arc::new(crate::virtio::testing::RecordedDoorbells::default()),
        intx: Option::None,
    };
    assert!(matches!(
        VirtioPci::new(Arc::new(None), parts),
        Err(VirtioError::QueueCount(0))
    ));
}

fn generation(guest: &Guest) -> u8 {
    let [generation] = guest.read(Structure::Common, common::CONFIG_GENERATION as u64);
    generation
}

/// Changes the configuration as the device would.
fn change(fake: &Fake, guest: &Guest, seed: u8) {
    guest.function.change_config(&|| {
        let locked = guest.function.registers.is_locked();
        assert!(locked, "a driver could read the half of a change");
        fake.seed.swap(seed, Ordering::SeqCst) != seed
    });
}

#[test]
fn a_change_of_the_configuration_has_a_generation_of_its_own() {
    let (fake, guest) = guest();
    let before = generation(&guest);
    change(&fake, &guest, 1);
    assert_eq!(guest.read(Structure::Device, 0), [0xc1]);
    assert_eq!(generation(&guest), before.wrapping_add(1));
    change(&fake, &guest, 1);
    assert_eq!(generation(&guest), before.wrapping_add(1), "no change");
    for seed in 2..=255 {
        change(&fake, &guest, seed);
    }
    change(&fake, &guest, 0);
    assert_eq!(generation(&guest), before, "it wraps around");
}

#[test]
fn a_driver_that_lives_is_told_of_a_change() {
    let config_messages = |guest: &Guest| {
        let sent = guest.msi.sent();
        sent.iter().filter(|(_, data)| *data == 0).count()
    };
    let (fake, guest) = guest();
    let _queues = guest.set_up(RingFeatures::empty(), 0, 1);
    guest.common(common::CONFIG_MSIX_VECTOR, &0_u16.to_le_bytes());
    change(&fake, &guest, 1);
    assert_eq!(config_messages(&guest), 0, "not before DRIVER_OK");
    assert_eq!(guest.read(Structure::Isr, 0), [0]);
    guest.set_status(Status::DRIVER_OK);
    change(&fake, &guest, 2);
    assert_eq!(config_messages(&guest), 1);
    assert!(!guest.line.level(), "MSI-X is in use");
    assert_eq!(guest.read(Structure::Isr, 0), [3]);
    change(&fake, &guest, 2);
    assert_eq!(config_messages(&guest), 1, "nothing has changed");
    guest.common(common::CONFIG_MSIX_VECTOR, &NO_VECTOR.to_le_bytes());
    change(&fake, &guest, 3);
    assert_eq!(config_messages(&guest), 1, "without a vector no message");
    assert_eq!(guest.read(Structure::Isr, 0), [3]);
    // A reset that waits for what is in flight: the driver is to hear nothing of the life before.
    guest.common(common::CONFIG_MSIX_VECTOR, &0_u16.to_le_bytes());
    guest.set_status(Status::empty());
    change(&fake, &guest, 4);
    assert_eq!(config_messages(&guest), 1, "in a reset");
    fake.settling.lock().clear();
    assert!(guest.status().is_empty());
    assert_eq!(guest.read(Structure::Isr, 0), [0]);
    assert_eq!(guest.read(Structure::Device, 0), [0xc4]);
}

#[test]
fn without_msix_the_line_tells_of_a_change() {
    let (fake, guest) = guest();
    guest.negotiate(RingFeatures::VERSION_1.bits());
    guest.set_status(Status::DRIVER_OK);
    change(&fake, &guest, 1);
    assert!(guest.line.level());
    assert_eq!(guest.read(Structure::Isr, 0), [3]);
    assert!(!guest.line.level());
}
