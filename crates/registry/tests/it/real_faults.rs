//! Against the reference registry behind a proxy that breaks, refuses and limits on purpose.
//!
//! The registry (2.8) forgets an upload as soon as a part of a chunk arrives of which it couldn't tell the client: the
//! address that it gave out before no longer fits. What it doesn't get at all is taken up.
use crate::fake::*;
use crate::real::at;
use bytes::Bytes;
use clipper_format::digest::Digest;
use clipper_registry::{Client, ErrorKind, RegistryError, Repository};
use clipper_tests::{
    proxy::{Fault, Proxy},
    registry::Registry,
};
use std::time::Duration;

const MIB: usize = 1 << 20;

struct Ground {
    registry: Registry,
    proxy: Proxy,
    client: Client,
}

impl Ground {
    fn new() -> Self {
        let registry = Registry::start().unwrap();
        let proxy = Proxy::start(registry.address(), Duration::ZERO).unwrap();
        Self { registry, proxy, client: client() }
    }

    /// By way of the proxy.
    fn app(&self) -> Repository {
        repository(&self.client, &format!("{}/app", self.proxy.host()))
    }

    /// Asks the registry itself.
    async fn has(&self, data: &Bytes) -> bool {
        let blob = at(&self.registry, &self.client, "app").blob(Digest::of(data), data.len() as u64);
        blob.read_all(data.len() as u64).await.is_ok_and(|read| read == *data)
    }
}

/// Writes a first chunk, has something go wrong, and writes the rest.
async fn upload(ground: &Ground, data: &Bytes, faults: &[(&str, Fault)]) -> Result<(Digest, u64), RegistryError> {
    let mut upload = ground.app().upload().await?;
    upload.write(data.slice(..8 * MIB)).await?;
    for (line, fault) in faults {
        ground.proxy.rule(line, fault.clone(), Some(1));
    }
    upload.write(data.slice(8 * MIB..)).await?;
    upload.finish().await
}

#[tokio::test]
async fn an_upload_survives_what_keeps_chunks_from_the_registry() {
    let ground = Ground::new();
    let cases: [&[(&str, Fault)]; 5] = [
        &[("PATCH ", Fault::Status(500)), ("PATCH ", Fault::Status(502))],
        &[("PATCH ", Fault::Status(429)), ("GET ", Fault::Status(503))],
        &[("PATCH ", Fault::CutRequest(0))],
        // Also at its end, where only the answer is lost.
        &[("PUT ", Fault::Status(502)), ("PUT ", Fault::LoseAnswer)],
        &[("HEAD ", Fault::Status(429)), ("PUT ", Fault::CutRequest(0))],
    ];
    for (n, faults) in cases.iter().enumerate() {
        let data = sample(17 * MIB + n);
        assert_eq!(upload(&ground, &data, faults).await.unwrap().0, Digest::of(&data), "{faults:?}");
        assert!(ground.has(&data).await, "{faults:?}");
        assert_eq!(ground.proxy.pending(), 0, "{faults:?}");
    }
}

#[tokio::test]
async fn an_upload_of_which_the_registry_lost_count_is_told() {
    let ground = Ground::new();
    for (n, fault) in [Fault::CutRequest(3 << 20), Fault::LoseAnswer].into_iter().enumerate() {
        let data = sample(17 * MIB + n);
        let error = upload(&ground, &data, &[("PATCH ", fault.clone())]).await.unwrap_err();
        let ErrorKind::UploadLost { host, .. } = error.kind() else { panic!("{fault:?}: {error}") };
        assert_eq!(*host, ground.proxy.host());
        assert!(error.is_transient() && !ground.has(&data).await);
        // As the error says: another one.
        ground.proxy.behave();
        assert_eq!(upload(&ground, &data, &[]).await.unwrap().0, Digest::of(&data));
    }
}

#[tokio::test]
async fn a_copy_survives_all_of_it() {
    let (ground, source) = (Ground::new(), Registry::start().unwrap());
    let cases: [&[(&str, Fault)]; 5] = [
        &[("PATCH ", Fault::CutRequest(20 << 20))],
        &[("PATCH ", Fault::LoseAnswer), ("POST ", Fault::Status(429))],
        &[("PATCH ", Fault::Status(503)), ("PUT ", Fault::LoseAnswer)],
        &[("PATCH ", Fault::CutRequest(0)), ("PATCH ", Fault::CutRequest(1))],
        // A registry, or a proxy before it, that takes no chunks.
        &[("PATCH ", Fault::Status(405)), ("PUT ", Fault::CutRequest(9 << 20))],
    ];
    for (n, faults) in cases.iter().enumerate() {
        let data = sample(66 * MIB + n);
        let from = at(&source, &ground.client, "base");
        from.push_blob(Digest::of(&data), data.clone()).await.unwrap();
        for (line, fault) in *faults {
            ground.proxy.rule(line, fault.clone(), Some(1));
        }
        let blob = from.blob(Digest::of(&data), data.len() as u64);
        assert!(ground.app().copy_blob(&blob, |_| {}).await.unwrap(), "{faults:?}");
        assert!(ground.has(&data).await, "{faults:?}");
        assert_eq!(ground.proxy.pending(), 0, "{faults:?}");
    }
}

#[tokio::test]
async fn a_source_that_breaks_does_not_matter_to_a_copy() {
    let ground = Ground::new();
    let data = sample(20 * MIB);
    at(&ground.registry, &ground.client, "base").push_blob(Digest::of(&data), data.clone()).await.unwrap();
    let target = Registry::start().unwrap();
    let from = repository(&ground.client, &format!("{}/base", ground.proxy.host()));
    let blob = from.blob(Digest::of(&data), data.len() as u64);
    let line = format!("GET /v2/base/blobs/{}", blob.digest());
    for fault in [Fault::Cut(5 << 20), Fault::Status(503), Fault::IgnoreRange] {
        ground.proxy.rule(&line, fault, Some(1));
    }
    let to = at(&target, &ground.client, "app");
    assert!(to.copy_blob(&blob, |_| {}).await.unwrap());
    assert_eq!(to.blob(blob.digest(), blob.size()).read_all(blob.size()).await.unwrap(), data);
}
