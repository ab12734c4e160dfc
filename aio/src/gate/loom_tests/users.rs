//! Rules that the gate's users keep, as models of a user that keeps them around the real gate; and of
//! one that does not, which the checker must notice.

use super::*;

/// A device whose request says where it goes in a register that the guest may write at any time.
struct Device {
    disk: Arc<Disk>,
    register: UnsafeCell<usize>,
}

impl Device {
    /// The guest's access to the register.
    fn write_register(&self, value: usize) {
        self.register.with_mut(|register| {
            // SAFETY: only the guest's thread touches the register, unless a model breaks the rule.
            unsafe { *register = value };
        });
    }

    fn read_register(&self) -> usize {
        self.register.with(|register| {
            // SAFETY: as in `write_register`.
            unsafe { *register }
        })
    }
}

/// The guest starts a request to cell 0, which is parked, and writes the register again; in the device's
/// loop `target` says where the request goes, given the value that was captured at its start.
fn postpone(target: impl Fn(&Device, usize) -> usize + Copy + Send + Sync + 'static) {
    check(3, move || {
        let device = Arc::new(Device {
            disk: Disk::new(),
            register: UnsafeCell::new(0),
        });
        let section = device.disk.gate.close("section");
        let captured = device.read_register();
        let request = parked(&device.disk);
        let running = {
            let device = Arc::clone(&device);
            thread::spawn(move || {
                let token = block_on(request).unwrap();
                device.disk.request(target(&device, captured), token);
            })
        };
        drop(section);
        device.write_register(1);
        running.join().unwrap();
        device.disk.requests[0].with(|count| {
            // SAFETY: the request has ended.
            assert_eq!(unsafe { *count }, 1, "the request went elsewhere");
        });
    });
}

// Rule 5.

#[test]
fn a_postponed_request_that_is_a_value_goes_where_it_was_sent() {
    postpone(|_, captured| captured);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_postponed_request_that_reads_registers_again_is_noticed() {
    postpone(|device, _| device.read_register());
}

/// A job holds a section and has its own loop copy something meanwhile; a guest's request is parked.
fn copy_inside_a_section(by: impl Fn(&Disk) + Copy + Send + Sync + 'static) {
    check(3, move || {
        let disk = Disk::new();
        let section = disk.gate.close("job");
        block_on(disk.gate.wait_idle());
        let guest = parked(&disk);
        let guest = run(&disk, 1, guest);
        let copying = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || by(&disk))
        };
        copying.join().unwrap();
        let seen = disk.examine();
        drop(section);
        guest.join().unwrap();
        // The copy, and nothing of the guest's.
        assert_eq!(seen, 1, "held by its own section");
        assert_eq!(disk.section(), 2);
    });
}

fn copy(disk: &Disk) {
    disk.requests[0].with_mut(|count| {
        // SAFETY: the section keeps everybody else out, which is what the model checks.
        unsafe { *count += 1 };
    });
}

// Rule 11.

#[test]
fn a_jobs_copy_runs_inside_its_own_section() {
    copy_inside_a_section(copy);
}

#[test]
#[should_panic(expected = "held by its own section")]
fn a_jobs_copy_that_enters_the_gate_is_held() {
    copy_inside_a_section(|disk| {
        // It would wait for ever; the model gives up.
        if let Poll::Ready(token) = poll_once(&mut disk.gate.enter()) {
            copy(disk);
            drop(token);
        }
    });
}
