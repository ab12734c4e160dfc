//! QEMU writes long options with one dash; this module doubles it.

use std::ffi::OsString;

use clap::{ArgAction, Command};

/// Returns `arguments` (without the program's name) with every single-dash long option of
/// `command` written with two dashes. Values of options are left as they are, whatever they look
/// like.
pub fn double_dashes(
    command: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Vec<OsString> {
    let mut normal = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let Some((name, inline_value)) = option_name(&argument) else {
            normal.push(argument);
            continue;
        };
        let option = command.get_arguments().find(|known| {
            known.get_long() == Some(name)
                || known.get_short().is_some_and(|short| is_just(name, short))
        });
        let takes_value = option
            .is_some_and(|known| matches!(known.get_action(), ArgAction::Set | ArgAction::Append));
        let single_dash = !argument.as_encoded_bytes().starts_with(b"--");
        let is_long = option.is_some_and(|known| known.get_long() == Some(name));
        let value_follows = takes_value && !inline_value;
        if single_dash && is_long {
            let mut doubled = OsString::from("-");
            doubled.push(&argument);
            normal.push(doubled);
        } else {
            normal.push(argument);
        }
        if value_follows {
            normal.extend(arguments.next());
        }
    }
    normal
}

/// The name of an option argument, and whether its value is attached to it with `=`.
fn option_name(argument: &OsString) -> Option<(&str, bool)> {
    let text = argument.to_str()?;
    let name = text.strip_prefix("--").or_else(|| text.strip_prefix('-'))?;
    match name.split_once('=') {
        Some((name, _)) => Some((name, true)),
        None => Some((name, false)),
    }
}

fn is_just(name: &str, short: char) -> bool {
    let mut characters = name.chars();
    characters.next() == Some(short) && characters.next().is_none()
}
