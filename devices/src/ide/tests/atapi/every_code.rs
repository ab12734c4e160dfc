//! Every command code and every operation code there is: with a disc, without one, inside a section, and with a reset
//! right after.

use super::ata_side::signature;
use super::*;

const SIGNATURE: [u8; 5] = [1, 1, 0x14, 0xeb, 1];
const INVALID_OPCODE: Sense = (5, 0x20, 0);

const DEVICE_RESET: u8 = 0x08;
const DIAGNOSTIC: u8 = 0x90;
const IDENTIFY_PACKET: u8 = 0xa1;
const SET_FEATURES: u8 = 0xef;
const LOOK_AHEAD: u8 = 0xaa;

/// What a packet with this operation code and nothing else but zeroes comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Unknown,
    /// No data, and no need of a disc.
    Done,
    /// No data.
    DoneWithDisc,
    /// Data, or a complaint about a field.
    Tells,
    /// The same, of a disc.
    TellsOfDisc,
}

fn answer(code: u8) -> Answer {
    match code {
        // TEST UNIT READY, SEEK; READ (10), READ (12) and READ CD of no blocks.
        0x00 | 0x2b | 0x28 | 0xa8 | 0xbe => Answer::DoneWithDisc,
        // START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL, SET CD SPEED.
        0x1b | 0x1e | 0xbb => Answer::Done,
        // REQUEST SENSE, INQUIRY, MODE SENSE, GET CONFIGURATION, GET EVENT STATUS NOTIFICATION, MECHANISM STATUS.
        0x03 | 0x12 | 0x1a | 0x46 | 0x4a | 0x5a | 0xbd => Answer::Tells,
        // READ CAPACITY, READ TOC, READ DISC INFORMATION, READ DVD STRUCTURE.
        0x25 | 0x43 | 0x51 | 0xad => Answer::TellsOfDisc,
        _ => Answer::Unknown,
    }
}

/// Sense after a command that may have failed.
fn outcome(bench: &mut Bench, code: u8) -> Option<Sense> {
    match bench.by_register(ROOMY, &[code]) {
        Ok(_) => None,
        Err(_) => Some(bench.sense()),
    }
}

fn assert_works(bench: &mut Bench) {
    assert_eq!(bench.packet(&read_10(30, 1)), block(30));
}

#[test]
fn each_operation_is_done_or_refused_for_what_it_lacks() {
    let mut bench = cd();
    for code in 0..=u8::MAX {
        let found = outcome(&mut bench, code);
        match answer(code) {
            Answer::Unknown => assert_eq!(found, Some(INVALID_OPCODE), "{code:#x}"),
            Answer::Done | Answer::DoneWithDisc => assert_eq!(found, None, "{code:#x}"),
            Answer::Tells | Answer::TellsOfDisc => {
                let fine = matches!(found, None | Some(INVALID_FIELD) | Some((5, 0x30, 2)));
                assert!(fine, "{code:#x}: {found:?}");
            }
        }
    }
    assert_works(&mut bench);
    assert!(bench.disks[0].is_untouched());
}

#[test]
fn without_a_disc_what_needs_one_says_so() {
    let mut bench = cd();
    bench.eject();
    for code in 0..=u8::MAX {
        let found = outcome(&mut bench, code);
        match answer(code) {
            Answer::Unknown => assert_eq!(found, Some(INVALID_OPCODE), "{code:#x}"),
            Answer::Done => assert_eq!(found, None, "{code:#x}"),
            Answer::Tells => assert!(
                found.is_none_or(|sense| sense == INVALID_FIELD),
                "{code:#x}"
            ),
            Answer::DoneWithDisc | Answer::TellsOfDisc => {
                assert_eq!(found, Some(TRAY_OPEN), "{code:#x}");
            }
        }
    }
}

/// Only reads are for the node: all else is answered by the drive, section or not.
#[test]
fn in_a_section_only_reads_wait() {
    let mut bench = cd();
    for code in 0..=u8::MAX {
        let section = bench.drain();
        outcome(&mut bench, code);
        assert_eq!(section.held_back().requests, 0, "{code:#x}");
        drop(section);
    }
    for read in [
        read_10(5, 1),
        vec![0xa8, 0, 0, 0, 0, 5, 0, 0, 0, 1],
        read_cd(5, 1, 0x10),
    ] {
        let section = bench.drain();
        bench.send_packet(0, ROOMY, &read);
        bench.wait_parked();
        assert_eq!(bench.status(), BSY | DRDY);
        assert!(!bench.is_interrupted());
        drop(section);
        bench.wait_ready();
        assert_eq!(bench.take_packet_block(), block(5));
        bench.wait_ready();
        assert_eq!(bench.inb(STATUS), DRDY | DSC);
    }
}

#[test]
fn a_reset_right_after_any_packet_ends_it() {
    let mut bench = cd();
    let device_reset = |bench: &Bench| bench.outb(COMMAND, DEVICE_RESET);
    let srst = |bench: &Bench| {
        bench.outb(CONTROL, SRST);
        bench.outb(CONTROL, 0);
    };
    for reset in [device_reset as fn(&Bench), srst] {
        for code in 0..=u8::MAX {
            for features in [0, BY_DMA] {
                bench.send_packet(features, ROOMY, &[code]);
                reset(&bench);
                bench.wait_ready();
                assert_eq!(signature(&bench), SIGNATURE, "{code:#x}");
                assert_eq!(
                    (bench.status(), bench.is_interrupted()),
                    (0, false),
                    "{code:#x}"
                );
            }
        }
        assert_works(&mut bench);
    }
}

#[test]
fn of_the_commands_of_disks_a_packet_device_has_a_few() {
    let mut bench = cd();
    for code in 0..=u8::MAX {
        bench.outb(FEATURES, if code == SET_FEATURES { LOOK_AHEAD } else { 0 });
        bench.outb(COMMAND, code);
        bench.wait_ready();
        let interrupted = bench.is_interrupted();
        let status = bench.inb(STATUS);
        match code {
            // Answered by the signature, and by nothing else.
            DEVICE_RESET => assert_eq!((status, interrupted), (0, false)),
            DIAGNOSTIC => assert_eq!((status, interrupted), (0, true)),
            PACKET => {
                assert_eq!((status, interrupted), (DRDY | DSC | DRQ, false));
                bench.outb(COMMAND, DEVICE_RESET);
            }
            IDENTIFY_PACKET => {
                assert_eq!((status, interrupted), (DRDY | DSC | DRQ, true));
                bench.read_block(1);
            }
            // Power modes, FLUSH CACHE, SET FEATURES.
            0x94..=0x99 | 0xe0..=0xe3 | 0xe5..=0xe7 | 0xea | SET_FEATURES => {
                assert_eq!((status, interrupted), (DRDY | DSC, true), "{code:#x}");
            }
            _ => {
                assert_eq!((status, interrupted), (DRDY | ERR, true), "{code:#x}");
                assert_eq!(bench.inb(ERROR), ABRT, "{code:#x}");
            }
        }
    }
    assert_works(&mut bench);
}
