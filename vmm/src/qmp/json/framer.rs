//! Cuts a byte stream into JSON messages, with bounded memory. What a message holds is left to [`parse`](super::parse).
//!
//! A message ends with the bracket that closes it, or with one that closes nothing; a bare scalar ends where a byte does
//! not go on with it. No newline is needed. What begins like no message is refused at once. A message that breaks a limit
//! or contains a byte that JSON can't contain there yields exactly one error; its rest is followed to its end, without
//! being kept, so that nothing inside it is mistaken for a message of its own. Three things force the stream back into a
//! known state, whatever came before: a line end inside a string, a control character outside of one, and a byte 0xFE or
//! 0xFF anywhere. What follows these is skipped up to the next bracket, separator or control character, as in QEMU, for
//! it is the rest of something broken.

use std::collections::VecDeque;

use super::JsonError;
use super::lexer::{
    FIRST_PRINTABLE, RESET_BYTES, SHOWN, Step, Token, is_space, is_structural, stray,
};

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
    /// A string, number or keyword.
    Within(Token),
    /// The rest of garbage that was refused.
    Refused,
}

/// Cuts a stream into messages; see the module's documentation.
#[derive(Debug)]
pub struct Framer {
    limits: Limits,
    position: Position,
    /// Braces that are open; negative behind one that closes nothing.
    braces: isize,
    /// The same of square brackets.
    brackets: isize,
    tokens: usize,
    /// Where the token begins that the present position is within.
    token_start: usize,
    /// The message so far; no longer filled once it is refused.
    message: Vec<u8>,
    /// Whether the present message has been refused; its rest is followed to its end.
    refused: bool,
    ready: VecDeque<Result<Vec<u8>, JsonError>>,
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
            braces: 0,
            brackets: 0,
            tokens: 0,
            token_start: 0,
            message: Vec::new(),
            refused: false,
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
        let Position::Within(Token::String {
            quote,
            escaped: false,
        }) = self.position
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

    /// The text of the next complete message, or why it is none.
    pub fn pop(&mut self) -> Option<Result<Vec<u8>, JsonError>> {
        self.ready.pop_front()
    }

    /// Bytes held for a message that is not complete.
    #[cfg(test)]
    pub(super) fn pending_bytes(&self) -> usize {
        self.message.len()
    }

    fn step(&mut self, byte: u8) {
        match self.position {
            Position::Within(token) => match token.step(byte) {
                Step::On(token) => {
                    self.keep(&[byte]);
                    self.position = Position::Within(token);
                }
                Step::End => {
                    self.keep(&[byte]);
                    self.end_token();
                }
                Step::Ended => {
                    self.end_token();
                    self.begin(byte);
                }
                Step::Stray => self.refuse(byte, Some(token)),
            },
            Position::Between => self.begin(byte),
            Position::Refused if self.ends_garbage(byte) => self.begin(byte),
            Position::Refused => {}
        }
    }

    /// Whether a byte is looked at again after garbage. Within a message that is refused, strings are followed, for there
    /// may be brackets in them.
    fn ends_garbage(&self, byte: u8) -> bool {
        byte < FIRST_PRINTABLE
            || RESET_BYTES.contains(&byte)
            || is_structural(byte)
            || self.is_open() && matches!(byte, b' ' | b'"' | b'\'')
    }

    /// Takes a byte that is not within a token.
    fn begin(&mut self, byte: u8) {
        self.position = Position::Between;
        if is_space(byte) {
            if self.is_open() {
                self.keep(&[byte]);
            }
            return;
        }
        let token = Token::begin(byte);
        if token.is_none() && !is_structural(byte) {
            self.refuse(byte, None);
            return;
        }
        self.tokens += 1;
        if self.tokens > self.limits.tokens {
            self.fail(JsonError::Tokens);
        }
        if let Some(token) = token {
            self.token_start = self.message.len();
            self.position = Position::Within(token);
            self.keep(&[byte]);
            return;
        }
        match byte {
            b'{' => self.braces += 1,
            b'}' => self.braces -= 1,
            b'[' => self.brackets += 1,
            b']' => self.brackets -= 1,
            _ => {}
        }
        let depth = usize::try_from(self.braces.saturating_add(self.brackets));
        if depth.is_ok_and(|depth| depth > self.limits.nesting) {
            self.fail(JsonError::Nesting);
        }
        self.keep(&[byte]);
        self.finish_if_complete();
    }

    fn end_token(&mut self) {
        self.position = Position::Between;
        self.finish_if_complete();
    }

    /// Refuses the message for a byte that goes on with no token, or not with `token`.
    fn refuse(&mut self, byte: u8, token: Option<Token>) {
        if !self.refused {
            let part = token.and_then(|_| self.message.get(self.token_start..));
            let shown = part.unwrap_or_default().iter().take(SHOWN);
            let shown: Vec<_> = shown.copied().chain([byte]).collect();
            self.fail(stray(&shown));
        }
        let string = match token {
            Some(Token::String { quote, .. }) => Some(quote),
            _ => None,
        };
        let resets = match string {
            _ if RESET_BYTES.contains(&byte) => true,
            Some(_) => matches!(byte, b'\n' | b'\r'),
            None => byte < FIRST_PRINTABLE && !is_space(byte),
        };
        if resets || !self.is_open() {
            self.finish();
        } else if let Some(quote) = string {
            let escaped = false;
            self.position = Position::Within(Token::String { quote, escaped });
            return;
        }
        self.position = Position::Refused;
        // A bracket counts although a number is spoiled by it.
        if byte >= FIRST_PRINTABLE && !resets && self.ends_garbage(byte) {
            self.begin(byte);
        }
    }

    /// Whether the message goes on.
    fn is_open(&self) -> bool {
        (self.braces > 0 || self.brackets > 0) && self.braces >= 0 && self.brackets >= 0
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.refused {
            return;
        }
        if bytes.len() > self.limits.bytes - self.message.len() {
            self.fail(JsonError::Size);
            return;
        }
        self.message.extend_from_slice(bytes);
    }

    /// Refuses the message, at once: its client may wait for a reply before it goes on. Lets go of what was kept of it.
    fn fail(&mut self, fault: JsonError) {
        if !self.refused {
            self.ready.push_back(Err(fault));
        }
        self.refused = true;
        self.message = Vec::new();
    }

    fn finish_if_complete(&mut self) {
        if !self.is_open() {
            self.finish();
        }
    }

    fn finish(&mut self) {
        let message = std::mem::take(&mut self.message);
        if !std::mem::take(&mut self.refused) {
            self.ready.push_back(Ok(message));
        }
        self.position = Position::Between;
        self.braces = 0;
        self.brackets = 0;
        self.tokens = 0;
    }
}
