//! One run of a credential provider plugin: a request on its standard input, an answer on its standard output
//! (k8s.io/kubelet/pkg/apis/credentialprovider/v1).
use super::{super::pattern::Pattern, config::Provider, duration};
use clipper_registry::Credential;
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::timeout,
};

/// How long a plugin may take: as long as kubelet gives it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that a plugin may put out.
const ANSWER_MAX: u64 = 1 << 20;

/// What a plugin said.
pub struct Said {
    /// `Image`, `Registry` or `Global`.
    pub scope: String,
    /// How long it holds, if it tells.
    pub hold: Option<Duration>,
    /// Credentials for images.
    pub auth: Vec<(Pattern, Credential)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    kind: String,
    cache_key_type: String,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Login>>,
}

#[derive(Deserialize)]
struct Login {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// Asks a plugin about an image. The error never shows what the plugin put out: that may be a secret.
pub async fn run(provider: &Provider, bin_dir: &Path, image: &str) -> Result<Said, String> {
    match timeout(PATIENCE, converse(provider, bin_dir, image)).await {
        Ok(output) => understand(&output?),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

async fn converse(provider: &Provider, bin_dir: &Path, image: &str) -> Result<Vec<u8>, String> {
    let program = bin_dir.join(&provider.name);
    let failed = |error: std::io::Error| format!("{}: {error}", program.display());
    let mut child = Command::new(&program)
        .args(&provider.arguments)
        .envs(provider.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err("it has no standard input or output".into());
    };
    let request = serde_json::json!({
        "apiVersion": provider.protocol, "kind": "CredentialProviderRequest", "image": image,
    });
    let ask = async {
        // One that doesn't read is heard nevertheless.
        let _ = stdin.write_all(request.to_string().as_bytes()).await;
        drop(stdin);
    };
    let (mut answer, mut complaint) = (Vec::new(), Vec::new());
    let (mut stdout, mut stderr) = (stdout.take(ANSWER_MAX + 1), stderr.take(ANSWER_MAX));
    let (_, answered, complained) =
        tokio::join!(ask, stdout.read_to_end(&mut answer), stderr.read_to_end(&mut complaint));
    answered.and(complained).map_err(failed)?;
    if answer.len() as u64 > ANSWER_MAX {
        return Err(format!("its answer has more than {ANSWER_MAX} bytes"));
    }
    let status = child.wait().await.map_err(failed)?;
    if !status.success() {
        let complaint: String = String::from_utf8_lossy(&complaint).trim().chars().take(300).collect();
        return Err(format!("{status}: {}", complaint.replace(char::is_control, " ")));
    }
    Ok(answer)
}

fn understand(output: &[u8]) -> Result<Said, String> {
    let answer: Option<Answer> = serde_json::from_slice(output).ok();
    let answer = answer.filter(|answer| answer.kind == "CredentialProviderResponse");
    let answer = answer.ok_or("what it put out is no answer of a credential provider")?;
    let hold = match answer.cache_duration.as_deref() {
        None | Some("") => None,
        Some(text) => Some(duration::parse(text).ok_or("its cacheDuration is none")?),
    };
    let login = |(key, login): (String, Login)| {
        let Login { username: user, password } = login;
        Some((Pattern::parse(&key)?, Credential::Password { user, password }))
    };
    let auth = answer.auth.unwrap_or_default().into_iter().filter_map(login).collect();
    Ok(Said { scope: answer.cache_key_type, hold, auth })
}
