//! Refuses a step that the machine's memory cannot hold, before it runs.

use crate::backbone::Backbone;
use crate::error::{Error, Result};
use crate::freeze::FreezePolicy;
use crate::head::Head;
use crate::plan::Plan;
use std::fs;

/// The memory that this process may use, in bytes.
#[derive(Debug, Clone, Copy)]
struct Machine {
    /// Of the machine, or of the process's control group.
    total: usize,
    /// Of that, what nobody uses.
    free: usize,
}

/// A warning if a step of the plan needs more memory than is free, on the CPU of a Linux machine; `samples` is the number
/// of training samples. Only phases that freeze nothing are looked at: the features of frozen blocks are computed in
/// small batches where they are cached, and a forecast counts them in each step.
///
/// # Errors
/// If it needs more than there is.
pub(super) fn check(
    plan: &Plan,
    backbone: &Backbone,
    head: Head,
    (samples, classes): (usize, usize),
) -> Result<Option<String>> {
    let Some(machine) = Machine::of_process().filter(|_| backbone.device().is_cpu()) else { return Ok(None) };
    let mut whole = plan.clone();
    whole.phases.retain(|phase| phase.freeze == FreezePolicy::Nothing);
    if whole.phases.is_empty() {
        return Ok(None);
    }
    // A leftover sample joins the batch before it. What cannot be forecast is not refused.
    let needs = |batch: usize| {
        let plan = whole.clone().batch_size(batch.min(samples + 1));
        plan.forecast(backbone, head, classes).ok().and_then(|forecast| forecast.total())
    };
    judge(plan.batch_size.min(samples + 1), needs, machine)
}

/// `needs` gives the bytes of a step with a number of samples, if they are known.
fn judge(batch: usize, needs: impl Fn(usize) -> Option<usize>, machine: Machine) -> Result<Option<String>> {
    let Some(all) = needs(batch) else { return Ok(None) };
    let gb = |bytes: usize| bytes as f64 / 1e9;
    let Machine { total, free } = machine;
    if all <= free {
        return Ok(None);
    }
    // A warning is about what is free now, a refusal about what can be.
    let room = if all <= total { free } else { total };
    let fits = |batch: usize| needs(batch).is_none_or(|bytes| bytes <= room);
    let mut most = batch;
    while most > 1 && !fits(most) {
        most /= 2;
    }
    let remedy = if fits(most) {
        format!("use a batch size of {most} with grad_accum {}", batch.div_ceil(most))
    } else {
        "freeze more blocks, or use a smaller network or smaller images".into()
    };
    if all <= total {
        return Ok(Some(format!(
            "a step with {batch} samples takes about {:.1} GB of memory, and {:.1} GB are free: {remedy}",
            gb(all),
            gb(free)
        )));
    }
    let problem = format!(
        "a step with {batch} samples takes about {:.1} GB of memory, and the machine has {:.1} GB; {remedy}",
        gb(all),
        gb(total)
    );
    Err(Error::invalid("plan: batch_size", problem))
}

impl Machine {
    fn of_process() -> Option<Self> {
        let text = fs::read_to_string("/proc/meminfo").ok()?;
        let of = |name: &str| -> Option<usize> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches("kB").trim().parse::<usize>().ok().map(|kilobytes| kilobytes << 10)
        };
        let (mut total, mut free) = (of("MemTotal:")?, of("MemAvailable:")?);
        // A container's limit. Pages of files that were read count as used there, and are given back when needed.
        let group = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
        let number = |text: String| text.trim().parse::<usize>().ok();
        if let (Some(most), Some(used)) =
            (group("memory.max").and_then(number), group("memory.current").and_then(number))
        {
            let stat = group("memory.stat").unwrap_or_default();
            let cached =
                stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<usize>().ok());
            total = total.min(most);
            free = free.min(most.saturating_sub(used) + cached.unwrap_or(0));
        }
        Some(Self { total, free })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_what_is_tight_warned_of() {
        let machine = Machine { total: 16_000_000_000, free: 8_000_000_000 };
        let needs = |batch: usize| Some(1_000_000_000 + 100_000_000 * batch);
        assert!(judge(64, needs, machine).unwrap().is_none());
        let warning = judge(100, needs, machine).unwrap().unwrap();
        assert!(warning.contains("11.0 GB") && warning.contains("batch size of 50 with grad_accum 2"), "{warning}");
        let error = judge(256, needs, machine).unwrap_err().to_string();
        assert!(error.contains("26.6 GB") && error.contains("batch size of 128 with grad_accum 2"), "{error}");
        let error = judge(4, |_| Some(20_000_000_000), machine).unwrap_err().to_string();
        assert!(error.contains("smaller network"), "{error}");
        assert!(judge(4, |_| None, machine).unwrap().is_none());
        let machine = Machine::of_process();
        assert!(machine.is_none_or(|machine| machine.total > 0 && machine.free <= machine.total));
    }
}
