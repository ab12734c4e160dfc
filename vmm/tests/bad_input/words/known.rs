//! Differences from QEMU that there is a reason for (`docs/qmp.md` tells of them).

use super::Answer;

/// Parts of messages whose answers differ, and why. What no longer differs must not be here.
const EXCEPTIONS: &[(&[u8], &str)] = &[
    (br"1e999", TOO_LARGE),
    (br"1E999", TOO_LARGE),
    (br"1e400", TOO_LARGE),
    (b"\xc0\x80", UNICODE),
    (b"\xef\xbf\xbf", UNICODE),
    (b"\xf0\x9f\xbf\xbf", UNICODE),
    (br"\uFFFF", UNICODE),
    (br"\uFDD0", UNICODE),
    (br"\uD83F\uDFFF", UNICODE),
    (
        br#""blockdev-mirror", "arguments": {"job-id": "j", "device": "n0", "target": "n1", "sync": "incremental"}"#,
        "what a mirror can't do is no value of its 'sync'",
    ),
    (
        br#""blockdev-mirror", "arguments": {"job-id": "j", "device": "n0", "target": "n1", "sync": "bitmap"}"#,
        "what a mirror can't do is no value of its 'sync'",
    ),
    (
        br#""a": 1, "b": 2"#,
        "of two unexpected members QEMU's hash table names one",
    ),
    (
        br#""filter-node-name": "n1"}"#,
        "the name of a backup's filter is looked at before its node is made",
    ),
    (
        br#""filter-node-name": "-"}"#,
        "the name of a backup's filter is looked at before its node is made",
    ),
    (
        br#""on-cbw-error": "x"}}"#,
        "an argument of QEMU 10.1 is there already",
    ),
    (
        br#""filename": """#,
        "an empty name is one of a file that is not there",
    ),
    (br#""filename": "/"}"#, "what is no file is told in words"),
    (
        br#""file": "n2", "size": 1073741824"#,
        "there are two spaces in QEMU's text",
    ),
    (
        br#""driver": "file", "node-name": "n0""#,
        "that the driver is another is told first",
    ),
    (
        br#""format": "zz", "job-id""#,
        "formats that there are not are told with what there is",
    ),
    (
        br#""block-stream", "arguments": {"device": "n0"}"#,
        "what has no backing image is told so before anything else",
    ),
    (
        br#""block-commit", "arguments": {"device": "n0"}"#,
        "what has no backing image is told so before anything else",
    ),
    (
        br#""block-job-change", "arguments": {"id": "zz", "type": "commit"#,
        "only mirrors can be changed",
    ),
    (
        br#""block-job-change", "arguments": {"id": "zz", "type": "backup"#,
        "only mirrors can be changed",
    ),
    (
        br#""block-job-change", "arguments": {"id": "ready", "type": "commit"#,
        "only mirrors can be changed",
    ),
    (
        br#""block-job-change", "arguments": {"id": "ready", "type": "backup"#,
        "only mirrors can be changed",
    ),
    (
        br#""job-id": "other", "device": "n0""#,
        "a mirrored disk need not be a root, but has one job at a time",
    ),
    (
        br#""job-id": "other", "device": "n8""#,
        "a disk has one job at a time",
    ),
    (
        br#""blockdev-del", "arguments": {"node-name": "n1"}"#,
        "it is told what uses a node",
    ),
    (
        br#""device_add", "arguments": {"driver": 1}"#,
        "arguments of another type are not missing",
    ),
    (
        br#""device_del", "arguments": {"id": ""}"#,
        "nothing has an empty name",
    ),
    (br#""/machine", "property": "zz""#, "it is another machine"),
    (
        br#""/machine", "property": "type", "value""#,
        "it is another machine",
    ),
];

const TOO_LARGE: &str = "a number that no double holds is refused, not answered by what is no JSON";
const UNICODE: &str = "noncharacters are characters, and two bytes are no NUL";

/// Arguments of QEMU's that are unknown here.
const NOT_HERE: &[&str] = &[
    "active",
    "aio-max-batch",
    "boundaries-zap",
    "compress",
    "discard-source",
    "drop-cache",
    "pr-manager",
    "use-copy-range",
    "x-check-cache-dropped",
];

/// Why the answers to that very message differ, if they must.
pub(super) fn exception(message: &[u8]) -> Option<&'static str> {
    let is_within = |part: &[u8]| message.windows(part.len()).any(|window| window == part);
    let mut exceptions = EXCEPTIONS.iter();
    let (_, reason) = exceptions.find(|(part, _)| is_within(part))?;
    Some(reason)
}

/// Why the answers may differ, if there is a reason for each that does.
pub(super) fn reason(ours: &[Answer], theirs: &[Answer]) -> Option<&'static str> {
    let mut found = None;
    for (ours, theirs) in ours.iter().zip(theirs) {
        if ours != theirs {
            found = Some(reason_of_one(ours, theirs)?);
        }
    }
    let spoiled = theirs
        .iter()
        .any(|answer| answer.text.starts_with("JSON ") && answer.class == "GenericError");
    if ours.len() < theirs.len() && !ours.is_empty() && spoiled {
        return Some("a message that is not JSON has one error");
    }
    if ours.len() == theirs.len() {
        found
    } else {
        None
    }
}

fn reason_of_one(ours: &Answer, theirs: &Answer) -> Option<&'static str> {
    if ours.text.ends_with("' expects a non-negative value") {
        return Some("a number that can't be negative is refused for being so");
    }
    if (&ours.class, &ours.id) != (&theirs.class, &theirs.id) {
        return None;
    }
    let (ours, theirs) = (ours.text.as_str(), theirs.text.as_str());
    if ours.starts_with("JSON ") && as_qemu_shows(ours) == theirs {
        return Some("a byte that no text can show is told by its number");
    }
    if is_not_here(ours) {
        return Some("an argument is unknown here");
    }
    if names_the_whole_path(ours, theirs) {
        return Some("a parameter is named by its full path, also in lists and branches");
    }
    if ours
        .strip_prefix(theirs)
        .is_some_and(|more| more.starts_with([';', ':', ',', ' ']))
    {
        return Some("more is told behind QEMU's text");
    }
    None
}

fn is_not_here(text: &str) -> bool {
    let name = text
        .strip_prefix("Parameter '")
        .and_then(|rest| rest.strip_suffix("' is unexpected"));
    name.is_some_and(|path| {
        NOT_HERE
            .iter()
            .any(|name| path.rsplit('.').next() == Some(name))
    })
}

/// An error about bytes with these as QEMU shows them: a NUL not at all, and what is not ASCII by one character for all.
fn as_qemu_shows(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\\x") {
        let (code, after) = after.split_at_checked(2).unwrap_or((after, ""));
        shown.push_str(before);
        if code != "00" {
            shown.push('\u{fffd}');
        }
        rest = after;
    }
    shown.push_str(rest);
    shown
}

/// Whether the texts differ only in the parameter's name, of which QEMU has the last member, or `null` for an element.
fn names_the_whole_path(ours: &str, theirs: &str) -> bool {
    let parts = |text: &'_ str| -> Option<(String, String, String)> {
        let (before, rest) = text.split_once('\'')?;
        let (name, after) = rest.split_once('\'')?;
        Some((before.to_owned(), name.to_owned(), after.to_owned()))
    };
    let (Some(ours), Some(theirs)) = (parts(ours), parts(theirs)) else {
        return false;
    };
    let last = if theirs.1 == "null" {
        ours.1.ends_with(']')
    } else {
        ours.1.ends_with(&format!(".{}", theirs.1))
    };
    ours.0 == theirs.0 && ours.2 == theirs.2 && last
}
