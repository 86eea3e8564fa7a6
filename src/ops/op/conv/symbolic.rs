//! The symbolic form: what the CPU form allocates, saves for backward, and allocates there, and its multiply-adds.

use super::step::{ConvStep, Norm, check_residual, is_sum_of_outer_products, recomputes_sums};
use crate::ops::feature_map::Operation;
use crate::ops::gradient::stays_factored;
use crate::ops::kernels::conv::choose;
use crate::ops::memory_model::{Allocation, SavedSymbolic, Symbolic, Tape, give};
use crate::ops::op::activate::Activate;
use candle_core::{Result, Tensor};
use std::sync::Arc;

pub(super) fn conv_step(x: &Symbolic, step: &ConvStep, residual: Option<&Symbolic>) -> Result<Symbolic> {
    if step.separates_activation(residual.is_some()) {
        let y = conv_step(x, &step.without_activation(), residual)?;
        return Activate(step.act).symbolic([&y]);
    }
    let tape = &x.tape;
    let g = step.geometry(x.dims)?;
    let dims = [g.n, g.oh, g.ow, g.k];
    check_residual(residual.map(|r| r.dims), dims)?;
    let (learns, normed) = (step.filter.learns(), step.is_normed());
    let affine_learns = match &step.norm {
        Norm::None { bias } => bias.is_some_and(Tensor::track_op),
        Norm::Batch { gamma, beta, .. } | Norm::Fixed { gamma, beta, .. } => gamma.track_op() || beta.track_op(),
    };
    let choice = choose(&g);
    let (out_len, multiply_adds) = (g.output_len(), g.multiply_adds());
    tape.compute(multiply_adds);

    let packed = tape.allocate(choice.packed_len(&g));
    tape.scratch(|element| choice.scratch_bytes(&g, element));
    let z = Arc::new(tape.allocate(out_len));
    if step.filter.caches_packed(choice) {
        tape.hold(packed);
    } else {
        drop(packed);
    }
    let y = if normed { Arc::new(tape.allocate(out_len)) } else { z.clone() };

    let (input, through) = (x.accumulator.clone(), residual.and_then(|r| r.accumulator.clone()));
    let recorded = learns || affine_learns || input.is_some() || through.is_some();
    let saved_input = x.saved();
    let input_depth = saved_input.depth;
    let recomputes = normed && recomputes_sums(&g, input_depth);
    let recomputing = if recomputes { multiply_adds.saturating_add(saved_input.multiply_adds) } else { 0 };
    let saved_x = learns.then_some(saved_input);
    let saved_z = (normed && !recomputes).then(|| z.clone());
    let saved_y = step.saves_result(residual.is_some()).then(|| y.clone());
    let recompute = (recorded && step.is_recomputable(residual.is_some())).then(|| {
        let depth = if recomputes { 1 + input_depth } else { 0 };
        let held = saved_z.iter().cloned().collect();
        SavedSymbolic { recomputed: Some(out_len), held, selectable: true, depth, multiply_adds: recomputing }
    });
    drop(z);
    let backward = move |tape: &Tape, d: Allocation| {
        tape.compute_backward(recomputing);
        let sums = recomputes.then(|| tape.allocate(out_len));
        let passed = (normed && through.is_some()).then(|| tape.allocate(out_len));
        drop((sums, saved_z, saved_y));
        if let (Some(through), Some(passed)) = (&through, passed) {
            give(through, passed);
        }
        if let Some(x) = saved_x {
            let recomputed = x.data(tape);
            let len = g.kernel_len();
            let factored = is_sum_of_outer_products(choice, &g) && stays_factored(g.n, len);
            let gradient = tape.allocate(if factored { g.n * (g.k + g.c * g.h * g.w) } else { len });
            tape.compute_backward(multiply_adds);
            let temporary = tape.allocate(choice.weight_gradient_len(&g));
            drop((temporary, recomputed));
            tape.hold(gradient);
        }
        if let Some(input) = input {
            tape.compute_backward(multiply_adds);
            tape.write(&input, g.input_len());
            drop(tape.allocate(choice.packed_len(&g)));
        }
        if let (Some(through), false) = (&through, normed) {
            give(through, d);
        }
    };
    Ok(Symbolic { recompute, ..x.record(dims, y, recorded, backward) })
}
