"""How ci/kvm-host gets a command to a host with usable KVM; see docs/kvm-hosts.md."""
