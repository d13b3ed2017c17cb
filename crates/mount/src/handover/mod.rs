//! What a process leaves to its successor, so that mounts outlive it: somebody else keeps the descriptors through which the
//! kernel asks, each with a note that tells what is served there, and gives them to the next process.
mod descriptors;
mod note;
mod stuck;
mod take_over;

pub(crate) use descriptors::Keeping;
pub use descriptors::{Keeper, Kept};
pub(crate) use note::{MountNote, Note};
pub use stuck::free_threads_of;
