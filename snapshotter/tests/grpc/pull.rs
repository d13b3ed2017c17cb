//! A pull as containerd's unpacker and metadata store do it (containerd 1.6, `unpacker.go`, `metadata/snapshot.go`).
use crate::{
    daemon::{Client, option},
    image::Image,
};
use std::path::PathBuf;
use tonic::Code;

/// What came of pulling an image.
pub struct Pulled {
    /// The backend's names of the layers, bottom first.
    pub names: Vec<String>,
    /// Of each layer, whether it had to be downloaded and unpacked.
    pub unpacked: Vec<bool>,
}

impl Pulled {
    pub fn top(&self) -> &str {
        self.names.last().unwrap()
    }
}

impl Client {
    /// Pulls `image` in containerd's namespace `namespace`.
    pub async fn pull(&mut self, image: &Image, namespace: &str) -> Pulled {
        let mut pulled = Pulled { names: Vec::new(), unpacked: Vec::new() };
        for (number, layer) in image.layers.iter().enumerate() {
            let parent = pulled.names.last().cloned().unwrap_or_default();
            let key = format!("{namespace}/{number}/extract-1 {}", layer.chain);
            match self.prepare(&key, &parent, &layer.labels).await {
                Err(status) if status.code() == Code::AlreadyExists => {
                    // containerd finds the layer by exactly this filter.
                    let chain = layer.chain;
                    let filter = format!(r#"labels."containerd.io/snapshot.ref"=={chain},parent=={parent:?}"#);
                    let names = self.names(&[&filter]).await;
                    let [name] = &names[..] else { panic!("{filter} finds {names:?}") };
                    pulled.names.push(name.clone());
                    pulled.unpacked.push(false);
                }
                Ok(mounts) => {
                    let upper = match mounts[0].r#type.as_str() {
                        "bind" => PathBuf::from(&mounts[0].source),
                        _ => PathBuf::from(option(&mounts[0], "upperdir")),
                    };
                    unpack(&layer.tar, upper);
                    let name = format!("{namespace}/{number}/{}", layer.chain);
                    self.commit(&key, &name, &layer.labels).await.unwrap();
                    pulled.names.push(name);
                    pulled.unpacked.push(true);
                }
                Err(status) => panic!("{status}"),
            }
        }
        pulled
    }
}

/// Unpacks a layer without whiteouts.
fn unpack(tar: &[u8], dir: PathBuf) {
    let mut archive = tar::Archive::new(tar);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.unpack(dir).unwrap();
}
