//! What a request costs the proxy, beside nginx: CPU time, throughput and latency, under load.
//!
//! `cargo bench --bench line_rate` prints tables and, as its last line, one JSON object; `-- --help` says what can be
//! asked for. The proxy is the released binary with a config file and durable books, and nginx stands in front of the
//! same upstream; their runs alternate in short rounds, and each ratio is the median of the rounds'. CPU time is that of
//! the proxy's processes, as the system counts it. The load, the upstream and the development chain run in this process
//! and share the machine's cores with both.
//!
//! * `verify_vs_k256`: how many times faster than k256 a hot channel's voucher is verified; `verify_vs_libsecp256k1`: its
//!   time as a part of libsecp256k1's.
//! * `paid_cpu_vs_nginx`: CPU time of a paid, durable, fixed-price request, in times of what nginx takes to proxy the very
//!   same bytes unpaid. `free_cpu_vs_nginx`: the same of a free route. `quote_cpu_vs_nginx`: of a 402, against nginx
//!   proxying the unpaid request.
//! * `many_channels_ratio`: CPU time of a paid request with 10,000 hot channels, in times of that with one a connection;
//!   `million_idle_ratio`: the same with a million idle ones beside them.
//! * `pipeline_gain`: throughput of 32 calls at once on one channel, in times of that of one after the other, with an
//!   upstream that takes 5 ms.
//! * `flood_p99_ratio`: the 99th percentile of honest payers' latency while one peer floods one core with forged vouchers,
//!   in times of that without it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark that cannot run should say so at once")]
#![allow(clippy::print_stdout, reason = "the result")]
#![allow(clippy::as_conversions, reason = "of counts that are small")]

mod args;
mod histogram;
mod load;
mod machine;
mod payers;
mod report;
mod scenarios;
mod upstream;
mod verify;
mod wire;

use std::process::ExitCode;

use args::{Answer, Args};
use scenarios::Stage;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).peekable();
    if words.peek().is_some_and(|word| word == scenarios::FLOOD_WORKER) {
        scenarios::flood_worker(words.skip(1));
    }
    let args = match Args::read(words) {
        Ok(args) => args,
        Err(Answer::Help(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(Answer::Mistake(text)) => {
            eprintln!("{text}");
            return ExitCode::from(2);
        }
    };
    let root = machine::root();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(machine::end_when_told());
    let mut report = report::Report::default();
    let stage = Stage::open(args, root.path(), &runtime);
    let is_whole = stage.run(&mut report);
    drop(stage);
    drop(root);
    report.finish();
    if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
