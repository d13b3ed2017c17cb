//! End to end: real containerd, registry, runc and kernel.

mod ground;
