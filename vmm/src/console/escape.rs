//! The escape key: how the user talks to the VMM and not to the guest.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What the keys are, in words.
pub(super) const HELP: &str = "\
\nCtrl-A h    this help\
\nCtrl-A x    end sluice\
\nCtrl-A Ctrl-A    send Ctrl-A\n";

/// What a byte from the keyboard means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Nothing yet: the escape key was pressed.
    Nothing,
    /// Send this to the guest.
    Send(u8),
    /// End the process.
    Quit,
    /// Say what the keys are.
    Help,
}

/// Remembers whether the escape key was the last one.
#[derive(Debug, Default)]
pub struct Escape {
    escaped: bool,
}

impl Escape {
    /// Takes the next byte from the keyboard.
    pub fn take(&mut self, byte: u8) -> Key {
        if !self.escaped {
            self.escaped = byte == ESCAPE;
            return if self.escaped {
                Key::Nothing
            } else {
                Key::Send(byte)
            };
        }
        self.escaped = false;
        match byte {
            ESCAPE => Key::Send(ESCAPE),
            b'x' => Key::Quit,
            b'h' | b'?' => Key::Help,
            // Whatever else: the key, without the escape.
            other => Key::Send(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut escape = Escape::default();
        bytes
            .iter()
            .map(|byte| escape.take(*byte))
            .filter(|key| *key != Key::Nothing)
            .collect()
    }

    #[test]
    fn plain_keys_pass() {
        assert_eq!(
            keys(b"x\x03\x1a"),
            [Key::Send(b'x'), Key::Send(3), Key::Send(0x1a)]
        );
    }

    #[test]
    fn escape_is_for_one_key() {
        assert_eq!(keys(b"\x01hx"), [Key::Help, Key::Send(b'x')]);
        assert_eq!(keys(b"\x01x"), [Key::Quit]);
        assert_eq!(keys(b"\x01\x01x"), [Key::Send(1), Key::Send(b'x')]);
        assert_eq!(keys(b"\x01qx"), [Key::Send(b'q'), Key::Send(b'x')]);
    }
}
