//! The watch of a scope: a list of all, then the changes after it, for ever.
use super::{
    api::{Change, Changes, Server},
    failure::Failure,
    health::Health,
    secrets::{Held, Scope, Secrets},
};
use rand::Rng;
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// A watch may begin and then be refused: only after a while without that all is well.
const STEADY: Duration = Duration::from_secs(1);

/// What a watch works on.
#[derive(Debug)]
pub struct Watch {
    pub scope: Scope,
    pub kubeconfig: Option<PathBuf>,
    pub secrets: Arc<Secrets>,
    pub health: Arc<Health>,
}

/// The pauses between attempts.
struct Pauses {
    next: Duration,
}

impl Pauses {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);

    fn new() -> Self {
        Self { next: Self::FIRST }
    }

    /// Waits, longer each time. Nodes whose server comes back shouldn't all come at once.
    async fn pause(&mut self) {
        let pause = self.next.mul_f64(rand::rng().random_range(0.5..1.0));
        self.next = (self.next * 2).min(Self::LONGEST);
        tokio::time::sleep(pause).await;
    }
}

impl Watch {
    /// Goes on for ever, whatever happens.
    pub async fn run(self) {
        let mut pauses = Pauses::new();
        // Up to which version all is known.
        let mut known = None;
        loop {
            match self.follow(&mut known, &mut pauses).await {
                // As happens to who was away for long.
                Failure::Expired => known = None,
                failure => {
                    // What couldn't be understood would come again after the same version.
                    known = known.filter(|_| failure != Failure::Garbled);
                    self.health.fails(&self.scope, failure);
                }
            }
            pauses.pause().await;
        }
    }

    /// Lists what isn't known and follows the changes, until something fails. With each failure goes the client: what it
    /// was made from may have changed.
    async fn follow(&self, known: &mut Option<String>, pauses: &mut Pauses) -> Failure {
        let server = match Server::connect(self.kubeconfig.as_deref(), &self.scope).await {
            Ok(server) => server,
            Err(failure) => return failure,
        };
        loop {
            let version = match known.take() {
                Some(version) => version,
                None => match self.list(&server).await {
                    Ok(version) => version,
                    Err(failure) => return failure,
                },
            };
            let changes = server.watch(known.insert(version)).await;
            let followed = match changes {
                Ok(changes) => self.take(changes, known, pauses).await,
                Err(failure) => Err(failure),
            };
            if let Err(failure) = followed {
                return failure;
            }
            pauses.pause().await;
        }
    }

    /// Takes up the whole list; gives its version. What was known stays in use until all of it has come.
    async fn list(&self, server: &Server) -> Result<String, Failure> {
        let (mut held, mut next) = (Held::new(), None);
        loop {
            let page = server.list(next).await?;
            held.extend(page.secrets);
            next = page.next;
            if next.is_none() {
                self.secrets.replace(&self.scope, held);
                self.health.works(&self.scope);
                return Ok(page.version);
            }
        }
    }

    /// Takes up changes until there are no more of them.
    async fn take(&self, mut changes: Changes, known: &mut Option<String>, pauses: &mut Pauses) -> Result<(), Failure> {
        let begun = Instant::now();
        let mut steady = std::pin::pin!(tokio::time::sleep(STEADY));
        loop {
            tokio::select! {
                next = changes.next() => {
                    let Some((change, version)) = next? else { break };
                    match change {
                        Change::Set(name, secret) => self.secrets.set(&self.scope, name, secret),
                        Change::Gone(name) => self.secrets.forget(&self.scope, &name),
                        Change::Bookmark => {}
                    }
                    *known = Some(version);
                    *pauses = Pauses::new();
                    self.health.works(&self.scope);
                }
                () = &mut steady, if !steady.is_elapsed() => self.health.works(&self.scope),
            }
        }
        if begun.elapsed() > Pauses::LONGEST {
            *pauses = Pauses::new();
        }
        Ok(())
    }
}
