//! Loading an image whole because somebody asked for it.
use crate::{error::with_causes, proto::clipper::control::v1::PrefetchProgress};
use clipper_device::{DeviceError, Priority};
use clipper_mount::OpenLayers;
use futures::{
    Stream,
    future::BoxFuture,
    stream::{self, StreamExt, TryStreamExt},
};
use std::{sync::Arc, time::Duration};
use tokio::time::{MissedTickBehavior, interval};
use tonic::Status;

/// Uncompressed bytes that are asked for at a time.
const STEP: u64 = 16 << 20;
/// Steps under way at the same time: the link shouldn't wait between two.
const SIDE_BY_SIDE: usize = 3;
/// Between two messages.
const PERIOD: Duration = Duration::from_millis(250);

/// An image being loaded. What was fetched stays if this is dropped.
struct Loading {
    image: String,
    open: Arc<OpenLayers>,
    /// `None` once it has ended.
    work: Option<BoxFuture<'static, Result<(), DeviceError>>>,
    ticks: tokio::time::Interval,
}

/// Loads what is missing of `open`, the layers of `image`, and tells how far it is. It ends when its reader hangs up.
pub fn run(image: String, open: OpenLayers) -> impl Stream<Item = Result<PrefetchProgress, Status>> + Send {
    let open = Arc::new(open);
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let work = Box::pin(load(Arc::clone(&open)));
    let loading = Loading { image, open, work: Some(work), ticks };
    stream::unfold(loading, |mut loading| async move {
        let message = loading.next().await?;
        Some((message, loading))
    })
}

impl Loading {
    async fn next(&mut self) -> Option<Result<PrefetchProgress, Status>> {
        let work = self.work.as_mut()?;
        let ended = tokio::select! {
            biased;
            ended = work => ended,
            _ = self.ticks.tick() => return Some(Ok(self.progress(false))),
        };
        self.work = None;
        Some(match ended {
            Ok(()) => Ok(self.progress(true)),
            Err(error) => Err(Status::unavailable(format!("{}: {}", self.image, with_causes(&error)))),
        })
    }

    fn progress(&self, done: bool) -> PrefetchProgress {
        let devices = || self.open.devices().iter().map(|lazy| &lazy.device);
        PrefetchProgress {
            image: self.image.clone(),
            size: devices().map(|device| device.size()).sum(),
            cached: devices().map(|device| device.cached_bytes()).sum(),
            done,
        }
    }
}

/// Loads all layers, bottom first.
async fn load(open: Arc<OpenLayers>) -> Result<(), DeviceError> {
    let steps: Vec<_> = open
        .devices()
        .iter()
        .flat_map(|lazy| {
            let (device, size) = (&lazy.device, lazy.device.size());
            (0..size).step_by(STEP as usize).map(move |start| (Arc::clone(device), start..size.min(start + STEP)))
        })
        .collect();
    let fetch = |(device, bytes): (Arc<clipper_device::Device>, _)| async move {
        device.ensure(bytes, Priority::Prefetch).await
    };
    stream::iter(steps).map(fetch).buffer_unordered(SIDE_BY_SIDE).try_collect().await
}
