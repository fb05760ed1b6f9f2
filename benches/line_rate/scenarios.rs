//! The scenarios: what is started, warmed, measured and compared.
//!
//! **Promises** that what is compared runs in turns in short rounds, with who begins changing, and that nothing is counted
//! before connections are open, vouchers signed and tables warm.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use peaje::config::Config;
use peaje::devnet::{Devnet, DevnetConfig};
use peaje::gate::policy::Terms;
use peaje::protocol::bytes::keccak256;
use peaje::protocol::{Domain, LocalKey};
use tokio::runtime::Runtime;

use super::args::{Args, MAX_PROFILE_S};
use super::load::{self, Closed, Open, Run, Supply};
use super::machine::{self, Running, Usage};
use super::payers::{self, Channel, Lane, PRICE_TEXT, Purpose, Quote};
use super::report::{Report, median, ratio};
use super::{upstream, verify, wire};

/// Vouchers of each hot channel before anything is measured: what is done for hot channels only must be done by then.
const WARM_VOUCHERS: usize = 12;
/// How many requests at least, and how long at most, a later pass of warming takes; how many passes there are, and after how
/// many that made nothing cheaper it is warm.
const MIN_PASS: usize = 4_000;
const MAX_PASS: Duration = Duration::from_secs(60);
const MAX_PASSES: usize = 12;
const PASSES_IN_VAIN: usize = 2;
/// What of the last pass's cost a pass may have and still be called cheaper.
const NO_CHEAPER: f64 = 0.95;
/// How long what a pass set off may go on in the background, how often one looks, and below which part of a core it is over.
const MAX_SETTLE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(250);
const QUIET: f64 = 0.1;
/// Requests of a lane that nginx is sent, again and again.
const SAMPLES: usize = 64;
/// More requests are signed than the last run took, by so much: the next one may be faster.
const MARGIN: f64 = 1.4;
/// After a run, what is left to do for it still counts.
const AFTER: Duration = Duration::from_millis(50);
/// Calls at once in `pipeline`.
const AT_ONCE: usize = 32;
/// Honest payers in `flood`, and the most requests a second of all of them: they must not be a flood themselves.
const HONEST: usize = 16;
const MAX_HONEST_RATE: f64 = 400.0;
/// Connections and different forged vouchers of the flood.
const FLOOD_CONNECTIONS: usize = 64;
const FORGED: usize = 256;
/// Where the flood comes from: budgets are by peer.
const FLOOD_SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));
/// The word by which this binary is told to be the flood.
pub(crate) const FLOOD_WORKER: &str = "--flood-worker";
/// The number of the flooder among the payers; honest ones count from zero.
const FLOODER: usize = 1 << 40;

/// What all scenarios share.
pub(crate) struct Stage<'a> {
    args: Args,
    root: &'a Path,
    runtime: &'a Runtime,
    devnet: Devnet,
    upstream: SocketAddr,
    terms: Terms,
    domain: Domain,
}

/// What measures and reports one or more of the names on the command line.
type Scenario<'a> = fn(&Stage<'a>, &mut Report);

/// A proxy under load.
struct Booth {
    running: Running,
    quote: Quote,
    lanes: Vec<Lane>,
    /// Requests a second in the last paid run, to know how many to sign.
    rate: f64,
}

/// One run and what it cost.
struct Sample {
    run: Run,
    usage: Usage,
}

impl Sample {
    fn cpu_us(&self) -> f64 {
        self.usage.total_us / self.run.answers as f64
    }
}

/// The runs of one kind.
#[derive(Default)]
struct Samples(Vec<Sample>);

impl Samples {
    fn cpu(&self) -> Vec<f64> {
        self.0.iter().map(Sample::cpu_us).collect()
    }

    fn of(&self, figure: impl Fn(&Sample) -> f64) -> f64 {
        median(self.0.iter().map(figure))
    }

    /// Prints a line and keeps its figures.
    fn tell(&self, report: &mut Report, name: &str) {
        let cpu = median(self.cpu());
        let per_second = self.of(|sample| sample.run.per_second());
        let quantile = |part: f64| self.of(|sample| sample.run.times.quantile_us(part));
        let (p50, p99, p999) = (quantile(0.5), quantile(0.99), quantile(0.999));
        println!("{name:<22} {cpu:>9.1} us {per_second:>10.0} /s {p50:>9.0} us {p99:>9.0} us {p999:>9.0} us");
        let dry = self.0.iter().filter(|sample| sample.run.is_dry).count();
        if dry > 0 {
            println!(
                "{:<22} in {dry} of its runs a connection had sent all that was signed before the time was over",
                ""
            );
        }
        let key = name.replace(' ', "_");
        report.set(&format!("{key}_cpu_us"), cpu);
        report.set(&format!("{key}_per_s"), per_second);
        report.set(&format!("{key}_p50_us"), p50);
        report.set(&format!("{key}_p99_us"), p99);
        report.set(&format!("{key}_p999_us"), p999);
    }

    /// Where the CPU time went, by thread.
    fn tell_threads(&self) {
        let Some(last) = self.0.last() else { return };
        let names = last.usage.threads_us.keys();
        let each = |name: &String| {
            let of = |sample: &Sample| sample.usage.threads_us.get(name).copied().unwrap_or_default();
            (name.clone(), self.of(|sample| of(sample) / sample.run.answers as f64))
        };
        let mut all: Vec<(String, f64)> = names.map(each).filter(|(_, each)| *each >= 0.05).collect();
        all.sort_by(|one, other| other.1.total_cmp(&one.1));
        let all: Vec<String> = all.iter().map(|(name, each)| format!("{name} {each:.1}")).collect();
        println!("{:<22} by thread, us: {}", "", all.join(", "));
    }
}

fn heading(title: &str) {
    println!("\n{title:<22} {:>12} {:>13} {:>12} {:>12} {:>12}", "CPU/request", "throughput", "p50", "p99", "p99.9");
}

impl<'a> Stage<'a> {
    pub(crate) fn open(args: Args, root: &'a Path, runtime: &'a Runtime) -> Self {
        let devnet = runtime.block_on(Devnet::start(DevnetConfig::default())).unwrap();
        let upstream = upstream::start();
        let any = SocketAddr::from(([127, 0, 0, 1], 1));
        let config = Config::parse(&config_text(&devnet.rpc_url(), upstream, any, root, None), "bench").unwrap();
        let terms = config.terms(payers::authorizer());
        let domain = terms.settlement();
        Self { args, root, runtime, devnet, upstream, terms, domain }
    }

    /// Runs what was asked for, and whether all of it could be measured. What fails leaves its figures out, and the rest
    /// runs all the same.
    pub(crate) fn run(&self, report: &mut Report) -> bool {
        let Args { connections, cores, seconds, rounds, .. } = self.args;
        println!("{connections} connections, {cores} cores of the proxies, {rounds} rounds of {seconds} s");
        let scenarios: [(&[&str], Scenario<'a>); 7] = [
            (&["verify"], Self::verify),
            (&["paid", "free", "quote"], Self::beside_nginx),
            (&["steady"], Self::steady),
            (&["many"], Self::many),
            (&["idle"], Self::idle),
            (&["pipeline"], Self::pipeline),
            (&["flood"], Self::flood),
        ];
        let mut is_whole = true;
        for (names, scenario) in scenarios {
            if !names.iter().any(|name| self.args.wants(name)) {
                continue;
            }
            // The processes of a scenario that panics are stopped on its way out.
            let run = std::panic::AssertUnwindSafe(|| scenario(self, report));
            if std::panic::catch_unwind(run).is_err() {
                println!("\n{} could not be measured", names.join(", "));
                is_whole = false;
            }
        }
        is_whole
    }

    fn verify(&self, report: &mut Report) {
        let verify::Verify { k256_us, libsecp256k1_us, hot_us, verify_vs_k256, verify_vs_libsecp256k1 } = verify::run();
        println!("\n{:<22} {:>12}", "one signature", "CPU");
        for (name, us) in [("hot", hot_us), ("k256", k256_us), ("libsecp256k1", libsecp256k1_us)] {
            println!("{name:<22} {us:>9.1} us");
            report.set(&format!("verify_{name}_us"), us);
        }
        println!("{:<22} {verify_vs_k256:>9.2} times as fast as k256", "hot");
        println!("{:<22} {verify_vs_libsecp256k1:>9.2} of libsecp256k1's time", "hot");
        report.set("verify_vs_k256", verify_vs_k256);
        report.set("verify_vs_libsecp256k1", verify_vs_libsecp256k1);
    }

    // ---- parts

    /// A proxy whose books hold these channels, as many lanes as there are connections, and its quote for a path.
    fn booth(&self, name: &str, channels: Vec<Channel>, idle: usize, path: &str, cores: usize) -> Booth {
        let directory = self.root.join(name);
        fs::create_dir_all(&directory).unwrap();
        let begun = Instant::now();
        let idle = payers::idle_channels(idle, &self.terms);
        payers::fill(&directory.join("books"), &channels, &idle);
        self.runtime.block_on(payers::put_on_chain(&self.devnet.rpc_url(), &channels, &idle));
        if begun.elapsed() > Duration::from_secs(1) {
            let count = channels.len() + idle.len();
            println!("{:<22} books of {count} channels written in {:.1} s", "", begun.elapsed().as_secs_f64());
        }
        let address = machine::free_port();
        let books = directory.join("books");
        let said = knows_cores().then_some(cores);
        fs::write(
            directory.join("peaje.toml"),
            config_text(&self.devnet.rpc_url(), self.upstream, address, &books, said),
        )
        .unwrap();
        let running = machine::peaje(&directory, address, if said.is_some() { None } else { Some(cores) });
        let quote = Quote::of(&running, path);
        let lanes = Lane::share_out(channels, self.args.connections);
        Booth { running, quote, lanes, rate: 0.0 }
    }

    fn channels(&self, count: usize) -> Vec<Channel> {
        (0..count).map(|number| Channel::new(number, &self.terms)).collect()
    }

    fn closed(&self, target: SocketAddr, expected: u16) -> Closed {
        let how_long = Duration::from_secs_f64(self.args.seconds);
        Closed { target, how_long, expected, connections_each: 1, threads: self.args.threads }
    }

    fn paying<'b>(&'b self, quote: &'b Quote) -> Purpose<'b> {
        Purpose { path: "/paid", quote, domain: &self.domain, ahead: false }
    }

    /// Signs what a paid run of this booth may take.
    fn sign(&self, booth: &mut Booth) {
        let each = booth.rate * self.args.seconds * MARGIN / booth.lanes.len() as f64;
        payers::prepare(&mut booth.lanes, each as usize + WARM_VOUCHERS, self.paying(&booth.quote.clone()));
    }

    /// Has every channel pay a few times, and then goes on until a request gets no cheaper: what is made for hot channels
    /// is made in the background, and not all at once.
    fn warm(&self, booth: &mut Booth, channels: usize) {
        let each = channels.div_ceil(booth.lanes.len());
        let mut pass = |vouchers: usize| {
            payers::prepare(&mut booth.lanes, vouchers, self.paying(&booth.quote.clone()));
            let closed = Closed { how_long: MAX_PASS, ..self.closed(booth.running.address, 200) };
            let sample = measure_lanes(booth, closed);
            settle(&booth.running);
            (sample.cpu_us(), sample.run.per_second())
        };
        pass(each * WARM_VOUCHERS);
        let more = (each * 2).max(MIN_PASS / self.args.connections);
        let (mut cheapest, mut rate) = pass(more);
        let (mut passes, mut in_vain) = (1, 0);
        while passes < MAX_PASSES && in_vain < PASSES_IN_VAIN {
            let (cost, per_second) = pass(more);
            rate = per_second.max(rate);
            passes += 1;
            in_vain = if cost > cheapest * NO_CHEAPER { in_vain + 1 } else { 0 };
            cheapest = cheapest.min(cost);
        }
        booth.rate = rate;
    }

    fn paid(&self, booth: &mut Booth) -> Sample {
        self.sign(booth);
        let sample = measure_lanes(booth, self.closed(booth.running.address, 200));
        booth.rate = booth.rate.max(sample.run.per_second());
        sample
    }

    /// Keeps a booth busy for somebody who watches it.
    fn profile(&self, running: u32, mut round: impl FnMut() -> Sample) {
        println!("profile it with: perf record -g -p {running} -- sleep 10");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(MAX_PROFILE_S) {
            let sample = round();
            println!("{:>9.1} us a request, {:.0} a second", sample.cpu_us(), sample.run.per_second());
        }
    }

    // ---- paid, free, and a quote, beside nginx

    fn beside_nginx(&self, report: &mut Report) {
        let mut booth = self.booth("base", self.channels(self.args.connections), 0, "/paid", self.args.cores);
        self.warm(&mut booth, self.args.connections);
        let same = |path: &str| {
            let supply = || Supply::around(vec![wire::get(path, &[])]);
            (0..self.args.connections).map(|_| supply()).collect::<Vec<_>>()
        };
        let kinds = [("paid", "/paid", 200), ("free", "/free", 200), ("quote", "/paid", 402)];
        let kinds = kinds.into_iter().filter(|(kind, ..)| self.args.wants(kind));
        let mut kinds: Vec<_> = kinds.map(|kind| (kind, Samples::default(), Samples::default())).collect();
        let ours = |booth: &mut Booth, (kind, path, status): (&str, &str, u16)| {
            if kind == "paid" {
                return self.paid(booth);
            }
            measure(&booth.running, self.closed(booth.running.address, status), &mut same(path))
        };
        if self.args.profile {
            let running = booth.running.id();
            return self.profile(running, || ours(&mut booth, kinds[0].0));
        }
        let nginx = machine::nginx(&self.root.join("nginx"), self.upstream, self.args.cores);
        if nginx.is_none() {
            println!("nginx is not installed (apt-get install nginx-light); what is compared with it stays null");
        }
        let theirs = |nginx: &Running, booth: &Booth, (kind, path, _): (&str, &str, u16)| {
            // The very bytes that are paid with, or the same unpaid ones.
            let mut supplies = if kind == "paid" { payers::samples(&booth.lanes, SAMPLES) } else { same(path) };
            measure(nginx, self.closed(nginx.address, 200), &mut supplies)
        };
        self.sign(&mut booth);
        if let Some(nginx) = &nginx {
            theirs(nginx, &booth, ("paid", "/paid", 200));
        }
        for round in 0..self.args.rounds {
            for (kind, us, them) in &mut kinds {
                // Who begins changes, so that neither has the warmer machine.
                if round % 2 == 0 {
                    us.0.push(ours(&mut booth, *kind));
                    self.sign(&mut booth);
                }
                them.0.extend(nginx.as_ref().map(|nginx| theirs(nginx, &booth, *kind)));
                if round % 2 == 1 {
                    us.0.push(ours(&mut booth, *kind));
                    self.sign(&mut booth);
                }
            }
        }
        heading("beside nginx");
        for ((kind, ..), us, them) in &kinds {
            us.tell(report, kind);
            us.tell_threads();
            if !them.0.is_empty() {
                them.tell(report, &format!("nginx {kind}"));
                let ratio = ratio(&us.cpu(), &them.cpu());
                println!("{kind:<22} {ratio:>9.2} times nginx");
                report.set(&format!("{kind}_cpu_vs_nginx"), ratio);
            }
        }
    }

    // ---- at a fixed rate, beside nginx

    fn steady(&self, report: &mut Report) {
        let mut booth = self.booth("steady", self.channels(self.args.connections), 0, "/paid", self.args.cores);
        self.warm(&mut booth, self.args.connections);
        let how_long = Duration::from_secs_f64(self.args.seconds);
        let open = Open { target: booth.running.address, how_long, rate: self.args.rate };
        let each = self.args.rate * self.args.seconds / self.args.connections as f64;
        let ours = |booth: &mut Booth| {
            payers::prepare(&mut booth.lanes, each as usize + WARM_VOUCHERS, self.paying(&booth.quote.clone()));
            let running = &booth.running;
            with_supplies(&mut booth.lanes, |supplies| cost(running, || open.run(supplies).all_well()))
        };
        if self.args.profile {
            return self.profile(booth.running.id(), || ours(&mut booth));
        }
        let nginx = machine::nginx(&self.root.join("nginx-steady"), self.upstream, self.args.cores);
        let theirs = |nginx: &Running, booth: &Booth| {
            let open = Open { target: nginx.address, ..open };
            cost(nginx, || open.run(&mut payers::samples(&booth.lanes, SAMPLES)).all_well())
        };
        let (mut us, mut them) = (Samples::default(), Samples::default());
        for _ in 0..self.args.rounds {
            us.0.push(ours(&mut booth));
            payers::prepare(&mut booth.lanes, SAMPLES, self.paying(&booth.quote.clone()));
            them.0.extend(nginx.as_ref().map(|nginx| theirs(nginx, &booth)));
        }
        heading("at a fixed rate");
        us.tell(report, "steady");
        if !them.0.is_empty() {
            them.tell(report, "nginx steady");
        }
    }

    // ---- many channels

    fn many(&self, report: &mut Report) {
        let count = self.args.channels;
        let few = self.booth("few", self.channels(self.args.connections), 0, "/paid", self.args.cores);
        let many = self.booth("many", self.channels(count), 0, "/paid", self.args.cores);
        self.compare(report, "many_channels_ratio", ("few", few, self.args.connections), ("many", many, count));
    }

    fn idle(&self, report: &mut Report) {
        let hot = self.args.connections;
        let alone = self.booth("alone", self.channels(hot), 0, "/paid", self.args.cores);
        let beside = self.booth("beside", self.channels(hot), self.args.idle, "/paid", self.args.cores);
        println!("{:<22} {} MiB resident", "", beside.running.resident() >> 20);
        self.compare(report, "million_idle_ratio", ("alone", alone, hot), ("idle beside", beside, hot));
    }

    /// Paid requests of two booths in turns: the CPU time of the second in times of the first.
    fn compare(
        &self,
        report: &mut Report,
        field: &str,
        (one, mut first, hot): (&str, Booth, usize),
        (other, mut second, hot_there): (&str, Booth, usize),
    ) {
        self.warm(&mut second, hot_there);
        if self.args.profile {
            let running = second.running.id();
            return self.profile(running, || self.paid(&mut second));
        }
        self.warm(&mut first, hot);
        let (mut ones, mut others) = (Samples::default(), Samples::default());
        for round in 0..self.args.rounds {
            if round % 2 == 0 {
                ones.0.push(self.paid(&mut first));
            }
            others.0.push(self.paid(&mut second));
            if round % 2 == 1 {
                ones.0.push(self.paid(&mut first));
            }
        }
        heading(field);
        ones.tell(report, one);
        ones.tell_threads();
        others.tell(report, other);
        others.tell_threads();
        let ratio = ratio(&others.cpu(), &ones.cpu());
        println!("{field:<22} {ratio:>9.2}");
        report.set(field, ratio);
    }

    // ---- many calls on one channel

    fn pipeline(&self, report: &mut Report) {
        let mut booth = self.booth("pipeline", self.channels(2), 0, upstream::SLOW, self.args.cores);
        let Some(at_once) = booth.quote.max_in_flight() else {
            println!("\npipeline: the quote does not offer to have vouchers signed ahead");
            return;
        };
        let at_once = AT_ONCE.min(at_once as usize);
        let quote = booth.quote.clone();
        let mut lanes: Vec<Lane> = std::mem::take(&mut booth.lanes);
        lanes.truncate(2);
        let per_second =
            |connections: usize| connections as f64 * self.args.seconds * MARGIN / upstream::SLOW_TIME.as_secs_f64();
        let (mut serial, mut ahead) = (Samples::default(), Samples::default());
        let mut one = |lane: usize, connections: usize| {
            let purpose = Purpose { path: upstream::SLOW, quote: &quote, domain: &self.domain, ahead: connections > 1 };
            let lane = &mut lanes[lane..=lane];
            payers::prepare(lane, per_second(connections) as usize, purpose);
            let closed =
                Closed { connections_each: connections, threads: 1, ..self.closed(booth.running.address, 200) };
            measure(&booth.running, closed, std::slice::from_mut(&mut lane[0].supply))
        };
        if self.args.profile {
            return self.profile(booth.running.id(), || one(1, at_once));
        }
        one(0, 1);
        one(1, at_once);
        for _ in 0..self.args.rounds {
            serial.0.push(one(0, 1));
            ahead.0.push(one(1, at_once));
        }
        heading("one channel");
        serial.tell(report, "serial");
        ahead.tell(report, "signed ahead");
        let rates = |samples: &Samples| samples.0.iter().map(|sample| sample.run.per_second()).collect::<Vec<_>>();
        let gain = ratio(&rates(&ahead), &rates(&serial));
        println!("{:<22} {gain:>9.2} with {at_once} at once", "pipeline_gain");
        report.set("pipeline_gain", gain);
    }

    // ---- a flood

    fn flood(&self, report: &mut Report) {
        let mut channels = self.channels(HONEST);
        // The flooder's own channel: it exists, and what it has to pay next never changes.
        let flooder = Channel::new(FLOODER, &self.terms);
        channels.push(flooder.clone());
        let mut booth = self.booth("flood", channels, 0, "/paid", 1);
        let honest = self.channels(HONEST);
        booth.lanes = Lane::share_out(honest, HONEST);
        self.warm(&mut booth, HONEST);
        // Each has another signature, so that no verdict on it can be remembered.
        let forged = (0..FORGED).map(|number| {
            let forger = LocalKey::from_bytes(&keccak256(&[b"forger", &number.to_be_bytes()[..]].concat()).0).unwrap();
            flooder.forged("/paid", &booth.quote, &self.domain, &forger)
        });
        let file = self.root.join("forged");
        fs::write(&file, forged.collect::<Vec<_>>().concat()).unwrap();
        let how_long = Duration::from_secs_f64(self.args.seconds);
        let rate = self.args.rate.min(MAX_HONEST_RATE);
        let open = Open { target: booth.running.address, how_long, rate };
        let honest = |booth: &mut Booth| {
            let each = (rate * how_long.as_secs_f64() / HONEST as f64) as usize + WARM_VOUCHERS;
            payers::prepare(&mut booth.lanes, each, self.paying(&booth.quote.clone()));
            let running = &booth.running;
            with_supplies(&mut booth.lanes, |supplies| cost(running, || open.run(supplies).all_well()))
        };
        let log = self.root.join("flood.log");
        let arguments = [FLOOD_WORKER.to_owned(), booth.running.address.to_string(), file.display().to_string()];
        if self.args.profile {
            let _flood = machine::friendly_self(&arguments, &log);
            return self.profile(booth.running.id(), || honest(&mut booth));
        }
        let (mut calm, mut flooded, mut refused) = (Samples::default(), Samples::default(), Vec::new());
        honest(&mut booth);
        // A 99th percentile takes more rounds than a mean: whatever else the machine does shows in it.
        for _ in 0..self.args.rounds * 2 {
            calm.0.push(honest(&mut booth));
            let mut flood = machine::friendly_self(&arguments, &log);
            // Until it has its connections, and whatever the proxy does about it is being done.
            std::thread::sleep(FLOOD_HEAD_START);
            let before = flood_counts(&log);
            let sample = honest(&mut booth);
            assert!(!flood.has_ended(), "the flood has ended by itself");
            let seconds = sample.run.seconds;
            let after = flood_counts(&log);
            let told = after.iter().map(|(status, count)| {
                let before = before.iter().find(|(other, _)| other == status).map_or(0, |(_, count)| *count);
                (status.clone(), (count.saturating_sub(before)) as f64 / seconds)
            });
            refused.push(told.collect::<Vec<_>>());
            flooded.0.push(sample);
        }
        heading("honest payers");
        calm.tell(report, "calm");
        flooded.tell(report, "flooded");
        for (status, each) in refused.last().into_iter().flatten() {
            let what = if status == "0" { "connections lost".to_owned() } else { format!("answers {status}") };
            println!("{:<22} the flood has {each:.0} {what} a second", "");
        }
        let p99s =
            |samples: &Samples| samples.0.iter().map(|sample| sample.run.times.quantile_us(0.99)).collect::<Vec<_>>();
        let ratio = ratio(&p99s(&flooded), &p99s(&calm));
        println!("{:<22} {ratio:>9.2}", "flood_p99_ratio");
        report.set("flood_p99_ratio", ratio);
        let sent_away = |sample: &Sample| {
            let served = sample.run.statuses.get(&200).copied().unwrap_or_default();
            1.0 - served as f64 / sample.run.answers as f64
        };
        report.set("flood_honest_sent_away", flooded.of(sent_away));
    }
}

/// How long the flood runs before honest payers are measured.
const FLOOD_HEAD_START: Duration = Duration::from_millis(700);

/// What the flood was answered so far: statuses, and `0` for connections that were ended.
fn flood_counts(log: &Path) -> Vec<(String, u64)> {
    let text = fs::read_to_string(log).unwrap_or_default();
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let pair = |word: &str| {
        let (status, count) = word.split_once('=')?;
        Some((status.to_owned(), count.parse().ok()?))
    };
    whole.lines().last().unwrap_or_default().split_whitespace().filter_map(pair).collect()
}

fn with_supplies(lanes: &mut [Lane], run: impl FnOnce(&mut [Supply]) -> Sample) -> Sample {
    let empty = || Supply::Once(std::collections::VecDeque::new());
    let mut supplies: Vec<Supply> = lanes.iter_mut().map(|lane| std::mem::replace(&mut lane.supply, empty())).collect();
    let sample = run(&mut supplies);
    for (lane, supply) in lanes.iter_mut().zip(supplies) {
        lane.supply = supply;
    }
    sample
}

fn measure_lanes(booth: &mut Booth, closed: Closed) -> Sample {
    let running = &booth.running;
    with_supplies(&mut booth.lanes, |supplies| measure(running, closed, supplies))
}

/// A closed loop in which every answer has to be as expected.
fn measure(running: &Running, closed: Closed, supplies: &mut [Supply]) -> Sample {
    cost(running, || closed.run(supplies).all_well())
}

/// Waits until a proxy that is asked nothing does nothing.
fn settle(running: &Running) {
    let begun = Instant::now();
    let mut last = running.usage();
    while begun.elapsed() < MAX_SETTLE {
        std::thread::sleep(LOOK);
        let now = running.usage();
        if now.since(&last).total_us < QUIET * LOOK.as_secs_f64() * 1e6 {
            break;
        }
        last = now;
    }
}

fn cost(running: &Running, run: impl FnOnce() -> Run) -> Sample {
    let before = running.usage();
    let run = run();
    std::thread::sleep(AFTER);
    Sample { run, usage: running.usage().since(&before) }
}

/// Whether this build lets an operator say how many threads serve.
fn knows_cores() -> bool {
    peaje::config::known_keys().iter().any(|(section, key)| section == "server" && *key == "cores")
}

/// The flood, in a process of its own: an address, and a file of requests.
pub(crate) fn flood_worker(mut words: impl Iterator<Item = String>) -> ! {
    let target = words.next().unwrap().parse().unwrap();
    let bytes = fs::read(words.next().unwrap()).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let requests: Vec<Vec<u8>> = text.split_inclusive("\r\n\r\n").map(|request| request.as_bytes().to_vec()).collect();
    load::flood(target, FLOOD_SOURCE, &requests, FLOOD_CONNECTIONS)
}

fn config_text(rpc: &str, upstream: SocketAddr, listen: SocketAddr, books: &Path, cores: Option<usize>) -> String {
    let cores = cores.map_or_else(String::new, |cores| format!("cores = {cores}"));
    format!(
        r#"
        [server]
        listen = "{listen}"
        {cores}
        [admin]
        listen = "off"
        [upstream]
        url = "http://{upstream}"
        [chain]
        network = "base-sepolia"
        rpc = "{rpc}"
        [receiver]
        pay_to = "0x00000000000000000000000000000000c0ffee01"
        authorizer_key = "dev:authorizer"
        gas_key = "dev:gas"
        [store]
        directory = "{}"
        [redeem]
        interval = "12h"
        on_shutdown = false
        [log]
        level = "warn"
        [[route]]
        path = "/paid"
        price = "{PRICE_TEXT}"
        [[route]]
        path = "{}"
        price = "{PRICE_TEXT}"
        [[route]]
        path = "/free"
        price = "free"
        "#,
        books.display(),
        upstream::SLOW,
    )
}
