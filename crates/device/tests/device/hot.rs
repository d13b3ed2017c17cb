//! Hot streams: what they bring, who waits for them, and what happens when they are no good.
use crate::fixture::{CHUNK, Fault, Layer, TestSource, devices, options};
use clipper_device::{Device, DeviceOptions, Devices, HotFrameSpec, HotPart, HotSpec, HotStream, Source};
use clipper_format::{
    Digest,
    index::{HotLevel, pack_hot_frame},
};
use std::{ops::Range, sync::Arc, time::Duration};

/// Layers and bytes of their devices.
type Parts = Vec<(usize, Range<u64>)>;

/// Two layers with their devices, and a hot blob over both.
struct Scene {
    _dir: tempfile::TempDir,
    devices: Arc<Devices>,
    layers: [Layer; 2],
    sources: [Arc<TestSource>; 2],
    open: [Arc<Device>; 2],
    hot: Arc<TestSource>,
    /// Bytes of each frame, and what it holds.
    frames: Vec<(u32, Parts)>,
}

/// What the frames of the hot blob hold: layer and bytes.
fn plan() -> Vec<Parts> {
    vec![
        vec![(0, 8192..200_704), (1, 0..4096)],
        vec![(1, 40_960..139_264)],
        // The end of a device isn't the end of a block.
        vec![(0, 524_288..524_388), (1, 8192..12_288)],
    ]
}

impl Scene {
    async fn new(options: DeviceOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layers = [Layer::stored(8), Layer::gzip(300_000, usize::MAX)];
        let sources = [layers[0].source("a"), layers[1].source("a")];
        let devices = devices(dir.path(), options).await;
        let points = layers[1].checkpoint_source("a");
        let open = [
            devices.device(layers[0].spec(&sources[0], None)).unwrap(),
            devices.device(layers[1].spec(&sources[1], Some(&points))).unwrap(),
        ];
        let (mut blob, mut frames) = (Vec::new(), Vec::new());
        for parts in plan() {
            let frame = pack_hot_frame(&content(&layers, &parts), HotLevel::Small).unwrap();
            frames.push((frame.len() as u32, parts));
            blob.extend(frame);
        }
        let hot = TestSource::new("the hot blob".into(), Arc::new(blob));
        Self { _dir: dir, devices, layers, sources, open, hot, frames }
    }

    fn stream(&self) -> Option<HotStream> {
        self.stream_of(&[&self.hot])
    }

    fn stream_of(&self, sources: &[&Arc<TestSource>]) -> Option<HotStream> {
        let part = |(layer, range): &(usize, Range<u64>)| HotPart {
            device: Arc::clone(&self.open[*layer]),
            range: range.clone(),
        };
        let frame = |(len, parts): &(u32, Vec<_>)| HotFrameSpec {
            len: *len,
            parts: parts.iter().map(part).collect(),
            blake3: *blake3::hash(&content(&self.layers, parts)).as_bytes(),
        };
        self.devices.stream_hot(HotSpec {
            digest: Digest::of(b"hot"),
            sources: sources.iter().map(|source| Arc::clone(source) as Arc<dyn Source>).collect(),
            frames: self.frames.iter().map(frame).collect(),
            log: tracing::Span::none(),
        })
    }

    async fn check(&self, layer: usize, range: Range<u64>) {
        self.layers[layer].check(&self.open[layer], range).await.unwrap();
    }

    /// GETs of the layers themselves.
    fn gets(&self) -> [usize; 2] {
        [0, 1].map(|layer| self.sources[layer].gets().len())
    }
}

fn content(layers: &[Layer], parts: &[(usize, Range<u64>)]) -> Vec<u8> {
    parts
        .iter()
        .flat_map(|(layer, range)| &layers[*layer].device[range.start as usize..range.end as usize])
        .copied()
        .collect()
}

#[tokio::test]
async fn all_of_it_lands_by_one_get_and_readers_need_none() {
    let scene = Scene::new(options()).await;
    scene.hot.close();
    let stream = scene.stream().unwrap();
    let reading = async {
        scene.check(1, 50_000..60_000).await;
        scene.check(0, 524_300..524_388).await;
        scene.check(0, 10_000..190_000).await;
    };
    let opening = async {
        scene.hot.sent(1).await;
        scene.hot.open();
    };
    tokio::join!(reading, opening, stream.ended());
    for (layer, range) in plan().into_iter().flatten() {
        scene.check(layer, range).await;
    }
    assert_eq!((scene.hot.gets().len(), scene.gets()), (1, [0, 0]));
    assert!(scene.stream().is_none(), "all of it is here");
    // What it didn't bring is fetched as ever.
    scene.check(1, 5000..6000).await;
    assert_eq!(scene.gets(), [0, 1]);
}

#[tokio::test]
async fn only_what_is_missing_is_streamed() {
    let scene = Scene::new(options()).await;
    scene.check(0, 0..524_388).await;
    scene.check(1, 0..10_000).await;
    scene.stream().unwrap().ended().await;
    // The first frame is all here; the others aren't.
    let first = u64::from(scene.frames[0].0);
    assert_eq!(scene.hot.gets().iter().map(|get| get.start).collect::<Vec<_>>(), [first]);
}

#[tokio::test]
async fn what_one_stream_brings_no_other_does() {
    let scene = Scene::new(options()).await;
    scene.hot.close();
    let stream = scene.stream().unwrap();
    // As for a second image on the same layers that is pulled meanwhile.
    assert!(scene.stream().is_none());
    scene.hot.open();
    stream.ended().await;
    scene.check(1, 50_000..60_000).await;
    assert_eq!((scene.hot.gets().len(), scene.gets()), (1, [0, 0]));
}

#[tokio::test]
async fn a_reader_far_ahead_of_the_stream_sends_a_get_of_its_own() {
    let scene = Scene::new(DeviceOptions { hot_join_distance: 100, ..options() }).await;
    scene.hot.close();
    let stream = scene.stream().unwrap();
    scene.check(1, 50_000..60_000).await;
    assert_eq!(scene.gets(), [0, 1]);
    scene.hot.open();
    stream.ended().await;
}

#[tokio::test]
async fn a_corrupt_frame_is_left_out_and_its_readers_fetch_for_themselves() {
    let scene = Scene::new(options()).await;
    scene.hot.plan([Fault::Flip(u64::from(scene.frames[0].0) + 100)]);
    scene.stream().unwrap().ended().await;
    assert_eq!((scene.hot.distrusted().len(), scene.gets()), (1, [0, 0]));
    scene.check(0, 8192..200_704).await;
    scene.check(1, 8192..12_288).await;
    assert_eq!(scene.gets(), [0, 0]);
    scene.check(1, 40_960..139_264).await;
    assert!(scene.gets()[1] > 0);
}

#[tokio::test]
async fn another_source_goes_on_where_one_broke() {
    let scene = Scene::new(options()).await;
    let first = u64::from(scene.frames[0].0);
    scene.hot.plan([Fault::Break(first + 10)]);
    scene.stream_of(&[&scene.hot, &scene.hot]).unwrap().ended().await;
    assert_eq!(scene.hot.gets().iter().map(|get| get.start).collect::<Vec<_>>(), [0, first]);
    for (layer, range) in plan().into_iter().flatten() {
        scene.check(layer, range).await;
    }
    assert_eq!(scene.gets(), [0, 0]);
}

#[tokio::test]
async fn readers_of_a_stream_that_breaks_or_stalls_fetch_for_themselves() {
    for fault in [Fault::Refuse, Fault::Break(1000), Fault::Short(1000), Fault::Stall(CHUNK as u64)] {
        let options = DeviceOptions { hot_patience: Duration::from_millis(20), ..options() };
        let scene = Scene::new(options).await;
        scene.hot.plan([fault]);
        let _stream = scene.stream();
        scene.check(1, 41_000..50_000).await;
        scene.check(0, 524_300..524_388).await;
        assert_eq!(scene.gets(), [1, 1], "{fault:?}");
    }
}
