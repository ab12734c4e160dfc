//! What a filename means where QEMU lets it begin with a protocol: in commands and options that open an image by its
//! name alone. (The `filename` of a node's options is a path, whatever it looks like.)

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{BlockError, Result};

/// The one protocol that means a path.
const FILE: &[u8] = b"file";

/// What stands before the first colon, if no slash does, and what stands behind it.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = name.iter().position(|byte| b":/".contains(byte))?;
    (name[at] == b':').then(|| (&name[..at], &name[at + 1..]))
}

/// The path that `name` means. From any thread; nothing is looked at.
///
/// # Errors
/// It begins with a protocol other than `file:`.
pub fn path_of(name: &Path) -> Result<PathBuf> {
    match split(name.as_os_str().as_bytes()) {
        None => Ok(name.to_owned()),
        Some((FILE, path)) => {
            let is_clear = split(path).is_none();
            let path = Path::new(OsStr::from_bytes(path));
            // By its path alone it would be taken for another protocol's.
            Ok(match is_clear {
                true => path.to_owned(),
                false => Path::new(".").join(path),
            })
        }
        Some((protocol, _)) => Err(BlockError::UnknownProtocol {
            protocol: String::from_utf8_lossy(protocol).into_owned(),
            name: name.to_string_lossy().into_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> std::result::Result<String, String> {
        let path = path_of(Path::new(name)).map_err(|error| error.to_string())?;
        Ok(path.to_str().unwrap().to_owned())
    }

    #[test]
    fn paths_are_paths_and_file_is_stripped() {
        for path in [
            "a.img",
            "",
            "/a:b",
            "./nbd:x",
            "dir/json:{}",
            "/dev/fdset/1",
        ] {
            assert_eq!(of(path).unwrap(), path);
        }
        assert_eq!(of("file:a.img").unwrap(), "a.img");
        assert_eq!(of("file:/a:b").unwrap(), "/a:b");
        assert_eq!(of("file:///a").unwrap(), "///a");
        assert_eq!(of("file:").unwrap(), "");
        assert_eq!(of("file:nbd:x").unwrap(), "./nbd:x");
    }

    #[test]
    fn other_protocols_are_refused_with_what_would_help() {
        for (name, protocol) in [
            ("nbd:localhost:10809", "nbd"),
            ("nbd+unix:///x?socket=/tmp/s", "nbd+unix"),
            (r#"json:{"driver":"nbd"}"#, "json"),
            ("a b:c", "a b"),
            (":x", ""),
            ("FILE:x", "FILE"),
        ] {
            let said = of(name).unwrap_err();
            assert!(
                said.starts_with(&format!("Unknown protocol '{protocol}'; ")),
                "{said}"
            );
            assert!(said.contains(&format!("'./{name}'")), "{said}");
            assert!(said.contains("'blockdev-add'"), "{said}");
        }
    }
}
