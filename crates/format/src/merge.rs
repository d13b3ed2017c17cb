//! Merging the trees of a chain.
