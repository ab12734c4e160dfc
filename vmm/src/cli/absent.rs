//! Options that switch off what does not exist here.

use super::arguments::AbsentArguments;
use super::error::CliError;

/// Refuses every value that asks for such a device.
pub(super) fn check(arguments: &AbsentArguments) -> Result<(), CliError> {
    let one = |option, value: &Option<String>| value.iter().try_for_each(|text| none(option, text));
    let many = |option, values: &[String]| values.iter().try_for_each(|text| none(option, text));
    one("--audio", &arguments.audio)?;
    one("--vga", &arguments.vga)?;
    many("--audiodev", &arguments.audiodev)?;
    many("--net", &arguments.net)?;
    many("--nic", &arguments.nic)?;
    many("--parallel", &arguments.parallel)
}

fn none(option: &'static str, text: &str) -> Result<(), CliError> {
    let first = text.split(',').next().unwrap_or(text);
    let driver = text
        .split(',')
        .find_map(|piece| piece.strip_prefix("driver="));
    let kind = driver.unwrap_or(first);
    if matches!(kind, "none" | "null") {
        return Ok(());
    }
    let problem = format!("'{kind}' is not available");
    Err(CliError::new(option, text, problem, "write none"))
}
