//! QEMU's dialect of JSON, read from a stream, and written.
//!
//! Two steps: a [`Framer`] cuts a byte stream into messages without needing any separator between
//! them (clients end a message with its last brace and nothing else) and keeps memory bounded; a
//! recursive parser ([`parse`]) turns one message into a [`serde_json::Value`]. The dialect is RFC
//! 8259 plus strings in single quotes with `\'`. The command line uses the parser for options whose
//! value starts with `{`. What monitors say is written by [`write()`].
//!
//! Used in the main context by the QMP server; nothing here blocks or panics, whatever the input.

mod framer;
mod lexer;
mod parser;
#[cfg(test)]
mod tests;
mod writer;

pub use framer::{Framer, Limits};
pub use parser::parse;
pub use writer::{Layout, write};

use thiserror::Error;

/// Why a message is not JSON. The texts are QEMU's where QEMU has one.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum JsonError {
    /// The message is larger than [`Limits::bytes`].
    #[error("JSON token size limit exceeded")]
    Size,
    /// The message has more tokens than [`Limits::tokens`].
    #[error("JSON token count limit exceeded")]
    Tokens,
    /// The message nests deeper than [`Limits::nesting`].
    #[error("JSON nesting depth limit exceeded")]
    Nesting,
    /// The grammar does not allow what stands there.
    #[error("JSON parse error, {0}")]
    Syntax(String),
}

impl JsonError {
    /// A syntax error with the given explanation.
    fn syntax(explanation: impl Into<String>) -> Self {
        Self::Syntax(explanation.into())
    }
}
