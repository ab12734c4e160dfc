//! The limits of a `--drive`: `throttling.bps-total=` and so on, in QEMU's long and short names.

use serde_json::{Map, Value};

use super::error::CliError;
use super::options::{DriveOptions, Raw};
use crate::storage::DiskLimits;

/// The object of the long names.
const THROTTLING: &str = "throttling";
/// The member of it that is no limit.
const GROUP: &str = "group";
/// Where that is moved to: no key that was typed has a dot left.
const GROUP_KEY: &str = "throttling.group";

/// QEMU's older names, and the members of `throttling` that they mean.
const SHORT_NAMES: [(&str, &str); 14] = [
    ("bps", "bps-total"),
    ("bps_rd", "bps-read"),
    ("bps_wr", "bps-write"),
    ("bps_max", "bps-total-max"),
    ("bps_rd_max", "bps-read-max"),
    ("bps_wr_max", "bps-write-max"),
    ("iops", "iops-total"),
    ("iops_rd", "iops-read"),
    ("iops_wr", "iops-write"),
    ("iops_max", "iops-total-max"),
    ("iops_rd_max", "iops-read-max"),
    ("iops_wr_max", "iops-write-max"),
    ("iops_size", "iops-size"),
    ("group", GROUP),
];

/// Reads a `--drive`'s value.
pub(super) fn drive(mut raw: Raw) -> Result<DriveOptions, CliError> {
    if let Err(problem) = gather(&mut raw.value) {
        return Err(raw.error(problem, "give each limit once"));
    }
    raw.typed()
}

/// Moves short names to the members that they mean, and the group out of the limits.
fn gather(value: &mut Value) -> Result<(), String> {
    let Some(drive) = value.as_object_mut() else {
        return Ok(());
    };
    let limits = drive.remove(THROTTLING);
    let mut limits = match limits.unwrap_or_else(|| Map::new().into()) {
        Value::Object(limits) => limits,
        // What is wrong with it is said when it is given its type.
        other => {
            drive.insert(THROTTLING.to_owned(), other);
            return Ok(());
        }
    };
    for (short, long) in SHORT_NAMES {
        let Some(value) = drive.remove(short) else {
            continue;
        };
        if limits.insert(long.to_owned(), value).is_some() {
            return Err(format!(
                "'{THROTTLING}.{long}' and its alias '{short}' can't be used at the same time"
            ));
        }
    }
    if let Some(group) = limits.remove(GROUP) {
        drive.insert(GROUP_KEY.to_owned(), group);
    }
    drive.insert(THROTTLING.to_owned(), Value::Object(limits));
    Ok(())
}

/// The limits of the drive, if it has any.
pub(super) fn limits(options: &DriveOptions, text: &str) -> Result<Option<DiskLimits>, CliError> {
    let limits = options.throttling;
    limits
        .check()
        .map_err(|error| CliError::new("--drive", text, error.to_string(), "correct the limits"))?;
    Ok(limits.is_limiting().then(|| DiskLimits {
        group: options.throttling_group.clone(),
        limits,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::parse;

    fn limits_of(line: &str) -> Option<DiskLimits> {
        let words = line.split_whitespace().map(Into::into);
        let parsed = parse(words.collect::<Vec<std::ffi::OsString>>());
        let parsed = parsed.unwrap_or_else(|refusal| panic!("{line}: {refusal}"));
        parsed.storage.disks[0].limits.clone()
    }

    fn refused(line: &str) -> String {
        let words = format!("--kernel k {line}");
        let words = words.split_whitespace().map(Into::into);
        parse(words.collect::<Vec<std::ffi::OsString>>())
            .expect_err(line)
            .to_string()
    }

    #[test]
    fn limits_have_long_and_short_names() {
        let expected = DiskLimits {
            group: Some("g".to_owned()),
            limits: sluice_block::driver::throttle::ThrottleLimits {
                bps_total: 1 << 20,
                bps_total_max: 2 << 20,
                bps_total_max_length: 3,
                iops_write: 7,
                iops_size: 4096,
                ..Default::default()
            },
        };
        let long = "--kernel k --drive /img,format=raw,throttling.bps-total=1M,\
                    throttling.bps-total-max=2M,\
                    throttling.bps-total-max-length=3,throttling.iops-write=7,\
                    throttling.iops-size=4k,throttling.group=g";
        assert_eq!(limits_of(long), Some(expected.clone()));
        let short = "--kernel k --drive /img,format=raw,bps=1M,bps_max=2M,iops_wr=7,\
                     iops_size=4k,group=g,\
                     throttling.bps-total-max-length=3";
        assert_eq!(limits_of(short), Some(expected));
        // A group alone limits nothing.
        let group = "--kernel k --drive /img,format=raw,group=g";
        assert_eq!(limits_of(group), None);
        let elsewhere = "--kernel k --drive /img,format=raw,if=none,id=d,iops=5 \
                         --device ide-hd,drive=d";
        let limits = limits_of(elsewhere).unwrap();
        assert_eq!((limits.limits.iops_total, limits.group), (5, None));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let cases = [
            (
                "bps=1,throttling.bps-total=2",
                "'throttling.bps-total' and its alias 'bps' can't be used at the same time",
            ),
            (
                "bps=1,bps_rd=2",
                "bps/iops/max total values and read/write values cannot be used at the same time",
            ),
            (
                "throttling.speed=2",
                "Parameter 'throttling.speed' is unexpected",
            ),
            (
                "throttling=2",
                "Invalid parameter type for 'throttling', expected: object",
            ),
            ("bps=fast", "Parameter 'throttling.bps-total' expects a "),
        ];
        for (options, expected) in cases {
            let said = refused(&format!("--drive /img,format=raw,{options}"));
            assert!(said.contains(expected), "{options}: {said}");
        }
    }
}
