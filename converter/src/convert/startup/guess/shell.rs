//! What a shell script runs.
use super::{Guess, NAMES_MAX};

/// Words after which a command begins (POSIX.1, Shell Command Language, 2.4).
const BEFORE_COMMANDS: [&str; 11] = ["then", "do", "else", "elif", "if", "while", "until", "exec", "!", "{", "sudo"];

impl Guess<'_> {
    /// Takes the programs that the script runs, and the files that it names.
    pub(super) fn shell(&mut self, text: &[u8]) {
        for word in words(&String::from_utf8_lossy(text)).into_iter().take(NAMES_MAX) {
            match word {
                Word::Command(name) => drop(self.program(name)),
                Word::Path(path) => drop(self.take(path)),
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Word<'t> {
    /// Where a command is expected.
    Command(&'t str),
    /// An absolute path, anywhere.
    Path(&'t str),
}

/// The words of a script that may be programs or files. Quotes and here-documents aren't looked through: what isn't in
/// the image is no harm.
fn words(text: &str) -> Vec<Word<'_>> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.trim_start();
        if line.starts_with('#') {
            continue;
        }
        // `|`, `&`, `;`, `(` and "`" end one command; what comes after is another.
        for command in line.split(['|', '&', ';', '(', ')', '`']) {
            let mut expected = true;
            for word in command.split([' ', '\t', '"', '\'', '=', '<', '>']).filter(|word| !word.is_empty()) {
                if word.starts_with('/') {
                    found.push(if expected { Word::Command(word) } else { Word::Path(word) });
                } else if expected && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-+.".contains(&byte)) {
                    found.push(Word::Command(word));
                }
                expected = BEFORE_COMMANDS.contains(&word);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_where_the_shell_expects_them_and_paths_anywhere() {
        let script = "#!/bin/sh\n# not this\nif [ -z \"$1\" ]; then exec initdb -U postgres; fi\n\tx=$(id -u) && gosu a b\n\
                      cat < /etc/app.conf | /bin/sort\n";
        let commands = ["initdb", "id", "gosu", "cat", "/bin/sort"];
        let words = words(script);
        for name in commands {
            assert!(words.contains(&Word::Command(name)), "{name}");
        }
        for name in ["postgres", "-U", "b", "not"] {
            assert!(!words.contains(&Word::Command(name)), "{name}");
        }
        assert!(words.contains(&Word::Path("/etc/app.conf")));
    }
}
