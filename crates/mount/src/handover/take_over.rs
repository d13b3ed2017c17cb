//! Taking over what an earlier process served: its images are made again, from what is on disk, and then its connections
//! are answered again. Until then nobody in this process may touch what is mounted there.
use super::{Kept, MountNote, Note};
use crate::{
    LazyImage, MountError, MountOptions, Mounted, Store,
    erofs::{DeviceFiles, KeptFiles, KeptImage},
    fuse::{self, KeptTree},
    mount_point::{self, Attached, MountPoint},
    session::Session,
};
use std::{collections::HashMap, os::fd::OwnedFd, sync::Arc};
use tokio::task::{JoinHandle, spawn_blocking};

/// An image that is made again.
struct Coming {
    name: String,
    mount: MountNote,
    image: JoinHandle<Result<LazyImage, MountError>>,
}

impl Store {
    /// Serves again what is in `left`, and gives what is still mounted on its directory. What was unmounted and is in
    /// use nevertheless is served until it isn't. Images are mounted with `options` but for the driver, which is the one
    /// that they had.
    ///
    /// What can't be served again is let go, which the log tells: its readers get errors. Never touches the network.
    pub async fn take_over(self: &Arc<Self>, left: Vec<Kept>, options: &MountOptions) -> Vec<Mounted> {
        let keeping = self.drivers().keeping();
        let (mut trees, mut devices, mut images) = (Vec::new(), Vec::new(), HashMap::<_, Vec<_>>::new());
        for Kept { name, descriptors } in left {
            let mut descriptors = descriptors.into_iter();
            let note = descriptors.next().map(Note::from_file);
            match (note, descriptors.next(), descriptors.next()) {
                (Some(Ok(Note::Tree { flags, threads, mount })), Some(connection), None) => {
                    trees.push((self.again(name, mount), connection, flags, threads));
                }
                (Some(Ok(Note::Devices { flags })), Some(connection), Some(root)) => {
                    devices.push((name, connection, root, flags));
                }
                (Some(Ok(Note::Image { files, number, mount })), None, None) => {
                    images.entry(files).or_default().push((self.again(name, mount), number));
                }
                (note, ..) => {
                    let error =
                        note.and_then(Result::err).map_or("wrong descriptors".into(), |error| error.to_string());
                    tracing::error!(name, error, "a mount of an earlier process can't be taken over");
                    keeping.release(&name);
                }
            }
        }
        let attached = mount_point::attached();
        let mut mounted = Vec::new();
        for (name, connection, root, flags) in devices {
            let images = images.remove(&name).unwrap_or_default();
            mounted
                .extend(self.take_over_devices(KeptFiles { name, connection, root, flags }, images, &attached).await);
        }
        for (coming, _) in images.into_values().flatten() {
            // The filesystem that served them is gone.
            keeping.release(&coming.name);
        }
        for (coming, connection, flags, threads) in trees {
            mounted.extend(self.take_over_tree(coming, connection, flags, threads, &attached).await);
        }
        mounted.into_iter().map(|(image, session)| Mounted::adopt(image, session, options, keeping.clone())).collect()
    }

    /// Begins to make an image again.
    fn again(self: &Arc<Self>, name: String, mount: MountNote) -> Coming {
        let (store, origin) = (Arc::clone(self), mount.origin.clone());
        let image = tokio::spawn(async move { Ok(store.image_of(&origin).await?) });
        Coming { name, mount, image }
    }

    async fn take_over_tree(
        self: &Arc<Self>,
        coming: Coming,
        connection: OwnedFd,
        flags: u64,
        threads: usize,
        attached: &Attached,
    ) -> Option<(LazyImage, Session)> {
        let Coming { name, mount, image } = coming;
        let MountNote { dir, device, .. } = mount;
        let (keeping, runtime) = (self.drivers().keeping().clone(), self.drivers().runtime().clone());
        let image = self.made(&name, image).await?;
        let place = MountPoint::known(dir, device);
        let tree = KeptTree { name: name.clone(), image: image.clone(), connection, flags, threads };
        let taken = spawn_blocking(move || fuse::take_over(tree, runtime, keeping)).await;
        match taken.map_err(MountError::from).and_then(|taken| taken.map_err(|source| place.refused(source))) {
            Ok(life) => attached.has(&place).then_some((image, Session { mount_point: place, life })),
            Err(error) => {
                self.give_up(&name, &error);
                None
            }
        }
    }

    async fn take_over_devices(
        self: &Arc<Self>,
        files: KeptFiles,
        images: Vec<(Coming, u64)>,
        attached: &Attached,
    ) -> Vec<(LazyImage, Session)> {
        let (mut kept, mut places) = (Vec::new(), Vec::new());
        for (Coming { name, mount, image }, number) in images {
            if let Some(image) = self.made(&name, image).await {
                places.push((image.clone(), MountPoint::known(mount.dir, mount.device)));
                kept.push(KeptImage { name, number, image });
            }
        }
        let (keeping, runtime) = (self.drivers().keeping().clone(), self.drivers().runtime().clone());
        let name = files.name.clone();
        let taken = spawn_blocking(move || DeviceFiles::take_over(files, kept, runtime, keeping)).await;
        match taken.map_err(std::io::Error::other).and_then(|taken| taken) {
            Ok((files, lives)) => {
                self.drivers().go_on_with(files);
                let sessions = places.into_iter().zip(lives);
                sessions
                    .filter(|((_, place), _)| attached.has(place))
                    .map(|((image, mount_point), life)| (image, Session { mount_point, life }))
                    .collect()
            }
            Err(error) => {
                self.give_up(&name, &error);
                Vec::new()
            }
        }
    }

    /// The image, once it is made.
    async fn made(&self, name: &str, image: JoinHandle<Result<LazyImage, MountError>>) -> Option<LazyImage> {
        match image.await.map_err(MountError::from).and_then(|image| image) {
            Ok(image) => Some(image),
            Err(error) => {
                self.give_up(name, &error);
                None
            }
        }
    }

    fn give_up(&self, name: &str, error: &(dyn std::error::Error + 'static)) {
        tracing::error!(name, error, "an image can't be served any more: its readers get errors");
        self.drivers().keeping().release(name);
    }
}
