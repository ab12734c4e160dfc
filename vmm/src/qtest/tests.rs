use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_aio::{Clock, EventLoop, LoopConfig};
use sluice_devices::bus::{MmioBus, MmioDevice, PioBus, PioDevice};

use super::command::Failure;
use super::{QtestInterrupts, Target, base64, command};
use crate::kvm::Buses;
use crate::memory::MemoryLayout;

#[derive(Default)]
struct Register(Mutex<[u8; 4]>);

impl PioDevice for Register {
    fn read(&self, _: u16, data: &mut [u8]) {
        data.copy_from_slice(&self.0.lock()[..data.len()]);
    }

    fn write(&self, _: u16, data: &[u8]) {
        self.0.lock()[..data.len()].copy_from_slice(data);
    }
}

impl MmioDevice for Register {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.copy_from_slice(&self.0.lock()[..data.len()]);
    }

    fn write(&self, _: u64, data: &[u8]) {
        self.0.lock()[..data.len()].copy_from_slice(data);
    }
}

fn target() -> Target {
    let buses = Buses {
        pio: Arc::new(PioBus::new()),
        mmio: Arc::new(MmioBus::new()),
    };
    buses
        .pio
        .insert(0x100..=0x103, Arc::new(Register::default()))
        .unwrap();
    buses
        .mmio
        .insert(0xe000_0000..=0xe000_0003, Arc::new(Register::default()))
        .unwrap();
    Target {
        buses,
        ram: Arc::new(MemoryLayout::new(2 << 20).unwrap().map().unwrap()),
        interrupts: QtestInterrupts::new(),
        clock: Clock::manual(),
        has_device: Box::new(|name| matches!(name, "disk" | "/machine/peripheral/disk")),
    }
}

/// The answer, without its first word; errors of QEMU's second kind keep theirs.
fn ask(target: &Target, line: &str) -> Result<String, String> {
    let answer = command::parse(line).and_then(|command| target.execute(command));
    answer.map_err(|failure| match failure {
        Failure::Failed(reason) => reason,
        Failure::Invalid(reason) => format!("ERR {reason}"),
    })
}

fn dialogue(lines: &[(&str, Result<&str, &str>)]) {
    let target = target();
    for (line, answer) in lines {
        let expected = answer.map(str::to_owned).map_err(str::to_owned);
        assert_eq!(ask(&target, line), expected, "{line}");
    }
}

#[test]
fn ports_are_read_and_written_by_width() {
    dialogue(&[
        ("outl 0x100 0x12345678", Ok("")),
        ("inb 0x100", Ok("0x0078")),
        ("inw 256", Ok("0x5678")),
        ("inl 0400", Ok("0x12345678")),
        ("inb 0x200", Ok("0x00ff")),
        ("inq 0x100", Err("Unknown command 'inq'")),
        ("inb 0x10000", Err("'0x10000' is not a port")),
    ]);
}

#[test]
fn memory_and_registers_are_one_address_space() {
    dialogue(&[
        ("writeq 0x1000 0x1122334455667788", Ok("")),
        ("readq 0x1000", Ok("0x1122334455667788")),
        ("readw 0x1001", Ok("0x0000000000006677")),
        ("writel 0xe0000000 -1", Ok("")),
        ("readb 0xe0000000", Ok("0x00000000000000ff")),
        ("write 0x2000 4 0xa1b2", Ok("")),
        ("read 0x2000 4", Ok("0xa1b20000")),
        ("memset 0x2001 2 0x5a", Ok("")),
        ("read 0x2000 4", Ok("0xa15a5a00")),
        ("memset 0x2000 0 1", Ok("")),
        ("b64read 0x2000 4", Ok("oVpaAA==")),
        ("b64write 0x3000 4 oVpaAA==", Ok("")),
        ("readl 0x3000", Ok("0x00000000005a5aa1")),
        (
            "b64write 0x3000 3 oVpaAA==",
            Err("the data have another length"),
        ),
        ("write 0x2000 1 zz", Err("ERR invalid argument size")),
        ("write 0x2000 1 zzz", Err("the data are not hexadecimal")),
        ("b64write 0x2000 1 A", Err("ERR invalid argument size")),
        ("read 0x2000 0", Err("there is nothing to read")),
        ("read 0x2000 0x0", Err("there is nothing to read")),
        // Behind the last address is the first.
        ("write 0 4 0xa1b2c3d4", Ok("")),
        (
            "read 0xfffffffffffffff8 12",
            Ok("0xffffffffffffffffa1b2c3d4"),
        ),
        ("memset 0xfffffffffffffff8 16 0x77", Ok("")),
        ("readq 0", Ok("0x7777777777777777")),
        ("readq 0xffffffffffffffff", Ok("0xffffffffffffffff")),
        ("writeq 0xffffffffffffffff 0", Ok("")),
        ("module_load block- x", Ok("")),
        ("endianness", Ok("little")),
    ]);
}

#[test]
fn clock_stands_still_until_it_is_moved_and_never_goes_back() {
    dialogue(&[
        ("clock_set 0", Ok("0")),
        ("clock_step 100", Ok("100")),
        ("clock_set 400", Ok("400")),
        ("clock_set 400", Ok("400")),
        ("clock_set 300", Err("400")),
        ("clock_step 0", Err("could not advance time")),
        (
            "clock_step",
            Err("cannot advance clock to the next deadline because there is no pending deadline"),
        ),
    ]);
}

#[test]
fn level_changes_are_told_once_intercepted() {
    let target = target();
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    target
        .interrupts
        .listen(move |gsi, level| sink.lock().push((gsi, level)));
    let line = target.interrupts.line(14);
    line.set(true);
    assert!(told.lock().is_empty());
    assert_eq!(
        ask(&target, "irq_intercept_in lapic"),
        Err("Unknown device".to_owned())
    );
    assert_eq!(ask(&target, "irq_intercept_in ioapic"), Ok(String::new()));
    // Again, and by another way.
    assert_eq!(ask(&target, "irq_intercept_in ioapic"), Ok(String::new()));
    for again in ["irq_intercept_out ioapic", "irq_intercept_out ioapic any"] {
        assert_eq!(ask(&target, again), Ok(String::new()), "{again}");
    }
    // One device, and no other.
    for other in [
        "irq_intercept_in disk",
        "irq_intercept_out disk",
        "irq_intercept_out /machine/peripheral/disk sysbus-irq",
    ] {
        let refused = Err("IRQ intercept already enabled".to_owned());
        assert_eq!(ask(&target, other), refused, "{other}");
    }
    line.set(true);
    line.set(false);
    assert_eq!(
        ask(&target, "set_irq_in ioapic unnamed-gpio-in 3 1"),
        Ok(String::new())
    );
    assert_eq!(*told.lock(), [(14, false), (3, true)]);
}

#[test]
fn what_can_not_be_intercepted_is_refused_in_qemus_words() {
    dialogue(&[
        (
            "irq_intercept_in ioapic x",
            Err("Interception of named in-GPIOs not yet supported"),
        ),
        ("irq_intercept_out ioapic", Err("No intercepts installed")),
        (
            "irq_intercept_out ioapic any",
            Err("No intercepts installed"),
        ),
        ("irq_intercept_out disk", Err("No intercepts installed")),
        (
            "irq_intercept_out disk sysbus-irq",
            Err("No intercepts installed"),
        ),
        ("irq_intercept_in disk", Err("No intercepts installed")),
        (
            "irq_intercept_in disk x",
            Err("Interception of named in-GPIOs not yet supported"),
        ),
        ("irq_intercept_in nobody x", Err("Unknown device")),
        ("irq_intercept_out nobody", Err("Unknown device")),
        ("irq_intercept_out nobody x", Err("Unknown device")),
        (
            "irq_intercept_out disk x y",
            Err("Unknown command 'irq_intercept_out'"),
        ),
        ("set_irq_in disk unnamed-gpio-in 0 1", Err("no such input")),
        ("set_irq_in ioapic named 0 1", Err("no such input")),
        (
            "set_irq_in ioapic unnamed-gpio-in 24 1",
            Err("no such input"),
        ),
        (
            "set_irq_in nobody unnamed-gpio-in 0 1",
            Err("Unknown device"),
        ),
    ]);
}

/// Who waits on the guest's clock is woken when it comes to the deadline, to which one step leads.
#[test]
fn clock_steps_to_the_next_timer() {
    let target = target();
    let mut event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    let test = async move {
        let clock = target.clock.clone();
        let mut sleep = std::pin::pin!(clock.sleep(Duration::from_nanos(700)));
        assert!(futures_util::poll!(sleep.as_mut()).is_pending());
        assert_eq!(ask(&target, "clock_step 100"), Ok("100".to_owned()));
        assert!(futures_util::poll!(sleep.as_mut()).is_pending());
        assert_eq!(ask(&target, "clock_step"), Ok("700".to_owned()));
        sleep.await;
        assert!(ask(&target, "clock_step").is_err());
    };
    event_loop.run_until(test).unwrap();
}

#[test]
fn nonsense_is_refused() {
    let refused = [
        "",
        "bogus",
        "outb",
        "outb 1",
        "inb one",
        "read 0 0x100000000",
        "clock_set",
    ];
    let target = target();
    for line in refused {
        assert!(ask(&target, line).is_err(), "{line}");
    }
}

#[test]
fn base64_is_its_own_inverse() {
    for length in 0..20 {
        let bytes: Vec<u8> = (0..length)
            .map(|index: u8| index.wrapping_mul(37))
            .collect();
        assert_eq!(base64::decode(&base64::encode(&bytes)), Some(bytes));
    }
    assert_eq!(base64::encode(b"ab"), "YWI=");
    for bad in ["A", "AB=", "A===", "AA=A", "====", "AB C"] {
        assert_eq!(base64::decode(bad), None, "{bad}");
    }
}
