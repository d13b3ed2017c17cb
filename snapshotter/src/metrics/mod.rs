//! What the daemon shows of itself to Prometheus, and to whoever asks whether it lives and is ready.
mod address;
mod endpoint;
mod families;
mod readiness;

pub use address::Address;
pub use endpoint::Endpoint;
pub use readiness::Readiness;
