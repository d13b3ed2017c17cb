//! Who to ask next: mirrors in their order, then the server, then after a wait all of them again. The next one is asked as
//! soon as one has failed, or has been silent for longer than is usual for it.
use crate::{
    endpoint::Endpoint,
    error::{ErrorKind, RegistryError},
    health::Kind,
    net::Net,
};
use clipper_format::digest::Digest;
use futures::{StreamExt, stream::FuturesUnordered};
use rand::Rng;
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

/// A server that asks for a longer wait than this is not waited for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Longest wait between rounds of our own choice.
const BACKOFF_MAX: Duration = Duration::from_secs(8);

/// The state of one operation's attempts. An operation that changes something loops: ask [`endpoint`](Self::endpoint), and
/// report each failure to [`failed`](Self::failed) until that gives up. One that reads lets [`ask`](Self::ask) do that.
#[derive(Debug)]
pub(crate) struct Tries {
    candidates: Vec<Arc<Endpoint>>,
    /// The registry's own server: its word on what exists is final.
    server: Option<Arc<Endpoint>>,
    /// The blob that is read.
    blob: Option<Digest>,
    /// The candidate that answered last, for as long as its answer is read.
    current: Option<usize>,
    /// The candidate to ask next.
    next: usize,
    round: u32,
    /// The failures of this round, by candidate.
    failures: Vec<(usize, ErrorKind)>,
}

impl Tries {
    /// `candidates` in order of preference, the registry's own server last. Those that failed lately, or aren't trusted
    /// with `blob`, are asked last.
    pub fn new(candidates: Vec<Arc<Endpoint>>, blob: Option<Digest>) -> Self {
        let server = candidates.last().cloned();
        let mut tries = Self { candidates, server, blob, current: None, next: 0, round: 0, failures: Vec::new() };
        tries.arrange();
        tries
    }

    /// Whether there is no server that may be asked.
    pub fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    /// The server to ask now; `None` if there is none that may be asked at all.
    pub fn endpoint(&self) -> Option<Arc<Endpoint>> {
        self.candidates.get(self.next).cloned()
    }

    /// A server that can be asked for the rest of what the current one has begun to send; and how long that one may be
    /// silent before.
    pub fn alternative(&self) -> Option<(Arc<Endpoint>, Duration)> {
        let patience = self.current().map(|current| current.health.patience()).unwrap_or_default();
        Some((self.endpoint()?, patience))
    }

    /// Goes on with the alternative, which has answered where the current server was silent.
    pub fn switch(&mut self, net: &Net) {
        if let Some(silent) = self.current() {
            self.gave_way(net, &silent);
        }
        self.current = Some(self.next);
        self.next += 1;
    }

    /// The alternative failed: the next one is.
    pub fn passed(&mut self, net: &Net, kind: ErrorKind) {
        self.next += 1;
        self.note(net, self.next - 1, kind);
    }

    /// Forgets earlier failures: the operation made progress. All other servers are alternatives again.
    pub fn progressed(&mut self) {
        if self.round == 0 && self.failures.is_empty() && self.next < 2 {
            return;
        }
        self.round = 0;
        self.failures.clear();
        self.next = 0;
        if let Some(current) = self.current() {
            self.candidates.retain(|candidate| !Arc::ptr_eq(candidate, &current));
            self.arrange();
            self.candidates.insert(0, current);
            (self.current, self.next) = (Some(0), 1);
        }
    }

    /// Goes on to the next server, or waits and goes back to the first. The error says that it's time to give up.
    pub async fn failed(&mut self, net: &Net, kind: ErrorKind, action: &str) -> Result<(), RegistryError> {
        tracing::debug!(action, error = %kind, round = self.round, "an attempt failed");
        let failed = self.current.take().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.note(net, failed, kind);
        if self.next < self.candidates.len() {
            net.count_retry();
            return Ok(());
        }
        self.another_round(net, action).await
    }

    /// Asks one server after the other until one answers; errors say that it's time to give up.
    pub async fn ask<T, F>(
        &mut self,
        net: &Net,
        action: &str,
        ask: impl Fn(Arc<Endpoint>) -> F + Sync,
    ) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, ErrorKind>> + Send,
        T: Send,
    {
        loop {
            if let Some(answer) = self.race(net, action, &ask).await {
                return Ok(answer);
            }
            self.another_round(net, action).await?;
        }
    }

    /// Asks the servers that are left of this round; `None` if all of them failed. The first answer counts.
    async fn race<T, F>(&mut self, net: &Net, action: &str, ask: &(impl Fn(Arc<Endpoint>) -> F + Sync)) -> Option<T>
    where
        F: Future<Output = Result<T, ErrorKind>> + Send,
        T: Send,
    {
        let begin = |number: usize, endpoint: Arc<Endpoint>| {
            let (asked, answer) = (Instant::now(), ask(endpoint));
            async move { (number, answer.await, asked.elapsed()) }
        };
        let mut asked = FuturesUnordered::new();
        let mut silent = Vec::new();
        let mut patience = Duration::ZERO;
        loop {
            let next = self.endpoint();
            if let Some(endpoint) = next.clone().filter(|_| asked.is_empty()) {
                patience = endpoint.health.patience();
                asked.push(begin(self.next, endpoint));
                silent.push(self.next);
                self.next += 1;
                continue;
            }
            let hurry = async {
                match next {
                    Some(next) => {
                        tokio::time::sleep(patience).await;
                        next
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                answer = asked.next() => {
                    let (number, answer, took) = answer?;
                    silent.retain(|other| *other != number);
                    match answer {
                        Ok(answer) => {
                            let answered = self.candidates.get(number)?;
                            answered.health.answered(took);
                            // Those that were asked before it, and have lost against it.
                            for late in silent.into_iter().filter(|late| *late < number) {
                                if let Some(endpoint) = self.candidates.get(late) {
                                    self.gave_way(net, endpoint);
                                }
                            }
                            self.current = Some(number);
                            return Some(answer);
                        }
                        Err(kind) => {
                            tracing::debug!(action, error = %kind, round = self.round, "an attempt failed");
                            let final_word = self.is_server(number) && matches!(kind, ErrorKind::NotFound { .. });
                            self.note(net, number, kind);
                            if self.next < self.candidates.len() {
                                net.count_retry();
                            } else if final_word {
                                return None;
                            }
                            // The next one is asked at once.
                            patience = Duration::ZERO;
                        }
                    }
                }
                endpoint = hurry => {
                    patience = endpoint.health.patience();
                    asked.push(begin(self.next, endpoint));
                    silent.push(self.next);
                    self.next += 1;
                }
            }
        }
    }

    /// Waits and begins anew with the first server, unless that is of no use.
    async fn another_round(&mut self, net: &Net, action: &str) -> Result<(), RegistryError> {
        let failures = std::mem::take(&mut self.failures);
        let Some(wait) = self.wait(net, &failures) else { return Err(self.give_up(failures, action)) };
        net.count_retry();
        tracing::debug!(action, wait_ms = wait.as_millis() as u64, "trying again after a wait");
        tokio::time::sleep(wait).await;
        self.round += 1;
        self.next = 0;
        self.current = None;
        self.arrange();
        Ok(())
    }

    /// Puts those first that are to be asked first. The sort is stable: otherwise they stay in their order.
    fn arrange(&mut self) {
        let (now, blob) = (Instant::now(), self.blob);
        let kind = if blob.is_some() { Kind::Blob } else { Kind::Other };
        self.candidates.sort_by_cached_key(|endpoint| {
            let doubt = blob.map_or(0, |blob| endpoint.doubts.about(&blob, now));
            let paused = endpoint.health.paused(kind, now).is_some();
            (doubt, paused || !endpoint.health.is_well(now))
        });
    }

    fn current(&self) -> Option<Arc<Endpoint>> {
        self.candidates.get(self.current?).cloned()
    }

    /// Takes down that a candidate failed, for this operation and for those to come.
    fn note(&mut self, net: &Net, number: usize, kind: ErrorKind) {
        if let Some(endpoint) = self.candidates.get(number).filter(|_| !kind.is_own()) {
            let counters = net.transports.counters.host(&endpoint.label);
            let now = Instant::now();
            match (&kind, self.blob) {
                (ErrorKind::NotFound { .. }, Some(blob)) => endpoint.doubts.missing(blob, now),
                (ErrorKind::NotFound { .. }, None) => {}
                _ => {
                    counters.failures.fetch_add(1, Relaxed);
                    // One that wants to be left alone for a while says so itself.
                    if kind.retry_after().is_none() {
                        endpoint.health.failed(now);
                    }
                }
            }
            if self.next < self.candidates.len() {
                counters.failovers.fetch_add(1, Relaxed);
            }
        }
        self.failures.push((number, kind));
    }

    /// A server was silent until another one had answered.
    fn gave_way(&self, net: &Net, silent: &Endpoint) {
        let counters = net.transports.counters.host(&silent.label);
        counters.failovers.fetch_add(1, Relaxed);
        silent.health.failed(Instant::now());
        // It may be the connection alone that is dead.
        net.transports.renew(&silent.label);
        tracing::debug!(host = silent.label, "a server is silent: another one has answered");
    }

    /// How long to wait for another round; `None` if another round is useless.
    fn wait(&self, net: &Net, failures: &[(usize, ErrorKind)]) -> Option<Duration> {
        let missing = failures.iter().any(|(i, kind)| self.is_server(*i) && matches!(kind, ErrorKind::NotFound { .. }));
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
        let main = failures.iter().position(|(i, _)| self.is_server(*i)).unwrap_or(failures.len().saturating_sub(1));
        if main >= failures.len() {
            return ErrorKind::Unsupported("there is no server to ask".into()).during(action);
        }
        let (_, kind) = failures.remove(main);
        let label = |i: usize| self.candidates.get(i).map_or("", |c| c.label.as_str());
        let mirrors = failures.iter().map(|(i, kind)| format!("{}: {kind}", label(*i)));
        kind.during(action).with_mirrors(mirrors.collect())
    }

    fn is_server(&self, number: usize) -> bool {
        let candidate = self.candidates.get(number);
        candidate.is_some_and(|candidate| self.server.as_ref().is_some_and(|server| Arc::ptr_eq(server, candidate)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{credentials::DockerConfig, hosts, transport::Transports};

    fn net() -> Net {
        Net {
            transports: Transports::new(Duration::from_secs(1)),
            credentials: Arc::new(DockerConfig::new(None)),
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
        let mut tries = Tries::new(endpoints(&net, &["m.example", "s.example"]), None);
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
        let mut tries = Tries::new(endpoints(&net, &["m.example", "s.example"]), None);
        tries.failed(&net, missing(), "x").await.unwrap();
        assert!(tries.failed(&net, missing(), "x").await.unwrap_err().is_not_found());
        let mut tries = Tries::new(endpoints(&net, &["m.example", "s.example"]), None);
        tries.failed(&net, broken(), "x").await.unwrap();
        assert!(tries.failed(&net, missing(), "x").await.unwrap_err().is_not_found());
    }

    #[tokio::test]
    async fn servers_that_failed_lately_are_asked_last() {
        let net = net();
        let both = endpoints(&net, &["m.example", "s.example"]);
        let mut tries = Tries::new(both.clone(), None);
        tries.failed(&net, broken(), "x").await.unwrap();
        assert_eq!(Tries::new(both, None).endpoint().unwrap().label, "s.example");
    }

    #[tokio::test]
    async fn the_server_s_word_is_final_also_when_a_mirror_is_asked_after_it() {
        let net = net();
        let both = endpoints(&net, &["m.example", "s.example"]);
        both[0].health.failed(Instant::now());
        let mut tries = Tries::new(both, None);
        tries.failed(&net, missing(), "x").await.unwrap();
        let error = tries.failed(&net, broken(), "x").await.unwrap_err();
        assert!(error.is_not_found() && error.to_string().contains("(mirror: m.example: "), "{error}");
    }

    #[tokio::test]
    async fn a_wait_that_is_too_long_is_refused_and_told() {
        let net = net();
        let mut tries = Tries::new(endpoints(&net, &["s.example"]), None);
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
        let mut tries = Tries::new(endpoints(&net, &["s.example"]), None);
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
        assert!(Tries::new(Vec::new(), None).endpoint().is_none());
    }
}
