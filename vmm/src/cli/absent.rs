//! Options that switch off what does not exist here.

use super::arguments::AbsentArguments;
use super::error::CliError;

/// Refuses every value that asks for such a device.
pub(super) fn check(arguments: &AbsentArguments) -> Result<(), CliError> {
    let all = |option, values: &[String]| values.iter().try_for_each(|text| none(option, text));
    all("--audio", &arguments.audio)?;
    all("--vga", &arguments.vga)?;
    all("--audiodev", &arguments.audiodev)?;
    all("--net", &arguments.net)?;
    all("--nic", &arguments.nic)?;
    all("--parallel", &arguments.parallel)
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
