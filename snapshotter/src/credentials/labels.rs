//! Credentials in the labels of a snapshot that is prepared: taken out before anybody sees or records them.
use super::vault::{Origin, Vault};
use crate::{snapshot::Labels, wanted::LABEL_IMAGE_REF};
use clipper_registry::{Credential, Reference, Subject};
use std::sync::Arc;

/// Labels with a user's name and password for the registry of the image that the snapshot is of. Nydus's snapshotter
/// takes them by these names.
pub const LABEL_USERNAME: &str = "containerd.io/snapshot/pullusername";
/// See [`LABEL_USERNAME`].
pub const LABEL_SECRET: &str = "containerd.io/snapshot/pullsecret";

/// Keeps what labels tell.
#[derive(Clone, Debug)]
pub struct Told {
    vault: Arc<Vault>,
}

impl Told {
    pub(super) fn new(vault: Arc<Vault>) -> Self {
        Self { vault }
    }

    /// Takes the credentials out of `labels` and keeps them for the repository of the image that these name.
    pub async fn take(&self, labels: &mut Labels) {
        let (user, secret) = (labels.remove(LABEL_USERNAME), labels.remove(LABEL_SECRET));
        let Some(password) = secret.filter(|secret| !secret.is_empty()) else { return };
        match labels.get(LABEL_IMAGE_REF).map(|image| image.parse()) {
            Some(Ok(Reference::Registry(image))) => {
                let credential = Credential::Password { user: user.unwrap_or_default(), password };
                self.vault.put(Origin::Label, &Subject::new(&image.host, &image.repository), credential).await;
            }
            _ => tracing::warn!(
                label = LABEL_SECRET,
                "credentials in a snapshot's labels are of no use without {LABEL_IMAGE_REF}, which says for which image"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::sealed::Key;
    use clipper_registry::{CredentialSource, Found};

    #[tokio::test]
    async fn credentials_are_taken_out_and_kept_for_the_image_s_repository() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Arc::new(Vault::open(dir.path(), &Key::open(dir.path(), None).unwrap()).unwrap());
        let told = Told::new(Arc::clone(&vault));
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
        };
        let login = [(LABEL_USERNAME, "me"), (LABEL_SECRET, "hush"), ("other", "kept")];
        let mut with_image = labels(&login);
        with_image.insert(LABEL_IMAGE_REF.into(), "r.example:5000/team/app:1".into());
        told.take(&mut with_image).await;
        assert_eq!(with_image.keys().map(String::as_str).collect::<Vec<_>>(), [LABEL_IMAGE_REF, "other"]);
        let find = async |host: &str, repository: &str| {
            vault.of(Origin::Label).find(&Subject::new(host, repository)).await.credentials
        };
        let password = Credential::Password { user: "me".into(), password: "hush".into() };
        assert_eq!(find("r.example:5000", "team/app").await, [password]);
        for (host, repository) in [("r.example", "team/app"), ("r.example:5000", "team/app2"), ("mirror", "team/app")] {
            assert_eq!(find(host, repository).await, [], "{host}/{repository}");
        }
        let mut without = labels(&login);
        told.take(&mut without).await;
        assert_eq!(without, labels(&[("other", "kept")]));
        assert_eq!(vault.of(Origin::Cri).find(&Subject::new("r.example:5000", "team/app")).await, Found::default());
    }
}
