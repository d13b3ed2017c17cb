//! What the benches share: the cold start itself, figures of several runs, and the page and pictures they end up on.

pub mod cold_start;
pub mod figures;
pub mod page;
pub mod picture;
