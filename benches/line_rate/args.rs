//! What the command line asks for.

use std::collections::BTreeSet;

/// The longest a scenario is kept running for a profile, seconds.
pub(crate) const MAX_PROFILE_S: u64 = 600;

pub(crate) const SCENARIOS: [(&str, &str); 9] = [
    ("verify", "one signature: the hot verifier, k256 and libsecp256k1, in one thread"),
    ("paid", "paid, durable, fixed price; beside nginx proxying the same bytes unpaid"),
    ("free", "a free route; beside nginx proxying the same bytes"),
    ("quote", "no payment, so a 402 with a quote; beside nginx proxying the same bytes"),
    ("steady", "paid at a fixed rate, for latencies; beside nginx proxying the same bytes"),
    ("many", "paid, with 10,000 hot channels instead of one a connection"),
    ("idle", "paid, with a million idle channels in the books beside the hot ones"),
    ("pipeline", "one channel, a slow upstream: calls one by one, and 32 at once signed ahead"),
    ("flood", "honest payers at a fixed rate on one core, without and with forged vouchers"),
];

const MORE: &str = "
Options:
  --rounds N        rounds of each scenario; medians are reported [5]
  --seconds N       seconds of one run in a round [2]
  --connections N   keep-alive connections [32]
  --threads N       threads that make the load [1]
  --cores N         threads that serve, of peaje (where it has server.cores) and of
                    nginx [all of the machine's]
  --channels N      hot channels of `many` [10000]
  --idle N          idle channels of `idle` [1000000]
  --rate N          requests a second in `steady` [1000], and in `flood`, where 400 at most
  --profile         keep one scenario running, without nginx, for `perf record -g -p`;
                    ends after ten minutes or with Ctrl-C

Examples:
  cargo bench --bench line_rate
  cargo bench --bench line_rate -- paid free quote --rounds 9
  cargo bench --bench line_rate -- paid --profile

The last line is one JSON object; a figure that was not measured is null in it. What
is reported are ratios of runs beside each other: the machine may be noisy, and the
load shares its cores with the proxies. CPU time is the proxy's alone, as the system
counts it. nginx is used if it is installed (apt-get install nginx-light).";

#[derive(Debug, Clone)]
pub(crate) struct Args {
    pub(crate) scenarios: BTreeSet<&'static str>,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) connections: usize,
    pub(crate) threads: usize,
    pub(crate) cores: usize,
    pub(crate) channels: usize,
    pub(crate) idle: usize,
    pub(crate) rate: f64,
    pub(crate) profile: bool,
}

/// What to say instead of running.
#[derive(Debug)]
pub(crate) enum Answer {
    /// What was asked for.
    Help(String),
    /// What cannot be understood, and what could.
    Mistake(String),
}

impl Args {
    pub(crate) fn read(mut words: impl Iterator<Item = String>) -> Result<Self, Answer> {
        let mut args = Self {
            scenarios: BTreeSet::new(),
            rounds: 5,
            seconds: 2.0,
            connections: 32,
            threads: 1,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            channels: 10_000,
            idle: 1_000_000,
            rate: 1_000.0,
            profile: false,
        };
        while let Some(word) = words.next() {
            match word.as_str() {
                // Cargo says so to every bench.
                "--bench" => {}
                "--help" | "-h" => return Err(Answer::Help(help())),
                "--profile" => args.profile = true,
                "--rounds" => args.rounds = number(&word, words.next(), 1, 1_000)? as usize,
                "--seconds" => args.seconds = number(&word, words.next(), 1, 60)? as f64,
                "--connections" => args.connections = number(&word, words.next(), 1, 4_096)? as usize,
                "--threads" => args.threads = number(&word, words.next(), 1, 64)? as usize,
                "--cores" => args.cores = number(&word, words.next(), 1, 256)? as usize,
                "--channels" => args.channels = number(&word, words.next(), 1, 100_000)? as usize,
                "--idle" => args.idle = number(&word, words.next(), 1, 10_000_000)? as usize,
                "--rate" => args.rate = number(&word, words.next(), 1, 1_000_000)? as f64,
                name => match SCENARIOS.iter().find(|(scenario, _)| *scenario == name) {
                    Some((scenario, _)) => drop(args.scenarios.insert(*scenario)),
                    None => return Err(Answer::Mistake(format!("line_rate does not know {name:?}.\n\n{}", help()))),
                },
            }
        }
        if args.profile && args.scenarios.len() != 1 {
            let text = "--profile takes one scenario, as in: cargo bench --bench line_rate -- paid --profile";
            return Err(Answer::Mistake(text.to_owned()));
        }
        if args.scenarios.is_empty() {
            args.scenarios = SCENARIOS.iter().map(|(name, _)| *name).collect();
        }
        Ok(args)
    }

    pub(crate) fn wants(&self, scenario: &str) -> bool {
        self.scenarios.contains(scenario)
    }
}

fn number(option: &str, value: Option<String>, least: u64, most: u64) -> Result<u64, Answer> {
    let value = value.ok_or_else(|| Answer::Mistake(format!("{option} takes a number")))?;
    let number = value.parse().ok().filter(|number| (least..=most).contains(number));
    let text = || format!("{option} takes a whole number from {least} to {most}, not {value:?}");
    number.ok_or_else(|| Answer::Mistake(text()))
}

fn help() -> String {
    let scenarios: String = SCENARIOS.iter().map(|(name, what)| format!("  {name:<10} {what}\n")).collect();
    format!(
        "What a request costs the proxy, beside nginx.\n\n\
         Usage: cargo bench --bench line_rate -- [SCENARIO ...] [OPTIONS]\n\n\
         Scenarios (all, unless some are named):\n{scenarios}{MORE}\n"
    )
}
