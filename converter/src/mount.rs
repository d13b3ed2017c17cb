//! `clipper mount`: an accelerated image as a directory, without containerd.
use crate::cli::{Common, Driver, MountArgs};
use crate::images::{self, TemporaryStore};
use crate::report::{Progress, human};
use anyhow::{Context, Result, bail};
use clipper_mount::{MountOptions, accelerated};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the command until the mount ends.
pub async fn run(common: &Common, args: MountArgs) -> Result<()> {
    let progress = Progress::new(common);
    if !args.dir.is_dir() {
        bail!("{} is not a directory: make it first", args.dir.display());
    }
    // Listen before there is a mount, so that no signal can leave one behind.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let client = common.client()?;
    let (temporary, store) = match &args.cache {
        Some(root) => {
            std::fs::create_dir_all(root).with_context(|| format!("making the cache {}", root.display()))?;
            (None, images::store(&client, root)?)
        }
        None => {
            let temporary = TemporaryStore::open(&client)?;
            let store = Arc::clone(temporary.store());
            (Some(temporary), store)
        }
    };
    let image = accelerated::resolve(&client, &args.reference, args.platform.as_deref()).await?;
    let layers: Vec<_> = image.layers.iter().map(|l| l.reference.clone()).collect();
    let options = MountOptions {
        driver: match args.driver {
            Driver::Auto => clipper_mount::Driver::Auto,
            Driver::Erofs => clipper_mount::Driver::Erofs,
            Driver::Fuse => clipper_mount::Driver::Fuse,
        },
        background_fill: args.fill,
        ..MountOptions::default()
    };
    let mounted = store.mount(&layers, false, &args.dir, &options).await?;
    let size = image.layers.iter().map(|l| l.size).sum();
    progress.say(&format!(
        "{} ({}, {} in the registry) is mounted on {}; Ctrl-C or umount ends it",
        args.reference,
        image.platform,
        human(size),
        args.dir.display()
    ));
    tokio::select! {
        () = mounted.ended() => progress.say("unmounted"),
        _ = interrupt.recv() => mounted.unmount()?,
        _ = terminate.recv() => mounted.unmount()?,
    }
    drop(mounted);
    store.flush().await.context("recording what is cached")?;
    drop(store);
    match temporary {
        Some(temporary) => temporary.remove().await,
        None => Ok(()),
    }
}
