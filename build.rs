//! Tells the crate how far it is optimised, so that a run can say that it will be slow.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let level = std::env::var("OPT_LEVEL").unwrap_or_default();
    println!("cargo::rustc-env=CANDLE_FINETUNE_OPT_LEVEL={level}");
}
