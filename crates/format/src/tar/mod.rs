//! Tar layers: the walker that makes a layer's tree.
