//! The cold-start bench and the microbenchmarks share nothing yet.
