//! What an image itself says of where it came from: followed only to hosts that the configuration lists, because whoever
//! made the image would else choose which servers this node speaks to.
use crate::{credentials::Pattern, snapshot::Labels};
use anyhow::{Context, bail};
use clipper_registry::{Reference, RegistryReference, Subject};
use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

/// Label with a repository in a registry that has the layer and what belongs to it, from an annotation of the layer.
pub const LABEL_REF: &str = "containerd.io/snapshot/clipper.ref";

/// Repositories that were told of at most, so that images can't fill the memory.
const TOLD_MAX: usize = 1024;

/// Which hints are followed.
#[derive(Debug, Default)]
pub struct Hints {
    hosts: Vec<Pattern>,
    /// Those that aren't followed, and of which the log tells.
    told: Mutex<HashSet<String>>,
}

/// The hint in `labels`, if there is one that makes sense.
pub fn hint(labels: &Labels) -> Option<RegistryReference> {
    let text = labels.get(LABEL_REF)?;
    match text.parse() {
        Ok(Reference::Registry(repository)) => Some(RegistryReference { tag: None, digest: None, ..repository }),
        // A directory of this node is nothing that an image may speak of.
        Ok(Reference::Layout(_)) => None,
        Err(error) => {
            tracing::warn!(label = LABEL_REF, %error, "a layer's label makes no sense");
            None
        }
    }
}

impl Hints {
    /// Follows those to `hosts`, the configuration's `registry.follow_refs`.
    pub fn new(hosts: &[String]) -> anyhow::Result<Self> {
        let host = |text: &String| {
            let pattern = Pattern::parse(text).with_context(|| format!("{text:?} names no host"))?;
            if text.contains('/') {
                bail!("{text:?} must be a host, or host:port, without a path");
            }
            Ok(pattern)
        };
        let hosts = hosts.iter().map(host).collect::<anyhow::Result<_>>().context("registry.follow_refs")?;
        Ok(Self { hosts, told: Mutex::default() })
    }

    /// The repository that `hint` names, if it is to be followed; else the log says why not, once.
    pub fn follow(&self, hint: &RegistryReference) -> Option<Reference> {
        let RegistryReference { host, repository, .. } = hint;
        let subject = Subject { host: host.clone(), repository: repository.clone() };
        if self.hosts.iter().any(|pattern| pattern.matches(&subject)) {
            return Some(Reference::Registry(hint.clone()));
        }
        let reference = format!("{host}/{repository}");
        // Nothing that could panic happens under this lock.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < TOLD_MAX && told.insert(reference.clone()) {
            tracing::warn!(
                reference,
                "an image says itself where it came from ({LABEL_REF}), and nothing else does: that isn't followed, \
                 because registry.follow_refs doesn't list the host"
            );
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(text: &str) -> RegistryReference {
        hint(&[(LABEL_REF.to_owned(), text.to_owned())].into()).unwrap()
    }

    #[test]
    fn only_listed_hosts_are_followed() {
        let hosts = ["registry.example", "*.mirrors.example:5000"].map(String::from);
        let hints = Hints::new(&hosts).unwrap();
        let followed = |text: &str| hints.follow(&repository(text)).map(|reference| reference.to_string());
        assert_eq!(followed("registry.example/team/app:1"), Some("registry.example/team/app".into()));
        assert_eq!(followed("a.mirrors.example:5000/app"), Some("a.mirrors.example:5000/app".into()));
        for other in [
            "other.example/app",
            "registry.example:5000/app",
            "a.b.mirrors.example:5000/app",
            "a.mirrors.example/app",
            "registry.example.evil.example/app",
            "127.0.0.1:5000/registry.example/app",
        ] {
            assert_eq!(followed(other), None, "{other}");
            assert_eq!(Hints::default().follow(&repository(other)), None, "{other}");
        }
        assert_eq!(Hints::new(&[]).unwrap().follow(&repository("registry.example/app")), None);
    }

    #[test]
    fn hints_that_are_no_repository_of_a_registry_are_none() {
        for text in ["oci:/etc", "oci:/srv/layout:tag", "", "app", "registry.example/UPPER", "../../etc"] {
            assert_eq!(hint(&[(LABEL_REF.to_owned(), text.to_owned())].into()), None, "{text}");
        }
        assert_eq!(hint(&Labels::new()), None);
        assert_eq!(repository("registry.example/app:1").tag, None);
    }

    #[test]
    fn only_hosts_can_be_listed() {
        for text in ["", "registry.example/team", "https://registry.example"] {
            let error = format!("{:#}", Hints::new(&[text.to_owned()]).unwrap_err());
            assert!(error.contains("registry.follow_refs") && error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
