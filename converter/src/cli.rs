//! The command line: what users can say, and the texts of `--help`.
use crate::node::NodeArgs;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clipper_registry::{Client, ClientOptions, Reference};
use std::path::PathBuf;

/// Start containers before their image has been downloaded.
///
/// `clipper convert` describes the layers of an image so that any byte of any file can be fetched alone, and
/// publishes the result under a new tag. On nodes, clipper-snapshotter mounts such an image at once. Runtimes that
/// know nothing of Clipper pull and run the same tag as an ordinary image.
#[derive(Debug, Parser)]
#[command(name = "clipper", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed, or `check` found differences; 2 the command line is wrong.

REF is one of
  registry/repository:tag
  registry/repository@sha256:…
  oci:DIR[:TAG]                  an OCI image layout on disk

Registries on loopback are spoken to over plain HTTP, all others over HTTPS unless --plain-http or the
registry's hosts.toml says otherwise. Credentials come from docker's config.json and its helpers.";

/// Options of every command.
#[derive(Debug, Args)]
pub struct Common {
    /// Speak plain HTTP to registries that aren't on loopback
    #[arg(long, global = true)]
    pub plain_http: bool,
    /// Folder of containerd's per-registry settings, HOST/hosts.toml (mirrors, CAs, plain HTTP)
    #[arg(long, global = true, value_name = "DIR", default_value = "/etc/containerd/certs.d")]
    pub hosts_dir: PathBuf,
    /// Docker's config.json, for credentials [default: $DOCKER_CONFIG/config.json or ~/.docker/config.json]
    #[arg(long, global = true, value_name = "FILE")]
    pub docker_config: Option<PathBuf>,
    /// Print the result as one JSON document on standard output; progress goes to standard error
    #[arg(long, global = true)]
    pub json: bool,
    /// Only print errors and the result
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// What to log: error, warn, info, debug, trace, or per-module filters
    #[arg(long, global = true, value_name = "FILTER", default_value = "warn", env = "CLIPPER_LOG")]
    pub log: String,
}

impl Common {
    /// A registry client with these options.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(ClientOptions {
            plain_http: self.plain_http,
            hosts_dir: Some(self.hosts_dir.clone()),
            docker_config: self.docker_config.clone(),
            ..ClientOptions::default()
        })?)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an accelerated image from an ordinary one
    ///
    /// Reads every layer once, as a stream, and publishes an OCI image index with the image (its layers annotated) and
    /// its index (file trees, span tables, checkpoints). The base image's tags, manifests and blobs are never changed.
    /// Nothing is written to local disk. The same input and options always give the same digests; layers that were
    /// already indexed in the target repository are reused.
    Convert(ConvertArgs),
    /// Copy an image with its index, digests unchanged
    ///
    /// Copies all manifests and blobs that the image consists of, blobs side by side, the tag last. What the target has is
    /// left alone, so a copy that broke off goes on where it was. Any image can be copied, also an ordinary one.
    Copy(CopyArgs),
    /// Show what an accelerated image is made of
    ///
    /// Shows, for each platform, the layers with their sizes, files, spans and checkpoints, the ratio of index to image,
    /// and whether the base image is needed.
    Inspect(InspectArgs),
    /// Compare an accelerated image with its base: every path, byte and attribute
    ///
    /// Downloads the ordinary layers and unpacks them in memory by a path of its own, reads the same image lazily
    /// through its index, and compares every path, type, byte, owner, mode, time, xattr, link and device number.
    /// Prints the differences and exits with 1 if there are any.
    Check(CheckArgs),
    /// Mount an accelerated image lazily and read-only, without containerd
    ///
    /// Mounts the image read-only on DIR and stays in the foreground. Ctrl-C, SIGTERM or `umount DIR` ends it.
    /// Files are fetched when they are read. What was fetched is kept in the cache and verified.
    Mount(MountArgs),
    /// Pull an accelerated image into containerd without downloading its layers
    ///
    /// Does through containerd's API what `ctr image pull` does, and passes the snapshotter the labels that it needs to
    /// mount the image without its layers: for containerd versions whose own clients can't. Layers that the snapshotter
    /// doesn't take are downloaded and unpacked as usual.
    Pull(PullArgs),
    /// Run an accelerated image and record what its start-up reads
    ///
    /// Pulls the image, runs it through containerd and clipper-snapshotter on this machine, and writes which bytes of its
    /// files were read, in the order of first touch: a trace, for `clipper convert --trace`. Ends when --url answers, when
    /// the command exits, or after --timeout. The container runs on the host's network and is removed in the end.
    Record(RecordArgs),
    /// Look at the snapshotter of this node and steer it: status, images, disk, prefetch, evict, trace
    ///
    /// Speaks to the daemon's control socket, so it has to run as root on the node itself.
    Node(NodeArgs),
}

/// How the result relates to the base image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Describe the base image's own layers; needs the base image's blobs to stay in the registry
    IndexOnly,
    /// Repack the layers, too: TAG_accelerated then is an image of its own, which doesn't need the base image; the base
    /// image's own layers, described as in index-only mode, go to TAG_containerd_accelerated
    Full,
}

/// What full mode makes of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LayerFormat {
    /// zstd:chunked: smaller, and fetched in parts by podman and stargz-snapshotter, too
    Zstd,
    /// gzip members, for runtimes that can't read zstd
    Gzip,
}

/// What `clipper convert` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  clipper convert registry.example.com/team/app:1.4
      publishes registry.example.com/team/app:1.4_accelerated
  clipper convert --mode full registry.example.com/team/app:1.4
      publishes app:1.4_accelerated, repacked, and app:1.4_containerd_accelerated, over the base's own layers
  clipper convert oci:./image:latest registry.example.com/team/app:latest_accelerated
  clipper convert --platform linux/arm64 --json registry.example.com/team/app:1.4")]
pub struct ConvertArgs {
    /// The image to convert (REF)
    pub source: Reference,
    /// Where the result goes (REF) [default: SOURCE's repository, its tag with --tag-suffix]
    pub target: Option<Reference>,
    /// How the result relates to the base image
    #[arg(long, value_enum, default_value_t = Mode::IndexOnly)]
    pub mode: Mode,
    /// What the result's tag is called: the base image's tag with this behind it. In full mode the second tag has
    /// _containerd before it
    #[arg(long, value_name = "SUFFIX", default_value = "_accelerated", value_parser = parse_tag_suffix)]
    pub tag_suffix: String,
    /// How full mode compresses layers
    #[arg(long, value_enum, default_value_t = LayerFormat::Zstd)]
    pub compression: LayerFormat,
    /// Level of full mode's compression: 1 to 19 for zstd, 1 to 9 for gzip [default: 5 for zstd, 6 for gzip]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=19))]
    pub level: Option<u8>,
    /// Convert only this platform, as os/arch[/variant]; may be repeated [default: all]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Vec<String>,
    /// Most bytes of decompressed data in a span, the unit of fetching: 64K to 16M, a multiple of 4K
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse_span_size)]
    pub span_size: u32,
    /// Files that a start-up reads, in order: one absolute path per line, a directory with a trailing /, comments with
    /// #; `-` is standard input. They go into a hot blob that nodes fetch first, as one stream
    /// [default: the image's label io.clipper.prefetch]
    #[arg(long, value_name = "FILE")]
    pub prefetch_list: Option<PathBuf>,
    /// A trace that `clipper record` wrote: the hot blob then holds just the bytes that were read; may be repeated
    #[arg(long, value_name = "FILE")]
    pub trace: Vec<PathBuf>,
    /// Without a list or a trace, don't work out from the image's command, interpreters and libraries what its start-up
    /// reads
    #[arg(long)]
    pub no_guess: bool,
    /// Fail if a path of the prefetch list or the trace isn't in the image, instead of warning
    #[arg(long)]
    pub strict: bool,
    /// Most bytes of the hot blob, as a SIZE such as 40M or as a percentage of the compressed layers
    #[arg(long, value_name = "LIMIT", default_value = "25%", value_parser = parse_hot_limit)]
    pub hot_limit: HotLimit,
    /// Index every layer anew, even if the target repository holds its index already
    #[arg(long)]
    pub no_reuse: bool,
    /// Layers that are worked on at the same time [default: the number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: Option<u16>,
}

/// What `clipper copy` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  clipper copy registry.example.com/team/app:1.4_accelerated mirror.example.com/team/app
  clipper copy --with-base registry.example.com/team/app:1.4_accelerated oci:./app:1.4_accelerated")]
pub struct CopyArgs {
    /// The image (REF)
    pub source: Reference,
    /// Where it goes (REF); without a tag, under the source's
    pub target: Reference,
    /// Copy the base image, too; under its own tag if that still is the image that was converted
    #[arg(long)]
    pub with_base: bool,
}

/// What `clipper inspect` is told.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The accelerated image (REF)
    pub reference: Reference,
    /// Only this platform, as os/arch[/variant]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
}

/// What `clipper check` is told.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The accelerated image (REF)
    pub reference: Reference,
    /// The base image to compare with (REF) [default: the layers that the accelerated image names]
    #[arg(long, value_name = "REF")]
    pub base: Option<Reference>,
    /// Only this platform, as os/arch[/variant] [default: all]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// Most differences to print
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: usize,
}

/// How a mount shows files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Driver {
    /// erofs where this kernel can, fuse elsewhere
    Auto,
    /// The kernel's EROFS, which reads layers' bytes through FUSE; Linux 6.12 and later
    Erofs,
    /// A FUSE filesystem; any kernel
    Fuse,
}

/// What `clipper mount` is told.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// The accelerated image (REF)
    pub reference: Reference,
    /// An existing directory
    pub dir: PathBuf,
    /// How the mount shows files
    #[arg(long, value_enum, default_value_t = Driver::Auto)]
    pub driver: Driver,
    /// Where fetched data are kept [default: a temporary directory, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Only this platform, as os/arch[/variant] [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// Also fetch, in the background, what nobody has read yet
    #[arg(long)]
    pub fill: bool,
}

/// Which containerd is spoken to, and as what.
#[derive(Clone, Debug, Args)]
pub struct ContainerdArgs {
    /// containerd's socket
    #[arg(
        long,
        short,
        value_name = "SOCK",
        default_value = "/run/containerd/containerd.sock",
        env = "CONTAINERD_ADDRESS"
    )]
    pub address: PathBuf,
    /// containerd's namespace; kubelet's images are in k8s.io
    #[arg(long, short, value_name = "NS", default_value = "default", env = "CONTAINERD_NAMESPACE")]
    pub namespace: String,
    /// The snapshotter, as containerd's config names it
    #[arg(long, value_name = "NAME", default_value = "clipper")]
    pub snapshotter: String,
}

/// What `clipper pull` is told.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// The image (REF in a registry)
    pub reference: Reference,
    #[command(flatten)]
    pub containerd: ContainerdArgs,
    /// Only this platform, as os/arch[/variant] [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
}

/// What `clipper record` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  clipper record --url http://127.0.0.1:8080/ --output app.trace registry.example.com/team/app:1.4_accelerated
  clipper record --timeout 10 registry.example.com/team/job:2_accelerated -- python3 -c 'import job'

A trace is text, a range a line. Traces of several runs can be written one after the other.")]
pub struct RecordArgs {
    /// The accelerated image (REF in a registry)
    pub reference: Reference,
    /// Its command's arguments, as with docker run [default: the image's own]
    #[arg(last = true)]
    pub command: Vec<String>,
    /// The page whose answer ends the recording, http://HOST:PORT/PATH
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Seconds after which the recording ends; with --url, an error
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
    /// An environment variable, NAME=VALUE; may be repeated
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Where the trace is written [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Start it only with this driver of the snapshotter's; the kernel reads other bytes ahead with each [default: once
    /// with each that works on this node, and the trace has what either start read]
    #[arg(long, value_enum, value_name = "DRIVER")]
    pub driver: Option<RecordDriver>,
    #[command(flatten)]
    pub containerd: ContainerdArgs,
}

/// What shows an image to a container that is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RecordDriver {
    /// The kernel's EROFS (Linux 6.12 and later)
    Erofs,
    /// FUSE
    Fuse,
}

impl RecordDriver {
    /// As the snapshotter calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Fuse => "fuse",
        }
    }
}

/// How large a hot blob may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HotLimit {
    /// Bytes.
    Bytes(u64),
    /// Percent of the compressed layers.
    Percent(u8),
}

impl HotLimit {
    /// In bytes, for layers of `size` bytes.
    pub fn bytes(self, size: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => size / 100 * u64::from(percent) + size % 100 * u64::from(percent) / 100,
        }
    }
}

fn parse_hot_limit(text: &str) -> Result<HotLimit, String> {
    let wrong = || "expected a size such as 40M, or a percentage up to 100%".to_owned();
    if let Some(percent) = text.strip_suffix('%') {
        let percent = percent.parse().ok().filter(|percent| *percent <= 100);
        return percent.map(HotLimit::Percent).ok_or_else(wrong);
    }
    parse_size(text).map(HotLimit::Bytes).ok_or_else(wrong)
}

/// Bytes, or K, M, G of 1024 each.
pub fn parse_size(text: &str) -> Option<u64> {
    let units = [('K', 10), ('M', 20), ('G', 30)];
    let unit =
        units.iter().find_map(|(unit, shift)| Some((text.strip_suffix([*unit, unit.to_ascii_lowercase()])?, shift)));
    let (digits, shift) = unit.unwrap_or((text, &0));
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// What may stand behind a tag (distribution-spec, "Pulling manifests": `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`).
fn parse_tag_suffix(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if text.is_empty() || text.len() > 64 || !text.bytes().all(fits) {
        return Err("a tag's suffix has 1 to 64 letters, digits, dots, dashes and underscores".to_owned());
    }
    Ok(text.to_owned())
}

fn parse_span_size(text: &str) -> Result<u32, String> {
    parse_size(text)
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| (64 << 10..=16 << 20).contains(n) && n % 4096 == 0)
        .ok_or_else(|| "expected 64K to 16M, a multiple of 4K, such as 1M or 512K".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn hot_limits() {
        assert_eq!(parse_hot_limit("40M"), Ok(HotLimit::Bytes(40 << 20)));
        assert_eq!(parse_hot_limit("0"), Ok(HotLimit::Bytes(0)));
        assert_eq!(parse_hot_limit("25%").map(|limit| limit.bytes(1001)), Ok(250));
        assert_eq!(parse_hot_limit("100%").map(|limit| limit.bytes(u64::MAX)), Ok(u64::MAX));
        for bad in ["", "%", "101%", "-1", "1KM", "1T", "99999999999G"] {
            assert!(parse_hot_limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn span_sizes() {
        assert_eq!(parse_span_size("1M"), Ok(1 << 20));
        assert_eq!(parse_span_size("512k"), Ok(512 << 10));
        assert_eq!(parse_span_size("65536"), Ok(65536));
        for bad in ["", "M", "0", "1K", "100000", "32M", "9999999M", "-1M", "1G"] {
            assert!(parse_span_size(bad).is_err(), "{bad}");
        }
    }
}
