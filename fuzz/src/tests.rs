//! The fuzz targets without a fuzzer: the kept corpus, and arbitrary bytes.

use std::path::Path;

use proptest::prelude::*;

/// The bytes that a line of a corpus stands for.
fn input(line: &str) -> Vec<u8> {
    let digits = line.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Every input that is kept for a target, those that once found something among them.
fn replay(name: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let lines = std::fs::read_to_string(corpus.join(name).with_extension("hex")).unwrap();
    let mut inputs = 0;
    for (number, line) in (1..).zip(lines.lines()) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The last one that is named is the one that fails.
        println!("{name}.hex, line {number}");
        run(&input(line));
        inputs += 1;
    }
    assert!(inputs > 0, "no input is kept for {name}");
}

macro_rules! tests_of {
    ($($target:ident),*) => { $(
        mod $target {
            use super::*;

            #[test]
            fn holds_for_the_corpus() {
                replay(stringify!($target), crate::$target);
            }

            proptest! {
                #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

                #[test]
                fn holds_for_arbitrary_bytes(data in prop::collection::vec(any::<u8>(), 0..400)) {
                    crate::$target(&data);
                }
            }
        }
    )* };
}

tests_of!(ide_ports, ide_drives, atapi_packets, virtio_blk, pci_config);
