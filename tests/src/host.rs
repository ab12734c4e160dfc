//! What kind of host a guest runs on, and which failures say more about the host than about Sluice.
//!
//! The programs that run guests ask here after a failure. On hardware the answer is always the
//! same: a failure is a failure.

/// How often something is run in all when the emulated host spoils it.
pub const ATTEMPTS: u32 = 3;

/// The variable in which `ci/kvm-host` says what kind of host it has got.
const HOST_VARIABLE: &str = "KVM_HOST";

/// What `sluice` says when a guest's processor gives up.
const TRIPLE_FAULT: &str = "shut down (triple fault)";

/// Whether to run again what failed with `error`: the host is an emulated one, and a guest's
/// processor gave up without a word of its kernel.
///
/// QEMU's emulation of AMD-V does that to a two-processor guest about once in fifteen minutes, under
/// Sluice as well as its own host kernel's crashes (docs/kvm-hosts.md). A triple fault that Sluice
/// causes comes back on every attempt, or shows on hardware, where nothing is run twice.
#[must_use]
pub fn is_to_blame(error: &str) -> bool {
    let emulated = std::env::var(HOST_VARIABLE).is_ok_and(|host| host == "emulated");
    emulated && looks_like_the_emulation(error)
}

fn looks_like_the_emulation(error: &str) -> bool {
    error.contains(TRIPLE_FAULT) && !error.contains("Kernel panic")
}

#[cfg(test)]
mod tests {
    use super::looks_like_the_emulation;

    #[test]
    fn only_a_silent_triple_fault_is_laid_at_the_hosts_door() {
        let silent =
            "the machine ended (exit status: 12)\nsluice: vCPU 1 shut down (triple fault) at …";
        assert!(looks_like_the_emulation(silent));
        assert!(!looks_like_the_emulation(
            "no \"writer: started\" on the console within 120 s"
        ));
        assert!(!looks_like_the_emulation(&format!(
            "Kernel panic - not syncing\n{silent}"
        )));
    }
}
