//! How a private key comes into the process.
//!
//! **Owns** the references by which a config names keys (`env:`, `file:`, `keystore:`, `dev:`) and the rules about
//! where a key may lie. **Promises** that a reference can be logged, that no error repeats a secret, and that a key the whole
//! world knows never signs for a chain that is not on this machine. **Does not** keep keys: it returns a
//! [`LocalKey`], which wipes itself.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::protocol::{Address, LocalKey};

/// The environment variable with the password of a keystore.
pub const PASSWORD_ENV: &str = "PEAJE_KEYSTORE_PASSWORD";
/// The environment variable that names a file with the password of a keystore.
pub const PASSWORD_FILE_ENV: &str = "PEAJE_KEYSTORE_PASSWORD_FILE";
/// The longest key, password or keystore file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 16 * 1024;

/// The names under which development keys can be asked for beside `0` to `9`, and which of the ten each one is.
pub const DEV_KEY_NAMES: [(&str, usize); 4] = [("gas", 0), ("authorizer", 1), ("receiver", 2), ("agent", 3)];

/// The first ten accounts of the mnemonic "test test test test test test test test test test test junk", which every
/// development chain funds and everybody knows.
const DEV_KEYS: [&str; 10] = [
    "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    "5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    "7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
    "47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
    "8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba",
    "92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e",
    "4bbbf85ce3377467afe5d46f804f221813b2bb87f24d81f60f1fcdbf7cbf4356",
    "dbda1821b80551c9d65939329250298aa3472ba22feea921c0cf5d620ea67b97",
    "2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6",
];

/// The twenty accounts of that mnemonic which development chains fund by default.
const DEV_ACCOUNTS: [&str; 20] = [
    "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
    "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
    "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
    "0x90F79bf6EB2c4f870365E785982E1f101E93b906",
    "0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65",
    "0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc",
    "0x976EA74026E726554dB657fA54763abd0C3a0aa9",
    "0x14dC79964da2C08b23698B3D3cc7Ca32193d9955",
    "0x23618e81E3f5cdF7f54C3d65f7FBc0aBf5B21E8f",
    "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720",
    "0xBcd4042DE499D14e55001CcbB24a551F3b954096",
    "0x71bE63f3384f5fb98995898A86B02Fb2426c5788",
    "0xFABB0ac9d68B0B445fB7357272Ff202C5651694a",
    "0x1CBd3b2770909D4e10f157cABC84C7264073C9Ec",
    "0xdF3e18d64BC6A983f673Ab319CCaE4f1a57C7097",
    "0xcd3B766CCDd6AE721141F452C550Ca635964ce71",
    "0x2546BcD3c84621e976D8185a91A922aE77ECEc30",
    "0xbDA5747bFD65F08deb54cb465eB87D40e51B197E",
    "0xdD2FD4581271e230360230F9337D5c0430Bf44C0",
    "0x8626f6940E2eb28930eFb4CeF49B2d1F2C9C1199",
];

/// Whether everybody knows the key of this account.
pub fn is_development_account(address: Address) -> bool {
    let address = address.to_string();
    DEV_ACCOUNTS.contains(&address.as_str())
}

/// Where a key is to be found. Its text form is the one in the config, and safe to show.
#[derive(Clone, PartialEq, Eq)]
pub enum KeyRef {
    /// `env:NAME`: 64 hex digits in an environment variable.
    Env(String),
    /// `file:PATH`: 64 hex digits in a file that only its owner can read.
    File(PathBuf),
    /// `keystore:PATH`: an encrypted JSON keystore (Web3 Secret Storage), as geth and foundry write them.
    Keystore(PathBuf),
    /// `dev:NAME`: a well-known development key, by its index.
    Dev(usize),
}

/// Why there is no key. No variant carries a secret.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A private key stands where a reference should.
    #[error(
        "this looks like a private key itself, which does not belong in a config; put it in a file (chmod 600) or an \
         environment variable and write file:PATH or env:NAME here, and consider this key exposed"
    )]
    Literal,
    /// The text has none of the known forms.
    #[error("a key is named by env:NAME, file:PATH, keystore:PATH or (for development) dev:NAME")]
    Form,
    /// The text after `env:` cannot be a variable's name.
    #[error("after env: comes the name of an environment variable: letters, digits and _, not beginning with a digit")]
    EnvName,
    /// The text after `dev:` is no development key.
    #[error("no such development key; there are dev:gas, dev:authorizer, dev:receiver, dev:agent and dev:0 to dev:9")]
    DevName,
    /// The variable is not set.
    #[error("the environment variable {name} is not set; it should hold the private key as 64 hex digits")]
    EnvUnset {
        /// The variable.
        name: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others can read the file.
    #[error("{} can be read by others (mode {mode:03o}); run: chmod 600 {}", path.display(), path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// What was found is no private key.
    #[error("what {place} holds is not a private key: it takes 64 hex digits, with or without 0x")]
    NotAKey {
        /// Where it was found.
        place: String,
    },
    /// A keystore needs a password and nobody gave one.
    #[error(
        "the keystore {} needs a password; set {PASSWORD_FILE_ENV} to a file that holds it, or {PASSWORD_ENV}, or \
         start in a terminal to be asked", path.display()
    )]
    NoPassword {
        /// The keystore.
        path: PathBuf,
    },
    /// The terminal could not be read.
    #[error("cannot read the password from the terminal")]
    Prompt {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The password is wrong, or the file is no keystore.
    #[error("cannot open the keystore {}", path.display())]
    Keystore {
        /// The keystore.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A key the whole world knows, and a chain that is not on this machine.
    #[error(
        "{key} holds the well-known development key of {address}, and everybody can take what it guards; a chain that \
         is not on this machine needs a key of your own"
    )]
    DevKeyOnPublicChain {
        /// The reference.
        key: KeyRef,
        /// The account.
        address: Address,
    },
}

impl KeyRef {
    /// Fetches the key. `chain_is_loopback` says whether the chain it will sign for is on this machine; only then a
    /// well-known development key is let through, however it was named.
    ///
    /// This reads files, may ask on the terminal, and takes about a second of computing for a keystore: call it once,
    /// at the start.
    pub fn load(&self, chain_is_loopback: bool) -> Result<LocalKey, KeyError> {
        self.load_with(chain_is_loopback, &Surroundings { env: &read_env, ask: &ask_on_terminal })
    }

    fn load_with(&self, chain_is_loopback: bool, around: &Surroundings<'_>) -> Result<LocalKey, KeyError> {
        let key = self.find(around)?;
        let address = key.address();
        if !chain_is_loopback && is_development_account(address) {
            return Err(KeyError::DevKeyOnPublicChain { key: self.clone(), address });
        }
        Ok(key)
    }

    fn find(&self, around: &Surroundings<'_>) -> Result<LocalKey, KeyError> {
        match self {
            Self::Env(name) => {
                let text = (around.env)(name).ok_or_else(|| KeyError::EnvUnset { name: name.clone() })?;
                self.key_from(&text)
            }
            Self::File(path) => self.key_from(&read_secret(path)?),
            Self::Keystore(path) => open_keystore(path, around),
            Self::Dev(index) => self.key_from(DEV_KEYS.get(*index).ok_or(KeyError::DevName)?),
        }
    }

    fn key_from(&self, text: &str) -> Result<LocalKey, KeyError> {
        LocalKey::from_hex(text).map_err(|_| KeyError::NotAKey { place: self.to_string() })
    }
}

impl FromStr for KeyRef {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        let (scheme, rest) = text.split_once(':').unwrap_or(("", text));
        if is_literal_key(rest) {
            return Err(KeyError::Literal);
        }
        match (scheme, rest) {
            ("" | "file" | "keystore", "") => Err(KeyError::Form),
            ("env", name) => {
                let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
                let reads_well = name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
                if starts_well && reads_well { Ok(Self::Env(name.to_owned())) } else { Err(KeyError::EnvName) }
            }
            ("file", path) => Ok(Self::File(path.into())),
            ("keystore", path) => Ok(Self::Keystore(path.into())),
            ("dev", name) => {
                let named = DEV_KEY_NAMES.iter().find(|(known, _)| *known == name).map(|(_, index)| *index);
                let numbered = || name.parse().ok().filter(|index| *index < DEV_KEYS.len() && name.len() == 1);
                named.or_else(numbered).map(Self::Dev).ok_or(KeyError::DevName)
            }
            _ => Err(KeyError::Form),
        }
    }
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Keystore(path) => write!(f, "keystore:{}", path.display()),
            Self::Dev(index) => match DEV_KEY_NAMES.iter().find(|(_, named)| named == index) {
                Some((name, _)) => write!(f, "dev:{name}"),
                None => write!(f, "dev:{index}"),
            },
        }
    }
}

impl fmt::Debug for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What lies outside the process, so that tests can hand in their own.
struct Surroundings<'a> {
    env: &'a dyn Fn(&str) -> Option<Zeroizing<String>>,
    /// Asks a human for the password of a keystore; `None` where there is no terminal.
    ask: &'a dyn Fn(&Path) -> Option<io::Result<Zeroizing<String>>>,
}

fn read_env(name: &str) -> Option<Zeroizing<String>> {
    std::env::var(name).ok().filter(|value| !value.is_empty()).map(Zeroizing::new)
}

fn ask_on_terminal(path: &Path) -> Option<io::Result<Zeroizing<String>>> {
    let prompt = format!("Password of the keystore {}: ", path.display());
    io::stdin().is_terminal().then(|| rpassword::prompt_password(prompt).map(Zeroizing::new))
}

/// 64 hex digits, whatever stands before them: nothing else in a config looks like this.
fn is_literal_key(text: &str) -> bool {
    let digits = text.trim().trim_start_matches("0x").trim_start_matches("0X");
    digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

fn open_keystore(path: &Path, around: &Surroundings<'_>) -> Result<LocalKey, KeyError> {
    // Decrypting takes a path, not a text, so this reads the file only to say plainly what is wrong with it.
    read_bounded(path)?;
    let password = password_of(path, around)?;
    let refused = |source: Box<dyn std::error::Error + Send + Sync>| KeyError::Keystore { path: path.into(), source };
    let signer = alloy::signers::local::PrivateKeySigner::decrypt_keystore(path, password.as_bytes())
        .map_err(|error| refused(error.into()))?;
    LocalKey::from_bytes(Zeroizing::new(signer.to_bytes().0).as_slice()).map_err(|error| refused(error.into()))
}

fn password_of(path: &Path, around: &Surroundings<'_>) -> Result<Zeroizing<String>, KeyError> {
    if let Some(file) = (around.env)(PASSWORD_FILE_ENV) {
        let text = read_secret(Path::new(file.as_str()))?;
        return Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()));
    }
    if let Some(password) = (around.env)(PASSWORD_ENV) {
        return Ok(password);
    }
    match (around.ask)(path) {
        Some(answer) => answer.map_err(|source| KeyError::Prompt { source }),
        None => Err(KeyError::NoPassword { path: path.into() }),
    }
}

/// Reads a small text file that nobody but its owner may read.
fn read_secret(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let unreadable = |source| KeyError::Unreadable { path: path.into(), source };
        let mode = std::fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::TooOpen { path: path.into(), mode });
        }
    }
    read_bounded(path)
}

fn read_bounded(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let unreadable = |source| KeyError::Unreadable { path: path.into(), source };
    let file = File::open(path).map_err(unreadable)?;
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_FILE_BYTES.saturating_add(1)).read_to_string(&mut text).map_err(unreadable)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, "larger than any key")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    const SECRET: &str = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318";
    const ACCOUNT: &str = "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23";

    fn parse(text: &str) -> KeyRef {
        text.parse().unwrap()
    }

    fn around<'a>(
        env: &'a dyn Fn(&str) -> Option<Zeroizing<String>>,
        ask: &'a dyn Fn(&Path) -> Option<io::Result<Zeroizing<String>>>,
    ) -> Surroundings<'a> {
        Surroundings { env, ask }
    }

    fn load(key: &KeyRef, env: &[(&str, &str)]) -> Result<LocalKey, KeyError> {
        let lookup = |name: &str| {
            env.iter().find(|(known, _)| *known == name).map(|(_, value)| Zeroizing::new((*value).to_owned()))
        };
        key.load_with(false, &around(&lookup, &|_| None))
    }

    /// A file in a fresh directory, with these permission bits.
    fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    /// Everything an error would ever show.
    fn shown(error: &KeyError) -> String {
        let mut text = format!("{error} {error:?}");
        let mut cause = error.source();
        while let Some(error) = cause {
            text += &format!(" {error} {error:?}");
            cause = error.source();
        }
        text
    }

    #[test]
    fn references_read_as_they_are_written() {
        for text in ["env:PEAJE_GAS_KEY", "file:/run/secrets/gas", "keystore:/etc/peaje/gas.json", "dev:gas", "dev:7"] {
            assert_eq!(parse(text).to_string(), text);
        }
        assert_eq!(parse("dev:agent"), KeyRef::Dev(3));
        assert_eq!(parse("dev:0"), parse("dev:gas"));
        for (text, form) in
            [("env:", "env"), ("env:1X", "env"), ("env:A B", "env"), ("dev:10", "dev"), ("dev:07", "dev")]
        {
            let error = text.parse::<KeyRef>().unwrap_err();
            assert_eq!(matches!(error, KeyError::EnvName), form == "env", "{text}");
            assert_eq!(matches!(error, KeyError::DevName), form == "dev", "{text}");
        }
        for text in ["", "file:", "keystore:", "vault:x", "/etc/key", "hunter2"] {
            assert!(matches!(text.parse::<KeyRef>(), Err(KeyError::Form)), "{text}");
        }
    }

    #[test]
    fn a_literal_key_is_refused_and_never_repeated() {
        for text in [
            SECRET.to_owned(),
            format!("0x{SECRET}"),
            format!("env:{SECRET}"),
            format!("file:0x{SECRET}"),
            format!(" 0X{} ", SECRET.to_uppercase()),
        ] {
            let error = text.parse::<KeyRef>().unwrap_err();
            assert!(matches!(error, KeyError::Literal), "{error:?}");
            assert!(!shown(&error).to_lowercase().contains(&SECRET[..8]));
        }
    }

    #[test]
    fn a_key_comes_from_the_environment() {
        let key = parse("env:GAS");
        let loaded = load(&key, &[("GAS", SECRET)]).unwrap();
        assert_eq!(loaded.address().to_string(), ACCOUNT);
        assert!(matches!(load(&key, &[]), Err(KeyError::EnvUnset { name }) if name == "GAS"));
        let error = load(&key, &[("GAS", &SECRET[..60])]).unwrap_err();
        assert!(matches!(error, KeyError::NotAKey { .. }));
        assert!(!shown(&error).contains(&SECRET[..8]));
    }

    #[test]
    fn a_key_comes_from_a_file_that_only_its_owner_reads() {
        for mode in [0o600, 0o400] {
            let (_dir, path) = file(&format!("0x{SECRET}\n"), mode);
            assert_eq!(load(&KeyRef::File(path), &[]).unwrap().address().to_string(), ACCOUNT);
        }
        for mode in [0o640, 0o604, 0o644, 0o620] {
            let (_dir, path) = file(SECRET, mode);
            let error = load(&KeyRef::File(path), &[]).unwrap_err();
            assert!(matches!(error, KeyError::TooOpen { .. }), "{mode:o}");
            assert!(error.to_string().contains("chmod 600"));
            assert!(!shown(&error).contains(&SECRET[..8]));
        }
        let (_dir, path) = file(&"0".repeat(usize::try_from(MAX_FILE_BYTES).unwrap() + 1), 0o600);
        assert!(matches!(load(&KeyRef::File(path), &[]), Err(KeyError::Unreadable { .. })));
        assert!(matches!(load(&parse("file:/nowhere/at/all"), &[]), Err(KeyError::Unreadable { .. })));
    }

    #[test]
    fn a_keystore_opens_with_its_password_only() {
        let dir = tempfile::tempdir().unwrap();
        let secret = alloy::primitives::hex::decode(SECRET).unwrap();
        // The cheapest scrypt a keystore may ask for, so that the test is quick.
        let store = serde_json::json!({
            "version": 3, "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6", "address": ACCOUNT[2..].to_lowercase(),
            "crypto": keystore_of(&secret, b"open sesame"),
        });
        let path = dir.path().join("gas.json");
        std::fs::write(&path, store.to_string()).unwrap();
        let key = KeyRef::Keystore(path.clone());

        assert_eq!(load(&key, &[(PASSWORD_ENV, "open sesame")]).unwrap().address().to_string(), ACCOUNT);
        let (_dir, password) = file("open sesame\n", 0o600);
        let named = load(&key, &[(PASSWORD_FILE_ENV, password.to_str().unwrap())]).unwrap();
        assert_eq!(named.address().to_string(), ACCOUNT);
        let asked = key.load_with(false, &around(&|_| None, &|_| Some(Ok("open sesame".to_owned().into())))).unwrap();
        assert_eq!(asked.address().to_string(), ACCOUNT);

        let error = load(&key, &[(PASSWORD_ENV, "wrong-password")]).unwrap_err();
        assert!(matches!(error, KeyError::Keystore { .. }));
        assert!(!shown(&error).contains("wrong-password"));
        assert!(matches!(load(&key, &[]), Err(KeyError::NoPassword { .. })));
    }

    /// The `crypto` part of a version 3 keystore, made by the library for a directory of its own and read back.
    fn keystore_of(secret: &[u8], password: &[u8]) -> serde_json::Value {
        let dir = tempfile::tempdir().unwrap();
        let mut random = alloy::signers::k256::elliptic_curve::rand_core::OsRng;
        alloy::signers::local::PrivateKeySigner::encrypt_keystore(dir.path(), &mut random, secret, password, Some("x"))
            .unwrap();
        let text = std::fs::read_to_string(dir.path().join("x")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["crypto"].clone()
    }

    #[test]
    fn a_well_known_key_is_for_this_machine_only() {
        let (_dir, path) = file(DEV_KEYS[5], 0o600);
        let everywhere = [parse("dev:gas"), parse("dev:9"), parse("env:K"), KeyRef::File(path)];
        let env = |name: &str| (name == "K").then(|| Zeroizing::new(DEV_KEYS[3].to_owned()));
        for key in everywhere {
            let around = around(&env, &|_| None);
            assert!(matches!(key.load_with(false, &around), Err(KeyError::DevKeyOnPublicChain { .. })), "{key}");
            assert!(key.load_with(true, &around).is_ok(), "{key}");
        }
    }

    #[test]
    fn the_development_keys_are_the_ten_everybody_knows() {
        for (key, account) in DEV_KEYS.iter().zip(DEV_ACCOUNTS) {
            assert_eq!(LocalKey::from_hex(key).unwrap().address().to_string(), account);
        }
        assert!(DEV_ACCOUNTS.iter().all(|account| is_development_account(account.parse().unwrap())));
        assert!(!is_development_account(ACCOUNT.parse().unwrap()));
    }
}
