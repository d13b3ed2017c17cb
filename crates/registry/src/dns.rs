//! Names of servers: asked of the system for every new connection, by one question at a time for each name. What was said
//! last stands in where the system can't tell.
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::{
    collections::HashMap,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long the system may take before its last answer stands in.
const PATIENCE: Duration = Duration::from_secs(3);
/// Names whose last answer is kept.
const NAMES_MAX: usize = 256;

/// The system's resolver, or what a test puts in its place.
type Ask = dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;
type Answer = Result<Arc<[SocketAddr]>, Arc<str>>;
type Question = Shared<BoxFuture<'static, Answer>>;

/// Resolves names. A resolver that doesn't answer blocks a thread of the runtime for each question: so there's one for
/// each name, whoever waits for it.
#[derive(Clone)]
pub(crate) struct Names(Arc<Inner>);

struct Inner {
    ask: Box<Ask>,
    patience: Duration,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Default)]
struct Known {
    last: Option<Arc<[SocketAddr]>>,
    asked: Option<Question>,
}

impl Names {
    /// Names as the system resolves them.
    pub fn system() -> Self {
        let ask = |name: String| async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) }.boxed();
        Self::asking(Box::new(ask), PATIENCE)
    }

    fn asking(ask: Box<Ask>, patience: Duration) -> Self {
        Self(Arc::new(Inner { ask, patience, known: Mutex::default() }))
    }

    async fn addresses(&self, name: String) -> Answer {
        let (question, last) = self.question(&name);
        let Some(last) = last else { return question.await };
        let problem = match tokio::time::timeout(self.0.patience, question).await {
            Ok(Ok(fresh)) => return Ok(fresh),
            Ok(Err(problem)) => problem,
            Err(_) => "no answer".into(),
        };
        tracing::warn!(name, %problem, "a name can't be resolved: the addresses that it had last are tried");
        Ok(last)
    }

    /// The question under way for this name, begun if there is none, and the last answer.
    fn question(&self, name: &str) -> (Question, Option<Arc<[SocketAddr]>>) {
        let mut names = self.0.lock();
        if names.len() >= NAMES_MAX && !names.contains_key(name) {
            names.retain(|_, known| known.asked.is_some());
        }
        let known = names.entry(name.to_owned()).or_default();
        let last = known.last.clone();
        if let Some(asked) = &known.asked {
            return (asked.clone(), last);
        }
        let (inner, asked) = (self.0.clone(), name.to_owned());
        // A task of its own: it ends when the system's resolver does, however many have lost their patience.
        let task = tokio::spawn(async move {
            let answer = match (inner.ask)(asked.clone()).await {
                Ok(addresses) if addresses.is_empty() => Err("it has no address".into()),
                Ok(addresses) => Ok(Arc::from(addresses)),
                Err(error) => Err(Arc::from(error.to_string())),
            };
            if let Some(known) = inner.lock().get_mut(&asked) {
                known.asked = None;
                known.last = answer.as_ref().ok().cloned().or(known.last.take());
            }
            answer
        });
        let question = async { task.await.unwrap_or_else(|_| Err("the program stops".into())) }.boxed().shared();
        known.asked = Some(question.clone());
        (question, last)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let names = self.clone();
        Box::pin(async move {
            let addresses = names.addresses(name.as_str().to_owned()).await.map_err(|problem| problem.to_string())?;
            let addresses: Vec<SocketAddr> = addresses.iter().copied().collect();
            let addresses: Addrs = Box::new(addresses.into_iter());
            Ok(addresses)
        })
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    fn address(last: u8) -> SocketAddr {
        ([127, 0, 0, last], 0).into()
    }

    /// A resolver whose answers are told one after the other; without one, it is silent.
    fn scripted(answers: Vec<io::Result<Vec<SocketAddr>>>) -> (Names, Arc<AtomicUsize>) {
        let (answers, asked) = (Mutex::new(answers.into_iter()), Arc::new(AtomicUsize::new(0)));
        let count = asked.clone();
        let ask = move |_| {
            count.fetch_add(1, SeqCst);
            match answers.lock().unwrap().next() {
                Some(answer) => std::future::ready(answer).boxed(),
                None => std::future::pending().boxed(),
            }
        };
        (Names::asking(Box::new(ask), Duration::from_millis(300)), asked)
    }

    async fn first(names: &Names) -> Result<SocketAddr, String> {
        let answer = names.addresses("r.example".into()).await;
        answer.map(|all| all[0]).map_err(|problem| problem.to_string())
    }

    #[tokio::test]
    async fn every_question_is_asked_anew_and_the_last_answer_stands_in() {
        let down = || Err(io::Error::other("server failure"));
        let answers =
            vec![down(), Ok(vec![address(1)]), Ok(vec![address(2)]), down(), Ok(Vec::new()), Ok(vec![address(3)])];
        let (names, _) = scripted(answers);
        assert_eq!(first(&names).await.unwrap_err(), "server failure");
        for expected in [1, 2, 2, 2, 3] {
            assert_eq!(first(&names).await, Ok(address(expected)));
        }
        // Silent from here on.
        assert_eq!(first(&names).await, Ok(address(3)));
    }

    #[tokio::test]
    async fn a_silent_resolver_is_asked_once_whoever_waits() {
        let (names, asked) = scripted(vec![Ok(vec![address(1)])]);
        first(&names).await.unwrap();
        let waiting = (0..50).map(|_| {
            let names = names.clone();
            tokio::spawn(async move { first(&names).await })
        });
        for waiter in waiting.collect::<Vec<_>>() {
            assert_eq!(waiter.await.unwrap(), Ok(address(1)));
        }
        assert_eq!(asked.load(SeqCst), 2);
    }
}
