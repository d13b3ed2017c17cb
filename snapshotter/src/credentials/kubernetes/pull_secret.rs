//! A secret of type `kubernetes.io/dockerconfigjson`, read as kubelet reads it (kubernetes, pkg/credentialprovider/config.go).
use super::super::pattern::Pattern;
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use clipper_registry::Credential;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Base64 with or without padding: both are in use.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a secret says: a credential for each pattern of images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullSecret {
    pub logins: Vec<(Pattern, Credential)>,
    /// Why some or all of it can't be used; never what it holds.
    pub problem: Option<String>,
}

/// The docker config in it; other keys of it are of no use here.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Login {
    username: Option<String>,
    password: Option<String>,
    /// Base64 of `user:password`; goes before these two.
    auth: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl PullSecret {
    /// Reads `data[".dockerconfigjson"]` of the secret, which the API has in Base64.
    pub fn read(data: Option<&str>) -> Self {
        let broken = |problem: &str| Self { logins: Vec::new(), problem: Some(problem.into()) };
        let Some(data) = data else { return broken("it has no .dockerconfigjson") };
        let Ok(json) = BASE64.decode(data) else { return broken("its .dockerconfigjson isn't Base64") };
        let Ok(config) = serde_json::from_slice::<Config>(&json) else {
            return broken("its .dockerconfigjson isn't a docker config");
        };
        let Some(auths) = config.auths else { return broken("its .dockerconfigjson has no \"auths\"") };
        let (mut secret, all, mut bad) = (Self::default(), auths.len(), 0);
        for (key, login) in auths {
            match (Pattern::parse(&key), serde_json::from_value::<Login>(login).ok().map(Login::credential)) {
                (Some(pattern), Some(Ok(Some(credential)))) => secret.logins.push((pattern, credential)),
                // An entry without anything in it is what `docker logout` leaves.
                (Some(_), Some(Ok(None))) => {}
                _ => bad += 1,
            }
        }
        secret.problem = (bad > 0).then(|| format!("{bad} of its {all} entries make no sense"));
        secret
    }

    /// Bytes of memory that it takes, about.
    pub fn size(&self) -> usize {
        let login = |(pattern, credential): &(Pattern, Credential)| {
            let secret = match credential {
                Credential::Password { user, password } => user.len() + password.len(),
                Credential::Identity(token) | Credential::Token(token) => token.len(),
            };
            pattern.to_string().len() + secret + 128
        };
        128 + self.logins.iter().map(login).sum::<usize>()
    }
}

impl Login {
    /// `Ok(None)` if there's nothing in it, `Err` if it makes no sense.
    fn credential(self) -> Result<Option<Credential>, ()> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(token) = given(self.identitytoken) {
            return Ok(Some(Credential::Identity(token)));
        }
        if let Some(auth) = given(self.auth) {
            let text = BASE64.decode(auth.trim()).map_err(drop)?;
            let text = String::from_utf8(text).map_err(drop)?;
            let (user, password) = text.split_once(':').ok_or(())?;
            // Docker pads with these.
            return Ok(Some(Credential::Password { user: user.into(), password: password.trim_matches('\0').into() }));
        }
        match (given(self.username), given(self.password)) {
            (None, None) => Ok(given(self.registrytoken).map(Credential::Token)),
            (user, password) => Ok(Some(Credential::Password {
                user: user.unwrap_or_default(),
                password: password.unwrap_or_default(),
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;

    fn read(json: &str) -> PullSecret {
        PullSecret::read(Some(&STANDARD.encode(json)))
    }

    fn password(user: &str, password: &str) -> Credential {
        Credential::Password { user: user.into(), password: password.into() }
    }

    #[test]
    fn logins_are_read_in_every_form() {
        // "bWU6czplYw" is me:s:ec.
        for (login, credential) in [
            (r#"{"auth": "bWU6czplYw=="}"#, password("me", "s:ec")),
            (r#"{"auth": "bWU6czplYw"}"#, password("me", "s:ec")),
            (r#"{"auth": " bWU6czplYw==\n"}"#, password("me", "s:ec")),
            (r#"{"auth": "bWU6czplYwAA"}"#, password("me", "s:ec")),
            (r#"{"username": "u", "password": "p", "email": "u@example"}"#, password("u", "p")),
            (r#"{"username": "u", "password": "p", "auth": "bWU6czplYw=="}"#, password("me", "s:ec")),
            (r#"{"username": "u", "password": "p", "auth": ""}"#, password("u", "p")),
            (r#"{"auth": "bWU6czplYw==", "identitytoken": "it"}"#, Credential::Identity("it".into())),
            (r#"{"registrytoken": "rt"}"#, Credential::Token("rt".into())),
        ] {
            let secret = read(&format!(r#"{{"auths": {{"https://r.example/v1/": {login}}}, "credsStore": "x"}}"#));
            let expected = (Pattern::parse("r.example").unwrap(), credential);
            assert_eq!(secret, PullSecret { logins: vec![expected], problem: None }, "{login}");
        }
        for nothing in
            [r#"{"auths": {}}"#, r#"{"auths": {"r.example": {}}}"#, r#"{"auths": {"r.example": {"auth": ""}}}"#]
        {
            assert_eq!(read(nothing), PullSecret::default(), "{nothing}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_told_without_being_shown() {
        let all = ["", "hush", "[]", "{}", r#"{"auths": null}"#, r#"{"auths": ["hush"]}"#].map(read);
        let more = [PullSecret::read(None), PullSecret::read(Some("hush!"))];
        for secret in all.iter().chain(&more) {
            let problem = secret.problem.as_ref().unwrap();
            assert!(secret.logins.is_empty() && problem.contains(".dockerconfigjson"), "{problem}");
            assert!(!format!("{secret:?}").contains("hush"), "{secret:?}");
        }
        // The rest of a secret is used nevertheless. "aHVzaA==" has no colon.
        let secret = read(
            r#"{"auths": {"a.example": {"auth": "aHVzaA=="}, "b.example": {"auth": "hush!"}, "c.example": "hush",
                "d.example": {"password": ["hush"]}, "/nohost": {"auth": "bWU6czplYw=="}, "r.example": {"auth": "bWU6czplYw=="}}}"#,
        );
        assert_eq!(secret.logins, [(Pattern::parse("r.example").unwrap(), password("me", "s:ec"))]);
        assert_eq!(secret.problem.unwrap(), "5 of its 6 entries make no sense");
    }
}
