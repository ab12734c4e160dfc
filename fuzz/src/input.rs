//! An input, read from front to back.

/// The most bytes of an input that are looked at: more steps show nothing new, and take longer.
const MOST: usize = 2048;

/// Kinds of steps: more than any target has, so that a new one changes what no kept input says.
const KINDS: u8 = 32;

/// Bytes that steps are made of. What is read beyond the end is zero, but no step begins there.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(&data[..data.len().min(MOST)])
    }

    /// The kind of the next step; none at the end.
    pub(crate) fn step(&mut self) -> Option<u8> {
        (!self.0.is_empty()).then(|| self.u8() % KINDS)
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// A width of an access of the CPU: 1, 2 or 4 bytes.
    pub(crate) fn width(&mut self) -> usize {
        1 << (self.u8() % 3)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let taken = self.0.len().min(N);
        let (now, rest) = self.0.split_at(taken);
        bytes[..taken].copy_from_slice(now);
        self.0 = rest;
        bytes
    }

    /// Up to `most` bytes, as many as the next one says.
    pub(crate) fn bytes(&mut self, most: usize) -> &'a [u8] {
        let taken = (usize::from(self.u8()) % (most + 1)).min(self.0.len());
        let (now, rest) = self.0.split_at(taken);
        self.0 = rest;
        now
    }
}
