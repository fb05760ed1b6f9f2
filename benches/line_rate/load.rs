//! The load: closed loops, in which a connection sends the next request after the answer, and open loops, in which
//! requests are due at fixed times whatever the proxy does.
//!
//! **Promises** that requests were made before the clock starts, and that an open loop measures from the moment a request
//! was due, so that a proxy that stalls is charged for all that had to wait.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::histogram::Histogram;
use super::wire::Connection;

/// Where honest clients come from.
pub(crate) const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Requests for one or more connections.
#[derive(Debug)]
pub(crate) enum Supply {
    /// These, again and again.
    Around(Vec<Vec<u8>>, usize),
    /// Each once, in order.
    Once(VecDeque<Vec<u8>>),
}

impl Supply {
    pub(crate) fn around(requests: Vec<Vec<u8>>) -> Self {
        Self::Around(requests, 0)
    }

    /// Lends the next request out; nothing when none is left.
    fn take(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::Around(requests, next) => {
                *next = (*next + 1) % requests.len();
                Some(std::mem::take(&mut requests[*next]))
            }
            Self::Once(requests) => requests.pop_front(),
        }
    }

    /// Takes a request that was lent out back, for the next time around.
    fn give_back(&mut self, request: Vec<u8>) {
        if let Self::Around(requests, next) = self {
            // With more than one connection another place than the last may be the empty one too.
            let last = &mut requests[*next];
            let place = if last.is_empty() { Some(last) } else { requests.iter_mut().find(|place| place.is_empty()) };
            if let Some(place) = place {
                *place = request;
            }
        }
    }
}

/// What a run brought.
#[derive(Debug, Default, Clone)]
pub(crate) struct Run {
    pub(crate) answers: u64,
    pub(crate) seconds: f64,
    pub(crate) times: Histogram,
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// The first answer with another status than was expected.
    pub(crate) surprise: Option<String>,
    /// Whether a supply ended before the time did.
    pub(crate) is_dry: bool,
}

impl Run {
    pub(crate) fn per_second(&self) -> f64 {
        self.answers as f64 / self.seconds
    }

    fn note(&mut self, status: u16, took: Duration) {
        self.answers += 1;
        self.times.add(took);
        *self.statuses.entry(status).or_default() += 1;
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.answers += other.answers;
        self.seconds = self.seconds.max(other.seconds);
        self.times.merge(&other.times);
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.surprise = self.surprise.take().or(other.surprise);
        self.is_dry |= other.is_dry;
    }

    /// The run, if every answer was as expected.
    pub(crate) fn all_well(self) -> Self {
        assert!(self.surprise.is_none(), "an answer was not as expected:\n{}", self.surprise.unwrap_or_default());
        self
    }
}

/// How a closed loop is driven.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Closed {
    pub(crate) target: SocketAddr,
    pub(crate) how_long: Duration,
    /// The status every answer should have; a connection ends at the first other one.
    pub(crate) expected: u16,
    /// Connections that share one supply.
    pub(crate) connections_each: usize,
    pub(crate) threads: usize,
}

impl Closed {
    /// Runs until the time is over or the supplies are.
    pub(crate) fn run(self, supplies: &mut [Supply]) -> Run {
        let chunk = supplies.len().div_ceil(self.threads).max(1);
        let begun = Instant::now();
        let mut total = Run::default();
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                supplies.chunks_mut(chunk).map(|supplies| scope.spawn(move || self.run_here(supplies))).collect();
            for thread in threads {
                total.merge(thread.join().unwrap());
            }
        });
        total.seconds = begun.elapsed().as_secs_f64();
        total
    }

    fn run_here(self, supplies: &mut [Supply]) -> Run {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let run = Rc::new(RefCell::new(Run::default()));
        let shared: Vec<_> = supplies
            .iter_mut()
            .map(|supply| Rc::new(RefCell::new(std::mem::replace(supply, Supply::Once(VecDeque::new())))))
            .collect();
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async {
            let mut all = Vec::new();
            for supply in &shared {
                for _ in 0..self.connections_each {
                    let connection = Connection::open(self.target, HERE).await.unwrap();
                    all.push((connection, Rc::clone(supply)));
                }
            }
            let deadline = Instant::now() + self.how_long;
            let drive = |(connection, supply)| {
                tokio::task::spawn_local(self.drive(connection, supply, Rc::clone(&run), deadline))
            };
            let all: Vec<_> = all.into_iter().map(drive).collect();
            for task in all {
                task.await.unwrap();
            }
        });
        drop(tasks);
        for (place, supply) in supplies.iter_mut().zip(shared) {
            *place = Rc::try_unwrap(supply).unwrap().into_inner();
        }
        Rc::try_unwrap(run).unwrap().into_inner()
    }

    async fn drive(
        self,
        mut connection: Connection,
        supply: Rc<RefCell<Supply>>,
        run: Rc<RefCell<Run>>,
        deadline: Instant,
    ) {
        loop {
            let begun = Instant::now();
            if begun >= deadline {
                return;
            }
            let Some(request) = supply.borrow_mut().take() else {
                run.borrow_mut().is_dry = true;
                return;
            };
            let status = connection.exchange(&request).await.expect("the proxy keeps its connections open");
            run.borrow_mut().note(status, begun.elapsed());
            supply.borrow_mut().give_back(request);
            if status != self.expected {
                let mut run = run.borrow_mut();
                let shown = || String::from_utf8_lossy(connection.answer()).into_owned();
                run.surprise = run.surprise.take().or_else(|| Some(shown()));
                return;
            }
        }
    }
}

/// How an open loop is driven: every supply has a connection and a thread of its own, and a fixed interval.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Open {
    pub(crate) target: SocketAddr,
    pub(crate) how_long: Duration,
    /// Requests a second of all together.
    pub(crate) rate: f64,
}

impl Open {
    pub(crate) fn run(self, supplies: &mut [Supply]) -> Run {
        let every = Duration::from_secs_f64(supplies.len() as f64 / self.rate);
        let phase = every / u32::try_from(supplies.len()).unwrap();
        let begun = Instant::now() + Duration::from_millis(20);
        let mut total = Run::default();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(supplies)
                .map(|(number, supply)| scope.spawn(move || self.drive(supply, begun + phase * number, every)))
                .collect();
            for thread in threads {
                total.merge(thread.join().unwrap());
            }
        });
        total.seconds = begun.elapsed().as_secs_f64();
        total
    }

    fn drive(self, supply: &mut Supply, first: Instant, every: Duration) -> Run {
        // The runtime only does the sockets: its timers are of whole milliseconds.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let connect = || runtime.block_on(Connection::open(self.target, HERE));
        let mut connection = connect().unwrap();
        let mut run = Run::default();
        let (mut due, end) = (first, first + self.how_long);
        let mut kept = None;
        while due < end {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let Some(request) = kept.take().or_else(|| supply.take()) else {
                run.is_dry = true;
                break;
            };
            let status = match runtime.block_on(connection.exchange(&request)) {
                Ok(status) => status,
                Err(error) => {
                    // Whether it was charged nobody knows then; an honest payer would ask, and this one gives up.
                    run.surprise = Some(format!("the connection broke: {error}"));
                    break;
                }
            };
            run.note(status, due.elapsed());
            match status {
                200 => supply.give_back(request),
                // Sent away before anything was charged: the voucher is as good as before.
                429 | 503 => {
                    kept = Some(request);
                    if super::wire::header(connection.answer(), "connection").is_some_and(|value| value == "close") {
                        match connect() {
                            Ok(fresh) => connection = fresh,
                            Err(error) => panic!("cannot connect again: {error}"),
                        }
                    }
                }
                _ => {
                    run.surprise = Some(String::from_utf8_lossy(connection.answer()).into_owned());
                    break;
                }
            }
            due += every;
        }
        if let (Some(request), Supply::Once(requests)) = (kept, supply) {
            requests.push_front(request);
        }
        run
    }
}

/// Sends these requests as fast as answers come, from another address than honest clients have, and connects again
/// whenever it is thrown out. Runs until the process is ended.
pub(crate) fn flood(target: SocketAddr, source: IpAddr, requests: &[Vec<u8>], connections: usize) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = tokio::task::LocalSet::new();
    let requests = Rc::new(requests.to_vec());
    let seen = Rc::new(RefCell::new(BTreeMap::<u16, u64>::new()));
    for number in 0..connections {
        let (requests, seen) = (Rc::clone(&requests), Rc::clone(&seen));
        tasks.spawn_local(async move {
            let mut next = number;
            loop {
                let ended: io::Result<()> = async {
                    let mut connection = Connection::open(target, source).await?;
                    loop {
                        next = (next + 1) % requests.len();
                        let status = connection.exchange(&requests[next]).await?;
                        *seen.borrow_mut().entry(status).or_default() += 1;
                    }
                }
                .await;
                if ended.is_err() {
                    *seen.borrow_mut().entry(0).or_default() += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
    }
    tasks.block_on(&runtime, async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            // Who started it reads the last line.
            let counts: Vec<String> = seen.borrow().iter().map(|(status, count)| format!("{status}={count}")).collect();
            println!("{}", counts.join(" "));
        }
    })
}
