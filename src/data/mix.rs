//! Mixup and CutMix: every image of a batch is blended with another one, or gets a patch of it.

use super::batch::Inputs;
use super::{Augment, Batch, Targets};
use crate::Result;
use candle_core::{DType, Device, Tensor};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Beta, Distribution};

/// The batch with images and targets mixed. Each image is mixed with the one before it in the batch, the first with the
/// last, by one random share for the whole batch. If both kinds are on, a coin chooses one. A batch of one image, or of
/// cached features, stays as it is.
pub(crate) fn mix(batch: Batch, augment: &Augment, classes: usize, rng: &mut ChaCha8Rng) -> Result<Batch> {
    let Inputs::Images(images) = &batch.inputs else { return Ok(batch) };
    let (n, _, height, width) = images.dims4()?;
    if n < 2 || !augment.mixes() {
        return Ok(batch);
    }
    let cut = augment.mixup <= 0.0 || (augment.cutmix > 0.0 && rng.random::<bool>());
    let alpha = if cut { augment.cutmix } else { augment.mixup };
    // Checked with the augmentation: above 0 and finite.
    let Ok(beta) = Beta::new(f64::from(alpha), f64::from(alpha)) else { return Ok(batch) };
    let share = beta.sample(rng).clamp(0.0, 1.0);
    let (mixed, share) = if cut {
        let (rows, columns) = patch((height, width), share, rng);
        let kept = 1.0 - (rows.len() * columns.len()) as f64 / (height * width) as f64;
        let mut own = vec![1f32; height * width];
        rows.for_each(|row| own[row * width + columns.start..row * width + columns.end].fill(0.0));
        let own = Tensor::from_vec(own, (1, 1, height, width), &Device::Cpu)?;
        let own = own.to_dtype(images.dtype())?.to_device(images.device())?;
        let other = rolled(images)?.broadcast_mul(&own.affine(-1.0, 1.0)?)?;
        ((images.broadcast_mul(&own)? + other)?, kept)
    } else {
        (blended(images, share)?, share)
    };
    let dense = batch.targets.dense(classes, &Device::Cpu)?.to_dtype(DType::F32)?;
    let rows = blended(&dense, share)?.to_device(images.device())?;
    let targets = match batch.targets {
        Targets::Labels(_) => Targets::Labels(rows),
        Targets::Classes(_) | Targets::Soft(_) => Targets::Soft(rows),
    };
    Ok(Batch { inputs: Inputs::Images(mixed), targets, indices: batch.indices })
}

/// The rows, each of them that of the row before.
fn rolled(t: &Tensor) -> Result<Tensor> {
    let n = t.dim(0)?;
    Ok(Tensor::cat(&[t.narrow(0, n - 1, 1)?, t.narrow(0, 0, n - 1)?], 0)?)
}

/// share x own + (1 - share) x other
fn blended(t: &Tensor, share: f64) -> Result<Tensor> {
    Ok((t.affine(share, 0.0)? + rolled(t)?.affine(1.0 - share, 0.0)?)?)
}

/// The rows and columns of a patch around a random pixel, of 1 - `share` of the area where the image does not cut it off
/// (Yun et al. 2019, section 3.1).
fn patch(
    (height, width): (usize, usize),
    share: f64,
    rng: &mut ChaCha8Rng,
) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    let side = (1.0 - share).sqrt();
    let mut span = |length: usize| {
        let (middle, half) = (rng.random_range(0..length) as f64, side * length as f64 / 2.0);
        let end = |at: f64| at.round().clamp(0.0, length as f64) as usize;
        end(middle - half)..end(middle + half)
    };
    (span(height), span(width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Seed;

    /// Three images, each of one value in all its pixels, of three classes.
    fn batch() -> Batch {
        let images = Tensor::new(&[1f32, 10.0, 100.0], &Device::Cpu).unwrap().reshape((3, 1, 1, 1)).unwrap();
        Batch::new(images.broadcast_as((3, 2, 8, 8)).unwrap().contiguous().unwrap(), Targets::Classes(vec![0, 1, 2]))
            .unwrap()
    }

    fn mixed(augment: &Augment, at: u64) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let mixed = mix(batch(), augment, 3, &mut Seed(1).stream("mix", &[at])).unwrap();
        let images = mixed.images().unwrap().narrow(1, 0, 1).unwrap().flatten_from(1).unwrap();
        let Targets::Soft(rows) = &mixed.targets else { panic!("not soft") };
        (images.to_vec2().unwrap(), rows.to_vec2().unwrap())
    }

    #[test]
    fn mixup_blends_images_and_targets_by_one_share() {
        for at in 0..20 {
            let (images, targets) = mixed(&Augment::none().mixup(0.4), at);
            let share = targets[0][0];
            assert!((0.0..=1.0).contains(&share));
            for (k, (own, other)) in [(1.0, 100.0), (10.0, 1.0), (100.0, 10.0)].into_iter().enumerate() {
                let expected = share * own + (1.0 - share) * other;
                assert!(images[k].iter().all(|v| (v - expected).abs() < 1e-4), "{at} {k}: {}", images[k][0]);
                assert!((targets[k][k] - share).abs() < 1e-6 && (targets[k][(k + 2) % 3] - 1.0 + share).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn cutmix_patches_as_many_pixels_as_the_target_says() {
        let mut shares = vec![];
        for at in 0..50 {
            let (images, targets) = mixed(&Augment::none().cutmix(1.0), at);
            for (k, own) in [1.0, 10.0, 100.0].into_iter().enumerate() {
                let other = [100.0, 1.0, 10.0][k];
                assert!(images[k].iter().all(|v| *v == own || *v == other));
                let kept = images[k].iter().filter(|v| **v == own).count() as f32 / 64.0;
                assert!((targets[k][k] - kept).abs() < 1e-6);
            }
            shares.push(targets[0][0]);
        }
        // A uniform share of the area, of which borders cut some off.
        let mean = shares.iter().sum::<f32>() / 50.0;
        assert!((0.45..0.75).contains(&mean), "{mean}");
    }

    /// The variance of Beta(a, a) is 1 / (4 (2 a + 1)).
    #[test]
    fn shares_have_their_distribution() {
        for alpha in [0.2f32, 1.0, 8.0] {
            let share = |at| f64::from(mixed(&Augment::none().mixup(alpha), at).1[0][0]);
            let variance = (0..2000).map(|at| (share(at) - 0.5).powi(2)).sum::<f64>() / 2000.0;
            let expected = 1.0 / (4.0 * (2.0 * f64::from(alpha) + 1.0));
            assert!((variance / expected - 1.0).abs() < 0.1, "{alpha}: {variance}, not {expected}");
        }
    }

    #[test]
    fn labels_stay_labels_and_one_image_stays_alone() {
        let rows = Tensor::new(&[[1f32, 1.0], [0.0, 0.0], [1.0, 0.0]], &Device::Cpu).unwrap();
        let labels = Batch { targets: Targets::Labels(rows), ..batch() };
        let mixed = mix(labels, &Augment::none().mixup(1.0), 2, &mut Seed(1).stream("mix", &[0])).unwrap();
        let Targets::Labels(rows) = &mixed.targets else { panic!("not labels") };
        let rows = rows.to_vec2::<f32>().unwrap();
        assert!((rows[0][0] - 1.0).abs() < 1e-6 && rows[1][0] == rows[1][1] && rows[1][0] < 1.0);
        let images = Tensor::ones((1, 1, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let one = Batch::new(images, Targets::Classes(vec![1])).unwrap();
        let same = mix(one, &Augment::none().mixup(1.0), 2, &mut Seed(1).stream("mix", &[0])).unwrap();
        assert!(matches!(same.targets, Targets::Classes(_)));
    }
}
