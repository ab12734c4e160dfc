//! Reads the options of a block node, from QMP or from the command line.
//!
//! The options form a union whose kind stands in the member `driver`, nested by the children's
//! roles. Each kind is read by its own type, so that errors name the parameter by its full path and
//! text from the command line gets the right type; a generic reader of unions could do neither.

use serde::Deserialize;
use serde_json::{Map, Value};
use sluice_block::BlockdevOptions;
#[cfg(feature = "test-hooks")]
use sluice_block::options::OverlayNode;
use sluice_block::options::{
    BlkdebugNode, ChildRef, CopyBeforeWriteNode, CopyOnReadNode, FileNode, NullNode, RawNode,
    ThrottleNode,
};

use super::input::{self, InputError, Scalars};
use super::schema::{self, Member, Shape};

/// The drivers that options may name.
pub const DRIVERS: &[&str] = &[
    "blkdebug",
    "copy-before-write",
    "copy-on-read",
    "file",
    "host_device",
    "null-aio",
    "null-co",
    "raw",
    "throttle",
    #[cfg(feature = "test-hooks")]
    "x-overlay",
];

/// Children within children; far more than any sensible graph.
const DEEPEST: usize = 16;

/// The newtype by which commands refer to these options in the schema.
pub const NODE_OPTIONS: &str = "NodeOptions";

/// The options of a node as a command's argument, to be [`read`].
#[derive(Clone, Debug, Deserialize)]
pub struct NodeOptions(pub Value);

/// What [`read`] takes.
pub fn shape() -> Shape {
    let tag = Member {
        name: "driver".to_owned(),
        shape: Shape::Enum(DRIVERS.iter().map(|name| (*name).to_owned()).collect()),
        optional: false,
    };
    let variant = |driver: &&str| ((*driver).to_owned(), driver_shape(driver));
    Shape::Union {
        members: vec![tag],
        tag: "driver".to_owned(),
        variants: DRIVERS.iter().map(variant).collect(),
    }
}

/// What a driver's own options are, with its children as [`take_child`] reads them.
fn driver_shape(driver: &str) -> Shape {
    let (shape, children): (_, &[&str]) = match driver {
        "file" | "host_device" => (schema::shape_of::<FileNode>(), &[]),
        "null-co" | "null-aio" => (schema::shape_of::<NullNode>(), &[]),
        "raw" => (schema::shape_of::<RawNode>(), &["file"]),
        "copy-before-write" => (
            schema::shape_of::<CopyBeforeWriteNode>(),
            &["file", "target"],
        ),
        "copy-on-read" => (schema::shape_of::<CopyOnReadNode>(), &["file"]),
        "throttle" => (schema::shape_of::<ThrottleNode>(), &["file"]),
        "blkdebug" => (schema::shape_of::<BlkdebugNode>(), &["image"]),
        #[cfg(feature = "test-hooks")]
        "x-overlay" => (schema::shape_of::<OverlayNode>(), &[]),
        _ => (Shape::ANY, &[]),
    };
    let Shape::Object(mut members) = shape else {
        return shape;
    };
    for member in &mut members {
        if children.contains(&member.name.as_str()) {
            member.shape = Shape::Alternate(vec![Shape::STR, Shape::Named(NODE_OPTIONS)]);
        }
    }
    Shape::Object(members)
}

/// Reads `value` as the options of a node and of the children described with it.
///
/// # Errors
/// An [`InputError`] that names the parameter at fault.
pub fn read(value: Value, scalars: Scalars) -> Result<BlockdevOptions, InputError> {
    read_as(value, "", scalars)
}

/// The same of the parameter `path`, which errors begin with.
///
/// # Errors
/// As [`read`].
pub fn read_as(value: Value, path: &str, scalars: Scalars) -> Result<BlockdevOptions, InputError> {
    read_at(value, path, scalars, DEEPEST)
}

fn read_at(
    value: Value,
    path: &str,
    scalars: Scalars,
    depth: usize,
) -> Result<BlockdevOptions, InputError> {
    let Value::Object(mut members) = value else {
        return Err(InputError::wrong_type(path, "object"));
    };
    let driver_path = join(path, "driver");
    let driver = match members.remove("driver") {
        Some(Value::String(driver)) => driver,
        Some(_) => return Err(InputError::wrong_type(driver_path, "string")),
        None => return Err(InputError::missing(driver_path)),
    };
    let mut child = |role: &str| take_child(&mut members, role, path, scalars, depth);
    match driver.as_str() {
        "file" => members_at::<FileNode>(members, path, scalars).map(BlockdevOptions::File),
        "host_device" => {
            members_at::<FileNode>(members, path, scalars).map(BlockdevOptions::HostDevice)
        }
        "null-co" => members_at::<NullNode>(members, path, scalars).map(BlockdevOptions::NullCo),
        "null-aio" => members_at::<NullNode>(members, path, scalars).map(BlockdevOptions::NullAio),
        "raw" => {
            let file = child("file")?;
            let mut node: RawNode = members_at(members, path, scalars)?;
            node.file = file.unwrap_or(node.file);
            Ok(BlockdevOptions::Raw(node))
        }
        "copy-before-write" => {
            let (file, target) = (child("file")?, child("target")?);
            let mut node: CopyBeforeWriteNode = members_at(members, path, scalars)?;
            node.file = file.unwrap_or(node.file);
            node.target = target.unwrap_or(node.target);
            Ok(BlockdevOptions::CopyBeforeWrite(node))
        }
        "copy-on-read" => {
            let file = child("file")?;
            let mut node: CopyOnReadNode = members_at(members, path, scalars)?;
            node.file = file.unwrap_or(node.file);
            Ok(BlockdevOptions::CopyOnRead(node))
        }
        "throttle" => {
            let file = child("file")?;
            let mut node: ThrottleNode = members_at(members, path, scalars)?;
            node.file = file.unwrap_or(node.file);
            Ok(BlockdevOptions::Throttle(node))
        }
        "blkdebug" => {
            let image = child("image")?;
            let mut node: BlkdebugNode = members_at(members, path, scalars)?;
            node.image = image.unwrap_or(node.image);
            Ok(BlockdevOptions::Blkdebug(Box::new(node)))
        }
        #[cfg(feature = "test-hooks")]
        "x-overlay" => {
            members_at::<OverlayNode>(members, path, scalars).map(BlockdevOptions::XOverlay)
        }
        _ => Err(InputError::bad_value(driver_path, driver, DRIVERS)),
    }
}

/// Reads the child under `role` if it is described in place, and leaves a name there instead for
/// the reader of the other members.
fn take_child(
    members: &mut Map<String, Value>,
    role: &str,
    path: &str,
    scalars: Scalars,
    depth: usize,
) -> Result<Option<ChildRef>, InputError> {
    let child_path = join(path, role);
    match members.get_mut(role) {
        None | Some(Value::String(_)) => Ok(None),
        Some(nested @ Value::Object(_)) if depth > 0 => {
            let options = std::mem::replace(nested, Value::String(String::new()));
            let options = read_at(options, &child_path, scalars, depth - 1)?;
            Ok(Some(ChildRef::Options(Box::new(options))))
        }
        Some(_) => Err(InputError::wrong_type(child_path, "BlockdevRef")),
    }
}

fn members_at<'de, T: Deserialize<'de>>(
    members: Map<String, Value>,
    path: &str,
    scalars: Scalars,
) -> Result<T, InputError> {
    input::from_value_at(Value::Object(members), path, scalars)
}

fn join(path: &str, member: &str) -> String {
    match path {
        "" => member.to_owned(),
        path => format!("{path}.{member}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(value: Value) -> String {
        read(value, Scalars::Typed).unwrap_err().to_string()
    }

    #[test]
    fn json_and_text_give_the_same_node() {
        let typed = read(
            json!({"driver": "raw", "node-name": "d", "read-only": true, "offset": 512,
                   "file": {"driver": "file", "filename": "/x", "cache": {"direct": true}}}),
            Scalars::Typed,
        );
        let text = read(
            json!({"driver": "raw", "node-name": "d", "read-only": "on", "offset": "512",
                   "file": {"driver": "file", "filename": "/x", "cache": {"direct": "on"}}}),
            Scalars::Text,
        );
        assert_eq!(typed, text);
        let BlockdevOptions::Raw(raw) = typed.unwrap() else {
            panic!("not raw");
        };
        assert_eq!(raw.offset, 512);
        let ChildRef::Options(file) = raw.file else {
            panic!("no child");
        };
        let BlockdevOptions::File(file) = *file else {
            panic!("not a file");
        };
        assert_eq!(file.cache.unwrap().direct, Some(true));
    }

    #[test]
    fn children_may_be_named() {
        let node = read(json!({"driver": "blkdebug", "image": "d"}), Scalars::Typed).unwrap();
        let BlockdevOptions::Blkdebug(node) = node else {
            panic!("not blkdebug");
        };
        assert_eq!(node.image, ChildRef::Name("d".into()));
    }

    #[test]
    fn both_children_of_a_copying_filter_are_read() {
        let node = read(
            json!({"driver": "copy-before-write", "file": "d", "on-cbw-error": "break-snapshot",
                   "target": {"driver": "null-co", "size": "1M"}}),
            Scalars::Text,
        );
        let BlockdevOptions::CopyBeforeWrite(node) = node.unwrap() else {
            panic!("not copy-before-write");
        };
        assert_eq!(node.file, ChildRef::Name("d".into()));
        assert!(matches!(node.target, ChildRef::Options(_)));
    }

    #[test]
    fn the_filter_that_copies_up_is_read() {
        let value = json!({"driver": "copy-on-read", "file": "d", "bottom": "base"});
        let BlockdevOptions::CopyOnRead(node) = read(value, Scalars::Typed).unwrap() else {
            panic!("not copy-on-read");
        };
        assert_eq!(node.file, ChildRef::Name("d".into()));
        assert_eq!(node.bottom.as_deref(), Some("base"));
    }

    #[test]
    fn errors_name_the_full_path() {
        let cases = [
            (json!({}), "Parameter 'driver' is missing"),
            (
                json!({"driver": 1}),
                "Invalid parameter type for 'driver', expected: string",
            ),
            (
                json!({"driver": "x"}),
                "Parameter 'driver' does not accept value 'x'",
            ),
            (json!({"driver": "raw"}), "Parameter 'file' is missing"),
            (
                json!({"driver": "raw", "file": 1}),
                "Invalid parameter type for 'file', expected: BlockdevRef",
            ),
            (
                json!({"driver": "raw", "file": {}}),
                "Parameter 'file.driver' is missing",
            ),
            (
                json!({"driver": "raw", "file": {"driver": "file"}}),
                "Parameter 'file.filename' is missing",
            ),
            (
                json!({"driver": "raw", "file": {"driver": "file", "filename": "x", "y": 1}}),
                "Parameter 'file.y' is unexpected",
            ),
            (
                json!({"driver": "null-co", "cache": {"direct": 1}}),
                "Invalid parameter type for 'cache.direct', expected: boolean",
            ),
            (
                json!({"driver": "null-co", "discard": "maybe"}),
                "Parameter 'discard' does not accept value 'maybe'",
            ),
        ];
        for (value, expected) in cases {
            assert_eq!(error(value.clone()), expected, "for {value}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let mut value = json!({"driver": "null-co"});
        for _ in 0..=DEEPEST {
            value = json!({"driver": "raw", "file": value});
        }
        assert!(error(value).starts_with("Invalid parameter type"));
    }
}
