//! Spans of uncompressed layers.
