//! Every policy against every kind of request and error: what the guest is told, what the operator
//! is told, and that what was stopped is done exactly once when the machine goes on.

use rustix::io::Errno;

use super::*;
use crate::io::{DetectZeroes, IoPolicy};
use crate::options::Discard;

/// What a guest may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Zeroes,
    Discard,
    Flush,
}

const KINDS: [Kind; 5] = [
    Kind::Read,
    Kind::Write,
    Kind::Zeroes,
    Kind::Discard,
    Kind::Flush,
];

/// By policy: of a read and of anything else, without room and with another error.
const TABLE: [(OnError, [ErrorAction; 4]); 5] = {
    use ErrorAction::{Ignore, Report, Stop};
    [
        (OnError::Report, [Report, Report, Report, Report]),
        (OnError::Ignore, [Ignore, Ignore, Ignore, Ignore]),
        (OnError::Stop, [Stop, Stop, Stop, Stop]),
        (OnError::Enospc, [Stop, Report, Stop, Report]),
        (OnError::Auto, [Report, Report, Stop, Report]),
    ]
};

fn begin(bench: &Bench, kind: Kind) -> JoinHandle<Result<()>> {
    let guest = Arc::clone(&bench.guest);
    current::spawn_local(async move {
        let token = guest.backend().enter().await?;
        let mut request = guest.request(token);
        match kind {
            Kind::Read => request.read(512, IoBuffer::alloc(512)).await,
            Kind::Write => request.write(512, IoBuffer::alloc(512)).await,
            Kind::Zeroes => request.write_zeroes(512, 512, true).await,
            Kind::Discard => request.discard(512, 512).await,
            Kind::Flush => request.flush().await,
        }
    })
}

/// What the medium has done for the guest; reads leave no trace there.
fn trace(kind: Kind) -> Vec<u64> {
    match kind {
        Kind::Read => Vec::new(),
        Kind::Flush => vec![FLUSH],
        _ => vec![512],
    }
}

async fn check(bench: Bench, kind: Kind, errno: i32, expected: ErrorAction, has_status: bool) {
    bench.medium.fail(errno);
    let request = begin(&bench, kind);
    let no_room = errno == libc::ENOSPC;
    let status = match (has_status, expected) {
        (false, _) => None,
        (true, ErrorAction::Stop) if no_room => Some(IoStatus::Nospace),
        (true, ErrorAction::Stop) => Some(IoStatus::Failed),
        (true, _) => Some(IoStatus::Ok),
    };
    if expected == ErrorAction::Stop {
        bench.halted(1).await;
        assert_eq!(bench.backend.io_status(), status);
        assert!(bench.medium.offsets().is_empty());
        bench.medium.heal();
        bench.backend.resume();
    }
    let result = request.await.unwrap();
    match expected {
        ErrorAction::Report => assert_eq!(result.unwrap_err().errno(), errno),
        ErrorAction::Ignore | ErrorAction::Stop => result.unwrap(),
    }
    let done = match expected {
        ErrorAction::Stop => trace(kind),
        ErrorAction::Report | ErrorAction::Ignore => Vec::new(),
    };
    assert_eq!(bench.medium.offsets(), done);
    assert_eq!(
        bench.backend.io_status(),
        has_status.then_some(IoStatus::Ok)
    );
    let events = bench.events.take();
    let [event] = events.as_slice() else {
        panic!("not one event: {events:?}");
    };
    let reason = match no_room {
        true => "No space left on device",
        false => "Input/output error",
    };
    let told = BlockEvent::BlockIoError {
        qom_path: String::new(),
        device: "disk".to_owned(),
        node_name: Some("node".to_owned()),
        operation: match kind {
            Kind::Read => IoOperation::Read,
            _ => IoOperation::Write,
        },
        action: expected,
        nospace: has_status.then_some(no_room),
        reason: reason.to_owned(),
    };
    assert_eq!(*event, told);
}

#[test]
fn every_policy_for_every_request_and_error() {
    for (policy, actions) in TABLE {
        for kind in KINDS {
            for (column, errno) in [libc::ENOSPC, libc::EIO].into_iter().enumerate() {
                let row = if kind == Kind::Read { 0 } else { 2 };
                let expected = actions[row + column];
                // The other direction's policy does not matter.
                for other in [OnError::Report, OnError::Ignore, OnError::Stop] {
                    let (read, write) = match kind {
                        Kind::Read => (policy, other),
                        _ => (other, policy),
                    };
                    let stops = |policy| matches!(policy, OnError::Stop);
                    let may = matches!(write, OnError::Enospc | OnError::Auto);
                    let has_status = stops(read) || stops(write) || may;
                    println!(
                        "rerror={read:?} werror={write:?} {kind:?} {}",
                        Errno::from_raw_os_error(errno)
                    );
                    run(policy, move |bench| async move {
                        bench.backend.set_policy(ErrorPolicy::new(read, write));
                        let policy = IoPolicy::new(Discard::Unmap, DetectZeroes::Off);
                        let node = bench.backend.node().unwrap();
                        node.set_policy(policy.unwrap());
                        check(bench, kind, errno, expected, has_status).await;
                    });
                }
            }
        }
    }
}
