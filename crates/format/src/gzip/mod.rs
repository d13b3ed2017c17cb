//! gzip: index building, checkpoints, span decoding.
