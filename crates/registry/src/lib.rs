//! Clipper's OCI distribution client: references, authentication, retries, mirrors, ranged and streamed reads, pushes;
//! and OCI layout directories behind the same methods.
//!
//! A [`Client`] gives a [`Repository`] for a [`Reference`]; a repository gives [`Manifest`]s, and [`Blob`]s that can be
//! read in ranges. [`image::ImageSet`] is what a reference stands for: its images and what is attached to them.
mod auth;
mod blob;
mod challenge;
mod client;
mod credentials;
mod dns;
mod doubts;
mod endpoint;
mod error;
mod health;
mod hosts;
pub mod image;
mod layout;
pub mod media;
mod net;
mod platform;
mod push;
mod ranged;
mod reference;
mod remote;
mod repository;
mod servers;
mod session;
mod source;
mod staged;
mod stats;
mod transport;
mod tries;
mod upload;

pub use blob::{Blob, BlobStream, Piece, PieceStream};
pub use client::{Client, ClientOptions};
pub use credentials::{Credential, CredentialSource, DockerConfig, Found, Subject};
pub use error::{ErrorKind, RegistryError};
pub use oci_spec;
pub use platform::{PlatformError, PlatformName};
pub use reference::{LayoutReference, Reference, ReferenceError, RegistryReference};
pub use repository::{MANIFEST_MAX, Manifest, Repository, Selector};
pub use stats::{HostStats, Stats};
pub use upload::BlobUpload;
