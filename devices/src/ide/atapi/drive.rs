//! The drive: its tray, what it has to tell, and which command may be done now.

use std::sync::Arc;

use sluice_block::Backend;

use super::disc::{capacity, disc_information};
use super::read::{DiscRead, SectorForm, read, read_cd, seek};
use super::wire::{CD_MAX_BLOCKS, Opcode, Packet, SECTOR, Sense, SenseKey, Traits};
use crate::ide::disk::DriveIdentity;

/// What a packet asks for, or how it ended.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Reply {
    /// It is done, without data.
    Done,
    /// These bytes go to the guest.
    Data(Vec<u8>),
    /// These sectors go to the guest.
    Read(DiscRead),
    /// It failed.
    Check(Sense),
    /// There is data and no room for it: the PACKET command itself is aborted, before it has any effect.
    NoRoom,
}

/// What is in a tray that has a medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MediumKind {
    Cd,
    Dvd,
}

/// What a command that minds has still to be told about a change of medium: first that it is gone, then that there
/// may be another. A guest that polls sees both, however fast the operator was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Change {
    #[default]
    Told,
    Gone,
    MayBeAnother,
}

/// What GET EVENT STATUS NOTIFICATION has still to tell (MMC-5, section 6.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Events {
    eject_requested: bool,
    new_medium: bool,
    medium_removed: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub(in super::super) struct CdRom {
    identity: DriveIdentity,
    backend: Arc<Backend>,
    tray_open: bool,
    locked: bool,
    sense: Sense,
    change: Change,
    events: Events,
    /// The tray has moved since this was asked last.
    moved: Option<bool>,
}

impl CdRom {
    /// A drive at power-on, with the tray closed.
    pub(in super::super) fn new(identity: DriveIdentity, backend: Arc<Backend>) -> Self {
        Self {
            identity,
            backend,
            tray_open: false,
            locked: false,
            sense: Sense::NONE,
            change: Change::default(),
            events: Events::default(),
            moved: None,
        }
    }

    pub(in super::super) fn identity(&self) -> &DriveIdentity {
        &self.identity
    }

    pub(in super::super) fn is_tray_open(&self) -> bool {
        self.tray_open
    }

    pub(in super::super) fn is_locked(&self) -> bool {
        self.locked
    }

    fn is_inserted(&self) -> bool {
        self.backend.node().is_some()
    }

    /// Blocks of the medium that can be read: none without one, or while the tray is open.
    pub(super) fn blocks(&self) -> Option<u32> {
        let blocks = self.backend.len() / SECTOR as u64;
        (!self.tray_open && blocks > 0).then(|| u32::try_from(blocks).unwrap_or(u32::MAX))
    }

    pub(super) fn medium_kind(&self) -> Option<MediumKind> {
        self.blocks().map(|blocks| {
            if blocks > CD_MAX_BLOCKS {
                MediumKind::Dvd
            } else {
                MediumKind::Cd
            }
        })
    }

    /// A reset of the device: the lock is off, and nothing is pending but what has happened to the medium.
    pub(in super::super) fn reset(&mut self) {
        self.locked = false;
        self.sense = Sense::NONE;
    }

    /// The machine is reset: as at power-on, the tray included.
    pub(in super::super) fn power_on(&mut self) {
        self.reset();
        self.change = Change::Told;
        self.events = Events::default();
        self.set_tray(false);
    }

    /// The operator asks for the medium.
    pub(in super::super) fn request_eject(&mut self, force: bool) {
        self.events.eject_requested = true;
        if force {
            self.locked = false;
        }
    }

    /// The operator moves the tray.
    pub(in super::super) fn move_tray(&mut self, open: bool) {
        if open != self.tray_open {
            self.set_tray(open);
            if self.is_inserted() {
                self.change = Change::Gone;
            }
        }
    }

    /// The operator has put a medium in or taken it out.
    pub(in super::super) fn medium_changed(&mut self, present: bool) {
        self.change = Change::Gone;
        // What happens on an open tray is an event when it closes.
        if !self.tray_open {
            self.events.note(present);
        }
    }

    /// Which way the tray has moved since the last call, if it has.
    pub(in super::super) fn take_moved(&mut self) -> Option<bool> {
        self.moved.take()
    }

    fn set_tray(&mut self, open: bool) {
        if open != self.tray_open {
            self.tray_open = open;
            self.moved = Some(open);
            self.events.eject_requested &= !open;
            if self.is_inserted() {
                self.events.note(!open);
            }
        }
    }

    /// What becomes of a read that was given before the medium went: it ends as the first command after that would.
    pub(in super::super) fn lost_medium(&mut self) -> Sense {
        self.change = Change::MayBeAnother;
        self.fail(Sense::NO_MEDIUM)
    }

    /// Keeps `sense` for REQUEST SENSE.
    pub(in super::super) fn fail(&mut self, sense: Sense) -> Sense {
        self.sense = sense;
        sense
    }

    /// Does a command. `has_room`: the guest would take data.
    pub(in super::super) fn execute(&mut self, packet: &Packet, has_room: bool) -> Reply {
        let opcode = Opcode::decode(packet.byte(0));
        let traits = opcode.map_or(Traits::empty(), Opcode::traits);
        if !traits.contains(Traits::DESPITE_ATTENTION)
            && let Some(sense) = self.attention()
        {
            return Reply::Check(self.fail(sense));
        }
        let Some(opcode) = opcode else {
            return Reply::Check(self.fail(Sense::INVALID_OPCODE));
        };
        if traits.contains(Traits::NEEDS_MEDIUM) && self.blocks().is_none() {
            let sense = if self.tray_open {
                Sense::NO_MEDIUM_TRAY_OPEN
            } else {
                Sense::NO_MEDIUM_TRAY_CLOSED
            };
            return Reply::Check(self.fail(sense));
        }
        if !traits.intersects(Traits::NO_DATA | Traits::PERHAPS_DATA) && !has_room {
            return Reply::NoRoom;
        }
        match self.carry_out(opcode, packet) {
            Ok(Reply::Read(_)) if !has_room => Reply::NoRoom,
            Ok(reply) => {
                if opcode != Opcode::RequestSense {
                    self.forget_error();
                }
                reply
            }
            Err(sense) => Reply::Check(self.fail(sense)),
        }
    }

    /// What the guest has to be told before anything else is done.
    fn attention(&mut self) -> Option<Sense> {
        if self.sense.key == SenseKey::UnitAttention {
            // It stays until it is asked for.
            return Some(self.sense);
        }
        self.blocks()?;
        match self.change {
            Change::Told => None,
            Change::Gone => {
                self.change = Change::MayBeAnother;
                Some(Sense::NO_MEDIUM)
            }
            Change::MayBeAnother => {
                self.change = Change::Told;
                Some(Sense::MEDIUM_MAY_HAVE_CHANGED)
            }
        }
    }

    /// An error is about the command before; an attention waits for REQUEST SENSE.
    fn forget_error(&mut self) {
        if self.sense.key != SenseKey::UnitAttention {
            self.sense = Sense::NONE;
        }
    }

    fn carry_out(&mut self, opcode: Opcode, packet: &Packet) -> Result<Reply, Sense> {
        let blocks = self.blocks().unwrap_or(0);
        let data = match opcode {
            Opcode::TestUnitReady | Opcode::SetCdSpeed => return Ok(Reply::Done),
            Opcode::StartStopUnit => return self.start_stop(packet),
            Opcode::PreventAllowRemoval => {
                const PREVENT: u8 = 1 << 0;
                self.locked = packet.byte(4) & PREVENT != 0;
                return Ok(Reply::Done);
            }
            Opcode::Seek10 => return seek(packet.u32_at(2), blocks),
            Opcode::Read10 => {
                let count = packet.u16_at(7).into();
                return read(packet, count, SectorForm::UserData, blocks);
            }
            Opcode::Read12 => return read(packet, packet.u32_at(6), SectorForm::UserData, blocks),
            Opcode::ReadCd => return read_cd(packet, blocks),
            Opcode::RequestSense => self.request_sense(packet),
            Opcode::Inquiry => self.inquiry(packet)?,
            Opcode::ModeSense6 => self.mode_sense_6(packet)?,
            Opcode::ModeSense10 => self.mode_sense_10(packet)?,
            Opcode::ReadCapacity => capacity(blocks),
            Opcode::ReadToc => self.read_toc(packet, blocks)?,
            Opcode::GetConfiguration => self.get_configuration(packet)?,
            Opcode::GetEventStatus => self.event_status(packet)?,
            Opcode::ReadDiscInformation => disc_information(packet)?,
            Opcode::ReadDvdStructure => self.dvd_structure(packet, blocks)?,
            Opcode::MechanismStatus => self.mechanism_status(packet),
        };
        Ok(Reply::Data(data))
    }

    fn request_sense(&mut self, packet: &Packet) -> Vec<u8> {
        let mut data = std::mem::replace(&mut self.sense, Sense::NONE).data();
        data.truncate(packet.byte(4).into());
        data
    }

    /// START STOP UNIT (SFF-8020i, section 10.8.25): only the tray does anything.
    fn start_stop(&mut self, packet: &Packet) -> Result<Reply, Sense> {
        const START: u8 = 1 << 0;
        const LOAD_EJECT: u8 = 1 << 1;
        const POWER_CONDITION: u8 = 0xf0;
        let flags = packet.byte(4);
        if flags & POWER_CONDITION != 0 || flags & LOAD_EJECT == 0 {
            return Ok(Reply::Done);
        }
        let open = flags & START == 0;
        if open && !self.tray_open && self.locked {
            return Err(if self.is_inserted() {
                Sense::LOCKED
            } else {
                Sense::LOCKED_EMPTY
            });
        }
        // That the medium may be another the guest knows by itself.
        self.set_tray(open);
        Ok(Reply::Done)
    }

    /// GET EVENT STATUS NOTIFICATION (MMC-5, section 6.7): media events, polled.
    fn event_status(&mut self, packet: &Packet) -> Result<Vec<u8>, Sense> {
        const POLLED: u8 = 1 << 0;
        /// Class 4, as a bit of the request and of what is supported.
        const MEDIA: u8 = 1 << 4;
        const MEDIA_CLASS: u8 = 4;
        const NONE_AVAILABLE: u8 = 1 << 7;
        const TRAY_OPEN: u8 = 1 << 0;
        const MEDIUM_PRESENT: u8 = 1 << 1;
        if packet.byte(1) & POLLED == 0 {
            return Err(Sense::INVALID_FIELD);
        }
        let room = usize::from(packet.u16_at(7));
        let mut data = if packet.byte(4) & MEDIA == 0 {
            vec![0, 2, NONE_AVAILABLE, MEDIA]
        } else {
            let mut status = if self.tray_open { TRAY_OPEN } else { 0 };
            if self.blocks().is_some() {
                status |= MEDIUM_PRESENT;
            }
            // Without room for the event itself it is not told, and stays.
            let event = if room > 4 { self.events.take() } else { 0 };
            vec![0, 6, MEDIA_CLASS, MEDIA, event, status, 0, 0]
        };
        data.truncate(room);
        Ok(data)
    }
}

impl Events {
    /// The drive has got a medium that can be read, or has it no more.
    fn note(&mut self, present: bool) {
        self.new_medium = present;
        self.medium_removed |= !present;
    }

    /// The code of the event that comes next, which is told now (MMC-5, table 291).
    fn take(&mut self) -> u8 {
        const NO_CHANGE: u8 = 0;
        const EJECT_REQUEST: u8 = 1;
        const NEW_MEDIA: u8 = 2;
        const MEDIA_REMOVAL: u8 = 3;
        let pending = [
            (&mut self.medium_removed, MEDIA_REMOVAL),
            (&mut self.new_medium, NEW_MEDIA),
            (&mut self.eject_requested, EJECT_REQUEST),
        ];
        for (flag, code) in pending {
            if std::mem::take(flag) {
                return code;
            }
        }
        NO_CHANGE
    }
}
