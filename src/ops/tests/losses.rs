//! Losses with weights and a focal factor.

use super::{check, random, variable};
use crate::ops::{LossTerms, softmax, weighted_loss};
use candle_core::{Device, Tensor, Var};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn weighted_losses_differentiate(rows in 1usize..5, width in 1usize..7, sigmoid in any::<bool>(), power in 0usize..4) {
        let x = variable(&[rows, width], 1);
        let targets = softmax(&random(&[rows, width], 4)).unwrap();
        let gamma = [0.0, 0.5, 1.0, 2.5][power];
        for weights in [None, Some((0..width).map(|c| 0.5 + c as f64).collect())] {
            let terms = LossTerms { sigmoid, gamma, weights, divisor: 3.0 };
            check(std::slice::from_ref(&x), || weighted_loss(&x, &targets, terms.clone()));
        }
    }
}

/// PyTorch 2.15 in float64: cross_entropy with weights (sum), binary_cross_entropy_with_logits with pos_weight (sum), and
/// torchvision's sigmoid_focal_loss without alpha (sum).
#[test]
fn weighted_losses_are_pytorchs() {
    let x = Tensor::new(&[[1f64, 2.0, 3.0], [0.0, 0.0, 0.5]], &Device::Cpu).unwrap();
    let hard = Tensor::new(&[[1f64, 0.0, 0.0], [0.0, 0.0, 1.0]], &Device::Cpu).unwrap();
    let labels = Tensor::new(&[[1f64, 0.0, 1.0], [0.0, 0.0, 1.0]], &Device::Cpu).unwrap();
    let weights = Some(vec![0.5, 1.0, 2.0]);
    for (sigmoid, gamma, weights, targets, expected) in [
        (false, 0.0, weights.clone(), &hard, 2.792_556_521_057_474_5),
        (true, 0.0, weights, &labels, 4.715_181_887_429_670_5),
        (true, 2.0, None, &labels, 2.086_992_601_051_848),
    ] {
        let terms = LossTerms { sigmoid, gamma, weights, divisor: 1.0 };
        let loss = weighted_loss(&x, targets, terms).unwrap().to_scalar::<f64>().unwrap();
        assert!((loss - expected).abs() < 1e-9, "{loss}, not {expected}");
    }
    // Far from 0 nothing overflows, and a right answer costs nothing.
    let far = Var::new(&[[1e4f64, -1e4]], &Device::Cpu).unwrap();
    let right = Tensor::new(&[[1f64, 0.0]], &Device::Cpu).unwrap();
    for (sigmoid, gamma) in [(false, 0.5), (true, 0.5), (true, 0.0)] {
        let loss = weighted_loss(&far, &right, LossTerms { sigmoid, gamma, weights: None, divisor: 1.0 }).unwrap();
        assert_eq!(loss.to_scalar::<f64>().unwrap(), 0.0);
        assert_eq!(loss.backward().unwrap().get(&far).unwrap().to_vec2::<f64>().unwrap(), [[0.0, 0.0]]);
    }
}
