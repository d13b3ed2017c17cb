//! Devices over sources that misbehave on purpose.
mod capacity;
mod faults;
mod fixture;
mod order;
mod reads;
mod restart;
