//! A proxy that follows another one without a client's notice.
//!
//! **Owns** where the sockets come from that are not simply bound: from a supervisor that holds them (`LISTEN_FDS`, as
//! systemd's socket units do), or bound beside those of the process that is to be followed (`--take-over`). **Promises** that
//! one process at a time has the books: a successor listens first, so that connections wait for it, and opens them once the
//! other has closed them. **Does not** hand over anything but the port and the books.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use listenfd::ListenFd;
use tokio::time::Instant;

use super::connect::try_open_books;
use super::site::{Books, cores};
use super::{Exit, Failure};
use crate::config::Config;
use crate::proxy::Listener;
use crate::store::StoreError;

/// How much longer than its drain the former process may take to close its books.
const CLOSING_TIME: Duration = Duration::from_secs(60);

/// How often the books are tried while another process has them.
const BOOKS_POLL: Duration = Duration::from_millis(10);

/// The sockets a supervisor has handed over, if it has.
///
/// # Errors
/// They are no TCP listeners.
pub(super) fn inherited(config: &Config) -> Result<Option<Listener>, Failure> {
    let mut handed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for number in 0..handed.len() {
        let refused = |error| {
            let error = anyhow::Error::new(error).context(format!("socket no. {number} of LISTEN_FDS cannot be used"));
            Failure::new(Exit::Server, error).hint("give it a TCP socket that listens (ListenStream=)")
        };
        sockets.extend(handed.take_tcp_listener(number).map_err(refused)?);
    }
    if sockets.is_empty() {
        return Ok(None);
    }
    if !sockets.iter().any(|socket| socket.local_addr().is_ok_and(|address| address == config.server.listen)) {
        tracing::warn!(listen = %config.server.listen, "the supervisor's sockets are used, which are not server.listen");
    }
    Listener::inherit(sockets, cores(config)).map(Some).map_err(|error| Failure::new(Exit::Server, error))
}

/// Listens beside the process that is to be followed.
///
/// # Errors
/// It does not share its port, as a process of another account does not.
pub(super) async fn beside(config: &Config) -> Result<Listener, Failure> {
    let address = config.server.listen;
    Listener::bind_beside(address, cores(config)).await.map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("cannot listen on {address} beside the running process"));
        Failure::new(Exit::Server, error).hint("start it as the same user; this needs Linux")
    })
}

/// Tells whoever has the books to stop, and opens them when it has.
///
/// # Errors
/// They cannot be opened for another reason, or it does not stop.
pub(super) async fn books_of_the_former(config: &Config) -> Result<Books, Failure> {
    let (directory, chain_id): (&Path, _) = (&config.store.directory, config.chain.chain_id);
    let deadline = Instant::now() + config.server.shutdown_timeout + CLOSING_TIME;
    let mut told = None;
    loop {
        let error = match try_open_books(directory, chain_id).await? {
            Ok(books) => return Ok(books),
            Err(error) => error,
        };
        let StoreError::InUse { by, .. } = &error else {
            let advice = error.advice();
            return Err(Failure::new(Exit::Books, error).hint(advice));
        };
        if Instant::now() >= deadline {
            return Err(Failure::new(Exit::Books, error).hint("stop the other process; it did not end in time"));
        }
        // The lock is taken before its owner is written into it.
        if let Some(process) = *by
            && told != *by
        {
            told = *by;
            tell_to_stop(process);
        }
        tokio::time::sleep(BOOKS_POLL).await;
    }
}

/// With the command, because a signal cannot be sent from here without `unsafe`. A number that is another program's here, as
/// it is where the books are shared between containers, is left alone.
fn tell_to_stop(process: u32) {
    let name_of = |process: &str| std::fs::read(format!("/proc/{process}/comm")).ok();
    let is_one_of_ours = name_of(&process.to_string()).is_some_and(|name| Some(name) == name_of("self"));
    let mut kill = Command::new("kill");
    kill.args(["-TERM", &process.to_string()]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = is_one_of_ours.then(|| kill.status());
    if status.is_some_and(|status| status.is_ok_and(|status| status.success())) {
        tracing::info!(process, "taking over: the former process was told to stop");
    } else {
        tracing::warn!(process, "taking over: the former process cannot be told to stop from here; send it SIGTERM");
    }
}
