//! A fake registry that keeps uploads and blobs as a good one does, unless its script says otherwise.
use crate::fake::*;
use bytes::Bytes;
use clipper_format::digest::Digest;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

/// What a store has.
#[derive(Default)]
pub struct Kept {
    /// By number.
    pub uploads: HashMap<usize, Vec<u8>>,
    pub blobs: HashMap<Digest, Bytes>,
    opened: usize,
}

/// The server and what it has.
pub struct Store {
    pub server: Fake,
    pub kept: Arc<Mutex<Kept>>,
}

impl Store {
    /// A good one.
    pub async fn start() -> Self {
        Self::scripted(|_, _| None, |_| None).await
    }

    /// `fault` answers instead of the store, or changes what it has; `cut` is that of [`Fake::start_cutting`].
    pub async fn scripted(
        fault: impl Fn(&Seen, &mut Kept) -> Option<Reply> + Send + Sync + 'static,
        cut: impl Fn(&Seen) -> Option<usize> + Send + Sync + 'static,
    ) -> Self {
        let kept: Arc<Mutex<Kept>> = Arc::default();
        let inner = kept.clone();
        let handler = move |seen: &Seen| {
            let mut kept = inner.lock().unwrap();
            fault(seen, &mut kept).unwrap_or_else(|| kept.answer(seen))
        };
        Self { server: Fake::start_cutting(handler, cut).await, kept }
    }

    pub fn has(&self, data: &Bytes) -> bool {
        self.kept.lock().unwrap().blobs.get(&Digest::of(data)) == Some(data)
    }

    /// `METHOD content-range` of all requests that are about an upload.
    pub fn exchanges(&self) -> Vec<String> {
        let about = |s: &&Seen| s.path.contains("/uploads/");
        let line = |s: &Seen| format!("{} {}", s.method, s.header("content-range")).trim_end().to_owned();
        self.server.seen().iter().filter(about).map(line).collect()
    }
}

impl Kept {
    fn answer(&mut self, seen: &Seen) -> Reply {
        let number = || seen.path.rsplit('/').next().and_then(|n| n.parse::<usize>().ok());
        match (seen.method.as_str(), number()) {
            ("HEAD", _) => {
                let digest: Digest = seen.path.rsplit('/').next().unwrap().parse().unwrap();
                self.blobs.get(&digest).map_or(Reply::new(404), |b| Reply::new(200).header("content-length", b.len()))
            }
            ("POST", _) => {
                let number = self.opened;
                self.opened += 1;
                self.uploads.insert(number, Vec::new());
                self.state(202, number)
            }
            (_, Some(number)) => self.about(seen, number),
            _ => Reply::new(405),
        }
    }

    fn about(&mut self, seen: &Seen, number: usize) -> Reply {
        let Some(upload) = self.uploads.get_mut(&number) else {
            return Reply::error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
        };
        // A request that doesn't follow the last answer's Location is noticed.
        let state = format!("state={}", upload.len());
        match seen.method.as_str() {
            "GET" => self.state(204, number),
            "DELETE" => {
                self.uploads.remove(&number);
                Reply::new(204)
            }
            "PATCH" if seen.header("content-range").starts_with(&format!("{}-", upload.len())) => {
                assert_eq!(seen.header("content-type"), "application/octet-stream");
                upload.extend_from_slice(&seen.body);
                self.state(202, number)
            }
            "PATCH" => self.state(416, number),
            "PUT" => {
                assert!(seen.query.starts_with(&state), "{} is not at {state}", seen.query);
                let upload = self.uploads.remove(&number).unwrap();
                let digest = Digest::of(&[&upload[..], &seen.body].concat());
                if !seen.query.ends_with(&digest.to_string().replace(':', "%3A")) {
                    return Reply::error(400, "DIGEST_INVALID", "provided digest did not match uploaded content");
                }
                self.blobs.insert(digest, [&upload[..], &seen.body].concat().into());
                Reply::new(201)
            }
            _ => Reply::new(405),
        }
    }

    /// Where an upload is and how far, as the reference registry tells it.
    pub fn state(&self, status: u16, number: usize) -> Reply {
        let length = self.uploads[&number].len();
        let location = format!("/v2/app/blobs/uploads/{number}?state={length}");
        Reply::new(status).header("location", location).header("range", format!("0-{}", length.saturating_sub(1)))
    }
}

/// Whether something happens for the first time, by count.
pub fn once() -> impl Fn() -> bool + Send + Sync {
    let done = std::sync::atomic::AtomicBool::new(false);
    move || !done.swap(true, std::sync::atomic::Ordering::SeqCst)
}
