//! Shell scripts on their way into the guest: by the kernel's command line.

use std::fmt::Write as _;

/// The kernel's command line that makes the guest run `script` and power off.
///
/// `more` are further words for the command line. The kernel is told to be quiet: each letter on the
/// console is two exits to the host, which take their time where the host is emulated.
pub fn command_line(script: &str, more: &str) -> String {
    let script = encode(script);
    format!("console=ttyS0 quiet panic=-1 {more} sluice.run=sh sluice.args={script}")
}

/// `script` as one word of `sluice.args` (resources/guest/README.md). What could mean something to
/// the kernel's command line, or separates words of the list, goes in as `%XX`.
fn encode(script: &str) -> String {
    let mut word = String::new();
    for byte in script.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.:;|<>$()".contains(&byte) {
            word.push(char::from(byte));
        } else {
            let _infallible = write!(word, "%{byte:02X}");
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use super::encode;

    #[test]
    fn what_separates_words_is_encoded() {
        assert_eq!(encode("echo a,b; ls"), "echo%20a%2Cb;%20ls");
        assert_eq!(encode("100% \"x\"\n"), "100%25%20%22x%22%0A");
    }
}
