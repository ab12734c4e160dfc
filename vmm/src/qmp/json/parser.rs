//! Parses one complete JSON text of QEMU's dialect.
//!
//! Recursive descent over a byte slice. The caller bounds the length; nesting is bounded here too,
//! because the command line has no framer in front of it. Callable from any thread.

use serde_json::{Map, Number, Value};

use super::lexer::{self, is_space, is_structural};
use super::{JsonError, Limits};

/// Parses `text`, which must hold exactly one value.
///
/// # Errors
/// A [`JsonError`] with QEMU's text for the first thing that is wrong.
pub fn parse(text: &[u8]) -> Result<Value, JsonError> {
    let mut parser = Parser {
        text,
        at: 0,
        depth: 0,
        nesting: Limits::default().nesting,
    };
    let value = parser.value()?;
    parser.skip_space();
    match parser.peek() {
        None => Ok(value),
        Some(_) => Err(JsonError::syntax("expecting at most one value")),
    }
}

/// Where the text ends before the value does.
const PREMATURE_END: &str = "premature EOI";

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
    nesting: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(is_space) {
            self.at += 1;
        }
    }

    /// What is still to be read.
    fn rest(&self) -> &[u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn value(&mut self) -> Result<Value, JsonError> {
        self.skip_space();
        match self.peek() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(byte) if is_structural(byte) => Err(JsonError::syntax("expecting value")),
            Some(_) => self.scalar(),
            None if self.depth > 0 => Err(JsonError::syntax(PREMATURE_END)),
            None => Err(JsonError::syntax("expecting value")),
        }
    }

    fn nested(
        &mut self,
        inner: fn(&mut Self) -> Result<Value, JsonError>,
    ) -> Result<Value, JsonError> {
        self.at += 1; // the opening bracket
        self.depth += 1;
        if self.depth > self.nesting {
            return Err(JsonError::Nesting);
        }
        let value = inner(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn object(&mut self) -> Result<Value, JsonError> {
        let mut object = Map::new();
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(object));
        }
        loop {
            let Value::String(key) = self.value()? else {
                return Err(JsonError::syntax("key is not a string in object"));
            };
            self.skip_space();
            match self.next() {
                Some(b':') => {}
                None => return Err(JsonError::syntax(PREMATURE_END)),
                Some(_) => return Err(self.unless_stray("missing : in object pair")),
            }
            let value = self.value()?;
            if object.contains_key(&key) {
                return Err(JsonError::syntax("duplicate key"));
            }
            object.insert(key, value);
            self.skip_space();
            match self.next() {
                Some(b',') => {}
                Some(b'}') => return Ok(Value::Object(object)),
                None => return Err(JsonError::syntax(PREMATURE_END)),
                Some(_) => return Err(self.unless_stray("expected separator in dict")),
            }
        }
    }

    fn array(&mut self) -> Result<Value, JsonError> {
        let mut array = Vec::new();
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(array));
        }
        loop {
            array.push(self.value()?);
            self.skip_space();
            match self.next() {
                Some(b',') => {}
                Some(b']') => return Ok(Value::Array(array)),
                None => return Err(JsonError::syntax(PREMATURE_END)),
                Some(_) => return Err(self.unless_stray("expected separator in list")),
            }
        }
    }

    /// Why what begins with the byte just read is not what had to come: it may be no token at all.
    fn unless_stray(&mut self, otherwise: &str) -> JsonError {
        self.at -= 1;
        match self.rest() {
            [byte, ..] if is_structural(*byte) => JsonError::syntax(otherwise),
            rest => lexer::first(rest)
                .err()
                .unwrap_or_else(|| JsonError::syntax(otherwise)),
        }
    }

    /// A string, number or keyword.
    fn scalar(&mut self) -> Result<Value, JsonError> {
        let token = lexer::first(self.text.get(self.at..).unwrap_or_default())?;
        self.at += token.len();
        match token {
            [b'"' | b'\'', content @ .., _] => string(content, token).map(Value::String),
            [b'a'..=b'z', ..] => keyword(token),
            number_token => number(number_token),
        }
    }
}

fn keyword(token: &[u8]) -> Result<Value, JsonError> {
    match token {
        b"true" => Ok(Value::Bool(true)),
        b"false" => Ok(Value::Bool(false)),
        b"null" => Ok(Value::Null),
        _ => Err(JsonError::syntax(format!(
            "invalid keyword '{}'",
            token.escape_ascii()
        ))),
    }
}

/// A number: integer if it has neither fraction nor exponent and fits 64 bits, else a double.
fn number(token: &[u8]) -> Result<Value, JsonError> {
    // An integer, which has no negative zero.
    if token == b"-0" {
        return Ok(Value::from(0));
    }
    // Only doubles that are too large are left to be refused; QEMU takes them, and writes what is no JSON.
    let number = serde_json::from_slice::<Number>(token);
    number
        .map(Value::Number)
        .map_err(|_| JsonError::syntax(format!("invalid number '{}'", token.escape_ascii())))
}

/// The string between the quotes of `token`.
fn string(content: &[u8], token: &[u8]) -> Result<String, JsonError> {
    let mut text = Text { token, at: 1 };
    let mut bytes = Vec::with_capacity(content.len());
    while text.at <= content.len() {
        match text.next() {
            Some(b'\\') => text.escape(&mut bytes)?,
            Some(byte) => bytes.push(byte),
            None => break,
        }
    }
    String::from_utf8(bytes).map_err(|_| JsonError::syntax("invalid UTF-8 sequence in string"))
}

/// The inside of a string, with the quotes.
struct Text<'a> {
    token: &'a [u8],
    at: usize,
}

impl Text<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = self.token.get(self.at).copied()?;
        self.at += 1;
        Some(byte)
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), JsonError> {
        let byte = match self.next() {
            Some(b @ (b'"' | b'\'' | b'\\' | b'/')) => b,
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => {
                let character = self.unicode_escape()?;
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(JsonError::syntax("invalid escape sequence in string")),
        };
        out.push(byte);
        Ok(())
    }

    /// The rest of `\uXXXX`, with a second one where the first is the leading half of a pair.
    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        const LEADING: std::ops::Range<u32> = 0xd800..0xdc00;
        const TRAILING: std::ops::Range<u32> = 0xdc00..0xe000;
        const ESCAPE: usize = r"\uXXXX".len();
        let start = self.at - 2;
        let first = self.hex4(self.at);
        let mut code = first;
        self.at = start + ESCAPE;
        if let Some(leading) = first.filter(|code| LEADING.contains(code)) {
            let pair = self.token.get(self.at..).unwrap_or_default();
            let second = self.hex4(self.at + 2);
            if let Some(trailing) = second.filter(|code| TRAILING.contains(code))
                && pair.starts_with(br"\u")
            {
                code = Some(
                    0x1_0000 + ((leading - LEADING.start) << 10) + (trailing - TRAILING.start),
                );
                self.at += ESCAPE;
            }
        }
        code.and_then(char::from_u32).ok_or_else(|| {
            let end = self.at.min(self.token.len());
            let shown = String::from_utf8_lossy(self.token.get(start..end).unwrap_or_default());
            JsonError::syntax(format!("{shown} is not a valid Unicode character"))
        })
    }

    fn hex4(&self, at: usize) -> Option<u32> {
        let digits = self.token.get(at..at + 4)?;
        digits.iter().try_fold(0, |code, &digit| {
            Some(code * 16 + char::from(digit).to_digit(16)?)
        })
    }
}
