//! A hub of one repository, `acme/net`, whose weights lie in the store.

use crate::{Outcome, hex};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

pub const WEIGHTS: &str = "model.safetensors";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The hub's responses.
#[derive(Debug, Clone)]
pub struct Says {
    /// The checksum that it announces of the weights.
    pub sum: String,
    /// Their size.
    pub size: u64,
    /// Their name in the store.
    pub hash: String,
    /// Where the store is.
    pub store: String,
    /// The status returned in place of the store's token, this many times.
    pub token: Option<(u16, usize)>,
    /// How many of the tokens to come have ended already.
    pub stale: usize,
    /// Whether it sends those who ask for the weights on to where they lie by plain HTTP.
    pub redirects: bool,
}

struct Shared {
    config: String,
    weights: Vec<u8>,
    says: Mutex<Says>,
    asked: Mutex<Vec<String>>,
    address: SocketAddr,
}

pub struct Hub {
    shared: Arc<Shared>,
}

impl Hub {
    pub fn start(config: &str, weights: Vec<u8>, says: Says) -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (says, asked) = (Mutex::new(says), Mutex::default());
        let shared = Arc::new(Shared { config: config.into(), weights, says, asked, address });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                // A client that goes away is its own affair.
                thread::spawn(move || drop(shared.answer(&stream)));
            }
        });
        Ok(Self { shared })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.shared.address)
    }

    pub fn says(&self) -> MutexGuard<'_, Says> {
        self.shared.says.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The requests since the last call: method, path, client, and the range if there is one.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shared {
    fn answer(&self, stream: &TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let mut words = first.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (mut range, mut bearer) = (None, None);
        for line in lines {
            let line = line?;
            match line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value)) {
                Some((name, value)) if name == "range" => range = Some(value.to_string()),
                Some((name, value)) if name == "authorization" => bearer = Some(value.to_string()),
                None => break,
                _ => {}
            }
        }
        let said: Vec<&str> =
            [Some(method), Some(path), bearer.as_deref(), range.as_deref()].into_iter().flatten().collect();
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(said.join(" "));
        let says = self.says.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let head = method == "HEAD";
        let commit = format!("X-Repo-Commit: {COMMIT}\r\n");
        let linked = format!("{commit}ETag: \"{}\"\r\nX-Linked-Size: {}\r\n", says.sum, says.size);
        let xet = format!("{linked}X-Linked-Etag: \"{}\"\r\nX-Xet-Hash: {}\r\n", says.sum, says.hash);
        match path.trim_matches('/').split('/').collect::<Vec<_>>()[..] {
            ["acme", "net", "resolve", _, "config.json"] => {
                let etag = hex(&Sha256::digest(&self.config));
                send(stream, head, &format!("{commit}ETag: \"{etag}\"\r\n"), self.config.as_bytes(), None)
            }
            ["acme", "net", "resolve", _, WEIGHTS] if says.redirects => {
                let place = format!("Location: http://{}/bridge\r\n", self.address);
                status(stream, 302, &format!("{xet}{place}"), "elsewhere")
            }
            ["acme", "net", "resolve", _, WEIGHTS] => send(stream, head, &xet, &self.weights, range.as_deref()),
            ["bridge"] => send(stream, head, "", &self.weights, range.as_deref()),
            ["acme", "net", "resolve", ..] => {
                status(stream, 404, &format!("{commit}X-Error-Code: EntryNotFound\r\n"), "no such file")
            }
            ["api", "models", "acme", "net", "xet-read-token", _] => self.token(stream, &says),
            _ => status(stream, 404, "", "no such route"),
        }
    }

    fn token(&self, stream: &TcpStream, says: &Says) -> std::io::Result<()> {
        if let Some((code, times)) = &mut self.says.lock().unwrap_or_else(PoisonError::into_inner).token
            && *times > 0
        {
            *times -= 1;
            return status(stream, *code, "", "no token for you");
        }
        let stale = {
            let mut now = self.says.lock().unwrap_or_else(PoisonError::into_inner);
            let stale = now.stale > 0;
            now.stale = now.stale.saturating_sub(1);
            stale
        };
        let end: u64 = if stale { 1 } else { 9_999_999_999 };
        let token = json!({"accessToken": "of_the_store", "exp": end, "casUrl": says.store});
        send(stream, false, "Content-Type: application/json\r\n", token.to_string().as_bytes(), None)
    }
}

fn status(mut stream: &TcpStream, code: u16, headers: &str, text: &str) -> std::io::Result<()> {
    let body = json!({ "error": text }).to_string();
    let length = body.len();
    write!(stream, "HTTP/1.1 {code} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
}

fn send(mut stream: &TcpStream, head: bool, headers: &str, all: &[u8], range: Option<&str>) -> std::io::Result<()> {
    let range = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let (code, body) = match range {
        Some((from, to)) => {
            let to = to.parse().map_or(all.len(), |to: usize| to + 1).min(all.len());
            (206, &all[from.parse().unwrap_or(0).min(to)..to])
        }
        None => (200, all),
    };
    let length = body.len();
    write!(stream, "HTTP/1.1 {code} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n")?;
    if head { Ok(()) } else { stream.write_all(body) }
}
