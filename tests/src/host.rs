//! What kind of host a guest runs on, and which failures say more about the host than about Sluice.
//!
//! The programs that run guests ask here after a failure. On hardware the answer is always the
//! same: a failure is a failure.

use crate::process::threads::CIRCLES;

/// How often something is run in all when the emulated host spoils it.
pub const ATTEMPTS: u32 = 6;

/// The variable in which `ci/kvm-host` says what kind of host it has got.
const HOST_VARIABLE: &str = "KVM_HOST";

/// What `sluice` says when a guest's processor gives up.
const TRIPLE_FAULT: &str = "shut down (triple fault)";

/// Whether to run again what failed with `error`: the host is an emulated one, and a guest's
/// processor gave up, or went round in circles until patience ended, without a word of its kernel.
///
/// QEMU's emulation of AMD-V does that to a two-processor guest about once in fifteen minutes, under
/// Sluice as well as its own host kernel's crashes (docs/kvm-hosts.md). What Sluice causes comes back
/// on every attempt, or shows on hardware, where nothing is run twice. A guest that waits for
/// something, as it does when Sluice owes it an interrupt or a completion, sleeps: that is never
/// laid at the host's door.
#[must_use]
pub fn is_to_blame(error: &str) -> bool {
    let emulated = std::env::var(HOST_VARIABLE).is_ok_and(|host| host == "emulated");
    emulated && looks_like_the_emulation(error)
}

fn looks_like_the_emulation(error: &str) -> bool {
    (error.contains(TRIPLE_FAULT) || error.contains(CIRCLES)) && !error.contains("Kernel panic")
}

#[cfg(test)]
mod tests {
    use super::{CIRCLES, looks_like_the_emulation};

    #[test]
    fn only_what_a_silent_guest_does_by_itself_is_laid_at_the_hosts_door() {
        let silent =
            "the machine ended (exit status: 12)\nsluice: vCPU 1 shut down (triple fault) at …";
        assert!(looks_like_the_emulation(silent));
        assert!(!looks_like_the_emulation(
            "no \"writer: started\" on the console within 120 s"
        ));
        let round = format!("no end of the process within 150 s\n… vcpu0 {CIRCLES}");
        assert!(looks_like_the_emulation(&round));
        let asleep = "no end of the process within 150 s\nvcpu0 S 10 2 8  0% kvm_vcpu_block";
        assert!(!looks_like_the_emulation(asleep));
        assert!(!looks_like_the_emulation(&format!(
            "Kernel panic - not syncing\n{silent}"
        )));
    }
}
