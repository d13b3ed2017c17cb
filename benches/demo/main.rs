//! `convert-speed`: placeholder
fn main() {}
