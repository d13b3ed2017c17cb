//! What `clipper node` is told.
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// What `clipper node` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
IMAGE is an image as it was pulled, or the first digits of its chain ID, as `clipper node images` shows them.

Examples:
  clipper node status
  clipper node prefetch registry.example.com/team/app:1.4_accelerated
  clipper node evict --bytes 10G
  clipper node trace 3f9ab1c02d44 --output app.trace")]
pub struct NodeArgs {
    /// The daemon's control socket
    #[arg(
        long,
        short,
        global = true,
        value_name = "SOCK",
        default_value = "/run/clipper-snapshotter/control.sock",
        env = "CLIPPER_CONTROL_ADDRESS"
    )]
    pub address: PathBuf,
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// What to ask the daemon.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Show how the daemon is doing: mounts, cache, what was fetched from where, servers and their health
    Status,
    /// List the lazy images of the node, and how far each has been loaded
    ///
    /// An image that is no more than the lower layers of others shows only while a container runs of it.
    Images,
    /// Show where the disk went: what each cached layer takes, and the limits
    Df,
    /// Load an image whole now, and wait for it
    ///
    /// Ctrl-C ends it; what was loaded stays. Readers go first.
    Prefetch(PrefetchArgs),
    /// Take data out of the cache: of images, or whatever is coldest
    ///
    /// Who reads it again fetches it again. What running containers need stays, unless --force is given. Images that are
    /// named aren't loaded in the background any more until they are mounted anew.
    Evict(EvictArgs),
    /// Print which bytes of an image's files were read since it was mounted, in the order of first touch
    ///
    /// A trace for `clipper convert --trace`. It holds what all containers of the image have read, with what the kernel
    /// reads ahead; what the kernel has cached already isn't read again.
    Trace(TraceArgs),
}

/// What `clipper node prefetch` is told.
#[derive(Debug, Args)]
pub struct PrefetchArgs {
    /// The image (IMAGE)
    pub image: String,
}

/// What `clipper node evict` is told.
#[derive(Debug, Args)]
pub struct EvictArgs {
    /// The images whose data are to go (IMAGE)
    #[arg(required_unless_present_any = ["bytes", "all"])]
    pub images: Vec<String>,
    /// How much is to go at least, coldest first, such as 500M or 10G; of the images, or of all there is
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub bytes: Option<u64>,
    /// Everything that no running container needs
    #[arg(long, conflicts_with_all = ["images", "bytes"])]
    pub all: bool,
    /// Also what running containers need: they fetch it again
    #[arg(long)]
    pub force: bool,
}

/// What `clipper node trace` is told.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// The image (IMAGE)
    pub image: String,
    /// Where the trace is written [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let bytes = crate::cli::parse_size(text).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "expected a size above 0, such as 500M or 10G".to_owned())
}
