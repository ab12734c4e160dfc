//! Parses one complete JSON text of QEMU's dialect.
//!
//! Recursive descent over a byte slice. The caller bounds the length; nesting is bounded here too,
//! because the command line has no framer in front of it. Callable from any thread.

use serde_json::{Map, Number, Value};

use super::{JsonError, Limits};

/// Below this, a byte is a control character that a JSON string must escape.
const FIRST_PRINTABLE: u8 = 0x20;

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
        Some(_) => Err(JsonError::syntax(format!(
            "stray '{}' after the value",
            parser.excerpt()
        ))),
    }
}

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
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// The word at the present position, shortened, fit to be shown in a message.
    fn excerpt(&self) -> String {
        const SHOWN: usize = 40;
        let rest = self.text.get(self.at..).unwrap_or_default();
        let end = rest
            .iter()
            .position(|&b| b.is_ascii_whitespace() || b"{}[],:\"'".contains(&b))
            .unwrap_or(rest.len())
            .clamp(usize::from(!rest.is_empty()), SHOWN);
        let shown = rest.get(..end.min(rest.len())).unwrap_or_default();
        shown.escape_ascii().to_string()
    }

    fn value(&mut self) -> Result<Value, JsonError> {
        self.skip_space();
        match self.peek() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'"' | b'\'') => self.string().map(Value::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b'a'..=b'z' | b'A'..=b'Z') => self.keyword(),
            None | Some(b'}' | b']' | b',' | b':') => Err(JsonError::syntax("expecting value")),
            Some(_) => Err(JsonError::syntax(format!("stray '{}'", self.excerpt()))),
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
            self.skip_space();
            if !matches!(self.peek(), Some(b'"' | b'\'')) {
                return Err(JsonError::syntax("key is not a string in object"));
            }
            let key = self.string()?;
            self.skip_space();
            if self.next() != Some(b':') {
                return Err(JsonError::syntax("missing : in object pair"));
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
                _ => return Err(JsonError::syntax("expected separator in dict")),
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
                _ => return Err(JsonError::syntax("expected separator in list")),
            }
        }
    }

    fn keyword(&mut self) -> Result<Value, JsonError> {
        let start = self.at;
        while matches!(self.peek(), Some(b) if b.is_ascii_alphanumeric() || b == b'_') {
            self.at += 1;
        }
        match self.text.get(start..self.at).unwrap_or_default() {
            b"true" => Ok(Value::Bool(true)),
            b"false" => Ok(Value::Bool(false)),
            b"null" => Ok(Value::Null),
            _ => {
                self.at = start;
                Err(JsonError::syntax(format!(
                    "invalid keyword '{}'",
                    self.excerpt()
                )))
            }
        }
    }

    /// A number: integer if it has neither fraction nor exponent and fits 64 bits, else a double.
    fn number(&mut self) -> Result<Value, JsonError> {
        let start = self.at;
        while matches!(
            self.peek(),
            Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')
        ) {
            self.at += 1;
        }
        let literal = self.text.get(start..self.at).unwrap_or_default();
        // serde_json knows RFC 8259's grammar of numbers; nothing else can be in `literal`.
        let number = serde_json::from_slice::<Number>(literal)
            .map_err(|_| JsonError::syntax(format!("invalid number '{}'", literal.escape_ascii())));
        if number.is_err() {
            self.at = start;
        }
        number.map(Value::Number)
    }

    fn string(&mut self) -> Result<String, JsonError> {
        let Some(quote) = self.next() else {
            return Err(JsonError::syntax("expecting value"));
        };
        let mut bytes = Vec::new();
        loop {
            match self.next() {
                None => return Err(JsonError::syntax("unterminated string")),
                Some(b) if b == quote => break,
                Some(b'\\') => self.escape(&mut bytes)?,
                Some(b) if b < FIRST_PRINTABLE => {
                    return Err(JsonError::syntax("control character in a string"));
                }
                Some(b) => bytes.push(b),
            }
        }
        String::from_utf8(bytes).map_err(|_| JsonError::syntax("invalid UTF-8 sequence in string"))
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
        let invalid = || JsonError::syntax("invalid unicode escape in string");
        let mut code = self.hex4().ok_or_else(invalid)?;
        if LEADING.contains(&code) {
            let second = (self.next() == Some(b'\\') && self.next() == Some(b'u'))
                .then(|| self.hex4())
                .flatten()
                .filter(|second| TRAILING.contains(second))
                .ok_or_else(invalid)?;
            code = 0x1_0000 + ((code - LEADING.start) << 10) + (second - TRAILING.start);
        }
        char::from_u32(code).ok_or_else(invalid)
    }

    fn hex4(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        let mut code = 0;
        for &digit in digits {
            code = code * 16 + char::from(digit).to_digit(16)?;
        }
        self.at += 4;
        Some(code)
    }
}
