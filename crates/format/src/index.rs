//! The index blob.
