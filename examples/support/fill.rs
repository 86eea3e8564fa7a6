//! The formula that fills a parity file's tensors from their names (tests/reference/README.md).

/// The stream called `name`, of numbers in [0, 1).
fn unit(name: &str) -> impl Iterator<Item = f64> {
    let hash = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3));
    (1u64..).map(move |i| {
        let z = hash.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)
    })
}

/// The elements of the tensor called `name`. The caller ensures that they fit in memory.
pub fn filled(name: &str, shape: &[usize]) -> Vec<f32> {
    let count = shape.iter().product();
    let leaf = name.rsplit('.').next().unwrap_or(name);
    let (center, scale) = match (leaf, shape.len()) {
        _ if name == "input" => (0.5, 4.0),
        ("running_var", _) | ("weight", 1) => (-0.5, 1.0),
        ("weight", 2..) => {
            let fan_in: usize = shape.iter().skip(1).product();
            let bound = (3.0 / fan_in as f64).sqrt();
            return unit(name).take(count).map(|u| ((2.0 * u - 1.0) * bound) as f32).collect();
        }
        _ => (0.5, 0.2),
    };
    unit(name).take(count).map(|u| (scale * (u - center)) as f32).collect()
}

/// The inner product with the probe stream of `name`. It differs for a transposed tensor.
pub fn probe(name: &str, values: &[f64]) -> f64 {
    unit(&format!("probe.{name}")).zip(values).map(|(u, v)| (2.0 * u - 1.0) * v).sum()
}
