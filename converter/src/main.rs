//! The program `clipper`: wires the command line to its commands.
mod check;
mod cli;
mod convert;
mod copy;
mod images;
mod inspect;
mod mount;
mod node;
mod pull;
mod record;
mod report;
mod transfer;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

// Long spans come and go: glibc keeps most of what was freed of them, by thread.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    report::start_log(&cli.common);
    let outcome = match cli.command {
        Command::Convert(args) => convert::run(&cli.common, args).await.map(|()| ExitCode::SUCCESS),
        Command::Copy(args) => copy::run(&cli.common, args).await.map(|()| ExitCode::SUCCESS),
        Command::Inspect(args) => inspect::run(&cli.common, args).await.map(|()| ExitCode::SUCCESS),
        Command::Check(args) => check::run(&cli.common, args).await,
        Command::Mount(args) => mount::run(&cli.common, args).await.map(|()| ExitCode::SUCCESS),
        Command::Record(args) => record::run(&cli.common, args).await.map(|()| ExitCode::SUCCESS),
        Command::Node(args) => node::run(&cli.common, args).await.map(|()| ExitCode::SUCCESS),
        Command::Pull(args) => pull::run(&cli.common, args).await.map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| report::failure(&error))
}
