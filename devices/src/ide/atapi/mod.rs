//! CD-ROM drives: the packet commands, apart from how packets and data travel.
//!
//! [`CdRom`] is a drive with its tray: a synchronous state machine that is given twelve bytes and says with a
//! [`Reply`] what is to become of them. The channel's core (`core::packet`) fetches packets, moves replies
//! through the data register or by the bus master, and has discs read; a drive does no I/O itself, and looks at its
//! backend only for the medium's presence and length.
//!
//! | module | |
//! |---|---|
//! | `wire` | operation codes, sense codes, bits and lengths |
//! | `drive` | tray, lock, pending sense, what happened to the medium, and which command may be done now |
//! | `read` | which bytes of a disc a command wants, and the frame around a raw sector |
//! | `inquiry`, `mode`, `toc`, `features`, `disc` | the answers, by subject |
//!
//! Sources: SFF-8020i revision 2.6 (ATAPI CD-ROM), MMC-5 (T10/1675D), SPC-3 (T10/1416D); how a medium change is told
//! is QEMU's. All of it is called under the channel's lock, on any thread.

mod disc;
mod drive;
mod features;
mod inquiry;
mod mode;
mod read;
mod toc;
pub(super) mod wire;

pub(super) use drive::{CdRom, Reply};
pub(super) use read::{DiscRead, Part, SectorForm};
