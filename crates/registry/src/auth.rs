//! Authentication to one server: passwords, and tokens that are fetched once per scope and renewed before they expire.
use crate::{
    challenge::Challenge,
    credentials::{Credential, Keychain},
    error::{ErrorKind, printable, server_message},
    hosts::authority,
    net::Net,
    transport::{TlsSettings, is_loopback},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{
    Method, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// What a request needs to be allowed: distribution's token scopes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    pub repository: String,
    pub push: bool,
    /// A repository that a blob is mounted from.
    pub from: Option<String>,
}

impl Scope {
    fn own(&self) -> String {
        format!("repository:{}:{}", self.repository, if self.push { "pull,push" } else { "pull" })
    }
}

/// Bytes of an answer of a token server that are read.
const TOKEN_ANSWER_MAX: u64 = 1 << 20;
/// A token's life where its server doesn't tell (distribution, docs/spec/auth/token.md).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);

/// The authentication state of one server.
pub(crate) struct Auth {
    /// The registry as it is named in docker's config.
    host: String,
    /// Whether the server is spoken to in TLS.
    secure: bool,
    tls: TlsSettings,
    keychain: Keychain,
    /// How the server last asked to be authenticated to, so that later requests are sent right at once.
    challenge: Mutex<Option<Challenge>>,
    slots: Mutex<HashMap<Scope, Arc<tokio::sync::Mutex<Option<Token>>>>>,
    /// Why a configured credential couldn't be used.
    problem: Mutex<Option<String>>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("host", &self.host).finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    /// `None` for a password, which doesn't expire.
    expires: Option<Instant>,
}

impl Token {
    fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|at| Instant::now() < at)
    }
}

impl Auth {
    /// `tls` is used with the token server as well, which often is the registry itself.
    pub fn new(host: String, secure: bool, tls: TlsSettings, keychain: Keychain) -> Self {
        Self {
            host,
            secure,
            tls,
            keychain,
            challenge: Mutex::default(),
            slots: Mutex::default(),
            problem: Mutex::default(),
        }
    }

    /// The header to send with a request, if the server is known to want one.
    pub async fn header(&self, net: &Net, scope: &Scope) -> Result<Option<HeaderValue>, ErrorKind> {
        let known = lock(&self.challenge).clone();
        match known {
            None => Ok(None),
            Some(challenge) => self.token(net, scope, &challenge, None).await,
        }
    }

    /// The header to send after the server has refused a request that was sent with `used`. `None` if there's nothing
    /// else to try.
    pub async fn renew(
        &self,
        net: &Net,
        scope: &Scope,
        refusal: &HeaderMap,
        used: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, ErrorKind> {
        let values = refusal.get_all(reqwest::header::WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
        let Some(challenge) = Challenge::choose(values) else { return Ok(None) };
        *lock(&self.challenge) = Some(challenge.clone());
        let header = self.token(net, scope, &challenge, used).await?;
        Ok(header.filter(|h| Some(h) != used))
    }

    /// What may help a user whose request was refused.
    pub fn hint(&self) -> String {
        let login = format!("check the repository's name and the credentials (`docker login {}`)", self.host);
        match &*lock(&self.problem) {
            Some(problem) => format!("{problem}; {login}"),
            None => login,
        }
    }

    /// Gets the token of `scope` from the cache or from its server; callers of one scope wait for one request.
    async fn token(
        &self,
        net: &Net,
        scope: &Scope,
        challenge: &Challenge,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, ErrorKind> {
        let slot = {
            let mut slots = lock(&self.slots);
            // Tokens of repositories that are no longer asked for are dropped by their age.
            if slots.len() >= 256 {
                slots.retain(|_, slot| slot.try_lock().map_or(true, |s| s.as_ref().is_some_and(Token::is_fresh)));
            }
            slots.entry(scope.clone()).or_default().clone()
        };
        let mut slot = slot.lock().await;
        if let Some(token) = slot.as_ref().filter(|t| t.is_fresh() && Some(&t.header) != refused) {
            return Ok(Some(token.header.clone()));
        }
        *slot = self.fetch(net, scope, challenge).await?;
        Ok(slot.as_ref().map(|t| t.header.clone()))
    }

    async fn fetch(&self, net: &Net, scope: &Scope, challenge: &Challenge) -> Result<Option<Token>, ErrorKind> {
        let found = self.keychain.lookup(&self.host).await;
        let credential = found.unwrap_or_else(|problem| {
            // Public images need no credentials, so a broken helper alone is no reason to fail.
            tracing::warn!(host = self.host, %problem, "the configured credentials can't be used");
            *lock(&self.problem) = Some(problem);
            None
        });
        match challenge {
            Challenge::Basic => match credential {
                Some(Credential::Password { user, password }) => {
                    Ok(Some(Token { header: basic(&user, &password)?, expires: None }))
                }
                Some(Credential::Identity(_)) | None => Ok(None),
            },
            Challenge::Bearer { realm, service, scope: asked } => {
                let scopes = scopes(scope, asked.as_deref());
                self.fetch_bearer(net, realm, service.as_deref(), &scopes, credential).await.map(Some)
            }
        }
    }

    async fn fetch_bearer(
        &self,
        net: &Net,
        realm: &str,
        service: Option<&str>,
        scopes: &[String],
        credential: Option<Credential>,
    ) -> Result<Token, ErrorKind> {
        let wrong = |problem: String| ErrorKind::Protocol { host: self.host.clone(), problem };
        let mut url = Url::parse(realm).map_err(|_| wrong(format!("{:?} is no token server", printable(realm))))?;
        let host = authority(&url);
        if self.secure && credential.is_some() && url.scheme() != "https" && !url.host_str().is_some_and(is_loopback) {
            return Err(wrong(format!("it sends credentials to {host} over plain HTTP, which is refused")));
        }
        let mut headers = HeaderMap::new();
        let (method, body) = match credential {
            Some(Credential::Identity(token)) => {
                // OAuth2 refresh (distribution, docs/spec/auth/oauth.md).
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
                let mut form = Url::parse("form:").map_err(|e| wrong(e.to_string()))?;
                form.query_pairs_mut()
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("client_id", "clipper")
                    .append_pair("service", service.unwrap_or_default())
                    .append_pair("scope", &scopes.join(" "))
                    .append_pair("refresh_token", &token);
                (Method::POST, form.query().unwrap_or_default().to_owned())
            }
            other => {
                if let Some(Credential::Password { user, password }) = other {
                    headers.insert(AUTHORIZATION, basic(&user, &password)?);
                }
                let mut query = url.query_pairs_mut();
                if let Some(service) = service {
                    query.append_pair("service", service);
                }
                for scope in scopes {
                    query.append_pair("scope", scope);
                }
                drop(query);
                (Method::GET, String::new())
            }
        };
        let response = net.exchange(&self.tls, method, url, headers, body.into()).await?;
        let status = response.status().as_u16();
        let retry_after = crate::net::retry_after(response.headers());
        let asked = Instant::now();
        let bytes = net.read_body(&host, response, TOKEN_ANSWER_MAX).await?;
        if !(200..300).contains(&status) {
            let message = server_message(&bytes);
            return Err(match status {
                400 | 401 | 403 => ErrorKind::Denied { host, status, message, hint: self.hint() },
                429 => ErrorKind::Limited { host, status, message, retry_after },
                _ => ErrorKind::Status { host, status, message },
            });
        }
        #[derive(serde::Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<f64>,
        }
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|_| ErrorKind::Protocol { host: host.clone(), problem: "its token isn't JSON".into() })?;
        let token = answer.token.filter(|t| !t.is_empty()).or(answer.access_token).unwrap_or_default();
        let header = HeaderValue::from_str(&format!("Bearer {token}")).ok().filter(|_| !token.is_empty());
        let mut header =
            header.ok_or(ErrorKind::Protocol { host, problem: "its answer holds no usable token".into() })?;
        header.set_sensitive(true);
        let life = answer.expires_in.and_then(|s| Duration::try_from_secs_f64(s.min(86_400.0)).ok());
        let life = life.filter(|l| !l.is_zero()).unwrap_or(DEFAULT_LIFE);
        // Renewed a little early, so that a token doesn't expire on its way.
        let margin = (life / 10).min(Duration::from_secs(10));
        Ok(Token { header, expires: Some(asked + (life - margin)) })
    }
}

/// The scopes to ask for: those that the server named, else our own; with the source repository of a mount.
fn scopes(scope: &Scope, asked: Option<&str>) -> Vec<String> {
    let own = scope.own();
    // A challenge is remembered for the server as a whole: it may be another repository's.
    let named = asked.unwrap_or_default().split_ascii_whitespace();
    let fits = |s: &&str| {
        let mut parts = s.rsplitn(2, ':');
        let (actions, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        name.ends_with(&scope.repository) && (!scope.push || actions.split(',').any(|a| a == "push" || a == "*"))
    };
    let mut scopes: Vec<String> = named.filter(fits).map(Into::into).collect();
    if scopes.is_empty() {
        scopes.push(own);
    }
    scopes.extend(scope.from.as_ref().map(|from| format!("repository:{from}:pull")));
    scopes.dedup();
    scopes
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, ErrorKind> {
    let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    let mut header = HeaderValue::from_str(&text)
        .map_err(|_| ErrorKind::Request("the credentials hold characters that HTTP doesn't allow".into()))?;
    header.set_sensitive(true);
    Ok(header)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(push: bool, from: Option<&str>) -> Scope {
        Scope { repository: "a/b".into(), push, from: from.map(Into::into) }
    }

    #[test]
    fn the_server_s_scope_wins_if_it_is_about_this_repository() {
        assert_eq!(scopes(&scope(false, None), None), ["repository:a/b:pull"]);
        assert_eq!(scopes(&scope(false, None), Some("repository:other:pull")), ["repository:a/b:pull"]);
        assert_eq!(scopes(&scope(false, None), Some("repository:proxy/a/b:pull x")), ["repository:proxy/a/b:pull"]);
        assert_eq!(scopes(&scope(true, None), Some("repository:a/b:pull")), ["repository:a/b:pull,push"]);
        assert_eq!(scopes(&scope(true, None), Some("repository:a/b:*")), ["repository:a/b:*"]);
        assert_eq!(
            scopes(&scope(true, Some("c")), Some("repository:a/b:pull,push")),
            ["repository:a/b:pull,push", "repository:c:pull"]
        );
    }
}
