//! Drives of every kind in every place of an IDE controller.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_fuzz::ide_drives(data));
