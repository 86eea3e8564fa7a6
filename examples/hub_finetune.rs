//! Fine-tunes a backbone from the Hugging Face hub on a folder of images, and can push the result to the hub.
//!
//! ```text
//! cargo run --release --example hub_finetune -- --hub timm/resnet18.a1_in1k --data DIR \
//!     --strategy small-similar --out tuned.safetensors
//! ```
//!
//! The environment sets the hub, the cache and the token: HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_HUB_OFFLINE.
//! Without --strategy, the images are measured to choose one. Everything else is as in the example `finetune`; the last line is the
//! accuracy: `top1 0.9412 144/153`. With --push the result is pushed to the hub: repository and token are checked
//! before the training, and the --out file is saved before the upload.

#[path = "support/choice.rs"]
mod choice;
#[path = "support/data.rs"]
mod data;
#[path = "support/folders.rs"]
mod folders;
#[path = "support/job.rs"]
mod job;
#[path = "support/logs.rs"]
mod logs;
#[path = "support/regularise.rs"]
mod regularise;
#[path = "support/run.rs"]
mod run;

use candle_finetune::{Arch, HubUpload, Source};
use clap::Parser;
use std::process::ExitCode;

/// Fine-tunes a backbone from the Hugging Face hub; without --strategy, the images are measured to choose one
#[derive(Parser)]
struct Options {
    /// Repository: OWNER/NAME, or OWNER/NAME@REVISION
    #[arg(long)]
    hub: String,
    /// Architecture, if the repository does not name it
    #[arg(long)]
    arch: Option<Arch>,
    /// Prefix of the network's tensor names, if the file holds several networks: "model."
    #[arg(long)]
    prefix: Option<String>,
    /// Repository to push the result to; created if it does not exist
    #[arg(long)]
    push: Option<String>,
    #[command(flatten)]
    job: job::Job,
}

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| {
        let source = options.arch.into_iter().fold(Source::hub(&options.hub), Source::arch);
        let source = options.prefix.iter().fold(source, Source::prefix);
        let source = source.on_download(run::downloads());
        let push = options.push.as_ref().map(|id| HubUpload::to(id).create());
        let check = || push.as_ref().map_or(Ok(()), |push| Ok(push.check()?));
        let tuned = job::finetune(&options.job, (source, None), check)?;
        let Some((tuned, accuracy)) = tuned else { return Ok(()) };
        if let Some(push) = &push {
            match tuned.predictor.push_to_hub(push) {
                Ok(url) => println!("pushed: {url}"),
                Err(error) => {
                    // The upload failed: keep the result on disk.
                    let file = std::env::temp_dir().join(format!("unpushed-{}.safetensors", std::process::id()));
                    tuned.predictor.save(&file)?;
                    return Err(format!("{error}; the predictor is saved as {}", file.display()).into());
                }
            }
        }
        println!("{accuracy}");
        Ok(())
    })
}
