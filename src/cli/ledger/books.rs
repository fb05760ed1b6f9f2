//! Which books, and how their money reads.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::output::Paint;
use crate::cli::value::{ChainName, chain_name};
use crate::cli::{ConfigArgs, Exit, Failure, Output};
use crate::config::Config;
use crate::protocol::{Address, Amount, ChannelId, Domain, Network};
use crate::store::sqlite::Reader;
use crate::store::{Identity, StoreError};

/// Where the books are.
#[derive(Debug, Clone, Args)]
pub struct BooksArgs {
    #[command(flatten)]
    /// Where the config is, which names the books.
    pub config: ConfigArgs,
    /// Which chain's books, by its name or id, where the config has several.
    #[arg(long, value_name = "NETWORK", conflicts_with_all = ["directory", "file"])]
    pub network: Option<ChainName>,
    /// The directory of the books, instead of store.directory in the config; no config is needed then.
    #[arg(long, value_name = "DIR", conflicts_with = "file")]
    pub directory: Option<PathBuf>,
    /// A backup, instead of the books themselves; no config is needed then.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// Books that were opened, and what is needed to read them aloud.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) reader: Reader,
    pub(super) identity: Identity,
    /// Where they are.
    pub(super) source: Source,
    /// The config, where there is one.
    pub(super) config: Option<Config>,
}

impl BooksArgs {
    /// Opens the books. With `--directory` or `--file` a config that is missing or refused is done without.
    pub(super) fn open(&self) -> Result<Books, Failure> {
        let (source, config) = match (&self.file, &self.directory) {
            (Some(file), _) => (Source::File(file.clone()), self.config.load().ok()),
            (None, Some(directory)) => (Source::Directory(directory.clone()), self.config.load().ok()),
            (None, None) => {
                let config = only_one(self.config.load()?, self.network)?;
                (Source::Directory(config.store.directory.clone()), Some(config))
            }
        };
        let reader = source.open().map_err(|error| self.not_opened(error))?;
        let identity = reader.identity().map_err(damaged)?;
        // A config of another chain says nothing about these books.
        let of_chains = config.map(|config| config.of_each_chain()).unwrap_or_default();
        let config = of_chains.into_iter().find(|config| config.chain.chain_id == identity.chain_id);
        Ok(Books { reader, identity, source, config })
    }

    fn not_opened(&self, error: StoreError) -> Failure {
        let StoreError::Path { path, source } = &error else { return damaged(error) };
        if source.kind() != std::io::ErrorKind::NotFound {
            return damaged(error);
        }
        let failure = Failure::message(Exit::Books, format!("there are no books at {}", path.display()));
        match (&self.file, &self.directory) {
            (Some(_), _) => failure.hint("name a file that peaje ledger backup made"),
            (None, Some(_)) => {
                failure.hint("name the directory that store.directory in the config of peaje serve names")
            }
            (None, None) => failure.hint("peaje serve opens them when it first starts; is this its config?"),
        }
    }
}

/// The config of one of its chains.
fn only_one(config: Config, named: Option<ChainName>) -> Result<Config, Failure> {
    let mut of_chains = config.of_each_chain();
    let names: Vec<_> = of_chains.iter().map(|config| chain_name(config.chain.chain_id)).collect();
    if let Some(ChainName(chain_id)) = named {
        of_chains.retain(|config| config.chain.chain_id == chain_id);
    }
    match (of_chains.len(), of_chains.pop()) {
        (1, Some(config)) => Ok(config),
        (0, _) | (_, None) => Err(Failure::message(Exit::Config, "the config has no such chain")),
        _ => Err(Failure::message(Exit::Usage, "the config has several chains, each with books of its own")
            .hint(format!("--network {}", names.join(", or --network ")))),
    }
}

/// Where books are.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Directory(PathBuf),
    File(PathBuf),
}

impl Source {
    /// Opens them as they are now; a reader sees what was there when it was opened.
    pub(super) fn open(&self) -> Result<Reader, StoreError> {
        match self {
            Self::Directory(directory) => Reader::open(directory),
            Self::File(file) => Reader::open_file(file),
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::File(path) => path,
        }
    }
}

/// A failure of the books, with what to do about it.
pub(super) fn damaged(error: StoreError) -> Failure {
    let advice = error.advice();
    Failure::new(Exit::Books, error).hint(advice)
}

impl Books {
    /// Decimal places of a token, from the config or, where that does not name the token, from the known networks.
    pub(super) fn decimals(&self, token: Address) -> Option<u8> {
        let mut configured = self.config.iter().flat_map(|config| config.chain.tokens());
        if let Some(token) = configured.find(|configured| configured.address == token) {
            return Some(token.decimals);
        }
        let network = Network::by_chain_id(self.identity.chain_id)?;
        network.tokens.iter().find(|known| known.address() == token).map(|known| known.decimals)
    }

    /// The domain that their vouchers are signed under.
    pub(super) fn settlement(&self) -> Domain {
        Domain::settlement_at(self.identity.chain_id, self.identity.settlement)
    }

    /// Where they are and of which chain, for the first line of what people read.
    pub(super) fn heading(&self, paint: Paint) -> String {
        let place = self.source.path().display().to_string();
        format!("{} {}\n", paint.bold(&place), paint.dim(&self.chain_name()))
    }

    /// The chain's name, if it has one.
    fn chain_name(&self) -> String {
        chain_name(self.identity.chain_id)
    }

    pub(super) fn identity_json(&self) -> Value {
        identity_json(&self.identity)
    }
}

pub(super) fn identity_json(identity: &Identity) -> Value {
    json!({
        "network": format!("eip155:{}", identity.chain_id),
        "chain_id": identity.chain_id,
        "settlement": identity.settlement,
    })
}

/// A first look at all channels.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Their ids; of those that can be read.
    pub(super) ids: Vec<ChannelId>,
    /// Decimal places of their token, where it is known and they all have the same; then sums can be read as money.
    pub(super) decimals: Option<u8>,
    /// Decimal places of each channel's token, where they differ and are known; sums over all mean nothing then.
    pub(super) mixed: Option<HashMap<ChannelId, u8>>,
}

impl Survey {
    /// Looks at the channels of one payer, or of all.
    pub(super) fn of(books: &Books, payer: Option<Address>) -> Result<Self, StoreError> {
        let mut ids = Vec::new();
        let mut tokens = BTreeSet::new();
        books.reader.channels_checked(&mut |row| {
            match row {
                Ok(row) => {
                    let snapshot = row.snapshot;
                    tokens.insert(snapshot.config.token);
                    if payer.is_none_or(|payer| payer == snapshot.config.payer) {
                        ids.push(snapshot.id);
                    }
                }
                Err(StoreError::Damaged { .. } | StoreError::Impossible { .. }) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        let mut decimals = tokens.iter().map(|token| books.decimals(*token));
        let first = decimals.next().flatten();
        let same = decimals.all(|other| other == first);
        let mixed = if same { None } else { Some(places_of_channels(books)?) };
        Ok(Self { ids, decimals: first.filter(|_| same), mixed })
    }
}

fn places_of_channels(books: &Books) -> Result<HashMap<ChannelId, u8>, StoreError> {
    let mut places = HashMap::new();
    books.reader.channels_checked(&mut |row| {
        if let Ok(row) = row {
            places.extend(books.decimals(row.snapshot.config.token).map(|decimals| (row.snapshot.id, decimals)));
        }
        Ok(())
    })?;
    Ok(places)
}

/// An amount for people: dollars where the decimals are known, atomic units where they are not.
pub(super) fn money(amount: Amount, decimals: Option<u8>) -> String {
    decimals.map_or_else(|| amount.to_string(), |decimals| amount.to_price(decimals))
}

/// What adjustments came to, with its sign.
pub(super) fn net(up: Amount, down: Amount, decimals: Option<u8>) -> String {
    match up.checked_sub(down) {
        Some(net) => money(net, decimals),
        None => format!("-{}", money(down.saturating_sub(up), decimals)),
    }
}

/// The plural of a word.
pub(super) fn counted(count: u64, word: &str) -> String {
    match count {
        1 => format!("1 {word}"),
        _ => format!("{count} {word}s"),
    }
}

/// A line on a terminal that is written over, for those who wait.
pub(super) struct Ticker<'o> {
    output: &'o Output,
    shown: Option<std::time::Instant>,
    wide: usize,
}

impl<'o> Ticker<'o> {
    /// How often the line changes at most.
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

    pub(super) fn new(output: &'o Output) -> Self {
        Self { output, shown: None, wide: 0 }
    }

    /// Shows where it is, if somebody looks and it is time.
    pub(super) fn show(&mut self, text: impl FnOnce() -> String) {
        if !self.output.stderr_is_terminal() || self.shown.is_some_and(|shown| shown.elapsed() < Self::PAUSE) {
            return;
        }
        let text = text();
        let wide = text.chars().count();
        self.output.error_text(&format!("\r{text}{}", " ".repeat(self.wide.saturating_sub(wide))));
        (self.shown, self.wide) = (Some(std::time::Instant::now()), wide);
    }
}

impl Drop for Ticker<'_> {
    fn drop(&mut self) {
        if self.wide > 0 {
            self.output.error_text(&format!("\r{}\r", " ".repeat(self.wide)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_reads_as_dollars_where_the_decimals_are_known() {
        assert_eq!(money(Amount::new(2_000), Some(6)), "$0.002");
        assert_eq!(money(Amount::new(2_000), None), "2000");
    }

    #[test]
    fn words_are_counted() {
        assert_eq!((counted(0, "channel"), counted(1, "channel")), ("0 channels".to_owned(), "1 channel".to_owned()));
    }

    #[test]
    fn adjustments_are_netted_with_their_sign() {
        let net = |up, down| net(Amount::new(up), Amount::new(down), Some(6));
        assert_eq!((net(2_000, 0), net(0, 2_000), net(5, 5)), ("$0.002".into(), "-$0.002".into(), "$0.00".into()));
    }
}
