//! The first serial port: vm-superio's 16550A on ports 0x3f8 to 0x3ff, with an input queue.
//!
//! Output goes byte by byte into a [`SerialSink`], which decides what to do when its reader is
//! slow. A vCPU that writes may be held up by it for a bounded time, before it takes the port's
//! lock: input, which the main thread brings, never waits for output. Input waits in a bounded
//! queue until the UART's FIFO has room.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use crate::bus::PioDevice;
use crate::irq::IrqLine;
use crate::reset::{ResetHook, Resetting, settled};

/// Takes what the guest sends.
pub trait SerialSink: Send + Sync {
    /// Holds up a vCPU that outruns the reader, for a bounded time, until [`SerialSink::send`]
    /// finds room. Called on vCPU threads before each byte, without a lock.
    fn wait_for_room(&self) {}

    /// One byte from the guest. Called with the port's lock held; never waits.
    fn send(&self, byte: u8);
}

/// Input that may wait for the guest, in bytes; more is dropped, as on a real line.
const INPUT_LIMIT: usize = 64 * 1024;

/// An ISA interrupt is edge triggered: a pulse is an interrupt.
struct Pulse(Arc<dyn IrqLine>);

impl Trigger for Pulse {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        self.0.set(false);
        Ok(())
    }
}

struct Out(Arc<dyn SerialSink>);

impl io::Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.0.send(*byte);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct State {
    uart: Serial<Pulse, NoEvents, Out>,
    waiting: VecDeque<u8>,
}

impl State {
    /// Moves waiting input into the UART while it takes some.
    fn feed(&mut self) {
        while self.uart.fifo_capacity() > 0 && !self.waiting.is_empty() {
            let (bytes, _) = self.waiting.as_slices();
            match self.uart.enqueue_raw_bytes(bytes) {
                // In loopback mode the line is cut off: it waits.
                Ok(0) | Err(_) => break,
                Ok(taken) => {
                    self.waiting.drain(..taken);
                }
            }
        }
    }
}

/// The serial port.
pub struct SerialPort {
    state: Mutex<State>,
    line: Arc<dyn IrqLine>,
    sink: Arc<dyn SerialSink>,
}

impl SerialPort {
    /// First port of COM1.
    pub const COM1: u16 = 0x3f8;
    /// How many ports a UART takes.
    pub const PORTS: u16 = 8;
    /// COM1's interrupt.
    pub const COM1_IRQ: u32 = 4;

    /// A port that sends into `sink` and interrupts by pulses on `line`.
    #[must_use]
    pub fn new(line: Arc<dyn IrqLine>, sink: Arc<dyn SerialSink>) -> Self {
        let state = Mutex::new(Self::power_on(&line, &sink));
        Self { state, line, sink }
    }

    fn power_on(line: &Arc<dyn IrqLine>, sink: &Arc<dyn SerialSink>) -> State {
        let uart = Serial::new(Pulse(Arc::clone(line)), Out(Arc::clone(sink)));
        State {
            uart,
            waiting: VecDeque::new(),
        }
    }

    /// Input for the guest. Any thread. Returns how much of it found room.
    pub fn receive(&self, input: &[u8]) -> usize {
        let mut state = self.state.lock();
        let taken = input.len().min(INPUT_LIMIT - state.waiting.len());
        state.waiting.extend(&input[..taken]);
        state.feed();
        taken
    }
}

/// The register that sends what is written to it (or takes half of the divisor).
const DATA_REGISTER: u8 = 0;

/// The register of `port`, counted from the UART's base, which is aligned to its size.
fn register(port: u16) -> u8 {
    port.to_le_bytes()[0] & 7
}

impl PioDevice for SerialPort {
    fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0);
        let Some(first) = data.first_mut() else {
            return;
        };
        let mut state = self.state.lock();
        *first = state.uart.read(register(port));
        if !state.waiting.is_empty() {
            state.feed();
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        let Some(value) = data.first() else { return };
        if register(port) == DATA_REGISTER {
            self.sink.wait_for_room();
        }
        let mut state = self.state.lock();
        if let Err(error) = state.uart.write(register(port), *value) {
            tracing::debug!(?error, "the serial port lost a byte");
        }
        if !state.waiting.is_empty() {
            state.feed();
        }
    }
}

impl ResetHook for SerialPort {
    fn reset(self: Arc<Self>) -> Resetting {
        *self.state.lock() = Self::power_on(&self.line, &self.sink);
        settled()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::legacy::testing::Line;

    #[derive(Default)]
    struct Sent(Mutex<Vec<u8>>);

    impl SerialSink for Sent {
        fn send(&self, byte: u8) {
            self.0.lock().push(byte);
        }
    }

    const DATA: u16 = SerialPort::COM1;
    const INTERRUPT_ENABLE: u16 = SerialPort::COM1 + 1;
    const MODEM_CONTROL: u16 = SerialPort::COM1 + 4;
    const LINE_STATUS: u16 = SerialPort::COM1 + 5;

    fn rig() -> (Arc<SerialPort>, Arc<Line>, Arc<Sent>) {
        let (line, sent) = (Arc::new(Line::default()), Arc::new(Sent::default()));
        (
            Arc::new(SerialPort::new(line.clone(), sent.clone())),
            line,
            sent,
        )
    }

    fn get(port: &SerialPort, register: u16) -> u8 {
        let mut data = [0];
        port.read(register, &mut data);
        data[0]
    }

    #[test]
    fn output_reaches_the_sink_in_order() {
        let (port, _, sent) = rig();
        for byte in b"hello" {
            port.write(DATA, &[*byte]);
        }
        assert_eq!(*sent.0.lock(), b"hello");
    }

    #[test]
    fn long_input_arrives_whole_and_interrupts() {
        let (port, line, _) = rig();
        port.write(INTERRUPT_ENABLE, &[1]);
        let input: Vec<u8> = (0..=255).cycle().take(1000).collect();
        assert_eq!(port.receive(&input), input.len());
        assert_eq!(line.0.lock().get(..2), Some(&[true, false][..]));
        let mut got = Vec::new();
        while get(&port, LINE_STATUS) & 1 != 0 {
            got.push(get(&port, DATA));
        }
        assert_eq!(got, input);
    }

    #[test]
    fn input_beyond_the_limit_is_refused() {
        let (port, _, _) = rig();
        let taken = port.receive(&vec![0; INPUT_LIMIT + 10]);
        assert_eq!(taken, INPUT_LIMIT);
        // What went on into the FIFO made room.
        assert_eq!(port.receive(&[0; 100]), 64);
    }

    #[test]
    fn input_waits_while_the_guest_tests_its_loop() {
        let (port, _, sent) = rig();
        port.write(MODEM_CONTROL, &[0x10]);
        port.receive(b"x");
        port.write(DATA, b"L");
        assert_eq!(get(&port, DATA), b'L');
        port.write(MODEM_CONTROL, &[0x08]);
        assert_eq!(get(&port, DATA), b'x');
        assert!(sent.0.lock().is_empty());
    }

    /// Holds up whoever asks for room until the test lets it go.
    struct Full {
        asked: Mutex<mpsc::Sender<()>>,
        room: Mutex<mpsc::Receiver<()>>,
    }

    impl SerialSink for Full {
        fn wait_for_room(&self) {
            self.asked.lock().send(()).unwrap();
            self.room.lock().recv().unwrap();
        }

        fn send(&self, _: u8) {}
    }

    #[test]
    fn input_does_not_wait_for_output() {
        let (asked, was_asked) = mpsc::channel();
        let (make_room, room) = mpsc::channel();
        let sink = Arc::new(Full {
            asked: Mutex::new(asked),
            room: Mutex::new(room),
        });
        let port = Arc::new(SerialPort::new(Arc::new(Line::default()), sink));
        let vcpu = std::thread::spawn({
            let port = Arc::clone(&port);
            move || port.write(DATA, b"o")
        });
        was_asked.recv().unwrap();
        let is_free = port.state.try_lock().is_some();
        make_room.send(()).unwrap();
        vcpu.join().unwrap();
        assert!(is_free, "the port is locked while a vCPU waits for room");
    }

    #[test]
    fn reset_forgets_input_and_settings() {
        let (port, _, _) = rig();
        port.write(INTERRUPT_ENABLE, &[1]);
        port.receive(&[1; 100]);
        drop(Arc::clone(&port).reset());
        assert_eq!(get(&port, LINE_STATUS) & 1, 0);
        assert_eq!(get(&port, INTERRUPT_ENABLE), 0);
    }
}
