//! The forms of an operation agree.

use super::*;

/// Every operation on one chain of maps, from one kernel.
fn chain(x: &FeatureMap, filter: &Filter) -> Result<Vec<FeatureMap>> {
    let (padding, norm) = (Padding::Even(1), Norm::None { bias: None });
    let step = ConvStep { filter, stride: 1, dilation: 1, groups: 1, padding, norm, act: Activation::Silu };
    let conv = x.conv_step(&step, Some(x))?.0;
    let active = conv.activate(Activation::Sigmoid)?;
    let sum = active.add(&conv)?;
    let maximum = sum.max_pool(3, 2, Padding::Same)?;
    let average = maximum.average_pool(2, 1)?;
    let adaptive = average.adaptive_average(4, 3)?;
    let mean = adaptive.mean_pixels()?;
    let scaled = adaptive.scale(&mean)?;
    let fewer = scaled.subsample(2, 1, 2)?;
    Ok(vec![conv, active, sum, maximum, average, adaptive, mean, scaled, fewer])
}

#[test]
fn all_forms_give_results_of_one_shape() {
    let (x, filter) = (random(&[2, 3, 11, 9], 1), Filter::new(random(&[3, 3, 3, 3], 2)));
    let symbolic = FeatureMap::Symbolic(Symbolic::new((2, 3, 11, 9), DType::F64, None));
    let shapes = |x: FeatureMap| {
        let maps = chain(&x, &filter).unwrap();
        maps.iter().map(|map| map.dims().unwrap()).collect::<Vec<_>>()
    };
    let own = shapes(FeatureMap::new(&x).unwrap());
    assert_eq!(own[8], (2, 6, 2, 2));
    assert_eq!(own, shapes(FeatureMap::on_device(&x)));
    assert_eq!(own, shapes(symbolic));
}

/// In the memory model every operation passes a gradient on to earlier trainable tensors, with a map's memory.
#[test]
fn every_operation_is_in_the_memory_model() {
    let touched = |filter: &Filter, which: usize| {
        let x = FeatureMap::Symbolic(Symbolic::new((8, 3, 64, 64), DType::F64, None));
        let last = chain(&x, filter).unwrap().swap_remove(which);
        last.into_symbolic().unwrap().backward(&[]).touched()
    };
    let frozen = Filter::new(random(&[3, 3, 3, 3], 2));
    let learning = Filter::new(variable(&[3, 3, 3, 3], 2).as_tensor().clone());
    for which in 0..9 {
        let (less, more) = (touched(&frozen, which), touched(&learning, which));
        assert!(more > less, "operation {which}: {more} bytes learning, {less} frozen");
    }
}

#[test]
fn maps_of_two_kinds_do_not_meet() {
    let x = random(&[1, 2, 3, 3], 1);
    let (own, device) = (FeatureMap::new(&x).unwrap(), FeatureMap::on_device(&x));
    let single = FeatureMap::new(&x.to_dtype(DType::F32).unwrap()).unwrap();
    for (a, b) in [(&own, &device), (&device, &own), (&own, &single)] {
        let error = a.add(b).err().unwrap().to_string();
        assert!(error.contains("one element type"), "{error}");
    }
}

/// The sums over many rows are divided into parts of fixed size.
#[test]
fn a_layer_norm_gives_the_same_gradients_for_any_number_of_threads() {
    let (rows, width) = (5003, 24);
    let (x, gamma, beta) = (variable(&[rows, width], 1), variable(&[width], 2), variable(&[width], 3));
    let gradients = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let store =
            pool.install(|| weighed(&layer_norm(&x, &gamma, &beta, 1e-5).unwrap()).unwrap().backward().unwrap());
        [&x, &gamma, &beta].map(|v| store.get(v).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap())
    };
    let one = gradients(1);
    assert!(one == gradients(2) && one == gradients(3));
    // The gradient of beta is the sum of what reaches each row.
    let weights = random(&[rows, width], 99).sum(0).unwrap().to_vec1::<f64>().unwrap();
    assert!(one[2].iter().zip(&weights).all(|(a, b)| (a - b).abs() < 1e-9), "{:?}", one[2]);
    // The gradient of gamma, by the same layer norm without weight and bias.
    let (ones, zeros) = (gamma.ones_like().unwrap(), gamma.zeros_like().unwrap());
    let plain = layer_norm(&x.as_detached_tensor(), &ones, &zeros, 1e-5).unwrap();
    let dots = (plain * random(&[rows, width], 99)).unwrap().sum(0).unwrap().to_vec1::<f64>().unwrap();
    assert!(one[1].iter().zip(&dots).all(|(a, b)| (a - b).abs() < 1e-9), "{:?}", one[1]);
}
