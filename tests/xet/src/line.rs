//! The line to the store: it counts what passes, and can be cut, slow or dead.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Manner {
    Good,
    /// Breaks this many connections, each after this many bytes from the store.
    Cut {
        after: u64,
        times: u64,
    },
    /// Breaks everything, for good, after this many bytes from the store.
    Dead {
        after: u64,
    },
    /// Limits all connections together to this many bytes per second.
    Slow(u64),
    /// Passes this many bytes, then keeps connections open and sends nothing more.
    Silent {
        after: u64,
    },
}

struct State {
    manner: Manner,
    bytes: u64,
    asked: Vec<String>,
}

struct Shared {
    state: Mutex<State>,
    /// Held while a piece passes a slow line.
    slow: Mutex<()>,
    store: String,
}

pub struct Line {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Line {
    pub fn start(store: &str) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Mutex::new(State { manner: Manner::Good, bytes: 0, asked: vec![] });
        let store = store.trim_start_matches("http://").to_string();
        let shared = Arc::new(Shared { state, slow: Mutex::default(), store });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                // A connection that breaks is what this is for.
                thread::spawn(move || drop(shared.connect(&client)));
            }
        });
        Ok(Self { shared, address })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How the line is from now on.
    pub fn set(&self, manner: Manner) {
        let mut state = self.shared.state();
        state.manner = manner;
        state.bytes = 0;
        state.asked.clear();
    }

    /// Bytes that came from the store, and the requests, since the last time.
    pub fn passed(&self) -> (u64, Vec<String>) {
        let mut state = self.shared.state();
        (std::mem::take(&mut state.bytes), std::mem::take(&mut state.asked))
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, client: &TcpStream) -> std::io::Result<()> {
        let server = TcpStream::connect(&self.store)?;
        thread::scope(|scope| {
            scope.spawn(|| {
                drop(self.up(client, &server));
                drop(server.shutdown(Shutdown::Both));
            });
            drop(self.down(&server, client));
            drop(client.shutdown(Shutdown::Both));
            drop(server.shutdown(Shutdown::Both));
        });
        Ok(())
    }

    fn up(&self, mut client: &TcpStream, mut server: &TcpStream) -> std::io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = client.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            // Requests are small, and begin where a piece begins.
            let text = String::from_utf8_lossy(&buffer[..count]);
            let mut lines = text.lines();
            if let Some(first) = lines.next().filter(|first| first.ends_with(" HTTP/1.1")) {
                let path = first.trim_end_matches(" HTTP/1.1").split('?').next().unwrap_or_default();
                let range = lines.find_map(|line| line.to_lowercase().strip_prefix("range: ").map(String::from));
                self.state().asked.push(format!("{path} {}", range.unwrap_or_default()).trim().to_string());
            }
            server.write_all(&buffer[..count])?;
        }
    }

    fn down(&self, mut server: &TcpStream, mut client: &TcpStream) -> std::io::Result<()> {
        let (mut buffer, mut here) = (vec![0; 1 << 14], 0);
        loop {
            let count = server.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            let manner = {
                let mut state = self.state();
                here += count as u64;
                state.bytes += count as u64;
                let all = state.bytes;
                match &mut state.manner {
                    Manner::Cut { after, times } if here > *after && *times > 0 => {
                        *times -= 1;
                        return Ok(());
                    }
                    Manner::Dead { after } if all > *after => return Ok(()),
                    manner => *manner,
                }
            };
            match manner {
                Manner::Silent { after } if here > after => {
                    while self.state().manner == manner {
                        thread::sleep(Duration::from_millis(50));
                    }
                    return Ok(());
                }
                Manner::Slow(rate) => {
                    let _turn = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
                    thread::sleep(Duration::from_secs_f64(count as f64 / rate as f64));
                }
                _ => {}
            }
            client.write_all(&buffer[..count])?;
        }
    }
}
