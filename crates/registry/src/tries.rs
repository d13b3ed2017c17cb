//! Who to ask next: mirrors in their order, then the server, then after a wait all of them again.
use crate::{
    endpoint::Endpoint,
    error::{ErrorKind, RegistryError},
    net::Net,
};
use rand::Rng;
use std::{sync::Arc, time::Duration};

/// A server that asks for a longer wait than this is not waited for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Longest wait between rounds of our own choice.
const BACKOFF_MAX: Duration = Duration::from_secs(8);

/// The state of one operation's attempts. An operation loops: ask [`endpoint`](Self::endpoint), and report each failure
/// to [`failed`](Self::failed) until that gives up.
#[derive(Debug)]
pub(crate) struct Tries {
    candidates: Vec<Arc<Endpoint>>,
    /// The registry's own server among the candidates: its word on what exists is final.
    server: usize,
    next: usize,
    round: u32,
    /// The failures of this round, by candidate.
    failures: Vec<(usize, ErrorKind)>,
}

impl Tries {
    /// `candidates` in order of preference, the registry's own server last; those that failed lately are asked last.
    pub fn new(mut candidates: Vec<Arc<Endpoint>>) -> Self {
        let server = candidates.last().cloned();
        candidates.sort_by_cached_key(|endpoint| endpoint.is_shunned());
        let server = candidates.iter().position(|c| server.as_ref().is_some_and(|s| Arc::ptr_eq(s, c))).unwrap_or(0);
        Self { candidates, server, next: 0, round: 0, failures: Vec::new() }
    }

    /// The server to ask now; `None` if there is none that may be asked at all.
    pub fn endpoint(&self) -> Option<Arc<Endpoint>> {
        self.candidates.get(self.next).cloned()
    }

    /// Forgets earlier failures: the operation made progress.
    pub fn progressed(&mut self) {
        self.round = 0;
        self.failures.clear();
    }

    /// Goes on to the next server, or waits and goes back to the first. The error says that it's time to give up.
    pub async fn failed(&mut self, net: &Net, kind: ErrorKind, action: &str) -> Result<(), RegistryError> {
        tracing::debug!(action, error = %kind, round = self.round, "an attempt failed");
        if let Some(endpoint) = self.endpoint().filter(|_| kind.is_transient()) {
            endpoint.shun();
        }
        self.failures.push((self.next, kind));
        self.next += 1;
        if self.next < self.candidates.len() {
            net.count_retry();
            return Ok(());
        }
        let failures = std::mem::take(&mut self.failures);
        let Some(wait) = self.wait(net, &failures) else { return Err(self.give_up(failures, action)) };
        net.count_retry();
        tracing::debug!(action, wait_ms = wait.as_millis() as u64, "trying again after a wait");
        tokio::time::sleep(wait).await;
        self.round += 1;
        self.next = 0;
        Ok(())
    }

    /// How long to wait for another round; `None` if another round is useless.
    fn wait(&self, net: &Net, failures: &[(usize, ErrorKind)]) -> Option<Duration> {
        let missing = failures.iter().any(|(i, kind)| *i == self.server && matches!(kind, ErrorKind::NotFound { .. }));
        let worth = !missing && failures.iter().any(|(_, kind)| kind.is_transient());
        if !worth || self.round + 1 >= net.attempts {
            return None;
        }
        // Until the first of them may be asked again.
        let waits = failures.iter().filter(|(_, kind)| kind.is_transient());
        let asked = waits.map(|(_, kind)| kind.retry_after().unwrap_or_default()).min().unwrap_or_default();
        if asked > RETRY_AFTER_MAX {
            return None;
        }
        let ceiling = net.backoff.saturating_mul(1 << self.round.min(16)).min(BACKOFF_MAX);
        // Jitter, so that many readers don't come back all at once.
        let own = ceiling.mul_f64(rand::rng().random_range(0.5..1.0));
        Some(own.max(asked))
    }

    /// The server's own error, with those of the mirrors beside it.
    fn give_up(&self, mut failures: Vec<(usize, ErrorKind)>, action: &str) -> RegistryError {
        let main = failures.iter().position(|(i, _)| *i == self.server).unwrap_or(failures.len().saturating_sub(1));
        if main >= failures.len() {
            return ErrorKind::Unsupported("there is no server to ask".into()).during(action);
        }
        let (_, kind) = failures.remove(main);
        let label = |i: usize| self.candidates.get(i).map_or("", |c| c.label.as_str());
        let mirrors = failures.iter().map(|(i, kind)| format!("{}: {kind}", label(*i)));
        kind.during(action).with_mirrors(mirrors.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{credentials::Keychain, hosts, transport::Transports};

    fn net() -> Net {
        Net {
            transports: Transports::new(Duration::from_secs(1)),
            keychain: Keychain::new(None),
            stall: Duration::from_secs(1),
            attempts: 3,
            backoff: Duration::from_micros(1),
        }
    }

    fn endpoints(net: &Net, names: &[&str]) -> Vec<Arc<Endpoint>> {
        names.iter().map(|n| Arc::new(Endpoint::new(hosts::default_server(n, true).unwrap(), net))).collect()
    }

    fn broken() -> ErrorKind {
        ErrorKind::Broken { host: "h".into(), problem: "p".into() }
    }

    fn missing() -> ErrorKind {
        ErrorKind::NotFound { message: String::new() }
    }

    #[tokio::test]
    async fn every_server_is_asked_in_every_round_and_rounds_are_bounded() {
        let net = net();
        let mut tries = Tries::new(endpoints(&net, &["m.example", "s.example"]));
        let mut asked = Vec::new();
        let error = loop {
            asked.push(tries.endpoint().unwrap().label.clone());
            if let Err(error) = tries.failed(&net, broken(), "reading x").await {
                break error;
            }
        };
        assert_eq!(asked, ["m.example", "s.example"].repeat(3));
        assert_eq!(
            error.to_string(),
            "reading x: the connection to h broke: p (mirror: m.example: the connection to h broke: p)"
        );
    }

    #[tokio::test]
    async fn a_server_that_does_not_have_it_ends_the_search_but_a_mirror_does_not() {
        let net = net();
        let mut tries = Tries::new(endpoints(&net, &["m.example", "s.example"]));
        tries.failed(&net, missing(), "x").await.unwrap();
        assert!(tries.failed(&net, missing(), "x").await.unwrap_err().is_not_found());
        let mut tries = Tries::new(endpoints(&net, &["m.example", "s.example"]));
        tries.failed(&net, broken(), "x").await.unwrap();
        assert!(tries.failed(&net, missing(), "x").await.unwrap_err().is_not_found());
    }

    #[tokio::test]
    async fn servers_that_failed_lately_are_asked_last() {
        let net = net();
        let both = endpoints(&net, &["m.example", "s.example"]);
        let mut tries = Tries::new(both.clone());
        tries.failed(&net, broken(), "x").await.unwrap();
        assert_eq!(Tries::new(both).endpoint().unwrap().label, "s.example");
    }

    #[tokio::test]
    async fn the_server_s_word_is_final_also_when_a_mirror_is_asked_after_it() {
        let net = net();
        let both = endpoints(&net, &["m.example", "s.example"]);
        both[0].shun();
        let mut tries = Tries::new(both);
        tries.failed(&net, missing(), "x").await.unwrap();
        let error = tries.failed(&net, broken(), "x").await.unwrap_err();
        assert!(error.is_not_found() && error.to_string().contains("(mirror: m.example: "), "{error}");
    }

    #[tokio::test]
    async fn a_wait_that_is_too_long_is_refused_and_told() {
        let net = net();
        let mut tries = Tries::new(endpoints(&net, &["s.example"]));
        let limited = |secs| ErrorKind::Limited {
            host: "s.example".into(),
            status: 429,
            message: String::new(),
            retry_after: Some(Duration::from_secs(secs)),
        };
        let error = tries.failed(&net, limited(3600), "x").await.unwrap_err();
        assert!(error.to_string().contains("try again in 3600 s"), "{error}");
    }

    #[test]
    fn a_server_is_given_the_time_that_it_asks_for_and_rounds_wait_longer_each() {
        let net = Net { backoff: Duration::from_millis(100), attempts: 30, ..net() };
        let mut tries = Tries::new(endpoints(&net, &["s.example"]));
        let limited = ErrorKind::Limited {
            host: "s.example".into(),
            status: 503,
            message: String::new(),
            retry_after: Some(Duration::from_secs(7)),
        };
        assert_eq!(tries.wait(&net, &[(0, limited.clone())]), Some(Duration::from_secs(7)));
        let both = tries.wait(&net, &[(1, limited), (0, broken())]).unwrap();
        assert!(both < Duration::from_secs(1), "the other may be asked before: {both:?}");
        for (round, ceiling) in [(0, 100), (1, 200), (4, 1600), (28, 8000)] {
            tries.round = round;
            let wait = tries.wait(&net, &[(0, broken())]).unwrap();
            let ceiling = Duration::from_millis(ceiling);
            assert!(ceiling / 2 <= wait && wait <= ceiling, "{round}: {wait:?}");
        }
        tries.round = 29;
        assert_eq!(tries.wait(&net, &[(0, broken())]), None);
        assert_eq!(tries.wait(&net, &[(0, missing())]), None);
    }

    #[tokio::test]
    async fn without_a_server_there_is_nothing_to_try() {
        assert!(Tries::new(Vec::new()).endpoint().is_none());
    }
}
