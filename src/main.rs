//! The `peaje` binary: parses the command line, runs one command, ends with its code.

use std::process::ExitCode;

use clap::Parser as _;
use peaje::cli::{Cli, Exit, Failure, Output};

fn main() -> ExitCode {
    // On a wrong command line this prints the usage and ends with code 2.
    let cli = Cli::parse();
    let output = Output::detect();
    let json = cli.command.json();
    let outcome = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli.command.run(&output)),
        Err(error) => Err(Failure::new(Exit::Failed, anyhow::Error::new(error).context("cannot start the runtime"))),
    };
    match outcome {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            failure.print(&output, json);
            failure.exit().into()
        }
    }
}
