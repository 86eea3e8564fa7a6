//! Serves a folder as a hub on this machine: ROOT/OWNER/NAME/{config.json,model.safetensors}.
//!
//! ```text
//! cargo run --release --example local_hub -- --root models --port 8080 &
//! HF_ENDPOINT=http://127.0.0.1:8080 cargo run --release --example hub_finetune -- --hub OWNER/NAME --data DIR
//! ```
//!
//! Use it without network, or to see what a push would put on the hub. Prints its address, then a line per request.

#[path = "support/local_hub.rs"]
mod server;

use clap::Parser;
use std::path::PathBuf;
use std::time::Duration;

/// Serves a folder as a hub on this machine
#[derive(Parser)]
struct Options {
    /// Folder that holds OWNER/NAME/FILE
    #[arg(long)]
    root: PathBuf,
    /// Port; 0 chooses a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
}

fn main() -> std::io::Result<()> {
    let options = Options::parse();
    let hub = server::LocalHub::listen(&options.root, options.port)?;
    println!("{}", hub.url());
    loop {
        std::thread::sleep(Duration::from_millis(100));
        hub.asked().into_iter().for_each(|request| println!("{request}"));
    }
}
