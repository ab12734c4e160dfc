//! Cuts a byte stream into JSON messages, with bounded memory.
//!
//! A message ends with the bracket that closes it; a bare scalar ends at white space or a
//! structural character. No newline is needed. What begins like no message is refused at once. A message that breaks a limit or contains a byte
//! that JSON can't contain yields exactly one error; its rest is followed to its end, without being
//! kept, so that nothing inside it is mistaken for a message of its own. Three things force the
//! stream back into a known state, whatever came before: a line end inside a string, a control character
//! outside of one, and a byte 0xFE or 0xFF anywhere.

use std::collections::VecDeque;

use serde_json::Value;

use super::{JsonError, parse};

/// The bytes that can never be part of JSON text in UTF-8; a client sends one to resynchronise.
const RESET_BYTES: [u8; 2] = [0xfe, 0xff];

/// Below this, a byte is a control character that a JSON string must escape.
const FIRST_PRINTABLE: u8 = 0x20;

/// How much one message may take up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes from the first to the last of a message.
    pub bytes: usize,
    /// Brackets, separators, strings and other scalars.
    pub tokens: usize,
    /// Objects and arrays within each other.
    pub nesting: usize,
}

impl Default for Limits {
    /// QEMU's limits: 64 MiB, 2 Mi tokens, 1024 levels.
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            tokens: 2 << 20,
            nesting: 1 << 10,
        }
    }
}

/// What the next byte continues.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Position {
    /// Nothing, a separator or a bracket.
    Between,
    /// A number, keyword or garbage.
    Scalar,
    /// The rest of garbage that was refused.
    Refused,
    /// A string that ends with `quote`.
    String { quote: u8, escaped: bool },
}

/// Cuts a stream into messages; see the module's documentation.
#[derive(Debug)]
pub struct Framer {
    limits: Limits,
    position: Position,
    /// Brackets that are open.
    depth: usize,
    tokens: usize,
    /// The message so far; no longer filled once `fault` is set.
    message: Vec<u8>,
    /// Why the present message will be refused.
    fault: Option<JsonError>,
    ready: VecDeque<Result<Value, JsonError>>,
}

impl Default for Framer {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Framer {
    /// A framer at the beginning of a stream.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            position: Position::Between,
            depth: 0,
            tokens: 0,
            message: Vec::new(),
            fault: None,
            ready: VecDeque::new(),
        }
    }

    /// Takes the next bytes of the stream. Complete messages queue up for [`Framer::pop`]; feed
    /// small pieces and drain between them to keep that queue short.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (plain, rest) = bytes.split_at(self.plain_bytes(bytes));
            self.keep(plain);
            bytes = rest;
            if let Some((&byte, rest)) = bytes.split_first() {
                self.step(byte);
                bytes = rest;
            }
        }
    }

    /// How many bytes at the head of `bytes` only go on with the string that is open: the bulk of
    /// any large message, which need not be looked at one by one.
    fn plain_bytes(&self, bytes: &[u8]) -> usize {
        let Position::String {
            quote,
            escaped: false,
        } = self.position
        else {
            return 0;
        };
        let ends_run = |byte: &u8| {
            *byte < FIRST_PRINTABLE
                || *byte == quote
                || *byte == b'\\'
                || RESET_BYTES.contains(byte)
        };
        bytes.iter().position(ends_run).unwrap_or(bytes.len())
    }

    /// The next complete message, or why it is none.
    pub fn pop(&mut self) -> Option<Result<Value, JsonError>> {
        self.ready.pop_front()
    }

    /// Bytes held for a message that is not complete.
    #[cfg(test)]
    pub(super) fn pending_bytes(&self) -> usize {
        self.message.len()
    }

    fn step(&mut self, byte: u8) {
        if RESET_BYTES.contains(&byte) {
            self.fail(JsonError::syntax(format!("stray '\\x{byte:02x}'")));
            self.finish();
            return;
        }
        match self.position {
            Position::String { quote, escaped } => self.step_in_string(byte, quote, escaped),
            Position::Between | Position::Scalar | Position::Refused => self.step_outside(byte),
        }
    }

    fn step_in_string(&mut self, byte: u8, quote: u8, escaped: bool) {
        if matches!(byte, b'\n' | b'\r') {
            self.fail(JsonError::syntax("line end in a string"));
            self.finish();
            return;
        }
        if byte < FIRST_PRINTABLE {
            self.fail(JsonError::syntax("control character in a string"));
        }
        self.keep(&[byte]);
        if byte == quote && !escaped {
            self.position = Position::Between;
            self.finish_if_complete();
        } else {
            self.position = Position::String {
                quote,
                escaped: byte == b'\\' && !escaped,
            };
        }
    }

    fn step_outside(&mut self, byte: u8) {
        let ends_scalar = byte.is_ascii_whitespace() || b"{}[],:\"'".contains(&byte);
        match self.position {
            Position::Scalar if ends_scalar => {
                self.position = Position::Between;
                self.finish_if_complete();
            }
            Position::Refused if ends_scalar => self.position = Position::Between,
            Position::Refused if byte >= FIRST_PRINTABLE => return,
            _ => {}
        }
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => {
                if self.depth > 0 {
                    self.keep(&[byte]);
                }
            }
            b'{' | b'[' => {
                self.token();
                self.depth += 1;
                if self.depth > self.limits.nesting {
                    self.fail(JsonError::Nesting);
                }
                self.keep(&[byte]);
            }
            b'}' | b']' => {
                self.token();
                self.keep(&[byte]);
                self.depth = self.depth.saturating_sub(1);
                self.finish_if_complete();
            }
            b',' | b':' => {
                self.token();
                self.keep(&[byte]);
                self.finish_if_complete();
            }
            b'"' | b'\'' => {
                self.token();
                self.keep(&[byte]);
                self.position = Position::String {
                    quote: byte,
                    escaped: false,
                };
            }
            // A client that waits for a reply to this sends nothing that would end it.
            ..FIRST_PRINTABLE => {
                self.fail(JsonError::syntax(format!("stray '\\x{byte:02x}'")));
                self.finish();
            }
            b'%' if self.depth == 0 && self.position == Position::Between => {
                self.fail(JsonError::syntax("stray '%'"));
                self.finish();
                self.position = Position::Refused;
            }
            _ => {
                if self.position == Position::Between {
                    self.token();
                    self.position = Position::Scalar;
                }
                self.keep(&[byte]);
            }
        }
    }

    fn token(&mut self) {
        self.tokens += 1;
        if self.tokens > self.limits.tokens {
            self.fail(JsonError::Tokens);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.fault.is_some() {
            return;
        }
        if bytes.len() > self.limits.bytes - self.message.len() {
            self.fail(JsonError::Size);
            return;
        }
        self.message.extend_from_slice(bytes);
    }

    /// Notes the first reason to refuse the message and lets go of what was kept of it.
    fn fail(&mut self, fault: JsonError) {
        self.fault.get_or_insert(fault);
        self.message = Vec::new();
    }

    fn finish_if_complete(&mut self) {
        if self.depth == 0 {
            self.finish();
        }
    }

    fn finish(&mut self) {
        let message = std::mem::take(&mut self.message);
        let result = match self.fault.take() {
            Some(fault) => Err(fault),
            None => parse(&message),
        };
        self.ready.push_back(result);
        self.position = Position::Between;
        self.depth = 0;
        self.tokens = 0;
    }
}
