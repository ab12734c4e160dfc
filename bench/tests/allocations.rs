//! A request in steady state allocates nothing: counted, not timed.
#![expect(
    clippy::tests_outside_test_module,
    reason = "the whole crate is a test"
)]

use sluice_bench::allocations::Counting;
use sluice_bench::random_read;
use sluice_bench::timing::Effort;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The only test of this program: another one beside it would allocate too.
#[test]
fn a_request_in_steady_state_allocates_nothing() {
    let before = Counting::allocations();
    let rows = random_read::allocations(Effort::Smoke).unwrap();
    assert!(Counting::allocations() > before, "nothing is counted");
    assert_eq!(rows.len(), 12);
    for row in rows {
        assert_eq!(row.met(), Some(true), "{}: {}", row.what, row.ours);
    }
}
