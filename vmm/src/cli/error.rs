//! A command line that can't be used.

use std::fmt;

use crate::qmp::input::InputError;

/// One line for the person who typed the command: which option, what is wrong, what to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CliError {
    option: &'static str,
    value: Option<String>,
    problem: String,
    remedy: String,
}

impl CliError {
    /// `option` with `value` has `problem`; `remedy` says how to get it right.
    pub fn new(
        option: &'static str,
        value: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            option,
            value: Some(value.into()),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// As [`CliError::new`], where the option as such is the problem, not its value.
    pub fn bare(
        option: &'static str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            option,
            value: None,
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// What is wrong, without where it was typed.
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// `option` with `value` does not fit its type.
    pub(super) fn input(option: &'static str, value: &str, error: &InputError) -> Self {
        let remedy = match error.alternatives() {
            [] => "see --help".to_owned(),
            known => format!("known here: {}", known.join(", ")),
        };
        Self::new(option, value, error.to_string(), remedy)
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            option,
            value,
            problem,
            remedy,
        } = self;
        f.write_str(option)?;
        if let Some(value) = value {
            write!(f, " {value}")?;
        }
        write!(f, ": {problem} ({remedy})")
    }
}

impl std::error::Error for CliError {}
