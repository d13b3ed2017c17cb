//! The snapshotter as containerd sees it: a real process, spoken to through containerd's own client.
mod daemon;
mod image;
mod mixed;
mod ordinary;
mod pull;
mod remote;
mod removal;
mod survival;
mod trouble;
