//! QEMU writes long options with one dash; this module doubles it.

use std::ffi::OsString;

use clap::{ArgAction, Command};

/// Returns `arguments` (without the program's name) with every single-dash long option written with
/// two dashes: those of `command`, and those that it does not have, which would be taken for a
/// row of one-letter options otherwise, and refused by the first of these. Values of options are
/// left as they are, whatever they look like.
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
        let is_long = match option {
            Some(known) => known.get_long() == Some(name),
            None => !is_short_with_value(command, name),
        };
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

/// Whether this is a one-letter option with its value attached, as in `-m512`. `-hda` is no `-h`, which would end with a
/// help text and a good status, and `-mem-path` is no `-m`.
fn is_short_with_value(command: &Command, name: &str) -> bool {
    let mut characters = name.chars();
    let first = characters.next();
    let takes_value = |known: &&clap::Arg| {
        known.get_short() == first
            && matches!(known.get_action(), ArgAction::Set | ArgAction::Append)
    };
    first.is_some()
        && characters.next().is_some_and(|next| next.is_ascii_digit())
        && command.get_arguments().any(|known| takes_value(&known))
}

fn is_just(name: &str, short: char) -> bool {
    let mut characters = name.chars();
    characters.next() == Some(short) && characters.next().is_none()
}
