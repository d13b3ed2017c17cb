//! What the benches share: the applications, the cold start itself and who is compared by it, nodes, figures of several
//! runs, and the pages and pictures they end up on.

pub mod application;
pub mod cold_start;
pub mod figures;
pub mod ideal;
pub mod needed;
pub mod node;
pub mod page;
pub mod peer;
pub mod picture;
mod query;
pub mod ready;
pub mod system;
mod usage;
