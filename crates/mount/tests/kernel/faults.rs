//! Damage anywhere is an error or is repaired; no wrong byte is ever served.
use crate::{
    fixture::{Image, Node, Packing, options},
    tarball::Entry,
    walk::noise,
};
use clipper_mount::{Driver, StoreError};
use std::{fs, os::unix::fs::FileExt as _, path::Path};

const SIZE: usize = 2_000_000;

fn image(packing: Packing) -> (Image, Vec<u8>) {
    let content = noise(1, SIZE);
    let entries = [Entry::dir("."), Entry::file("small", "small"), Entry::file("file", content.clone())];
    (Image::new(&[(&entries, packing)]), content)
}

/// Flips a bit of the byte at `at`.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// Reads `path` page by page: counts those that can be read, and they must be right.
fn readable_pages(path: &Path, content: &[u8]) -> usize {
    let file = fs::File::open(path).unwrap();
    let mut good = 0;
    for (page, expected) in content.chunks(4096).enumerate() {
        let mut buffer = vec![0; expected.len()];
        match file.read_exact_at(&mut buffer, page as u64 * 4096) {
            Ok(()) => {
                assert!(buffer == expected, "page {page} is wrong");
                good += 1;
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "page {page}"),
        }
    }
    good
}

async fn a_damaged_layer_gives_eio_for_what_it_spoils_and_the_rest_stays_readable(driver: Driver) {
    for packing in [Packing::Gzip, Packing::Tar, Packing::Zstd] {
        let (image, content) = image(packing);
        let blob = image.blob(image.layers[0].layer);
        let size = fs::metadata(&blob).unwrap().len() as usize;
        flip(&blob, size / 2);
        let node = Node::new(driver);
        let mounted = node.mount(&image).await;
        let good = readable_pages(&mounted.dir().join("file"), &content);
        let pages = SIZE.div_ceil(4096);
        assert!(good < pages, "the damage was not noticed");
        assert!(good > pages / 2, "only {good} of {pages} pages can be read");
        assert_eq!(fs::read(mounted.dir().join("small")).unwrap(), b"small");
    }
}

async fn what_could_be_read_of_a_large_request_does_not_hide_that_the_rest_could_not(driver: Driver) {
    let content = noise(3, 12 << 20);
    let image = Image::new(&[(&[Entry::dir("."), Entry::file("file", content.clone())], Packing::Tar)]);
    let blob = image.blob(image.layers[0].layer);
    flip(&blob, 3 << 20);
    let node = Node::new(driver);
    let mounted = node.mount(&image).await;
    // What the kernel reads ahead is then more than a FUSE request may ask for.
    for entry in fs::read_dir("/sys/class/bdi").unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().as_encoded_bytes().starts_with(b"erofs") {
            // Another test's may be gone by now.
            let _ = fs::write(entry.path().join("read_ahead_kb"), "8192");
        }
    }
    let good = readable_pages(&mounted.dir().join("file"), &content);
    let pages = content.len().div_ceil(4096);
    assert!(good < pages && good > pages / 2, "{good} of {pages} pages can be read");
}

async fn a_truncated_layer_gives_eio_behind_its_end(driver: Driver) {
    let (image, content) = image(Packing::Gzip);
    let blob = image.blob(image.layers[0].layer);
    let size = fs::metadata(&blob).unwrap().len();
    fs::OpenOptions::new().write(true).open(&blob).unwrap().set_len(size / 2).unwrap();
    let node = Node::new(driver);
    let mounted = node.mount(&image).await;
    assert!(readable_pages(&mounted.dir().join("file"), &content) < SIZE.div_ceil(4096));
}

async fn damaged_checkpoints_give_eio_or_the_right_bytes(driver: Driver) {
    let (image, content) = image(Packing::Gzip);
    let found = crate::fixture::resolve(&image.reference("latest_accelerated")).await.unwrap();
    let blob = image.blob(found.checkpoints.unwrap().digest);
    let good = fs::read(&blob).unwrap();
    for at in [0, good.len() / 3, good.len() - 1] {
        fs::write(&blob, &good).unwrap();
        flip(&blob, at);
        let node = Node::new(driver);
        let mounted = node.mount(&image).await;
        // From the end, so that decoders have to start at checkpoints.
        let file = fs::File::open(mounted.dir().join("file")).unwrap();
        for (page, expected) in content.chunks(4096).enumerate().rev().step_by(13) {
            let mut buffer = vec![0; expected.len()];
            if file.read_exact_at(&mut buffer, page as u64 * 4096).is_ok() {
                assert!(buffer == expected, "page {page} is wrong");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_or_missing_index_refuses_the_mount_and_is_named() {
    let (image, _) = image(Packing::Gzip);
    let index = image.layers[0].index;
    let blob = image.blob(index);
    let size = fs::metadata(&blob).unwrap().len() as usize;
    flip(&blob, size / 2);
    let node = Node::new(Driver::Fuse);
    let error = node.store.image(&image.layers, false).await.err().unwrap();
    assert!(matches!(error, StoreError::Fetch { .. }), "{error}");
    assert!(error.to_string().contains(&index.to_string()), "{error}");
    fs::remove_file(&blob).unwrap();
    let error = node.store.image(&image.layers, false).await.err().unwrap();
    assert!(matches!(error, StoreError::NoIndex { .. } | StoreError::Fetch { .. }), "{error}");
    assert!(error.to_string().contains(&index.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_does_not_know_the_layer_is_refused() {
    let (first, _) = image(Packing::Gzip);
    let (second, _) = image(Packing::Tar);
    let mut layer = first.layers[0].clone();
    layer.layer = second.layers[0].layer;
    let node = Node::new(Driver::Fuse);
    let error = node.store.image(&[layer], false).await.err().unwrap();
    assert!(matches!(error, StoreError::NoLayer { .. }), "{error}");
}

async fn a_damaged_cache_is_repaired(driver: Driver) {
    let (image, content) = image(Packing::Gzip);
    let node = Node::new(driver);
    drop(node.mount(&image).await);
    let store = node.root().join("store");
    let trees: Vec<_> = fs::read_dir(store.join("trees")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [tree] = &trees[..] else { panic!("{trees:?}") };
    let good_tree = fs::read(tree).unwrap();
    flip(tree, good_tree.len() / 2);
    let index = store.join("indexes").join(image.layers[0].index.hex());
    let good_index = fs::read(&index).unwrap();
    flip(&index, good_index.len() / 2);

    let node = node.restarted();
    let mounted = node.store.mount(&image.layers, false, &node.dir("mnt"), &options(driver)).await.unwrap();
    assert!(fs::read(mounted.dir().join("file")).unwrap() == content);
    assert!(fs::read(tree).unwrap() == good_tree);
    assert!(fs::read(&index).unwrap() == good_index);
}

over_both_drivers! {
    a_damaged_layer_gives_eio_for_what_it_spoils_and_the_rest_stays_readable,
    what_could_be_read_of_a_large_request_does_not_hide_that_the_rest_could_not,
    a_truncated_layer_gives_eio_behind_its_end,
    damaged_checkpoints_give_eio_or_the_right_bytes,
    a_damaged_cache_is_repaired,
}
