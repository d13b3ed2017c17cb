//! `WWW-Authenticate`: what a registry wants to see before it answers (RFC 9110, section 11.6.1).
use std::collections::HashMap;

/// How a registry wants to be authenticated to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User and password with every request (RFC 7617).
    Basic,
    /// A token from another server (distribution's token authentication).
    Bearer {
        /// URL of the token server.
        realm: String,
        service: Option<String>,
        /// Space-separated scopes that the refused request needs.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The best of the challenges in these header values: a token before a password.
    pub fn choose<'a>(values: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut found = None;
        for (scheme, mut parameters) in values.flat_map(parse) {
            if scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = parameters.remove("realm") {
                    let (service, scope) = (parameters.remove("service"), parameters.remove("scope"));
                    return Some(Self::Bearer { realm, service, scope });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                found = Some(Self::Basic);
            }
        }
        found
    }
}

/// Cuts a header value into challenges: `Scheme name=value, name="quoted value", Scheme …`.
fn parse(value: &str) -> Vec<(String, HashMap<String, String>)> {
    let mut challenges: Vec<(String, HashMap<String, String>)> = Vec::new();
    let mut rest = value;
    loop {
        rest = rest.trim_start_matches(|c: char| c == ',' || c.is_ascii_whitespace());
        let word_end = rest.find(|c: char| c == '=' || c == ',' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        if word_end == 0 {
            // Either the end, or a stray `=`: whatever follows can't be told apart any more.
            return challenges;
        }
        let (word, after) = rest.split_at(word_end);
        let after = after.trim_start();
        match (after.strip_prefix('='), challenges.last_mut()) {
            (Some(after), Some((_, parameters))) => {
                let (text, left) = parameter_value(after.trim_start());
                parameters.insert(word.to_ascii_lowercase(), text);
                rest = left;
            }
            (Some(_), None) => return challenges,
            (None, _) => {
                challenges.push((word.to_owned(), HashMap::new()));
                rest = after;
            }
        }
    }
}

/// A token, or a quoted string with backslash escapes.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c == ',' || c.is_ascii_whitespace()).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let (mut value, mut characters) = (String::new(), quoted.char_indices());
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(values: &[&str]) -> Option<Challenge> {
        Challenge::choose(values.iter().copied())
    }

    #[test]
    fn challenges_are_parsed_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.into(),
                service: service.map(Into::into),
                scope: scope.map(Into::into),
            })
        };
        let hub = r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push""#;
        assert_eq!(
            choose(&[hub]),
            bearer("https://auth.example/token", Some("r.example"), Some("repository:a/b:pull,push"))
        );
        assert_eq!(choose(&["bearer  Realm = http://a/t , error=\"x\""]), bearer("http://a/t", None, None));
        assert_eq!(choose(&["Basic realm=\"r\", Bearer realm=\"http://a\""]), bearer("http://a", None, None));
        assert_eq!(choose(&["Basic realm=r", "Bearer realm=\"a\\\"b, c\""]), bearer("a\"b, c", None, None));
        assert_eq!(choose(&["BASIC"]), Some(Challenge::Basic));
    }

    #[test]
    fn garbage_gives_no_challenge_and_no_panic() {
        for bad in
            ["", "=", ",,,", "Bearer", "Bearer realm", "Negotiate abc=", "Bearer service=\"x", "\"", "é=ü", "a=\\"]
        {
            assert_eq!(choose(&[bad]), None, "{bad}");
        }
    }
}
