//! A training step or forward pass of ResNet-18 in Candle's own operations: one line of JSON, as bench_step prints it.
//!
//! ```text
//! cargo run --release -- BATCH SIZE train|frozen THREADS STEPS
//! ```
//!
//! The stem's max-pool is replaced by an average over 2 x 2 pixels, because Candle's backward pass refuses overlapping
//! windows. SGD has no momentum, which `candle_nn::SGD` lacks. Both make the step cheaper than the one that it is
//! compared with.

use candle_core::{DType, Device, Module, ModuleT, Result, Tensor};
use candle_nn::{BatchNorm, Conv2d, Conv2dConfig, Linear, Optimizer, SGD, VarBuilder, VarMap};
use std::time::Instant;

/// Steps that are not timed.
const WARM_UP: usize = 1;

fn conv(vb: VarBuilder, input: usize, output: usize, kernel: usize, stride: usize) -> Result<(Conv2d, BatchNorm)> {
    let config = Conv2dConfig { padding: kernel / 2, stride, ..Default::default() };
    let conv = candle_nn::conv2d_no_bias(input, output, kernel, config, vb.pp("conv"))?;
    Ok((conv, candle_nn::batch_norm(output, 1e-5, vb.pp("norm"))?))
}

struct Block {
    first: (Conv2d, BatchNorm),
    second: (Conv2d, BatchNorm),
    shortcut: Option<(Conv2d, BatchNorm)>,
}

struct ResNet18 {
    stem: (Conv2d, BatchNorm),
    blocks: Vec<Block>,
    classifier: Linear,
}

impl ResNet18 {
    fn new(vb: VarBuilder) -> Result<Self> {
        let mut blocks = vec![];
        let mut input = 64;
        for (stage, width) in [64, 128, 256, 512].into_iter().enumerate() {
            for i in 0..2 {
                let stride = if stage > 0 && i == 0 { 2 } else { 1 };
                let vb = vb.pp(format!("{stage}.{i}"));
                let shortcut = if stride == 2 { Some(conv(vb.pp("shortcut"), input, width, 1, 2)?) } else { None };
                let first = conv(vb.pp("first"), input, width, 3, stride)?;
                blocks.push(Block { first, second: conv(vb.pp("second"), width, width, 3, 1)?, shortcut });
                input = width;
            }
        }
        let stem = conv(vb.pp("stem"), 3, 64, 7, 2)?;
        Ok(Self { stem, blocks, classifier: candle_nn::linear(512, 1000, vb.pp("fc"))? })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let run = |(conv, norm): &(Conv2d, BatchNorm), x: &Tensor| norm.forward_t(&conv.forward(x)?, train);
        let mut x = run(&self.stem, x)?.relu()?.avg_pool2d(2)?;
        for block in &self.blocks {
            let y = run(&block.second, &run(&block.first, &x)?.relu()?)?;
            let shortcut = match &block.shortcut {
                Some(shortcut) => run(shortcut, &x)?,
                None => x,
            };
            x = (y + shortcut)?.relu()?;
        }
        self.classifier.forward(&x.mean((2, 3))?)
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [batch, size, mode, threads, steps] = &arguments[..] else {
        candle_core::bail!("the arguments are BATCH SIZE train|frozen THREADS STEPS")
    };
    let number = |s: &String| s.parse::<usize>().map_err(candle_core::Error::wrap);
    let (batch, size, threads, steps) = (number(batch)?, number(size)?, number(threads)?, number(steps)?);
    // Candle's operations and its matrix products take their number of threads from here.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    let train = mode == "train";
    let vars = VarMap::new();
    let network = ResNet18::new(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
    let values: Vec<f32> = (0..batch * 3 * size * size).map(|i| (i as f32 * 0.7).sin() * 1.4).collect();
    let images = Tensor::from_vec(values, (batch, 3, size, size), &Device::Cpu)?;
    let labels = Tensor::from_vec((0..batch as u32).map(|i| i % 10).collect(), batch, &Device::Cpu)?;
    let mut optimizer = SGD::new(vars.all_vars(), 1e-3)?;
    let mut times = vec![];
    for i in 0..WARM_UP + steps {
        let start = Instant::now();
        let logits = network.forward(&images, train)?;
        if train {
            optimizer.backward_step(&candle_nn::loss::cross_entropy(&logits, &labels)?)?;
        }
        if i >= WARM_UP {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    let median = f64::midpoint(times[times.len() / 2], times[(times.len() - 1) / 2]);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<f64>().ok());
    let peak = peak.map_or("null".to_string(), |kb| (kb / 1024.0).to_string());
    println!(
        "{{\"peer\": \"candle 0.11\", \"arch\": \"resnet18\", \"batch\": {batch}, \"size\": {size}, \"mode\": \"{mode}\", \
         \"threads\": {threads}, \"median_ms\": {median}, \"peak_rss_mb\": {peak}}}"
    );
    Ok(())
}
