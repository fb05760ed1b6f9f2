//! The access log: one JSON object a line for each request, in a file of the operator's.
//!
//! **Owns** the file and the thread that writes it. **Promises** that no request waits for the disk: what the thread
//! cannot keep up with is dropped and counted; that lines are whole and in the order in which requests ended; and that a
//! file which was moved away is let go on [`AccessLog::reopen`]. **Does not** rotate, compress or delete anything, nor
//! decide what is in a record.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

pub use crate::gate::record::{AccessRecord, Counts, Outcome, Recorder};

/// How long a line may wait in memory while others follow it, and how soon it is seen that the file is to be opened
/// again or closed.
const MAX_IDLE: Duration = Duration::from_millis(200);

/// How much is collected before it is written, bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// An access log that is being written.
#[derive(Debug)]
pub struct AccessLog {
    recorder: Recorder,
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    reopen: AtomicBool,
    close: AtomicBool,
}

impl AccessLog {
    /// Opens the file, behind what is in it, and starts its thread.
    ///
    /// # Errors
    /// The file cannot be opened for writing, or there is no thread.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (recorder, records) = Recorder::new();
        let shared = Arc::<Shared>::default();
        let (path, file, lost) = (path.to_owned(), Some(open(path)?), recorder.clone());
        let writer = Writer { path, file, buffer: Vec::new(), shared: shared.clone(), lost };
        let writer = std::thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run(&records))?;
        Ok(Self { recorder, shared, writer: Mutex::new(Some(writer)) })
    }

    /// Where its records come from.
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Opens the file of this name again soon, because the one that is open was moved away.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Relaxed);
    }

    /// Writes what has been recorded so far, and ends the thread. Blocks.
    pub fn close(&self) {
        self.shared.close.store(true, Ordering::Relaxed);
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the access log's thread broke");
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.close();
    }
}

struct Writer {
    path: PathBuf,
    /// None while it cannot be opened or written.
    file: Option<File>,
    /// Whole lines.
    buffer: Vec<u8>,
    shared: Arc<Shared>,
    lost: Recorder,
}

impl Writer {
    fn run(mut self, records: &Receiver<AccessRecord>) {
        loop {
            match records.recv_timeout(MAX_IDLE) {
                Ok(record) => {
                    self.line(&record);
                    // As long as there are more, the disk is asked for many at once.
                    while let Ok(record) = records.try_recv() {
                        self.line(&record);
                        if self.buffer.len() >= BUFFER_BYTES {
                            self.flush();
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) if !self.shared.close.load(Ordering::Relaxed) => {}
                Err(_) => break,
            }
            self.flush();
            if self.shared.reopen.swap(false, Ordering::Relaxed) {
                self.reopen();
            }
        }
        self.flush();
    }

    fn line(&mut self, record: &AccessRecord) {
        serde_json::to_writer(&mut self.buffer, record).expect("a record has string keys");
        self.buffer.push(b'\n');
    }

    fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        if self.file.is_none() {
            self.reopen();
        }
        let written = self.file.as_mut().map(|file| file.write_all(&self.buffer));
        if !matches!(written, Some(Ok(()))) {
            let lines = self.buffer.iter().filter(|byte| **byte == b'\n').count();
            self.lost.lost(u64::try_from(lines).unwrap_or(u64::MAX));
            if let Some(Err(error)) = written {
                tracing::error!(%error, lines, "the access log cannot be written; requests go on without it");
            }
            // Half a line may be there: the next ones begin on one of their own.
            self.file = None;
        }
        self.buffer.clear();
    }

    fn reopen(&mut self) {
        match open(&self.path) {
            Ok(file) => self.file = Some(file),
            Err(error) => {
                let path = self.path.display();
                tracing::error!(%error, %path, "the access log cannot be opened; requests go on without it");
                self.file = None;
            }
        }
    }
}

/// Who called what, and who paid, is for the operator's eyes.
fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.create(true).append(true).read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    if !ends_with_a_line(&mut file)? {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// A process that died while it wrote leaves half a line.
fn ends_with_a_line(file: &mut File) -> io::Result<bool> {
    use std::io::{Read as _, Seek as _, SeekFrom};

    // A pipe or a device has no end to look at.
    if !file.metadata()?.is_file() || file.seek(SeekFrom::End(0))? == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn record(path: &str) -> AccessRecord {
        serde_json::from_value(serde_json::json!({
            "time_ms": 1, "method": "GET", "path": path, "outcome": "free", "elapsed_ms": 2, "from_a_later_version": {},
        }))
        .unwrap()
    }

    fn paths(file: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().map(|line| serde_json::from_str::<AccessRecord>(line).unwrap().path).collect()
    }

    #[test]
    fn what_was_recorded_is_in_the_file_once_the_log_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.jsonl");
        let all: Vec<_> = (0..1_000).map(|n| format!("/{n}")).collect();
        for part in all.chunks(500) {
            let log = AccessLog::open(&path).unwrap();
            part.iter().for_each(|path| log.recorder().record(record(path)));
            assert_eq!(log.recorder().dropped(), 0);
        }
        assert_eq!(paths(&path), all, "a second opening goes on behind the first");
        assert!(AccessLog::open(&directory.path().join("no/such")).is_err());
    }

    #[test]
    fn a_file_that_was_moved_away_is_let_go() {
        let directory = tempfile::tempdir().unwrap();
        let (path, old) = (directory.path().join("access.jsonl"), directory.path().join("access.1"));
        let log = AccessLog::open(&path).unwrap();
        log.recorder().record(record("/before"));
        let begun = Instant::now();
        while paths(&path).is_empty() && begun.elapsed() < Duration::from_secs(30) {
            std::thread::yield_now();
        }
        std::fs::rename(&path, &old).unwrap();
        log.reopen();
        while !path.exists() && begun.elapsed() < Duration::from_secs(30) {
            std::thread::yield_now();
        }
        log.recorder().record(record("/after"));
        drop(log);
        assert_eq!((paths(&old), paths(&path)), (vec!["/before".to_owned()], vec!["/after".to_owned()]));
    }

    #[test]
    fn half_a_line_of_a_former_process_spoils_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.jsonl");
        std::fs::write(&path, "{\"time_ms\":1,").unwrap();
        let log = AccessLog::open(&path).unwrap();
        log.recorder().record(record("/whole"));
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(serde_json::from_str::<AccessRecord>(text.lines().nth(1).unwrap()).is_ok(), "{text}");
    }
}
