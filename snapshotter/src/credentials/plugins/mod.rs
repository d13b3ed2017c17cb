//! Kubelet's credential provider plugins: which of them know an image, and what they said, for as long as it holds.
mod config;
mod duration;
mod exec;

use super::pattern::Pattern;
use crate::config::PluginsConfig;
use anyhow::Result;
use clipper_registry::{Credential, CredentialSource, Found, Subject};
use config::Provider;
use futures::{FutureExt, future::BoxFuture};
use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::sync::Mutex;

/// How long a plugin that failed isn't run again.
const PAUSE: Duration = Duration::from_secs(10);
/// Answers kept per plugin.
const ANSWERS_MAX: usize = 1024;

/// All plugins of a node, in the order of their configuration.
#[derive(Debug)]
pub struct Plugins {
    bin_dir: PathBuf,
    plugins: Vec<Plugin>,
}

#[derive(Debug)]
struct Plugin {
    provider: Provider,
    /// Held while the plugin runs: whoever asks meanwhile wants the same.
    answers: Mutex<HashMap<Scope, Kept>>,
}

/// What an answer of a plugin is good for (k8s.io/kubelet/pkg/apis/credentialprovider, `PluginCacheKeyType`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Scope {
    Image(String),
    Registry(String),
    Global,
}

#[derive(Debug)]
struct Kept {
    until: Instant,
    answer: Result<Vec<(Pattern, Credential)>, String>,
}

impl Plugins {
    /// Reads the configuration; no plugin runs yet.
    ///
    /// # Errors
    /// The file can't be read or makes no sense.
    pub fn load(config: &PluginsConfig) -> Result<Self> {
        let providers = config::load(&config.config)?;
        let plugins = providers.into_iter().map(|provider| Plugin { provider, answers: Mutex::default() });
        Ok(Self { bin_dir: config.bin_dir.clone(), plugins: plugins.collect() })
    }
}

impl CredentialSource for Plugins {
    fn find<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Found> {
        async {
            let mut found = Found::default();
            for plugin in self.plugins.iter().filter(|plugin| plugin.provider.knows(subject)) {
                match plugin.ask(&self.bin_dir, subject).await {
                    Ok(credentials) => found.credentials.extend(credentials),
                    Err(problem) => {
                        found.problem = Some(format!("the credential provider {}: {problem}", plugin.provider.name));
                    }
                }
            }
            found
        }
        .boxed()
    }
}

impl Plugin {
    /// What the plugin says about an image, the most exact first; it runs if nothing that it said before holds.
    async fn ask(&self, bin_dir: &std::path::Path, subject: &Subject) -> Result<Vec<Credential>, String> {
        let image = format!("{}/{}", subject.host, subject.repository);
        let mut answers = self.answers.lock().await;
        let now = Instant::now();
        let scopes = [Scope::Image(image.clone()), Scope::Registry(subject.host.clone()), Scope::Global];
        if let Some(kept) = scopes.iter().find_map(|scope| answers.get(scope).filter(|kept| now < kept.until)) {
            return kept.answer.clone().map(|all| fitting(all, subject));
        }
        let (scope, hold, answer) = match exec::run(&self.provider, bin_dir, &image).await {
            Ok(said) => {
                let scope = match said.scope.as_str() {
                    "Image" => Scope::Image(image),
                    "Registry" => Scope::Registry(subject.host.clone()),
                    _ => Scope::Global,
                };
                (scope, said.hold.unwrap_or(self.provider.hold), Ok(said.auth))
            }
            Err(problem) => (Scope::Image(image), PAUSE, Err(problem)),
        };
        if answers.len() >= ANSWERS_MAX {
            answers.retain(|_, kept| now < kept.until);
        }
        if !hold.is_zero() && answers.len() < ANSWERS_MAX {
            let until = now.checked_add(hold).unwrap_or(now);
            answers.insert(scope, Kept { until, answer: answer.clone() });
        }
        answer.map(|all| fitting(all, subject))
    }
}

fn fitting(mut all: Vec<(Pattern, Credential)>, subject: &Subject) -> Vec<Credential> {
    all.retain(|(pattern, _)| pattern.matches(subject));
    all.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.exactness()));
    all.into_iter().map(|(_, credential)| credential).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    /// A plugin that notes what it is asked in `dir`, and then does `script`. It's the shell, so that no program must be
    /// written and run at once.
    fn plugins(dir: &Path, script: &str) -> Plugins {
        let script = format!("echo \"$1 $MODE $(cat)\" >> {}/asked\n{script}\n", dir.display());
        let config = serde_json::json!({
            "apiVersion": "kubelet.config.k8s.io/v1",
            "kind": "CredentialProviderConfig",
            "providers": [{
                "name": "sh",
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "matchImages": ["*.example", "r.example:5000/team"],
                "defaultCacheDuration": "1h",
                "args": ["-c", script, "sh", "get-credentials"],
                "env": [{"name": "MODE", "value": "test"}],
            }],
        });
        fs::write(dir.join("config.yaml"), config.to_string()).unwrap();
        Plugins::load(&PluginsConfig { config: dir.join("config.yaml"), bin_dir: "/bin".into() }).unwrap()
    }

    fn answer(key_type: &str, hold: &str) -> String {
        format!(
            r#"echo '{{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "cacheKeyType": "{key_type}"{hold}, "auth": {{"*.example": {{"username": "all", "password": "1"}},
            "r.example/team": {{"username": "team", "password": "2"}}, "other.io": {{"username": "x", "password": "3"}}}}}}'"#
        )
    }

    async fn users(plugins: &Plugins, host: &str, repository: &str) -> Vec<String> {
        let found = plugins.find(&Subject::new(host, repository)).await;
        assert_eq!(found.problem, None);
        let user = |credential| match credential {
            Credential::Password { user, .. } => user,
            other => panic!("{other:?}"),
        };
        found.credentials.into_iter().map(user).collect()
    }

    fn asked(dir: &Path) -> Vec<String> {
        fs::read_to_string(dir.join("asked")).unwrap_or_default().lines().map(String::from).collect()
    }

    #[tokio::test]
    async fn a_plugin_is_asked_as_kubelet_asks_and_its_most_exact_answer_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let plugins = plugins(dir.path(), &answer("Image", ""));
        assert_eq!(users(&plugins, "r.example", "team/app").await, ["team", "all"]);
        assert_eq!(users(&plugins, "r.example", "app").await, ["all"]);
        let [first, _] = asked(dir.path()).try_into().unwrap();
        let (arguments, request) = first.split_once('{').unwrap();
        assert_eq!(arguments, "get-credentials test ");
        let request: serde_json::Value = serde_json::from_str(&format!("{{{request}")).unwrap();
        assert_eq!(request["apiVersion"], "credentialprovider.kubelet.k8s.io/v1");
        assert_eq!(
            (&request["kind"], &request["image"]),
            (&"CredentialProviderRequest".into(), &"r.example/team/app".into())
        );
        // What it doesn't know it isn't asked.
        assert_eq!(users(&plugins, "r.elsewhere", "app").await, [""; 0]);
        assert_eq!(users(&plugins, "r.example:5000", "other").await, [""; 0]);
        assert_eq!(asked(dir.path()).len(), 2);
    }

    #[tokio::test]
    async fn answers_hold_for_what_they_say_and_as_long_as_they_say() {
        for (key_type, hold, runs) in [
            ("Image", "", 3),
            ("Registry", "", 2),
            ("Global", "", 1),
            ("Global", r#", "cacheDuration": "6h0m0s""#, 1),
            ("Global", r#", "cacheDuration": "0s""#, 4),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let plugins = plugins(dir.path(), &answer(key_type, hold));
            for (host, repository) in [("a.example", "x"), ("a.example", "y"), ("b.example", "x"), ("a.example", "x")] {
                assert_eq!(users(&plugins, host, repository).await, ["all"]);
            }
            assert_eq!(asked(dir.path()).len(), runs, "{key_type}{hold}");
        }
    }

    #[tokio::test]
    async fn a_plugin_that_fails_is_named_and_left_alone_for_a_while() {
        for (script, word) in [
            ("echo hush; echo broken >&2; exit 3", "broken"),
            ("echo hush", "no answer"),
            (r#"echo '{"kind": "Other", "hush": 1}'"#, "no answer"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let plugins = plugins(dir.path(), script);
            for _ in 0..3 {
                let problem = plugins.find(&Subject::new("a.example", "x")).await.problem.unwrap();
                assert!(problem.contains("credential provider sh") && problem.contains(word), "{problem}");
                assert!(!problem.contains("hush"), "what it puts out may be a secret: {problem}");
            }
            assert_eq!(asked(dir.path()).len(), 1);
        }
        let dir = tempfile::tempdir().unwrap();
        let gone = Plugins { bin_dir: dir.path().into(), ..plugins(dir.path(), "") };
        let problem = gone.find(&Subject::new("a.example", "x")).await.problem.unwrap();
        assert!(problem.contains(&dir.path().join("sh").display().to_string()), "{problem}");
    }
}
