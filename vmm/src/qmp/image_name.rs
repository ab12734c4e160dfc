//! What the name of an image means, as `--drive file=` and `blockdev-change-medium` take it.

use std::path::Path;

use serde_json::{Map, Value, json};
use sluice_block::driver::file::{FileKind, path_of};

use super::json;

/// A name as options of the protocol's node: a path, or `PROTOCOL:` and what it needs, as in QEMU. Looks at the file,
/// which may block.
///
/// # Errors
/// In words: the protocol is unknown, or what it needs is missing.
pub(crate) fn read(name: &str) -> Result<Map<String, Value>, String> {
    let object = |value: Value| match value {
        Value::Object(members) => Ok(members),
        _ => Err("'json:' is followed by one object".to_owned()),
    };
    if let Some(text) = name.strip_prefix("json:") {
        return object(json::parse(text.as_bytes()).map_err(|error| error.to_string())?);
    }
    for driver in ["null-co", "null-aio"] {
        if name.strip_prefix(driver) == Some("://") {
            return object(json!({"driver": driver}));
        }
    }
    if let Some(rest) = name.strip_prefix("blkdebug:") {
        let (config, image) = rest
            .split_once(':')
            .ok_or("'blkdebug:' is followed by RULES:IMAGE")?;
        let mut node = object(json!({"driver": "blkdebug", "image": read(image)?}))?;
        if !config.is_empty() {
            node.insert("config".to_owned(), config.into());
        }
        return Ok(node);
    }
    let path = path_of(Path::new(name)).map_err(|error| error.to_string())?;
    object(json!({
        "driver": FileKind::of(&path).driver_name(),
        "filename": path,
    }))
}
