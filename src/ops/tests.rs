//! Every operation against finite differences in f64, on both paths: the crate's own kernels, and the composition
//! of Candle's operations that serves other devices.

use super::op::on_device;
use super::op::rows::layer_norm;
use super::*;
use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::*;
use rand::RngExt;

mod forms;
mod graph;
mod losses;

/// Uniform random elements in (-1, 1). Nothing keeps two of them apart.
fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = crate::rng::Seed(seed).stream("test", &[]);
    let count: usize = shape.iter().product();
    let values: Vec<f64> = (0..count).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn variable(shape: &[usize], seed: u64) -> Var {
    Var::from_tensor(&random(shape, seed)).unwrap()
}

/// Makes the one feature map or the other of the first variable's images.
#[derive(Debug, Clone, Copy)]
enum Path {
    Own,
    Device,
}

impl Path {
    fn map(self, images: &Tensor) -> Result<FeatureMap> {
        match self {
            Self::Own => FeatureMap::new(images),
            Self::Device => Ok(FeatureMap::on_device(images)),
        }
    }
}

/// A scalar that weighs every output differently, so that no gradient cancels.
fn weighed(y: &Tensor) -> Result<Tensor> {
    (y * random(y.dims(), 99))?.sum_all()
}

/// Compares the gradients of `f` with central differences, at up to 24 elements of each variable.
fn check(vars: &[Var], f: impl Fn() -> Result<Tensor>) {
    let loss = weighed(&f().unwrap()).unwrap();
    let plain = loss.backward().unwrap();
    let names: Vec<String> = (0..vars.len()).map(|i| i.to_string()).collect();
    let ids = names.iter().map(String::as_str).zip(vars.iter().map(|var| var.id()));
    let mut moved = backward(&weighed(&f().unwrap()).unwrap(), ids).unwrap();
    for (which, var) in vars.iter().enumerate() {
        let gradient = plain.get(var).unwrap_or_else(|| panic!("variable {which} got no gradient"));
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let own = moved.remove(&names[which]).expect("the same gradient by the moving backward");
        let own = own.into_tensor(var.shape()).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(gradient, own, "moved and copied gradients differ in variable {which}");
        let values = var.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let scale = gradient.iter().fold(1.0, |m: f64, g| m.max(g.abs()));
        let step = values.len().div_ceil(24).max(1);
        for i in (0..values.len()).step_by(step) {
            let at = |delta: f64| {
                let mut moved = values.clone();
                moved[i] += delta;
                var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
                weighed(&f().unwrap()).unwrap().to_scalar::<f64>().unwrap()
            };
            let h = 1e-6;
            let slope = (at(h) - at(-h)) / (2.0 * h);
            let wrong = (slope - gradient[i]).abs();
            assert!(wrong < 2e-6 * scale, "variable {which}, element {i}: {} by hand {slope}", gradient[i]);
        }
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
}

#[derive(Debug, Clone)]
struct Case {
    n: usize,
    c: usize,
    k: usize,
    h: usize,
    w: usize,
    kernel: (usize, usize),
    stride: usize,
    dilation: usize,
    groups: usize,
    padding: Padding,
    residual: bool,
    norm: usize,
    act: Activation,
}

fn activation() -> impl Strategy<Value = Activation> {
    prop_oneof![
        Just(Activation::Identity),
        Just(Activation::Relu),
        Just(Activation::Relu6),
        Just(Activation::Silu),
        Just(Activation::Sigmoid)
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let shape = (1usize..3, 1usize..4, 1usize..4, 3usize..8, 3usize..8, 1usize..4);
    let kernel = (1usize..4, 1usize..4, 1usize..4, 1usize..3);
    let padding = prop_oneof![
        (0usize..3).prop_map(Padding::Even),
        Just(Padding::Same),
        (0usize..3, 0usize..3, 0usize..3, 0usize..3).prop_map(|(a, b, c, d)| Padding::Sides([a, b, c, d]))
    ];
    (shape, kernel, padding, any::<bool>(), 0usize..4, activation()).prop_filter_map(
        "the kernel reaches over the image",
        |((n, c, k, h, w, groups), (kh, kw, stride, dilation), padding, residual, norm, act)| {
            let (c, k) = (c * groups, k * groups);
            let g = Geometry::new([n, h, w, c], (k, c / groups, kh, kw), stride, dilation, groups, padding).ok()?;
            (n * g.oh * g.ow > 2 || norm != 2).then_some(Case {
                n,
                c,
                k,
                h,
                w,
                kernel: (kh, kw),
                stride,
                dilation,
                groups,
                padding,
                residual,
                norm,
                act,
            })
        },
    )
}

use super::geometry::Geometry;

fn conv_case(case: &Case, path: Path) {
    let Case { n, c, k, h, w, kernel: (kh, kw), stride, dilation, groups, padding, .. } = *case;
    let g = Geometry::new([n, h, w, c], (k, c / groups, kh, kw), stride, dilation, groups, padding).unwrap();
    let x = variable(&[n, c, h, w], 1);
    let filter = variable(&[k, c / groups, kh, kw], 2);
    let residual = variable(&[n, k, g.oh, g.ow], 3);
    let (gamma, beta) = (variable(&[k], 4), variable(&[k], 5));
    let (mean, var) = (random(&[k], 6), (random(&[k], 7).abs().unwrap() + 0.5).unwrap());
    let run = || {
        let filter = Filter::new(filter.as_tensor().clone());
        let norm = match case.norm {
            0 => Norm::None { bias: None },
            1 => Norm::None { bias: Some(&beta) },
            2 => Norm::Batch { gamma: &gamma, beta: &beta, eps: 1e-3 },
            _ => Norm::Fixed { gamma: &gamma, beta: &beta, mean: &mean, var: &var, eps: 1e-3 },
        };
        let step = ConvStep { filter: &filter, stride, dilation, groups, padding, norm, act: case.act };
        let residual = case.residual.then(|| path.map(&residual)).transpose()?;
        path.map(&x)?.conv_step(&step, residual.as_ref())?.0.to_images()
    };
    let mut vars = vec![x.clone(), filter.clone()];
    if case.residual {
        vars.push(residual.clone());
    }
    match case.norm {
        0 => {}
        1 => vars.push(beta.clone()),
        _ => vars.extend([gamma.clone(), beta.clone()]),
    }
    check(&vars, run);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn conv_step_differentiates(case in case()) {
        conv_case(&case, Path::Own);
    }

    #[test]
    fn conv_step_differentiates_on_devices(case in case()) {
        conv_case(&case, Path::Device);
    }

    #[test]
    fn both_paths_agree(case in case()) {
        let Case { n, c, k, h, w, kernel: (kh, kw), stride, dilation, groups, padding, act, .. } = case;
        let x = random(&[n, c, h, w], 1);
        let filter = Filter::new(random(&[k, c / groups, kh, kw], 2));
        let (gamma, beta) = (random(&[k], 4), random(&[k], 5));
        let (mean, var) = (random(&[k], 6), (random(&[k], 7).abs().unwrap() + 0.5).unwrap());
        let norm = match case.norm {
            0 => Norm::None { bias: None },
            1 => Norm::None { bias: Some(&beta) },
            2 => Norm::Batch { gamma: &gamma, beta: &beta, eps: 1e-3 },
            _ => Norm::Fixed { gamma: &gamma, beta: &beta, mean: &mean, var: &var, eps: 1e-3 },
        };
        let step = ConvStep { filter: &filter, stride, dilation, groups, padding, norm, act };
        let run = |path: Path| {
            let (y, moments) = path.map(&x).unwrap().conv_step(&step, None).unwrap();
            let mut all = vec![y.to_images().unwrap().flatten_all().unwrap()];
            all.extend(moments.into_iter().flat_map(|m| [m.mean, m.var]));
            Tensor::cat(&all, 0).unwrap().to_vec1::<f64>().unwrap()
        };
        for (a, b) in run(Path::Own).into_iter().zip(run(Path::Device)) {
            prop_assert!((a - b).abs() < 1e-9 * (1.0 + b.abs()), "{a} {b}");
        }
    }

    #[test]
    fn max_pool_differentiates(n in 1usize..3, c in 1usize..5, h in 2usize..9, w in 2usize..9,
                               kernel in 1usize..4, stride in 1usize..4, pad in 0usize..2) {
        prop_assume!(pad * 2 <= kernel && h + 2 * pad >= kernel && w + 2 * pad >= kernel);
        let x = variable(&[n, c, h, w], 1);
        for path in [Path::Own, Path::Device] {
            let padding = Padding::Even(pad);
            check(std::slice::from_ref(&x), || path.map(&x)?.max_pool(kernel, stride, padding)?.to_images());
        }
    }

    #[test]
    fn average_pools_differentiate(n in 1usize..3, c in 1usize..5, h in 2usize..9, w in 2usize..9,
                                   rows in 1usize..9, columns in 1usize..9, kernel in 1usize..3, stride in 1usize..4) {
        let x = variable(&[n, c, h, w], 1);
        for path in [Path::Own, Path::Device] {
            check(std::slice::from_ref(&x), || path.map(&x)?.adaptive_average(rows, columns)?.to_images());
            check(std::slice::from_ref(&x), || path.map(&x)?.average_pool(kernel, stride)?.to_images());
            check(std::slice::from_ref(&x), || path.map(&x)?.mean_pixels()?.into_rows());
            check(std::slice::from_ref(&x), || path.map(&x)?.class_token()?.into_rows());
            for p in [1.0, 2.5] {
                check(std::slice::from_ref(&x), || path.map(&x)?.generalized_mean(p)?.into_rows());
            }
        }
    }

    #[test]
    fn pointwise_maps_differentiate(n in 1usize..3, c in 1usize..5, h in 1usize..6, w in 1usize..6, act in activation()) {
        let (x, y, s) = (variable(&[n, c, h, w], 1), variable(&[n, c, h, w], 2), variable(&[n, c, 1, 1], 3));
        for path in [Path::Own, Path::Device] {
            check(std::slice::from_ref(&x), || path.map(&x)?.activate(act)?.to_images());
            check(&[x.clone(), s.clone()], || path.map(&x)?.scale(&path.map(&s)?)?.to_images());
            check(&[x.clone(), y.clone()], || path.map(&x)?.add(&path.map(&y)?)?.to_images());
            check(std::slice::from_ref(&x), || path.map(&x)?.subsample(2, 1, 2)?.to_images());
        }
    }
}

/// The readers of a step's result that backward recomputes: a convolution, factors and the next norm.
#[test]
fn chains_of_steps_differentiate() {
    for act in [Activation::Identity, Activation::Relu, Activation::Relu6, Activation::Silu] {
        let (x, w) = (variable(&[2, 3, 5, 4], 1), [variable(&[4, 3, 3, 3], 2), variable(&[5, 4, 1, 1], 3)]);
        let (gamma, beta) = (variable(&[4], 4), variable(&[4], 5));
        let s = variable(&[2, 4, 1, 1], 6);
        let run = |path: Path| {
            let filters = w.each_ref().map(|w| Filter::new(w.as_tensor().clone()));
            let norm = Norm::Batch { gamma: &gamma, beta: &beta, eps: 1e-3 };
            let padding = Padding::Even(1);
            let step = ConvStep { filter: &filters[0], stride: 1, dilation: 1, groups: 1, padding, norm, act };
            let y = path.map(&x)?.conv_step(&step, None)?.0.scale(&path.map(&s)?)?;
            let direct = path.map(&x)?.conv_step(&step, None)?.0;
            let (norm, padding) = (Norm::None { bias: None }, Padding::Even(0));
            let next = ConvStep { filter: &filters[1], padding, norm, ..step };
            y.conv_step(&next, Some(&direct.conv_step(&next, None)?.0))?.0.to_images()
        };
        let vars = [&x, &w[0], &w[1], &gamma, &beta, &s].map(Var::clone);
        check(&vars, || run(Path::Own));
        check(&vars, || run(Path::Device));
    }
}

/// The second matrix is so large that its gradient is not written out.
#[test]
fn linear_layers_differentiate() {
    for (n, c, k) in [(1, 1, 1), (2, 5, 7), (5, 19, 6), (3, 520, 520)] {
        let (x, w, b) = (variable(&[n, c], 1), variable(&[k, c], 2), variable(&[k], 3));
        for act in [Activation::Identity, Activation::Relu] {
            check(&[x.clone(), w.clone(), b.clone()], || linear(&x, &w, &b, act));
            let device = on_device(&x, &w, &b, act).unwrap();
            let own = linear(&x, &w, &b, act).unwrap();
            let worst = (own - device).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(worst < 1e-12, "{n} {c} {k}: {worst}");
        }
    }
    let (x, w, b) = (variable(&[2, 5], 1), variable(&[7, 5], 2), variable(&[7], 3));
    check(&[x.clone(), w.clone(), b.clone()], || on_device(&x, &w, &b, Activation::Relu));
}

/// A step of each rule does the same to a matrix whose gradient is not written out.
#[test]
fn an_update_reads_a_gradient_in_either_form() {
    let (x, b) = (random(&[3, 520], 1), random(&[520], 3));
    let rules = [
        Rule::Sgd { lr: 0.1, momentum: 0.0, nesterov: false, decay: 0.1, first: true },
        Rule::Sgd { lr: 0.1, momentum: 0.9, nesterov: true, decay: 0.1, first: true },
        Rule::AdamW { lr: 0.1, betas: (0.8, 0.95), eps: 1e-3, decay: 0.1, step: 1 },
    ];
    for (rule, count) in rules.into_iter().zip(0..) {
        let after = |written: bool| {
            let w = variable(&[520, 520], 2);
            let loss = weighed(&linear(&x, &w, &b, Activation::Identity).unwrap()).unwrap();
            let mut gradient = backward(&loss, [("w", w.id())]).unwrap().remove("w").unwrap();
            if written {
                gradient = Gradient::Tensor(gradient.into_tensor(w.shape()).unwrap());
            } else {
                assert!(matches!(gradient, Gradient::F64(gradient::Elements::Outer(_))));
            }
            let mut moments = Moments::zeros(&w, count).unwrap();
            update(&w, &gradient, &mut moments, rule, 0.5).unwrap();
            w.flatten_all().unwrap().to_vec1::<f64>().unwrap()
        };
        assert!(after(true) == after(false), "{rule:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn row_operations_differentiate(rows in 1usize..6, width in 1usize..9, transposed in any::<bool>()) {
        let x = if transposed { variable(&[width, rows], 1) } else { variable(&[rows, width], 1) };
        let x_of = || if transposed { x.t() } else { Ok(x.as_tensor().clone()) };
        let (gamma, beta) = (variable(&[width], 2), variable(&[width], 3));
        check(std::slice::from_ref(&x), || softmax(&x_of()?));
        check(&[x.clone(), gamma.clone(), beta.clone()], || layer_norm(&x_of()?, &gamma, &beta, 1e-3));
        let targets = softmax(&random(&[rows, width], 4)).unwrap();
        check(std::slice::from_ref(&x), || cross_entropy(&x_of()?, &targets));
        // Targets need not sum to one.
        check(std::slice::from_ref(&x), || cross_entropy(&x_of()?, &(&targets * 3.0)?));
    }
}

#[test]
fn row_operations_match_their_formulas() {
    let x = random(&[4, 7], 1);
    let (gamma, beta, t) = (random(&[7], 2), random(&[7], 3), softmax(&random(&[4, 7], 4)).unwrap());
    let near = |a: &Tensor, b: &Tensor| {
        let worst = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        assert!(worst.to_scalar::<f64>().unwrap() < 1e-12);
    };
    near(&softmax(&x).unwrap(), &candle_nn::ops::softmax(&x, 1).unwrap());
    let slow = candle_nn::ops::layer_norm_slow(&x, &gamma, &beta, 1e-5).unwrap();
    assert!(
        (layer_norm(&x, &gamma, &beta, 1e-5).unwrap() - slow)
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar::<f64>()
            .unwrap()
            < 1e-6,
        "candle's epsilon is an f32"
    );
    let log = candle_nn::ops::log_softmax(&x, 1).unwrap();
    let plain = (log * &t).unwrap().sum_all().unwrap().affine(-0.25, 0.0).unwrap();
    near(&cross_entropy(&x, &t).unwrap(), &plain);
    let huge = Tensor::new(&[[1e4f64, 0.0], [-1e4, 0.0]], &Device::Cpu).unwrap();
    assert!(softmax(&huge).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap().iter().all(|v| v.is_finite()));
}

#[test]
fn a_masked_class_of_no_weight_adds_nothing() {
    let logits = Var::new(&[[0f64, f64::NEG_INFINITY, 1.0]], &Device::Cpu).unwrap();
    let targets = Tensor::new(&[[1f64, 0.0, 0.0]], &Device::Cpu).unwrap();
    let loss = cross_entropy(&logits, &targets).unwrap();
    assert!((loss.to_scalar::<f64>().unwrap() - (1.0 + 1f64.exp()).ln()).abs() < 1e-12);
    let gradient = loss.backward().unwrap().get(&logits).unwrap().to_vec2::<f64>().unwrap();
    let share = 1f64.exp() / (1.0 + 1f64.exp());
    assert!((gradient[0][0] + share).abs() < 1e-12 && gradient[0][1] == 0.0, "{gradient:?}");
}
