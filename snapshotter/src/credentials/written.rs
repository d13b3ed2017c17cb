//! How a credential is written down, before it is sealed.
use clipper_registry::Credential;
use serde::{Deserialize, Serialize};

/// A credential as JSON. `Debug` would show it, so there is none.
#[derive(Serialize, Deserialize)]
pub struct Written {
    kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    user: String,
    secret: String,
}

impl From<&Credential> for Written {
    fn from(credential: &Credential) -> Self {
        let (kind, user, secret) = match credential {
            Credential::Password { user, password } => ("password", user.as_str(), password),
            Credential::Identity(token) => ("identity", "", token),
            Credential::Token(token) => ("token", "", token),
        };
        Self { kind: kind.into(), user: user.into(), secret: secret.clone() }
    }
}

impl Written {
    /// The credential; `None` if it is of a kind that isn't known (yet).
    pub fn credential(self) -> Option<Credential> {
        match self.kind.as_str() {
            "password" => Some(Credential::Password { user: self.user, password: self.secret }),
            "identity" => Some(Credential::Identity(self.secret)),
            "token" => Some(Credential::Token(self.secret)),
            _ => None,
        }
    }
}
