//! The snapshotter as containerd sees it: a real process, spoken to through containerd's own client.
mod daemon;
mod image;
mod mapped;
mod mixed;
mod ordinary;
mod outside;
mod pull;
mod remote;
mod removal;
mod survival;
mod takeover;
mod trouble;
