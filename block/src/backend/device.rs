//! [`DeviceName`]: what the device that holds a backend is called.

/// Where QEMU's object tree has the devices that were given an id.
const PERIPHERAL: &str = "/machine/peripheral";

/// A device's id and its place in QEMU's object tree. Commands may use either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceName {
    id: String,
    path: String,
    /// The part of the device that holds the disk, if it is not the device itself.
    part: Option<&'static str>,
}

impl DeviceName {
    /// A device that holds its disk itself, as an IDE drive does.
    #[must_use]
    pub fn of(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            path: format!("{PERIPHERAL}/{id}"),
            part: None,
        }
    }

    /// A device whose `part` holds the disk. Such parts have no id, so QEMU shows their path.
    #[must_use]
    pub fn with_part(id: &str, part: &'static str) -> Self {
        Self {
            part: Some(part),
            ..Self::of(id)
        }
    }

    /// The place of what holds the disk, as events tell it.
    #[must_use]
    pub fn path(&self) -> String {
        match self.part {
            Some(part) => format!("{}/{part}", self.path),
            None => self.path.clone(),
        }
    }

    /// As queries show it (`qdev`): the id if what holds the disk has one, else its place.
    #[must_use]
    pub fn shown(&self) -> String {
        match self.part {
            Some(_) => self.path(),
            None => self.id.clone(),
        }
    }

    /// Whether a command that names `name` means this device.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        name == self.id || name == self.path || name == self.path()
    }
}

impl From<&str> for DeviceName {
    fn from(id: &str) -> Self {
        Self::of(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_shown_and_found_as_in_qemu() {
        let ide = DeviceName::of("d0");
        assert_eq!(ide.shown(), "d0");
        assert_eq!(ide.path(), "/machine/peripheral/d0");
        let virtio = DeviceName::with_part("d0", "virtio-backend");
        assert_eq!(virtio.shown(), "/machine/peripheral/d0/virtio-backend");
        assert_eq!(virtio.path(), virtio.shown());
        for name in ["d0", "/machine/peripheral/d0"] {
            assert!(ide.is(name) && virtio.is(name), "{name}");
        }
        assert!(virtio.is("/machine/peripheral/d0/virtio-backend"));
        assert!(!ide.is("/machine/peripheral/d0/virtio-backend"));
        assert!(!ide.is("d1") && !ide.is("peripheral/d0"));
    }
}
