//! Authentication to one server: passwords, and tokens that are fetched once per scope and renewed before they expire.
use crate::{
    challenge::Challenge,
    credentials::{Credential, CredentialSource, Subject},
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

/// How long a password is used before its source is asked again: it may have been taken back or changed.
const PASSWORD_LIFE: Duration = Duration::from_secs(300);

/// The authentication state of one server.
pub(crate) struct Auth {
    /// The registry as it is named in docker's config.
    host: String,
    /// Whether the server is spoken to in TLS.
    secure: bool,
    tls: TlsSettings,
    source: Arc<dyn CredentialSource>,
    /// How the server last asked to be authenticated to, so that later requests are sent right at once.
    challenge: Mutex<Option<Challenge>>,
    slots: Mutex<HashMap<Scope, Arc<tokio::sync::Mutex<Slot>>>>,
    /// Why a configured credential couldn't be used.
    problem: Mutex<Option<String>>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("host", &self.host).finish_non_exhaustive()
    }
}

/// What a scope is asked with.
#[derive(Default)]
struct Slot {
    token: Option<Token>,
    /// When it couldn't be had the last time, and why.
    failure: Option<(Instant, ErrorKind)>,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    expires: Instant,
    made: Instant,
    /// What it was got with.
    by: Option<Credential>,
}

impl Token {
    fn is_fresh(&self) -> bool {
        Instant::now() < self.expires
    }
}

impl Auth {
    /// `tls` is used with the token server as well, which often is the registry itself.
    pub fn new(host: String, secure: bool, tls: TlsSettings, source: Arc<dyn CredentialSource>) -> Self {
        Self {
            host,
            secure,
            tls,
            source,
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

    /// The header to send after the server has refused a request, begun at `since`, that was sent with `used`. `None` if
    /// there's nothing else to try.
    pub async fn renew(
        &self,
        net: &Net,
        scope: &Scope,
        refusal: &HeaderMap,
        used: Option<&HeaderValue>,
        since: Instant,
    ) -> Result<Option<HeaderValue>, ErrorKind> {
        let values = refusal.get_all(reqwest::header::WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
        let Some(challenge) = Challenge::choose(values) else { return Ok(None) };
        *lock(&self.challenge) = Some(challenge.clone());
        let header = self.token(net, scope, &challenge, Some((used, since))).await?;
        Ok(header.filter(|h| Some(h) != used))
    }

    /// The header to send after the server took the token, but doesn't let its owner do what was asked. `None` if there
    /// are no other credentials.
    pub async fn another(
        &self,
        net: &Net,
        scope: &Scope,
        used: &HeaderValue,
    ) -> Result<Option<HeaderValue>, ErrorKind> {
        let Some(challenge) = lock(&self.challenge).clone() else { return Ok(None) };
        let slot = self.slot(scope);
        let mut slot = slot.lock().await;
        let Some(by) = slot.token.as_ref().filter(|t| t.header == *used).and_then(|t| t.by.clone()) else {
            return Ok(None);
        };
        let Some(token) = self.fetch(net, scope, &challenge, Some(&by)).await? else { return Ok(None) };
        Ok(Some(slot.token.insert(token).header.clone()))
    }

    /// What may help a user whose request was refused.
    pub fn hint(&self) -> String {
        let login = format!("check the repository's name and the credentials (`docker login {}`)", self.host);
        match &*lock(&self.problem) {
            Some(problem) => format!("{problem}; {login}"),
            None => login,
        }
    }

    fn slot(&self, scope: &Scope) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut slots = lock(&self.slots);
        // Tokens of repositories that are no longer asked for are dropped by their age.
        if slots.len() >= 256 {
            let fresh = |slot: &Slot| slot.token.as_ref().is_some_and(Token::is_fresh);
            slots.retain(|_, slot| slot.try_lock().map_or(true, |slot| fresh(&slot)));
        }
        slots.entry(scope.clone()).or_default().clone()
    }

    /// Gets the token of `scope` from the cache or from its server; callers of one scope wait for one request. `refused`
    /// is what a request that began then was refused with.
    async fn token(
        &self,
        net: &Net,
        scope: &Scope,
        challenge: &Challenge,
        refused: Option<(Option<&HeaderValue>, Instant)>,
    ) -> Result<Option<HeaderValue>, ErrorKind> {
        let (used, since) = refused.map_or((None, None), |(used, since)| (used, Some(since)));
        let (slot, asked) = (self.slot(scope), Instant::now());
        let mut slot = slot.lock().await;
        if let Some(token) = slot.token.as_ref().filter(|t| t.is_fresh() && Some(&t.header) != used) {
            return Ok(Some(token.header.clone()));
        }
        // A token server that is silent shouldn't be waited for by one reader after the other.
        if let Some((_, kind)) = slot.failure.as_ref().filter(|(at, _)| *at >= asked) {
            return Err(kind.clone());
        }
        // A token that was made for this very request and refused nevertheless: it's its owner who is.
        let made_for_this = |token: &&Token| Some(&token.header) == used && since.is_some_and(|s| token.made >= s);
        let unfit = slot.token.as_ref().filter(made_for_this).map(|token| token.by.clone());
        let fetched = match unfit {
            // Nobody is refused, and there's nobody else.
            Some(None) => Ok(None),
            Some(Some(by)) => self.fetch(net, scope, challenge, Some(&by)).await,
            None => self.fetch(net, scope, challenge, None).await,
        };
        *slot = match &fetched {
            Ok(token) => Slot { token: token.clone(), failure: None },
            Err(kind) => Slot { token: None, failure: Some((Instant::now(), kind.clone())) },
        };
        Ok(fetched?.map(|token| token.header))
    }

    /// A token got with the first of the credentials that does, of those after `unfit`.
    async fn fetch(
        &self,
        net: &Net,
        scope: &Scope,
        challenge: &Challenge,
        unfit: Option<&Credential>,
    ) -> Result<Option<Token>, ErrorKind> {
        let found = self.source.find(&Subject::new(&self.host, &scope.repository)).await;
        if let Some(problem) = &found.problem {
            // Public images need no credentials, so a broken helper alone is no reason to fail.
            tracing::warn!(host = self.host, %problem, "configured credentials can't be used");
        }
        *lock(&self.problem) = found.problem;
        let mut credentials: Vec<_> = found.credentials.into_iter().map(Some).collect();
        if let Some(unfit) = unfit {
            let after = credentials.iter().position(|c| c.as_ref() == Some(unfit)).map_or(0, |at| at + 1);
            credentials.drain(..after);
        } else if credentials.is_empty() {
            credentials.push(None);
        }
        let mut denied = None;
        for credential in credentials {
            match self.fetch_by(net, scope, challenge, credential).await {
                Ok(None) => {}
                Err(kind @ ErrorKind::Denied { .. }) => denied = denied.or(Some(kind)),
                other => return other,
            }
        }
        denied.map_or(Ok(None), Err)
    }

    async fn fetch_by(
        &self,
        net: &Net,
        scope: &Scope,
        challenge: &Challenge,
        by: Option<Credential>,
    ) -> Result<Option<Token>, ErrorKind> {
        let made = Instant::now();
        let lasting = |header| Ok(Some(Token { header, expires: made + PASSWORD_LIFE, made, by: by.clone() }));
        match (challenge, &by) {
            (_, Some(Credential::Token(token))) => lasting(bearer(token)?),
            (Challenge::Basic, Some(Credential::Password { user, password })) => lasting(basic(user, password)?),
            (Challenge::Basic, Some(Credential::Identity(_)) | None) => Ok(None),
            (Challenge::Bearer { realm, service, scope: asked }, _) => {
                let scopes = scopes(scope, asked.as_deref());
                let (header, expires) = self.fetch_bearer(net, realm, service.as_deref(), &scopes, by.as_ref()).await?;
                Ok(Some(Token { header, expires, made, by }))
            }
        }
    }

    async fn fetch_bearer(
        &self,
        net: &Net,
        realm: &str,
        service: Option<&str>,
        scopes: &[String],
        credential: Option<&Credential>,
    ) -> Result<(HeaderValue, Instant), ErrorKind> {
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
                    .append_pair("refresh_token", token);
                (Method::POST, form.query().unwrap_or_default().to_owned())
            }
            other => {
                if let Some(Credential::Password { user, password }) = other {
                    headers.insert(AUTHORIZATION, basic(user, password)?);
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
        let header = bearer(&token).ok().filter(|_| !token.is_empty());
        let header = header.ok_or(ErrorKind::Protocol { host, problem: "its answer holds no usable token".into() })?;
        let life = answer.expires_in.and_then(|s| Duration::try_from_secs_f64(s.min(86_400.0)).ok());
        let life = life.filter(|l| !l.is_zero()).unwrap_or(DEFAULT_LIFE);
        // Renewed a little early, so that a token doesn't expire on its way.
        let margin = (life / 10).min(Duration::from_secs(10));
        Ok((header, asked + (life - margin)))
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
    secret(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

fn bearer(token: &str) -> Result<HeaderValue, ErrorKind> {
    secret(&format!("Bearer {token}"))
}

fn secret(text: &str) -> Result<HeaderValue, ErrorKind> {
    let mut header = HeaderValue::from_str(text)
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
