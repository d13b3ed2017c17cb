//! What is counted: every byte once, by who sent it and why.
use crate::fixture::{Fault, Layer, SPAN, devices, options};
use clipper_device::{Devices, Figures, Priority, Purpose};
use std::{collections::HashSet, sync::Arc};

fn bytes(figures: &Figures, host: &str, purpose: Purpose) -> u64 {
    let of = figures.traffic.iter().filter(|traffic| traffic.host.ends_with(host) && traffic.purpose == purpose);
    of.map(|traffic| traffic.bytes).sum()
}

/// Waits until `done`, which must come about.
async fn figures(devices: &Devices, done: impl Fn(&Figures) -> bool) -> Figures {
    for _ in 0..5000 {
        if done(&devices.figures()) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    devices.figures()
}

#[tokio::test]
async fn bytes_are_counted_by_purpose_and_add_up() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(30));
    let devices = devices(dir.path(), options()).await;
    let source = layer.source("a");
    let device = devices.device(layer.spec(&source, None)).unwrap();
    layer.check(&device, 0..5 * SPAN).await.unwrap();
    device.ensure(10 * SPAN..14 * SPAN, Priority::Prefetch).await.unwrap();
    device.start_fill();
    device.filled().await;
    let counted = devices.figures();
    let of = |purpose| bytes(&counted, "at a", purpose);
    assert_eq!((of(Purpose::Demand), of(Purpose::Prefetch), of(Purpose::Hot)), (5 * SPAN, 4 * SPAN, 0));
    assert_eq!(of(Purpose::Background), layer.size() - 9 * SPAN);
    let spans: Vec<_> = counted.span_fetches.iter().map(|(purpose, it)| (*purpose, it.count())).collect();
    assert_eq!(spans, [(Purpose::Background, 22), (Purpose::Prefetch, 4), (Purpose::Demand, 5)]);
    assert_eq!((counted.read_waits.count(), counted.waiting_readers, counted.failed_reads), (1, 0, 0));
    assert_eq!((counted.corrupt, counted.span_retries, counted.slow_reads), (0, 0, 0));
    // What is here costs nothing and counts nothing.
    assert!(device.try_read(0, &mut [0; 100]).unwrap());
    assert_eq!(devices.figures().read_waits.count(), 1);
}

#[tokio::test]
async fn who_sent_what_and_who_was_wrong_shows() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(4));
    let devices = devices(dir.path(), options()).await;
    let (bad, good) = (layer.source("bad"), layer.source("good"));
    bad.always(Fault::Flip(100));
    let device = devices.device(layer.spec(&bad, None)).unwrap();
    devices.device(layer.spec(&good, None)).unwrap();
    layer.check(&device, 0..SPAN).await.unwrap();
    let counted = devices.figures();
    assert_eq!(bytes(&counted, "at good", Purpose::Demand), SPAN);
    assert!(bytes(&counted, "at bad", Purpose::Demand) >= SPAN);
    assert_eq!((counted.corrupt, counted.span_retries), (1, 1));
    assert_eq!(device.count_slow_read().as_deref().map(|host| host.ends_with("at good")), Some(true));
    assert_eq!(devices.figures().slow_reads, 1);
}

#[tokio::test]
async fn a_reader_waits_until_its_bytes_are_here_or_it_fails() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(4));
    let devices = devices(dir.path(), options()).await;
    let source = layer.source("a");
    let device = devices.device(layer.spec(&source, None)).unwrap();
    source.close();
    let reader = tokio::spawn({
        let device = Arc::clone(&device);
        async move { device.read(0, &mut [0; 10]).await }
    });
    assert_eq!(figures(&devices, |it| it.waiting_readers > 0).await.waiting_readers, 1);
    source.open();
    reader.await.unwrap().unwrap();
    assert_eq!(devices.figures().waiting_readers, 0);
    source.always(Fault::Refuse);
    assert!(device.read(3 * SPAN, &mut [0; 10]).await.is_err());
    let counted = devices.figures();
    assert_eq!((counted.failed_reads, counted.waiting_readers, counted.read_waits.count()), (1, 0, 2));
}

#[tokio::test]
async fn what_is_evicted_on_demand_is_what_may_go() {
    let dir = tempfile::tempdir().unwrap();
    let devices = devices(dir.path(), options()).await;
    let layers = [20, 21, 22].map(Layer::stored);
    let open: Vec<_> =
        layers.iter().map(|layer| devices.device(layer.spec(&layer.source("a"), None)).unwrap()).collect();
    for (layer, device) in layers.iter().zip(&open) {
        layer.check(device, 0..layer.size()).await.unwrap();
    }
    let [a, b, _] = layers.each_ref().map(Layer::digest);
    devices.pin(HashSet::from([a]));
    let cached = || open.iter().map(|device| device.cached_bytes()).collect::<Vec<_>>();
    let all = cached();
    // A part of one; nothing of what runs; what runs, if it is forced.
    let freed = devices.evict(Some(&HashSet::from([b])), 3 * SPAN, false);
    let left = cached()[1];
    // On disk the layer's last block is longer than what is in it.
    assert!(
        freed >= 3 * SPAN && left > all[1] / 2 && left <= all[1] - 3 * SPAN + 4096,
        "{freed}, {left} of {}",
        all[1]
    );
    assert_eq!(devices.evict(Some(&HashSet::from([a])), u64::MAX, false), 0);
    assert_eq!((cached()[0], cached()[2]), (all[0], all[2]));
    assert!(devices.evict(None, u64::MAX, false) > 0);
    assert_eq!(cached(), [all[0], 0, 0]);
    assert!(devices.evict(Some(&HashSet::from([a])), u64::MAX, true) > 0);
    assert_eq!(cached(), [0, 0, 0]);
    assert_eq!(devices.cache_usage().unwrap().evictions, 3);
    layers[0].check(&open[0], 0..layers[0].size()).await.unwrap();
}
