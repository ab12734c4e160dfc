//! The wire layout of a virtio block device: features, requests, configuration.
//!
//! Source: VIRTIO 1.2, section 5.2. Nothing here has behaviour.

bitflags::bitflags! {
    /// Feature bits (section 5.2.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// `size_max` is valid.
        const SIZE_MAX = 1 << 1;
        /// `seg_max` is valid.
        const SEG_MAX = 1 << 2;
        /// `geometry` is valid.
        const GEOMETRY = 1 << 4;
        /// Read-only.
        const RO = 1 << 5;
        /// `blk_size` is valid.
        const BLK_SIZE = 1 << 6;
        /// Takes flush requests.
        const FLUSH = 1 << 9;
        /// `topology` is valid.
        const TOPOLOGY = 1 << 10;
        /// The driver may switch the write cache off and on.
        const CONFIG_WCE = 1 << 11;
        /// `num_queues` is valid.
        const MQ = 1 << 12;
        /// Takes discard requests.
        const DISCARD = 1 << 13;
        /// Takes requests to write zeroes.
        const WRITE_ZEROES = 1 << 14;
    }

    /// Flags of a discard or write zeroes segment (section 5.2.6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SegmentFlags: u32 {
        /// Write zeroes may deallocate.
        const UNMAP = 1 << 0;
    }
}

/// Bytes of a sector, the unit of every position.
pub const SECTOR: u64 = 512;

/// Request types (section 5.2.6).
pub mod request_type {
    /// Read.
    pub const IN: u32 = 0;
    /// Write.
    pub const OUT: u32 = 1;
    /// Flush.
    pub const FLUSH: u32 = 4;
    /// Read the serial number.
    pub const GET_ID: u32 = 8;
    /// Discard.
    pub const DISCARD: u32 = 11;
    /// Write zeroes.
    pub const WRITE_ZEROES: u32 = 13;
}

/// Result of a request, as its status byte tells it (section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RequestStatus {
    /// Done.
    Ok = 0,
    /// Failed.
    IoError = 1,
    /// Not a request this device takes.
    Unsupported = 2,
}

/// Bytes of a request's header: type, reserved, sector.
pub const HEADER_LEN: usize = 16;
/// Bytes of the status that ends a request.
pub const STATUS_LEN: usize = 1;
/// Bytes of a serial number (section 5.2.6).
pub const SERIAL_LEN: usize = 20;
/// Bytes of a discard or write zeroes segment.
pub const DISCARD_SEGMENT_LEN: usize = 16;

/// Offsets of the configuration's fields (section 5.2.4).
pub mod config {
    /// `capacity` in sectors, 64 bits.
    pub const CAPACITY: usize = 0;
    /// `size_max`, 32 bits.
    pub const SIZE_MAX: usize = 8;
    /// `seg_max`, 32 bits.
    pub const SEG_MAX: usize = 12;
    /// `geometry.cylinders`, 16 bits.
    pub const CYLINDERS: usize = 16;
    /// `geometry.heads`, 8 bits.
    pub const HEADS: usize = 18;
    /// `geometry.sectors`, 8 bits.
    pub const SECTORS: usize = 19;
    /// `blk_size` in bytes, 32 bits.
    pub const BLK_SIZE: usize = 20;
    /// `physical_block_exp`, 8 bits.
    pub const PHYSICAL_BLOCK_EXP: usize = 24;
    /// `min_io_size` in blocks, 16 bits.
    pub const MIN_IO_SIZE: usize = 26;
    /// `opt_io_size` in blocks, 32 bits.
    pub const OPT_IO_SIZE: usize = 28;
    /// `writeback`, 8 bits, writable with CONFIG_WCE.
    pub const WRITEBACK: usize = 32;
    /// `num_queues`, 16 bits.
    pub const NUM_QUEUES: usize = 34;
    /// `max_discard_sectors`, 32 bits.
    pub const MAX_DISCARD_SECTORS: usize = 36;
    /// `max_discard_seg`, 32 bits.
    pub const MAX_DISCARD_SEG: usize = 40;
    /// `discard_sector_alignment`, 32 bits.
    pub const DISCARD_SECTOR_ALIGNMENT: usize = 44;
    /// `max_write_zeroes_sectors`, 32 bits.
    pub const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    /// `max_write_zeroes_seg`, 32 bits.
    pub const MAX_WRITE_ZEROES_SEG: usize = 52;
    /// `write_zeroes_may_unmap`, 8 bits.
    pub const WRITE_ZEROES_MAY_UNMAP: usize = 56;
    /// Length of the structure.
    pub const LEN: usize = 60;
}
