//! The graph: where gradients gather, what is recorded, what is refused.

use super::*;

/// A convolution of stride 1 without norm or bias.
fn plain(filter: &Filter, padding: usize, act: Activation) -> ConvStep<'_> {
    let (padding, norm) = (Padding::Even(padding), Norm::None { bias: None });
    ConvStep { filter, stride: 1, dilation: 1, groups: 1, padding, norm, act }
}

#[test]
fn gradients_gather_where_a_value_is_used_twice() {
    let (x, w) = (variable(&[2, 4, 6, 6], 1), variable(&[4, 4, 3, 3], 2));
    for path in [Path::Own, Path::Device] {
        check(&[x.clone(), w.clone()], || {
            let filter = Filter::new(w.as_tensor().clone());
            let step = plain(&filter, 1, Activation::Relu);
            let x = path.map(&x)?;
            let u = x.conv_step(&step, Some(&x))?.0;
            let v = u.max_pool(3, 2, Padding::Even(1))?.mean_pixels()?;
            u.scale(&v)?.conv_step(&step, Some(&u))?.0.to_images()
        });
    }
}

/// Images that are a transposed view, and a gradient that arrives transposed.
#[test]
fn views_are_read_in_their_order() {
    let (x, w) = (variable(&[5, 4, 2, 3], 1), variable(&[3, 2, 2, 2], 2));
    check(&[x.clone(), w.clone()], || {
        let filter = Filter::new(w.transpose(2, 3)?);
        let step = plain(&filter, 0, Activation::Silu);
        FeatureMap::new(&x.permute((3, 2, 0, 1))?)?.conv_step(&step, None)?.0.to_images()?.permute((0, 3, 1, 2))
    });
}

/// Images that nothing tracks are read by a loop of our own.
#[test]
fn images_come_out_as_they_went_in() {
    for shape in [[1, 1, 1, 1], [2, 3, 5, 4], [3, 17, 2, 9], [0, 3, 4, 4], [2, 3, 0, 4]] {
        let x = random(&shape, 1);
        for x in [x.clone(), x.permute((2, 0, 3, 1)).unwrap()] {
            let own = FeatureMap::new(&x).unwrap().to_images().unwrap();
            assert_eq!((own.dims(), flat(&own)), (x.dims(), flat(&x)));
            let tracked = Var::from_tensor(&x).unwrap();
            assert_eq!(flat(&FeatureMap::new(&tracked).unwrap().to_images().unwrap()), flat(&x));
        }
    }
}

#[test]
fn a_frozen_part_records_nothing() {
    let (x, w) = (random(&[1, 2, 4, 4], 1), random(&[3, 2, 3, 3], 2));
    let filter = Filter::new(w.clone());
    let step = plain(&filter, 1, Activation::Relu);
    let y = FeatureMap::new(&x).unwrap().conv_step(&step, None).unwrap().0;
    let FeatureMap::F64(value) = &y else { panic!("f64 in, f64 out") };
    assert!(value.edge.is_none());
    assert!(!y.to_images().unwrap().track_op());
    let learning = Filter::new(Var::from_tensor(&w).unwrap().as_tensor().clone());
    let step = ConvStep { filter: &learning, ..step };
    let run = || FeatureMap::new(&x).unwrap().conv_step(&step, None).unwrap().0.to_images().unwrap();
    assert!(run().track_op());
    assert!(!no_grad(run).track_op());
    assert!(run().track_op(), "recording resumes");
}

#[test]
fn a_second_backward_is_an_error_that_says_why() {
    let (x, w) = (random(&[1, 2, 4, 4], 1), variable(&[3, 2, 3, 3], 2));
    let filter = Filter::new(w.as_tensor().clone());
    let step = plain(&filter, 1, Activation::Relu);
    let loss = weighed(&FeatureMap::new(&x).unwrap().conv_step(&step, None).unwrap().0.to_images().unwrap()).unwrap();
    loss.backward().unwrap();
    let message = loss.backward().unwrap_err().to_string();
    assert!(message.contains("second time"), "{message}");
}

/// The gradient is that of the forward pass, even if the weights have changed since.
#[test]
fn a_changed_weight_does_not_change_an_earlier_gradient() {
    let (x, w) = (variable(&[1, 2, 4, 4], 1), variable(&[3, 2, 3, 3], 2));
    let run = |change: bool| {
        let filter = Filter::new(w.as_tensor().clone());
        let step = plain(&filter, 1, Activation::Identity);
        let y = FeatureMap::new(&x).unwrap().conv_step(&step, None).unwrap().0.to_images().unwrap();
        let before = w.copy().unwrap();
        if change {
            overwrite(&w, &w.zeros_like().unwrap()).unwrap();
        }
        let gradients = weighed(&y).unwrap().backward().unwrap();
        overwrite(&w, &before).unwrap();
        gradients.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
    };
    assert_eq!(run(false), run(true));
}

#[test]
fn one_value_per_channel_has_no_variance() {
    let (x, filter) = (random(&[1, 2, 1, 1], 1), Filter::new(variable(&[3, 2, 1, 1], 2).as_tensor().clone()));
    let (gamma, beta) = (random(&[3], 4), random(&[3], 5));
    let norm = Norm::Batch { gamma: &gamma, beta: &beta, eps: 1e-5 };
    let step = ConvStep {
        filter: &filter,
        stride: 1,
        dilation: 1,
        groups: 1,
        padding: Padding::Even(0),
        norm,
        act: Activation::Relu,
    };
    for path in [Path::Own, Path::Device] {
        let error = path.map(&x).unwrap().conv_step(&step, None).err().unwrap().to_string();
        assert!(error.contains("no variance"), "{error}");
    }
}

/// A frozen filter caches one packed copy per algorithm, of its product with the factors. A trainable one caches none,
/// and neither does a temporary one.
#[test]
fn packed_copies_are_cached_where_they_are_reused() {
    let g = geometry::Geometry::new([1, 14, 14, 16], (16, 16, 3, 3), 1, 1, 1, Padding::Even(1)).unwrap();
    let (frozen, w) = (Filter::new(random(&[16, 16, 3, 3], 2)), variable(&[16, 16, 3, 3], 2));
    let (x, dy) = (random(&[1, 14, 14, 16], 1), random(&[1, 14, 14, 16], 3));
    let both = |filter: &Filter| {
        let kernel = filter.prepare::<f64>(&g).unwrap();
        let (mut y, mut dx) = (vec![0.0; g.output_len()], vec![0.0; g.input_len()]);
        let (x, dy): (Vec<f64>, Vec<f64>) = (flat(&x), flat(&dy));
        kernel.conv(&x, &g, &epilogue::Epilogue::NONE, &mut y).unwrap();
        kernel.input_gradient(&dy, &g, &mut dx, false).unwrap();
        (y, dx)
    };
    let results = both(&frozen);
    assert!(results == both(&frozen) && frozen.packed_sums().len() == 2);
    for other in [Filter::new(w.as_tensor().clone()), frozen.temporary()] {
        assert!(results == both(&other) && other.packed_sums().is_empty());
    }
    let halved = frozen.times(Tensor::full(0.5f64, 16, &Device::Cpu).unwrap());
    let (y, dx) = both(&halved);
    assert!(y.iter().zip(&results.0).chain(dx.iter().zip(&results.1)).all(|(half, whole)| 2.0 * half == *whole));
    assert!(halved.packed_sums().len() == 2 && halved.kept_product().is_none());
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// By name and in the order of names, from either backward; a variable without a name or without a gradient has no
/// entry.
#[test]
fn gradients_are_known_by_name() {
    let (x, w, unused) = (variable(&[1, 2, 4, 4], 1), variable(&[2, 2, 3, 3], 2), variable(&[3], 3));
    let loss = || {
        let filter = Filter::new(w.as_tensor().clone());
        let step = plain(&filter, 1, Activation::Relu);
        // The weights enter twice, and once by Candle's own graph.
        let y = FeatureMap::new(&x)?.conv_step(&step, None)?.0.conv_step(&step, None)?.0.to_images()?;
        weighed(&y)? + w.sqr()?.sum_all()?
    };
    let names = || [("weight", w.id()), ("unused", unused.id())];
    let mut gradients: Gradients = backward(&loss().unwrap(), names()).unwrap();
    assert_eq!(gradients.keys().collect::<Vec<_>>(), ["weight"]);
    let moved = flat(&gradients.remove("weight").unwrap().into_tensor(w.shape()).unwrap());
    let copied = flat(loss().unwrap().backward().unwrap().get_id(w.id()).unwrap());
    let close = moved.iter().zip(&copied).all(|(a, b)| (a - b).abs() <= 1e-12 * (1.0 + b.abs()));
    assert!(close, "{moved:?} {copied:?}");
    let all = backward(&loss().unwrap(), [("weight", w.id()), ("images", x.id())]).unwrap();
    assert_eq!(all.into_keys().collect::<Vec<_>>(), ["images", "weight"]);
}
