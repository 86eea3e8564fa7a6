//! A hub on this machine that serves a folder: ROOT/OWNER/NAME/FILE. It implements the routes of the Hugging Face hub
//! that downloads and pushes use, and the faults that tests need.
#![allow(dead_code)] // each user needs a part

use base64::Engine;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A fault of the hub.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Answers GET with 403 after a good HEAD.
    Forbidden,
    /// Answers with 403 and the code of a gated repository.
    Gated,
    /// Answers with 401.
    Unauthorized,
    /// Sends the announced number of bytes, the second half zeros.
    Corrupt,
    /// Ends the connection halfway through the response.
    Cut,
    /// Answers GET with this status, and Retry-After in seconds if given.
    Status(u16, Option<u64>),
    /// The same for HEAD and GET.
    HeadStatus(u16, Option<u64>),
    /// Announces a byte less than it sends.
    Short,
    /// Announces a byte more than it sends.
    Long,
    /// Announces 200 million bytes.
    Huge,
    /// Sends an etag that leads out of the cache.
    HostileEtag,
    /// Sends a commit that leads out of the cache.
    HostileCommit,
    /// Pauses for this many milliseconds halfway through a file.
    Stall(u64),
    /// Sends a file in 20 pieces, 20 ms apart.
    Slow,
    /// Ignores Range and sends all of the file.
    NoRanges,
    /// Sends no etag.
    NoEtag,
    /// Redirects the owner `old` to `acme`, as for renamed repositories.
    Renamed,
}

/// A fault for paths that contain `part`, this many times.
struct Trouble {
    fault: Fault,
    part: String,
    times: usize,
}

struct Shared {
    root: PathBuf,
    troubles: Mutex<Vec<Trouble>>,
    asked: Mutex<Vec<String>>,
    authorizations: Mutex<Vec<String>>,
    stop: AtomicBool,
}

/// The hub. It stops when this is dropped.
pub struct LocalHub {
    shared: Arc<Shared>,
    address: std::net::SocketAddr,
}

impl LocalHub {
    /// Serves the folder on a free port.
    pub fn start(root: &Path) -> std::io::Result<Self> {
        Self::listen(root, 0)
    }

    /// Serves the folder on this port.
    pub fn listen(root: &Path, port: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            root: root.to_path_buf(),
            troubles: Mutex::default(),
            asked: Mutex::default(),
            authorizations: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.stop.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&serving);
                // A client may close its connection.
                std::thread::spawn(move || drop(shared.answer(&stream)));
            }
        });
        Ok(Self { shared, address })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, has the fault `times` times for paths that contain `part`.
    pub fn fault(&self, fault: Fault, part: &str, times: usize) {
        let trouble = Trouble { fault, part: part.into(), times };
        self.shared.troubles.lock().unwrap().push(trouble);
    }

    /// Removes all faults.
    pub fn behave(&self) {
        self.shared.troubles.lock().unwrap().clear();
    }

    /// The requests since the last call: "GET path", with the range if there was one.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.asked.lock().unwrap())
    }

    /// The Authorization headers of all requests that had one.
    pub fn authorizations(&self) -> Vec<String> {
        self.shared.authorizations.lock().unwrap().clone()
    }
}

impl Drop for LocalHub {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts connections.
        drop(TcpStream::connect(self.address));
    }
}

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    fn read(stream: &TcpStream) -> std::io::Result<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace().map(String::from);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':') {
                headers.insert(name.to_lowercase(), value.trim().to_string());
            }
        }
        let length = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let path = path.split('?').next().unwrap_or_default().replace("%2F", "/");
        Ok(Self { method, path, headers, body })
    }
}

impl Shared {
    fn answer(&self, stream: &TcpStream) -> std::io::Result<()> {
        let request = Request::read(stream)?;
        let range = request.headers.get("range").map_or(String::new(), |range| format!(" {range}"));
        self.asked.lock().unwrap().push(format!("{} {}{range}", request.method, request.path));
        self.authorizations.lock().unwrap().extend(request.headers.get("authorization").cloned());
        let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        match (request.method.as_str(), &parts[..]) {
            ("GET" | "HEAD", [owner, name, "resolve", rest @ ..]) if rest.len() > 1 => {
                self.resolve(stream, &request, &format!("{owner}/{name}"), rest)
            }
            ("POST", ["api", "repos", "create"]) => self.create(stream, &request),
            ("POST", ["api", "models", _, _, "preupload", ..]) => {
                let asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
                let files = asked["files"].as_array().cloned().unwrap_or_default();
                let plain =
                    |file: &Value| json!({"path": file["path"], "uploadMode": "regular", "shouldIgnore": false});
                let files: Vec<Value> = files.iter().map(plain).collect();
                json_answer(stream, 200, "", &json!({ "files": files }))
            }
            ("POST", ["api", "models", owner, name, "commit", ..]) => {
                self.commit(stream, &request, &format!("{owner}/{name}"))
            }
            _ => json_answer(stream, 404, "", &json!({"error": "no such route"})),
        }
    }

    /// The fault for this request, if there is one. Each call uses it up once.
    fn trouble(&self, path: &str, wanted: impl Fn(Fault) -> bool) -> Option<Fault> {
        let mut troubles = self.troubles.lock().unwrap();
        let fits = |t: &&mut Trouble| t.times > 0 && path.contains(&t.part) && wanted(t.fault);
        let trouble = troubles.iter_mut().find(fits)?;
        trouble.times -= 1;
        Some(trouble.fault)
    }

    fn files(&self, id: &str) -> BTreeMap<String, PathBuf> {
        let folder = self.root.join(id);
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        entries.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path())).collect()
    }

    /// The commit: it changes whenever a file does.
    fn head_of(files: &BTreeMap<String, PathBuf>) -> String {
        let mut hasher = Sha256::new();
        for (name, path) in files {
            hasher.update(name);
            hasher.update(std::fs::read(path).unwrap_or_default());
        }
        hex(&hasher.finalize())[..40].to_string()
    }

    fn resolve(&self, stream: &TcpStream, request: &Request, id: &str, rest: &[&str]) -> std::io::Result<()> {
        let (revision, name) = (rest[..rest.len() - 1].join("/"), rest[rest.len() - 1]);
        let head = request.method == "HEAD";
        let path = &request.path;
        if let Some(moved) = id.strip_prefix("old/")
            && self.trouble(path, |f| f == Fault::Renamed).is_some()
        {
            let place = format!("Location: /acme/{moved}/resolve/{revision}/{name}\r\n");
            return json_answer(stream, 307, &place, &json!({}));
        }
        let denied = self.trouble(path, |f| match f {
            Fault::Gated | Fault::Unauthorized | Fault::HeadStatus(..) => true,
            Fault::Forbidden | Fault::Status(..) => !head,
            _ => false,
        });
        match denied {
            Some(Fault::Status(status, pause) | Fault::HeadStatus(status, pause)) => {
                let pause = pause.map_or(String::new(), |pause| format!("Retry-After: {pause}\r\n"));
                return json_answer(stream, status, &pause, &json!({"error": "busy"}));
            }
            Some(Fault::Gated) => {
                let code = "X-Error-Code: GatedRepo\r\n";
                return json_answer(stream, 403, code, &json!({"error": "access is restricted"}));
            }
            Some(Fault::Unauthorized) => return json_answer(stream, 401, "", &json!({"error": "no valid token"})),
            Some(_) => return json_answer(stream, 403, "", &json!({"error": "forbidden"})),
            None => {}
        }
        let files = self.files(id);
        if files.is_empty() {
            return json_answer(
                stream,
                404,
                "X-Error-Code: RepoNotFound\r\n",
                &json!({"error": "Repository not found"}),
            );
        }
        let commit = Self::head_of(&files);
        if revision != "main" && revision != commit {
            let code = "X-Error-Code: RevisionNotFound\r\n";
            return json_answer(stream, 404, code, &json!({"error": "Revision not found"}));
        }
        let Some(file) = files.get(name) else {
            let code = format!("X-Error-Code: EntryNotFound\r\nX-Repo-Commit: {commit}\r\n");
            return json_answer(stream, 404, &code, &json!({"error": "Entry not found"}));
        };
        let bytes = std::fs::read(file)?;
        // As on the hub, the etag of a large file is its SHA-256, that of a small one git's checksum.
        let large = bytes.len() > 100_000 || name.ends_with(".safetensors") || name.ends_with(".bin");
        let git = || hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(&bytes).finalize());
        let mut etag = if large { hex(&Sha256::digest(&bytes)) } else { git() };
        let mut commit = commit;
        let mut announced = bytes.len();
        let odd = [Fault::HostileEtag, Fault::HostileCommit, Fault::Short, Fault::Long, Fault::Huge, Fault::NoEtag];
        let odd = self.trouble(path, |f| odd.contains(&f) && (head || matches!(f, Fault::Short | Fault::Long)));
        match odd {
            Some(Fault::HostileEtag) => etag = "../../../../evil".into(),
            Some(Fault::HostileCommit) => commit = "../../../evil".into(),
            Some(Fault::Short) => announced -= 1,
            Some(Fault::Long) => announced += 1,
            Some(Fault::Huge) => announced = 200_000_000,
            _ => {}
        }
        let mut headers = format!("X-Repo-Commit: {commit}\r\nX-Linked-Size: {announced}\r\nAccept-Ranges: bytes\r\n");
        if odd != Some(Fault::NoEtag) {
            headers.extend(["ETag: \"", &etag, "\"\r\n"]);
        }
        let asked = request.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
        let asked = asked.filter(|_| self.trouble(path, |f| f == Fault::NoRanges).is_none());
        let (status, mut body) = match asked.and_then(|range| range.split_once('-')) {
            Some((from, to)) => {
                let from: usize = from.parse().unwrap_or(0);
                let to = to.parse().unwrap_or(usize::MAX).min(bytes.len().saturating_sub(1));
                let all = bytes.len().to_string();
                headers.extend(["Content-Range: bytes ", &from.to_string(), "-", &to.to_string(), "/", &all, "\r\n"]);
                (206, bytes[from.min(bytes.len())..=to].to_vec())
            }
            None => (200, bytes),
        };
        let mut out = stream;
        write!(out, "HTTP/1.1 {status} OK\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len())?;
        if head {
            return Ok(());
        }
        let half = body.len() / 2;
        let ill = [Fault::Corrupt, Fault::Cut, Fault::Slow];
        match self.trouble(path, |f| ill.contains(&f) || matches!(f, Fault::Stall(_))) {
            Some(Fault::Corrupt) => body[half..].fill(0),
            Some(Fault::Cut) => {
                out.write_all(&body[..half])?;
                return stream.shutdown(Shutdown::Both);
            }
            Some(Fault::Stall(milliseconds)) => {
                out.write_all(&body[..half])?;
                std::thread::sleep(Duration::from_millis(milliseconds));
                return out.write_all(&body[half..]);
            }
            Some(Fault::Slow) => {
                for piece in body.chunks(body.len() / 20 + 1) {
                    out.write_all(piece)?;
                    std::thread::sleep(Duration::from_millis(20));
                }
                return Ok(());
            }
            _ => {}
        }
        out.write_all(&body)
    }

    fn create(&self, stream: &TcpStream, request: &Request) -> std::io::Result<()> {
        let asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let name = asked["name"].as_str().unwrap_or_default();
        let id = format!("{}/{name}", asked["organization"].as_str().unwrap_or("me"));
        let folder = self.root.join(&id);
        if folder.exists() {
            return json_answer(stream, 409, "", &json!({"error": "You already created this model repo"}));
        }
        std::fs::create_dir_all(folder)?;
        json_answer(stream, 200, "", &json!({"url": format!("http://localhost/{id}"), "name": id}))
    }

    fn commit(&self, stream: &TcpStream, request: &Request, id: &str) -> std::io::Result<()> {
        if !request.headers.get("authorization").is_some_and(|who| who.starts_with("Bearer hf_")) {
            return json_answer(stream, 401, "", &json!({"error": "no valid token"}));
        }
        let folder = self.root.join(id);
        if !folder.exists() {
            return json_answer(
                stream,
                404,
                "X-Error-Code: RepoNotFound\r\n",
                &json!({"error": "Repository not found"}),
            );
        }
        for line in request.body.split(|b| *b == b'\n') {
            let Ok(line) = serde_json::from_slice::<Value>(line) else { continue };
            if line["key"] == "file" {
                let name = line["value"]["path"].as_str().unwrap_or_default();
                let content = line["value"]["content"].as_str().unwrap_or_default();
                let bytes = base64::engine::general_purpose::STANDARD.decode(content).unwrap_or_default();
                std::fs::write(folder.join(name), bytes)?;
            }
        }
        let commit = Self::head_of(&self.files(id));
        let url = format!("http://localhost/{id}/commit/{commit}");
        json_answer(stream, 200, "", &json!({"success": true, "commitOid": commit, "commitUrl": url}))
    }
}

fn json_answer(mut stream: &TcpStream, status: u16, headers: &str, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\
         {headers}\r\n{body}"
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}
