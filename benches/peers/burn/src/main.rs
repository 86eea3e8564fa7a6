//! A training step or forward pass of ResNet-18 in burn's own modules: one line of JSON, as bench_step prints it.
//!
//! ```text
//! cargo run --release -- BATCH SIZE train|frozen THREADS STEPS
//! ```
//!
//! The step is complete: a max-pool with overlapping windows, batch norm in training mode, SGD with momentum.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::nn::pool::{AdaptiveAvgPool2d, AdaptiveAvgPool2dConfig, MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d, Relu};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::error::Error;
use std::time::Instant;

/// Steps that are not timed.
const WARM_UP: usize = 1;

#[derive(Module, Debug)]
struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm,
}

impl ConvNorm {
    fn new(input: usize, output: usize, kernel: usize, stride: usize, device: &Device) -> Self {
        let config = Conv2dConfig::new([input, output], [kernel, kernel]).with_stride([stride, stride]);
        let config = config.with_padding(pad(kernel / 2)).with_bias(false);
        Self { conv: config.init(device), norm: BatchNormConfig::new(output).init(device) }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.norm.forward(self.conv.forward(x))
    }
}

fn pad(by: usize) -> PaddingConfig2d {
    PaddingConfig2d::Explicit(by, by, by, by)
}

#[derive(Module, Debug)]
struct Block {
    first: ConvNorm,
    second: ConvNorm,
    shortcut: Option<ConvNorm>,
    relu: Relu,
}

impl Block {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = self.second.forward(self.relu.forward(self.first.forward(x.clone())));
        let shortcut = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x),
            None => x,
        };
        self.relu.forward(y + shortcut)
    }
}

#[derive(Module, Debug)]
struct ResNet18 {
    stem: ConvNorm,
    relu: Relu,
    max_pool: MaxPool2d,
    blocks: Vec<Block>,
    average: AdaptiveAvgPool2d,
    classifier: Linear,
}

impl ResNet18 {
    fn new(device: &Device) -> Self {
        let mut blocks = vec![];
        let mut input = 64;
        for (stage, width) in [64, 128, 256, 512].into_iter().enumerate() {
            for i in 0..2 {
                let stride = if stage > 0 && i == 0 { 2 } else { 1 };
                blocks.push(Block {
                    first: ConvNorm::new(input, width, 3, stride, device),
                    second: ConvNorm::new(width, width, 3, 1, device),
                    shortcut: (stride == 2).then(|| ConvNorm::new(input, width, 1, 2, device)),
                    relu: Relu::new(),
                });
                input = width;
            }
        }
        Self {
            stem: ConvNorm::new(3, 64, 7, 2, device),
            relu: Relu::new(),
            max_pool: MaxPool2dConfig::new([3, 3]).with_strides([2, 2]).with_padding(pad(1)).init(),
            blocks,
            average: AdaptiveAvgPool2dConfig::new([1, 1]).init(),
            classifier: LinearConfig::new(512, 1000).init(device),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let mut x = self.max_pool.forward(self.relu.forward(self.stem.forward(x)));
        for block in &self.blocks {
            x = block.forward(x);
        }
        self.classifier.forward(self.average.forward(x).flatten(1, 3))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [batch, size, mode, threads, steps] = &arguments[..] else {
        return Err("the arguments are BATCH SIZE train|frozen THREADS STEPS".into());
    };
    let (batch, size, threads) = (batch.parse::<usize>()?, size.parse::<usize>()?, threads.parse::<usize>()?);
    let steps = steps.parse::<usize>()?;
    // The backend and its matrix products take their number of threads from here.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    let train = mode == "train";
    // A device without autodiff records no graph, and batch norm takes its running statistics there.
    let device = if train { Device::flex().autodiff() } else { Device::flex() };
    device.seed(1);
    let mut network = ResNet18::new(&device);
    let values: Vec<f32> = (0..batch * 3 * size * size).map(|i| (i as f32 * 0.7).sin() * 1.4).collect();
    let images = Tensor::<4>::from_data(TensorData::new(values, [batch, 3, size, size]), &device);
    let labels: Vec<i64> = (0..batch as i64).map(|i| i % 10).collect();
    let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [batch]), &device);
    let loss: CrossEntropyLoss = CrossEntropyLossConfig::new().init(&device);
    let momentum = MomentumConfig::new().with_dampening(0.0);
    let mut optimizer = SgdConfig::new().with_momentum(Some(momentum)).init();
    let (mut times, mut losses) = (vec![], vec![]);
    for i in 0..WARM_UP + steps {
        let start = Instant::now();
        let logits = network.forward(images.clone());
        if train {
            let value = loss.forward(logits, labels.clone());
            if i == 0 || i + 1 == WARM_UP + steps {
                losses.push(value.clone().inner());
            }
            let gradients = GradientsParams::from_grads(value.backward(), &network);
            network = optimizer.step(1e-3, network, gradients);
        }
        device.sync()?;
        if i >= WARM_UP {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    if let [first, last] = &losses[..] {
        let (first, last) = (first.clone().into_scalar::<f32>(), last.clone().into_scalar::<f32>());
        eprintln!("the loss went from {first} to {last} in {} steps", WARM_UP + steps);
    }
    times.sort_by(f64::total_cmp);
    let median = f64::midpoint(times[times.len() / 2], times[(times.len() - 1) / 2]);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<f64>().ok());
    let peak = peak.map_or("null".to_string(), |kb| (kb / 1024.0).to_string());
    println!(
        "{{\"peer\": \"burn 0.22\", \"arch\": \"resnet18\", \"batch\": {batch}, \"size\": {size}, \
         \"mode\": \"{mode}\", \"threads\": {threads}, \"median_ms\": {median}, \"peak_rss_mb\": {peak}}}"
    );
    Ok(())
}
