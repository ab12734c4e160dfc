//! The demo program's own errors: each is one clear line, and leaves nothing behind.

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        process::{Command, Output},
    };

    /// The exit code of a run that broke off.
    const BROKE_OFF: i32 = 2;

    fn demo(directory: &Path, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sluice-demo"))
            .current_dir(directory)
            .args(arguments)
            .output()
            .unwrap()
    }

    fn message(output: &Output) -> String {
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    #[test]
    fn a_missing_monitor_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let output = demo(
            dir.path(),
            &["--sluice", "/nowhere/sluice", "--disk-size", "16"],
        );
        assert_eq!(output.status.code(), Some(BROKE_OFF));
        assert!(
            message(&output).contains("/nowhere/sluice: No such file"),
            "{}",
            message(&output)
        );
    }

    #[test]
    fn images_of_an_earlier_run_are_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("demo/ide-0.img");
        std::fs::create_dir(dir.path().join("demo")).unwrap();
        std::fs::write(&image, "precious").unwrap();
        let output = demo(dir.path(), &["--sluice", "/bin/true"]);
        assert_eq!(output.status.code(), Some(BROKE_OFF));
        assert!(
            message(&output).contains("File exists"),
            "{}",
            message(&output)
        );
        assert_eq!(std::fs::read_to_string(image).unwrap(), "precious");
    }

    #[test]
    fn a_monitor_that_ends_at_once_is_told_with_its_message() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("monitor");
        std::fs::write(&script, "#!/bin/sh\necho 'no such machine' >&2\nexit 3\n").unwrap();
        let mut permissions = std::fs::metadata(&script).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
        std::fs::set_permissions(&script, permissions).unwrap();
        let output = demo(dir.path(), &["--sluice", "./monitor", "--disk-size", "16"]);
        assert_eq!(output.status.code(), Some(BROKE_OFF));
        assert!(
            message(&output).contains("no such machine"),
            "{}",
            message(&output)
        );
    }

    #[test]
    fn scenarios_exclude_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let output = demo(dir.path(), &["--twin", "--negative"]);
        assert_eq!(output.status.code(), Some(BROKE_OFF));
        assert!(
            message(&output).contains("cannot be used with"),
            "{}",
            message(&output)
        );
    }
}
