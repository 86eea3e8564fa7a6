//! Every pass against the plain loops in f64, for any number of channels, on all levels of this machine.

use super::*;
use crate::ops::portable;
use proptest::prelude::*;

const ACTS: [Activation; 5] =
    [Activation::Identity, Activation::Relu, Activation::Relu6, Activation::Silu, Activation::Sigmoid];

/// Values between -4 and 8, as f32 holds them.
fn elements<T: Lanes>(len: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 16_777_216.0 * 12.0 - 4.0
    };
    (0..len).map(|_| T::from_f32(next())).collect()
}

fn wide<T: Lanes>(v: &[T]) -> Vec<f64> {
    v.iter().map(|v| v.to_f64()).collect()
}

#[track_caller]
fn assert_close(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * largest, "{i}: {a} {b}");
    }
}

fn assert_within(a: &[f64], b: &[f64], tolerance: f64, scale: f64) {
    let most = tolerance * b.iter().fold(scale, |m, v| m.max(v.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= most, "{i}: {a} {b}");
    }
}

fn check<T: Lanes>(level: Level, pixels: usize, c: usize, tolerance: f64) {
    let len = pixels * c;
    let (x, dy, residual) = (elements::<T>(len, 1), elements::<T>(len, 2), elements::<T>(len, 3));
    let (a, b, mean) = (elements::<T>(c, 4), elements::<T>(c, 5), elements::<T>(c, 6));
    let k: Vec<Vec<T>> = (0..3).map(|i| elements(c, 7 + i)).collect();
    let (fast, exact) = (Passes { level }.moments(&x, c), portable::norm::moments(&wide(&x), c));
    assert_close(&fast.mean, &exact.mean, tolerance);
    assert_close(&fast.var, &exact.var, tolerance);
    assert_close(&Passes { level }.channel_sums(&x, c), &portable::norm::channel_sums(&wide(&x), c), tolerance);
    for act in ACTS {
        let mut results = Vec::new();
        for residual in [None, Some(&residual)] {
            let mut y = vec![T::from_f32(f32::NAN); len];
            Passes { level }.affine(&x, &a, &b, residual.map(|r| &r[..]), act, &mut y);
            let mut exact = vec![0.0; len];
            let residual = residual.map(|r| wide(r));
            portable::norm::affine(&wide(&x), &wide(&a), &wide(&b), residual.as_deref(), act, &mut exact);
            assert_close(&wide(&y), &exact, tolerance);
            if residual.is_none() {
                let mut in_place = x.clone();
                Passes { level }.affine_in_place(&mut in_place, &a, &b, act);
                assert!(in_place.iter().zip(&y).all(|(a, b)| a.to_f64().to_bits() == b.to_f64().to_bits()));
            }
            results.push(y);
        }
        // Where the gate is a step, rounding may flip it: both take it from the same result.
        let y = act.gates_by_result().then_some(&results[1][..]);
        let gate = Gate { act, a: &a[..], b: &b[..], y };
        let wide_gate = (wide(&a), wide(&b), y.map(wide));
        let exact_gate = Gate { act, a: &wide_gate.0[..], b: &wide_gate.1[..], y: wide_gate.2.as_deref() };
        let fast = Passes { level }.gate_sums(&x, &gate, &dy, &mean);
        let exact = portable::norm::gate_sums(&wide(&x), &exact_gate, &wide(&dy), &wide(&mean));
        // The terms are of the size of one and may cancel: their count sets the scale, not the sum.
        assert_within(&fast.0, &exact.0, tolerance, pixels as f64);
        assert_within(&fast.1, &exact.1, tolerance, pixels as f64);
        for keep in [false, true] {
            let (mut d, mut g) = (dy.clone(), vec![T::from_f32(f32::NAN); len]);
            Passes { level }.gate_apply(&x, &gate, [&k[0], &k[1], &k[2]], &mut d, keep.then_some(&mut g[..]));
            let (mut exact, mut exact_g) = (wide(&dy), vec![0.0; len]);
            let k: Vec<Vec<f64>> = k.iter().map(|k| wide(k)).collect();
            let k = [&k[0][..], &k[1], &k[2]];
            portable::norm::gate_apply(&wide(&x), &exact_gate, k, &mut exact, keep.then_some(&mut exact_g[..]));
            assert_close(&wide(&d), &exact, tolerance);
            if keep {
                assert_close(&wide(&g), &exact_g, tolerance);
            }
        }
        if let Some(y) = y {
            let (mut d, mut exact) = (dy.clone(), wide(&dy));
            Passes { level }.gate_by_result(y, act, &mut d);
            portable::norm::gate_by_result(&wide(y), act, &mut exact);
            assert_close(&wide(&d), &exact, tolerance);
        }
    }
    let mut sum = x.clone();
    Passes { level }.add_into(&mut sum, &dy);
    let mut exact = wide(&x);
    portable::norm::add_into(&mut exact, &wide(&dy));
    assert_close(&wide(&sum), &exact, tolerance);
}

fn check_all(pixels: usize, c: usize) {
    for level in Level::available() {
        check::<f32>(level, pixels, c, 2e-6);
        check::<f64>(level, pixels, c, 1e-13);
    }
}

#[test]
fn channels_of_all_sorts() {
    for (pixels, c) in
        [(1, 1), (1, 17), (7, 3), (65, 1), (1000, 16), (777, 24), (333, 40), (50, 144), (12, 1001), (9000, 5)]
    {
        check_all(pixels, c);
    }
}

/// The step gate from u when no result was saved: u > 0, for values without rounding.
#[test]
fn gates_from_the_input() {
    let (z, dy) = ([-2.0f32, -1.0, 0.0, 1.0, 2.0, 9.0, f32::NAN], [1.0f32; 7]);
    for level in Level::available() {
        let gate = Gate { act: Activation::Relu6, a: &[2.0][..], b: &[2.0][..], y: None };
        let mut d = dy;
        Passes { level }.gate_apply(&z, &gate, [&[1.0], &[0.0], &[0.0]], &mut d, None);
        assert_eq!(d[..6], [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
        let mut y = [0.0; 7];
        Passes { level }.affine(&z, &[1.0], &[0.0], None, Activation::Relu, &mut y);
        assert!(y[..6] == [0.0, 0.0, 0.0, 1.0, 2.0, 9.0] && y[6].is_nan(), "a NaN is not swallowed");
    }
}

/// A large common offset must not eat the variance.
#[test]
fn moments_keep_their_precision() {
    let x: Vec<f32> = elements::<f32>(100_000 * 16, 1).iter().map(|v| v * 0.01 + 100.0).collect();
    let exact = portable::norm::moments(&wide(&x), 16);
    for level in Level::available() {
        let fast = Passes { level }.moments(&x, 16);
        for j in 0..16 {
            assert!((fast.mean[j] / exact.mean[j] - 1.0).abs() < 1e-7);
            assert!((fast.var[j] / exact.var[j] - 1.0).abs() < 1e-6, "{} {}", fast.var[j], exact.var[j]);
        }
    }
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let x = elements::<f32>(5003 * 24, 1);
    for level in Level::available() {
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let m = pool.install(|| Passes { level }.moments(&x, 24));
            m.mean.into_iter().chain(m.var).map(f64::to_bits).collect::<Vec<u64>>()
        };
        assert_eq!(with(1), with(2));
        assert_eq!(with(1), with(3));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_shape(pixels in 1usize..300, c in 1usize..80) {
        check_all(pixels, c);
    }
}
