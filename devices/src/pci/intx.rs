//! INTx: wires shared by functions.
//!
//! A PCI interrupt wire is open drain: it is asserted while *any* function pulls it. [`IntxRouter`]
//! gives every (device, pin) its own end of a wire and drives one of four interrupt inputs with the
//! OR of the ends. Any thread.

use std::sync::Arc;

use super::layout::InterruptPin;
use crate::irq::{IrqLine, SharedLine};

/// Number of wires that the slots' pins are spread over.
pub const WIRES: usize = 4;

/// Connects the functions' pins to four interrupt inputs.
pub struct IntxRouter {
    wires: [Arc<SharedLine>; WIRES],
}

impl IntxRouter {
    /// Routes to `inputs`, in the order PIRQA to PIRQD.
    pub fn new(inputs: [Arc<dyn IrqLine>; WIRES]) -> Self {
        Self {
            wires: inputs.map(SharedLine::new),
        }
    }

    /// The wire (0 for PIRQA to 3) of a pin of a device: pins are rotated from slot to slot, as the
    /// PIIX family's boards do it, so that device 1's INTA is PIRQA. The machine's ACPI `_PRT` must
    /// say the same.
    pub fn wire_of(device: u8, pin: InterruptPin) -> usize {
        (usize::from(device) + WIRES - 1 + (pin as usize - 1)) % WIRES
    }

    /// A new end for a function of `device`.
    pub fn line(&self, device: u8, pin: InterruptPin) -> Arc<dyn IrqLine> {
        self.wires[Self::wire_of(device, pin)].end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::testing::{RecordedLine, SlowLine};

    #[test]
    fn a_wire_is_asserted_while_anyone_pulls() {
        let inputs: Vec<_> = (0..WIRES).map(|_| RecordedLine::new()).collect();
        let router = IntxRouter::new(std::array::from_fn(|i| {
            inputs[i].clone() as Arc<dyn IrqLine>
        }));
        let first = router.line(1, InterruptPin::A);
        let second = router.line(5, InterruptPin::A);
        first.set(true);
        second.set(true);
        second.set(true);
        second.set(false);
        assert!(inputs[0].level());
        first.set(false);
        assert!(!inputs[0].level());
        second.set(true);
        drop(second);
        assert!(!inputs[0].level());
    }

    #[test]
    fn who_changes_nothing_of_a_wire_does_not_wait_for_who_does() {
        let (input, holder) = SlowLine::new();
        let line = SharedLine::new(input);
        let (first, second) = (line.end(), line.end());
        holder.answer_meanwhile(
            || first.set(true),
            || {
                second.set(true);
                second.set(false);
            },
        );
    }

    #[test]
    fn pins_rotate_from_slot_to_slot() {
        assert_eq!(IntxRouter::wire_of(1, InterruptPin::A), 0);
        assert_eq!(IntxRouter::wire_of(1, InterruptPin::D), 3);
        assert_eq!(IntxRouter::wire_of(3, InterruptPin::A), 2);
        assert_eq!(IntxRouter::wire_of(0, InterruptPin::A), 3);
    }
}
