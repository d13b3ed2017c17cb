//! Devices over sources that misbehave on purpose.
#![allow(clippy::single_range_in_vec_init, reason = "a list of one GET is what is meant")]

mod capacity;
mod evict;
mod faults;
mod figures;
mod fixture;
mod hot;
mod layout;
mod order;
mod outages;
mod reads;
mod restart;
