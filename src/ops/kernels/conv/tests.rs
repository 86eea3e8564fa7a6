//! Every algorithm, element type and instruction set of this machine against the plain loops in f64.

use super::*;
use crate::ops::activation::Activation;
use crate::ops::geometry::Padding;
use crate::ops::simd::Lanes;
use proptest::prelude::*;

/// Elements between -1 and 1, the same for every seed.
fn elements<T: Lanes>(len: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    // Rounded to f32, so that both types see the same elements.
    (0..len).map(|_| T::from_f64(f64::from(next() as f32))).collect()
}

fn wide<T: Lanes>(v: &[T]) -> Vec<f64> {
    v.iter().map(|v| v.to_f64()).collect()
}

/// ||a - b|| / ||b||
#[track_caller]
fn assert_close<T: Lanes>(a: &[T], b: &[f64], tolerance: f64, what: &str) {
    assert_close_to(a, b, b, tolerance, what);
}

/// ||a - b|| over the larger of ||b|| and ||sums||: where an activation clips most of few sums, what is left of them may
/// be small beside what was rounded.
#[track_caller]
fn assert_close_to<T: Lanes>(a: &[T], b: &[f64], sums: &[f64], tolerance: f64, what: &str) {
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (a.to_f64() - b).powi(2)).sum();
    let square = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>();
    let size = square(b).max(square(sums));
    let error = (difference / size.max(1e-30)).sqrt();
    assert!(error <= tolerance, "{what}: relative error {error:e}");
}

/// All three products against the plain loops.
fn check<T: Lanes>(level: Level, algorithm: Algorithm, g: &Geometry, tolerance: f64) {
    let what = |product: &str| format!("{product} {algorithm:?} {} {} {g:?}", level.name(), std::any::type_name::<T>());
    let (x, w) = (elements::<T>(g.input_len(), 1), elements::<T>(g.kernel_len(), 2));
    let (bias, residual) = (elements::<T>(g.k, 3), elements::<T>(g.output_len(), 4));
    let (dy, before) = (elements::<T>(g.output_len(), 5), elements::<T>(g.input_len(), 6));
    let chosen = Choice { level, algorithm };
    let (packed, back) = (chosen.pack(&w, g, Direction::Forward), chosen.pack(&w, g, Direction::Backward));
    let plain = portable::conv::pack(&wide(&w), g);
    // Activation, bias, residual: every way in which a tile is stored.
    let epilogues = [
        (Activation::Identity, false, false),
        (Activation::Identity, true, false),
        (Activation::Relu, false, false),
        (Activation::Relu, true, false),
        (Activation::Relu, false, true),
        (Activation::Relu, true, true),
        (Activation::Relu6, true, true),
    ];
    let mut sums = vec![0.0; g.output_len()];
    portable::conv::forward(&wide(&x), &plain, g, &Epilogue::NONE, &mut sums);
    for (act, with_bias, with_residual) in epilogues {
        let (bias, residual) = (with_bias.then_some(&bias), with_residual.then_some(&residual));
        let e = Epilogue { bias: bias.map(|b| &b[..]), residual: residual.map(|r| &r[..]), act };
        let mut y = vec![T::from_f64(f64::NAN); g.output_len()];
        chosen.forward(&x, &packed, g, &e, &mut y);
        let (bias, residual) = (bias.map(|b| wide(b)), residual.map(|r| wide(r)));
        let e = Epilogue { bias: bias.as_deref(), residual: residual.as_deref(), act };
        let mut exact = vec![0.0; y.len()];
        portable::conv::forward(&wide(&x), &plain, g, &e, &mut exact);
        assert_close_to(&y, &exact, &sums, tolerance, &what("result"));
    }
    for add in [false, true] {
        let mut dx = if add { before.clone() } else { vec![T::from_f64(f64::NAN); x.len()] };
        chosen.input_gradient(&dy, &back, g, &mut dx, add);
        let mut exact = wide(&before);
        portable::conv::input_gradient(&wide(&dy), &plain, g, &mut exact, add);
        assert_close(&dx, &exact, tolerance, &what("input gradient"));
    }
    let mut dw = vec![T::from_f64(f64::NAN); w.len()];
    chosen.weight_gradient(&x, &dy, g, &mut dw);
    let mut exact = vec![0.0; w.len()];
    portable::conv::weight_gradient(&wide(&x), &wide(&dy), g, &mut exact);
    assert_close(&dw, &exact, tolerance, &what("weight gradient"));
}

fn direct_of(g: &Geometry) -> Algorithm {
    Algorithm::Direct { stride: g.stride, dilation: g.dilation }
}

/// Every algorithm that can do this geometry, on every level, in both types.
fn check_all(g: &Geometry) {
    for level in Level::available() {
        check::<f32>(level, direct_of(g), g, 1e-5);
        check::<f64>(level, direct_of(g), g, 1e-13);
        if depthwise::fits(g) {
            check::<f32>(level, Algorithm::Depthwise, g, 1e-5);
            check::<f64>(level, Algorithm::Depthwise, g, 1e-13);
        }
        if dense::fits(g) {
            check::<f32>(level, Algorithm::Dense, g, 1e-5);
            check::<f64>(level, Algorithm::Dense, g, 1e-13);
        }
        if winograd::fits(g) {
            for points in [4, 6] {
                check::<f32>(level, Algorithm::Winograd { points }, g, 1e-5);
                check::<f64>(level, Algorithm::Winograd { points }, g, 1e-13);
            }
        }
    }
}

/// (N, H, W, C), (K, KH, KW), stride, dilation, groups, padding
type Case = ([usize; 4], (usize, usize, usize), usize, usize, usize, [usize; 4]);

fn geometry((dims, (k, kh, kw), stride, dilation, groups, pad): Case) -> Geometry {
    Geometry::new(dims, (k, dims[3] / groups, kh, kw), stride, dilation, groups, Padding::Sides(pad)).unwrap()
}

#[test]
fn edges() {
    let cases: &[Case] = &[
        ([1, 1, 1, 1], (1, 1, 1), 1, 1, 1, [0; 4]),
        ([1, 1, 1, 16], (16, 3, 3), 1, 1, 1, [1; 4]),
        ([2, 2, 2, 5], (3, 5, 5), 1, 1, 1, [2; 4]),
        ([1, 5, 4, 1], (17, 3, 3), 2, 1, 1, [1; 4]),
        ([2, 9, 7, 17], (17, 3, 3), 1, 1, 1, [1; 4]),
        ([1, 11, 12, 24], (40, 3, 3), 2, 1, 1, [0, 0, 1, 1]),
        ([1, 13, 10, 3], (33, 7, 7), 2, 1, 1, [3; 4]),
        ([2, 16, 16, 3], (64, 4, 4), 4, 1, 1, [0; 4]),
        ([1, 10, 11, 8], (16, 3, 3), 3, 1, 1, [1, 0, 2, 1]),
        ([1, 9, 9, 16], (48, 3, 3), 1, 2, 1, [2; 4]),
        ([1, 12, 9, 9], (20, 3, 2), 2, 2, 1, [1, 2, 3, 0]),
        ([1, 12, 12, 7], (9, 3, 3), 2, 3, 1, [3; 4]),
        ([1, 6, 6, 32], (64, 1, 1), 1, 1, 1, [0; 4]),
        ([3, 7, 7, 48], (96, 1, 1), 1, 1, 1, [0; 4]),
        ([2, 9, 9, 32], (64, 1, 1), 2, 1, 1, [0; 4]),
        ([2, 5, 5, 20], (20, 1, 1), 1, 1, 1, [1, 0, 0, 2]),
        ([1, 6, 6, 32], (48, 3, 3), 1, 1, 2, [1; 4]),
        ([1, 5, 5, 64], (64, 3, 3), 1, 1, 32, [1; 4]),
        ([2, 6, 7, 96], (64, 3, 3), 2, 1, 32, [1; 4]),
        ([2, 5, 6, 4], (8, 1, 1), 1, 1, 2, [0; 4]),
        ([9, 14, 14, 160], (256, 3, 3), 1, 1, 1, [1; 4]),
        ([17, 28, 29, 16], (16, 3, 3), 1, 1, 1, [1; 4]),
        ([1, 3, 200, 64], (32, 3, 3), 1, 1, 1, [1; 4]),
        ([1, 2, 4, 3], (4, 1, 7), 1, 1, 1, [0, 3, 0, 3]),
        ([2, 14, 15, 24], (24, 3, 3), 1, 1, 24, [1; 4]),
        ([1, 14, 13, 17], (17, 5, 5), 2, 1, 17, [1, 2, 2, 1]),
        ([2, 28, 31, 32], (32, 3, 3), 2, 1, 32, [0, 0, 1, 1]),
        ([1, 9, 9, 8], (8, 7, 7), 1, 1, 8, [3; 4]),
        ([1, 2, 3, 40], (40, 5, 5), 1, 1, 40, [2; 4]),
        ([3, 1, 1, 16], (16, 3, 3), 2, 1, 16, [1; 4]),
        ([1, 11, 12, 5], (5, 3, 2), 3, 2, 5, [2, 1, 0, 3]),
        ([1, 4, 70, 16], (16, 1, 12), 1, 1, 16, [0, 6, 0, 5]),
        ([1, 130, 130, 16], (16, 3, 3), 1, 1, 16, [1; 4]),
        ([1, 1, 1, 1], (1, 3, 3), 1, 1, 1, [1; 4]),
        ([3, 2, 5, 33], (7, 3, 3), 1, 1, 1, [1; 4]),
        ([2, 13, 12, 17], (40, 3, 3), 1, 1, 1, [1; 4]),
        ([5, 7, 7, 64], (48, 3, 3), 1, 1, 1, [1; 4]),
        ([3, 56, 57, 32], (32, 3, 3), 1, 1, 1, [1; 4]),
        ([2, 14, 14, 256], (256, 3, 3), 1, 1, 1, [1; 4]),
        // Whole vectors of channels on both sides, with several classes of taps or several groups.
        ([1, 9, 10, 32], (48, 3, 3), 2, 1, 1, [1; 4]),
        ([1, 12, 12, 32], (32, 3, 3), 2, 3, 1, [3; 4]),
        ([1, 6, 7, 64], (32, 3, 3), 2, 1, 2, [1; 4]),
        // Large gradients: single pixels a step apart, and more images than are summed at once.
        ([3, 9, 10, 400], (512, 1, 1), 2, 1, 1, [0; 4]),
        ([2, 5, 8, 288], (720, 1, 1), 3, 1, 1, [0; 4]),
        ([7, 21, 21, 160], (160, 3, 3), 2, 1, 1, [1; 4]),
        // Rows that are contiguous on both sides, and on one only.
        ([2, 9, 6, 20], (24, 3, 1), 1, 1, 1, [0; 4]),
        ([2, 9, 1, 20], (24, 3, 1), 2, 1, 1, [1, 0, 1, 0]),
        ([2, 9, 6, 20], (24, 3, 1), 2, 1, 1, [1, 0, 1, 0]),
        ([2, 6, 5, 20], (24, 1, 1), 1, 1, 1, [1, 0, 2, 0]),
        ([2, 6, 5, 40], (24, 1, 1), 1, 1, 2, [0; 4]),
        // As large as the input.
        ([1, 1, 1, 1], (3, 1, 1), 1, 1, 1, [0; 4]),
        ([4, 7, 7, 20], (33, 7, 7), 1, 1, 1, [0; 4]),
        ([9, 1, 1, 300], (70, 1, 1), 2, 3, 1, [0; 4]),
        ([5, 2, 3, 17], (5, 2, 3), 1, 1, 1, [0; 4]),
        ([130, 1, 1, 65], (18, 1, 1), 1, 1, 1, [0; 4]),
        // No image at all.
        ([0, 6, 6, 32], (48, 3, 3), 1, 1, 1, [1; 4]),
        ([0, 1, 1, 8], (4, 1, 1), 1, 1, 1, [0; 4]),
        ([0, 5, 5, 16], (16, 3, 3), 2, 1, 16, [1; 4]),
    ];
    for &case in cases {
        check_all(&geometry(case));
    }
}

/// Bytes of all three products, computed with this many threads.
fn bytes_with(threads: usize, level: Level, algorithm: Algorithm, g: &Geometry) -> Vec<u32> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let (x, w, dy) = (elements(g.input_len(), 1), elements(g.kernel_len(), 2), elements(g.output_len(), 3));
        let chosen = Choice { level, algorithm };
        let mut y: Vec<f32> = vec![0.0; g.output_len()];
        chosen.forward(&x, &chosen.pack(&w, g, Direction::Forward), g, &Epilogue::NONE, &mut y);
        let mut dx = vec![0.0; g.input_len()];
        chosen.input_gradient(&dy, &chosen.pack(&w, g, Direction::Backward), g, &mut dx, false);
        let mut dw = vec![0.0; g.kernel_len()];
        chosen.weight_gradient(&x, &dy, g, &mut dw);
        let all = y.into_iter().chain(dx).chain(dw);
        all.inspect(|v| assert!(v.is_finite(), "{g:?}")).map(f32::to_bits).collect()
    })
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let cases: &[Case] = &[
        ([8, 32, 32, 16], (16, 3, 3), 1, 1, 1, [1; 4]),
        ([3, 14, 14, 192], (256, 3, 3), 2, 1, 1, [1; 4]),
        ([5, 14, 14, 64], (128, 1, 1), 1, 1, 1, [0; 4]),
        ([4, 33, 33, 32], (32, 3, 3), 1, 1, 32, [1; 4]),
        ([9, 27, 28, 64], (32, 3, 3), 1, 1, 1, [1; 4]),
        ([5, 7, 7, 128], (144, 3, 3), 1, 1, 1, [1; 4]),
        ([6, 14, 14, 320], (512, 3, 3), 1, 1, 1, [1; 4]),
        ([5, 7, 7, 40], (90, 7, 7), 1, 1, 1, [0; 4]),
        // Pixels a step apart; slices of one and two units; units of one row; units of several rows in few images.
        ([3, 9, 10, 400], (512, 1, 1), 2, 1, 1, [0; 4]),
        ([17, 29, 29, 16], (16, 3, 3), 2, 1, 1, [1; 4]),
        ([40, 15, 15, 24], (32, 3, 3), 2, 1, 1, [1; 4]),
        ([1, 3, 300, 24], (32, 3, 3), 2, 1, 1, [1; 4]),
        ([3, 7, 7, 160], (112, 1, 1), 1, 1, 1, [0; 4]),
    ];
    for &case in cases {
        let g = geometry(case);
        for level in Level::available() {
            let one = bytes_with(1, level, Algorithm::of(&g), &g);
            for threads in [2, 3] {
                assert!(one == bytes_with(threads, level, Algorithm::of(&g), &g), "{level:?} {threads} {g:?}");
            }
        }
    }
}

#[test]
fn an_image_does_not_depend_on_its_batch() {
    let tiles = [(3, 3, 1, 1), (7, 3, 1, 1), (14, 3, 1, 1), (28, 3, 1, 1), (1, 1, 1, 0), (7, 7, 1, 0)];
    let direct = [(14, 1, 1, 0), (7, 1, 1, 0), (14, 1, 2, 0), (14, 3, 2, 1), (7, 5, 1, 2)];
    for (size, kernel, stride, pad) in tiles.into_iter().chain(direct) {
        let of = |n: usize| geometry(([n, size, size, 64], (50, kernel, kernel), stride, 1, 1, [pad; 4]));
        let (many, one) = (of(5), of(1));
        let algorithm = Algorithm::of(&many);
        assert_eq!(algorithm, Algorithm::of(&one));
        let is_direct = matches!(algorithm, Algorithm::Direct { .. });
        assert!(is_direct || !direct.contains(&(size, kernel, stride, pad)), "{algorithm:?}");
        for level in Level::available() {
            let (x, w) = (elements::<f32>(many.input_len(), 1), elements::<f32>(many.kernel_len(), 2));
            let chosen = Choice { level, algorithm };
            let packed = chosen.pack(&w, &many, Direction::Forward);
            let mut all = vec![0.0; many.output_len()];
            chosen.forward(&x, &packed, &many, &Epilogue::NONE, &mut all);
            for i in 0..5 {
                let mut y = vec![0.0; one.output_len()];
                let x = &x[i * one.input_len()..][..one.input_len()];
                chosen.forward(x, &packed, &one, &Epilogue::NONE, &mut y);
                assert_eq!(y, all[i * y.len()..][..y.len()], "{size} {}", level.name());
            }
            let (dy, packed) = (elements::<f32>(many.output_len(), 3), chosen.pack(&w, &many, Direction::Backward));
            let mut all = vec![0.0; many.input_len()];
            chosen.input_gradient(&dy, &packed, &many, &mut all, false);
            for i in 0..5 {
                let mut dx = vec![0.0; one.input_len()];
                let dy = &dy[i * one.output_len()..][..one.output_len()];
                chosen.input_gradient(dy, &packed, &one, &mut dx, false);
                assert_eq!(dx, all[i * dx.len()..][..dx.len()], "{size} {}", level.name());
            }
        }
    }
}

/// The last channels of a panel that is not full are stored by a separate loop.
#[test]
fn a_channel_does_not_depend_on_the_others() {
    let of = |k: usize| geometry(([2, 9, 9, 20], (k, 3, 3), 1, 1, 1, [1; 4]));
    let (many, few) = (of(32), of(31));
    let (x, w, bias) = (elements::<f32>(many.input_len(), 1), elements::<f32>(many.kernel_len(), 2), elements(32, 3));
    let mut residual = elements::<f32>(many.output_len(), 4);
    for (i, odd) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
        residual.iter_mut().skip(i).step_by(7).for_each(|v| *v = odd);
    }
    let first = |v: &[f32]| v.chunks_exact(32).flat_map(|v| v[..31].to_vec()).collect::<Vec<_>>();
    let of_few = first(&residual);
    let acts = [Activation::Identity, Activation::Relu, Activation::Relu6];
    for (level, act) in Level::available().into_iter().flat_map(|level| acts.map(|act| (level, act))) {
        for (with_bias, with_residual) in [(false, false), (true, false), (false, true), (true, true)] {
            let result = |g: &Geometry, residual: &[f32]| {
                let (chosen, w) = (Choice { level, algorithm: direct_of(g) }, &w[..g.kernel_len()]);
                let bias = with_bias.then_some(&bias[..g.k]);
                let e = Epilogue { bias, residual: with_residual.then_some(residual), act };
                let mut y = vec![0.0; g.output_len()];
                chosen.forward(&x, &chosen.pack(w, g, Direction::Forward), g, &e, &mut y);
                y
            };
            let (all, some) = (result(&many, &residual), result(&few, &of_few));
            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(bits(&first(&all)) == bits(&some), "{} {act:?}", level.name());
            let odd = |v: &[f32]| v.iter().map(|v| v.is_nan()).collect::<Vec<_>>();
            let said = if with_residual { odd(&residual) } else { vec![false; all.len()] };
            assert!(odd(&all) == said, "{} {act:?}: NaN is lost or made", level.name());
        }
    }
}

/// The rounding errors of the three products in f32, relative to their norms, over 64 channels of rectified noise.
fn rounding(level: Level, algorithm: Algorithm) -> [f64; 3] {
    let g = geometry(([2, 24, 24, 64], (64, 3, 3), 1, 1, 1, [1; 4]));
    let x: Vec<f32> = elements::<f32>(g.input_len(), 1).into_iter().map(|v| v.max(0.0)).collect();
    let (w, dy) = (elements::<f32>(g.kernel_len(), 2), elements::<f32>(g.output_len(), 3));
    let chosen = Choice { level, algorithm };
    let (mut y, mut dx, mut dw) = (vec![0.0; g.output_len()], vec![0.0; g.input_len()], vec![0.0; w.len()]);
    chosen.forward(&x, &chosen.pack(&w, &g, Direction::Forward), &g, &Epilogue::NONE, &mut y);
    chosen.input_gradient(&dy, &chosen.pack(&w, &g, Direction::Backward), &g, &mut dx, false);
    chosen.weight_gradient(&x, &dy, &g, &mut dw);
    let plain = portable::conv::pack(&wide(&w), &g);
    let mut exact = [vec![0.0; y.len()], vec![0.0; dx.len()], vec![0.0; dw.len()]];
    portable::conv::forward(&wide(&x), &plain, &g, &Epilogue::NONE, &mut exact[0]);
    portable::conv::input_gradient(&wide(&dy), &plain, &g, &mut exact[1], false);
    portable::conv::weight_gradient(&wide(&x), &wide(&dy), &g, &mut exact[2]);
    let error = |a: &[f32], b: &[f64]| {
        let difference: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
        (difference / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
    };
    [error(&y, &exact[0]), error(&dx, &exact[1]), error(&dw, &exact[2])]
}

/// The measure is one plain sum per element.
#[test]
fn winograd_rounds_nearly_as_well_as_plain_sums() {
    let any = Level::available()[0];
    let plain = rounding(any, Algorithm::Portable);
    for level in Level::available() {
        for points in [4, 6] {
            let error = rounding(level, Algorithm::Winograd { points });
            let fine = (0..3).all(|i| error[i] < [2.5, 2.5, 2.0][i] * plain[i]);
            assert!(fine, "{points} points, {}: {error:?}, plain sums {plain:?}", level.name());
        }
    }
}

prop_compose! {
    fn any_case()(
        n in 1usize..4,
        h in 1usize..20,
        w in 1usize..20,
        groups in prop_oneof![4 => Just(1usize), 1 => 2usize..5, 2 => Just(0)],
        c in 1usize..40,
        k in 1usize..70,
        kh in 1usize..6,
        kw in 1usize..6,
        stride in 1usize..4,
        dilation in prop_oneof![3 => Just(1usize), 1 => 2usize..4],
        pad in prop::array::uniform4(0usize..4),
    ) -> Case {
        if groups == 0 {
            return ([n, h, w, c], (c, kh, kw), stride, dilation, c, pad);
        }
        ([n, h, w, c.div_ceil(groups) * groups], (k.div_ceil(groups) * groups, kh, kw), stride, dilation, groups, pad)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_geometry((dims, (k, kh, kw), stride, dilation, groups, pad) in any_case()) {
        let kernel = (k, dims[3] / groups, kh, kw);
        if let Ok(g) = Geometry::new(dims, kernel, stride, dilation, groups, Padding::Sides(pad)) {
            check_all(&g);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_dense(n in 1usize..20, h in 1usize..5, w in 1usize..5, c in 1usize..70, k in 1usize..40) {
        check_all(&geometry(([n, h, w, c], (k, h, w), 1, 1, 1, [0; 4])));
    }

    #[test]
    fn any_winograd(n in 1usize..4, h in 1usize..22, w in 1usize..22, c in 9usize..50, k in 9usize..50) {
        check_all(&geometry(([n, h, w, c], (k, 3, 3), 1, 1, 1, [1; 4])));
    }
}
