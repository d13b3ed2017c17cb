//! What the benches share: the applications, the cold start itself, nodes, figures of several runs, and the pages and
//! pictures they end up on.

pub mod application;
pub mod cold_start;
pub mod figures;
pub mod needed;
pub mod node;
pub mod page;
pub mod picture;
mod query;
pub mod ready;
