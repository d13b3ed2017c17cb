//! The metrics by name: figures as text in the OpenMetrics format. docs/operations.md has a table of them.
use crate::node::{ImageFigures, NodeFigures};
use clipper_device::Latencies;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Registry,
};
use std::fmt;

/// What the text is, for HTTP.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What all names begin with.
const PREFIX: &str = "clipper";

/// Labels and their values.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// All metrics as text.
///
/// # Errors
/// Never in practice: a text can always be added to.
pub fn encode(figures: NodeFigures) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Scrape(figures)));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

/// The figures of one scrape.
struct Scrape(NodeFigures);

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Families(encoder);
        self.node(&mut to)?;
        self.fetches(&mut to)?;
        self.registries(&mut to)?;
        self.cache(&mut to)
    }
}

impl Scrape {
    fn node(&self, to: &mut Families<'_>) -> fmt::Result {
        let NodeFigures { driver, snapshots, images, takeovers, .. } = &self.0;
        let build = vec![("version", env!("CARGO_PKG_VERSION")), ("driver", driver)];
        to.gauges("build_info", "The daemon's version and driver", [(build, 1)])?;
        to.gauges("mounts", "Images that are mounted", [(vec![], images.len() as u64)])?;
        let snapshots = snapshots.iter().map(|(kind, count)| (vec![("kind", *kind)], *count));
        to.gauges("snapshots", "Snapshots that containerd knows", snapshots)?;
        to.counter("takeovers", "Times that a new process took mounts over from the one before", *takeovers)?;
        let of = |bytes: fn(&ImageFigures) -> u64| {
            images.iter().map(move |image| (vec![("image", &*image.name), ("chain", &*image.chain)], bytes(image)))
        };
        to.gauges("image_bytes", "Uncompressed bytes of a mounted image", of(|image| image.size))?;
        to.gauges("image_cached_bytes", "Those of them that are on disk, verified", of(|image| image.cached))
    }

    fn fetches(&self, to: &mut Families<'_>) -> fmt::Result {
        let devices = &self.0.devices;
        let traffic =
            devices.traffic.iter().map(|it| (vec![("source", it.purpose.name()), ("host", &*it.host)], it.bytes));
        to.counters("fetched_bytes", "Bytes of layers, checkpoints and hot blobs that arrived", traffic)?;
        let spans = devices.span_fetches.iter().map(|(purpose, it)| (vec![("source", purpose.name())], *it));
        let help = "Seconds from when a span was asked for to when it was verified and on disk";
        to.histograms("span_fetch_seconds", help, spans)?;
        let help = "Seconds that readers waited whose bytes were not on disk";
        to.histograms("read_wait_seconds", help, [(vec![], devices.read_waits)])?;
        to.gauges("waiting_readers", "Readers that wait right now", [(vec![], devices.waiting_readers)])?;
        to.counter("failed_reads", "Reads that failed", devices.failed_reads)?;
        to.counter("slow_reads", "Reads that took longer than slow_read_ms", devices.slow_reads)?;
        to.counter("span_retries", "Spans that were asked for again after a failure", devices.span_retries)?;
        let help = "Spans and hot frames that were not what the index promises";
        to.counter("verification_failures", help, devices.corrupt)
    }

    fn registries(&self, to: &mut Families<'_>) -> fmt::Result {
        let NodeFigures { registry, hosts, .. } = &self.0;
        to.counter("registry_retries", "Requests and bodies that failed and were tried again", registry.retries)?;
        let of = |figure: fn(&clipper_registry::HostStats) -> u64| {
            hosts.iter().map(move |host| (vec![("host", host.host.as_str())], figure(host)))
        };
        to.counters("registry_requests", "HTTP requests sent to a server", of(|host| host.requests))?;
        let help = "Bytes of response bodies from a server, of whatever kind";
        to.counters("registry_received_bytes", help, of(|host| host.bytes_received))?;
        to.counters("registry_failures", "Requests and bodies that failed at a server", of(|host| host.failures))?;
        let help = "Times that another server was asked because this one failed or was silent";
        to.counters("registry_failovers", help, of(|host| host.failovers))?;
        let help = "Times that bytes of a server turned out wrong";
        to.counters("registry_verification_failures", help, of(|host| host.verification_failures))?;
        to.gauges("registry_sick", "Whether a server failed last", of(|host| host.sick.into()))
    }

    fn cache(&self, to: &mut Families<'_>) -> fmt::Result {
        let Some(cache) = &self.0.cache else { return Ok(()) };
        to.gauges("cache_bytes", "Bytes of disk that the data of layers take", [(vec![], cache.disk_bytes)])?;
        if let Some(max) = cache.max_bytes {
            to.gauges("cache_max_bytes", "Most bytes that they may take", [(vec![], max)])?;
        }
        to.gauges("cache_disk_free_bytes", "Bytes that are free on their disk", [(vec![], cache.free)])?;
        to.gauges("cache_disk_min_free_bytes", "Bytes that have to stay free there", [(vec![], cache.min_free)])?;
        to.counter("evictions", "Times that cold data were evicted", cache.evictions)?;
        to.counter("evicted_bytes", "Bytes of disk that evictions gave back", cache.evicted)?;
        let help = "Whether nothing is cached because the disk is full or fails";
        to.gauges("cache_in_trouble", help, [(vec![], u64::from(cache.in_trouble))])
    }
}

/// Writes families of metrics.
struct Families<'e>(DescriptorEncoder<'e>);

impl Families<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counters(name, help, [(vec![], value)])
    }

    fn counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        all: impl IntoIterator<Item = (Labels<'a>, u64)>,
    ) -> fmt::Result {
        let no_exemplar: Option<&Exemplar<NoLabelSet, u64>> = None;
        self.family(name, help, MetricType::Counter, all, |mut to, value| to.encode_counter(&value, no_exemplar))
    }

    fn gauges<'a, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        all: impl IntoIterator<Item = (Labels<'a>, V)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, all, |mut to, value| to.encode_gauge(&value))
    }

    fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        all: impl IntoIterator<Item = (Labels<'a>, Latencies)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Histogram, all, |mut to, latencies| {
            let bounds = Latencies::BOUNDS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(latencies.counts).collect();
            to.encode_histogram::<NoLabelSet>(latencies.sum, latencies.count(), &buckets, None)
        })
    }

    fn family<'a, V>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        all: impl IntoIterator<Item = (Labels<'a>, V)>,
        write: impl Fn(MetricEncoder<'_>, V) -> fmt::Result,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in all {
            write(family.encode_family(&labels)?, value)?;
        }
        Ok(())
    }
}
