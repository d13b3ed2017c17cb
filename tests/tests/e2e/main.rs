//! End to end: real containerd, registry, runc and kernel, and the programs as users run them.

mod conformance;
mod convert;
mod copy;
mod cri;
mod crowd;
mod fidelity;
mod frames;
mod full;
mod ground;
mod integrity;
mod offline;
mod run;
mod space;
mod startup;
mod world;
