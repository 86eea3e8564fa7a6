//! The plan of each strategy, and what is known of it before anything is timed.

use super::limits::Limits;
use crate::backbone::Backbone;
use crate::error::{Error, Result};
use crate::forecast::{Forecast, ImageWork, Work, Workload};
use crate::head::Head;
use crate::plan::{Phase, Plan};
use crate::strategy::Strategy;

/// A strategy's plan, with what is known of it before anything is timed.
pub(super) struct Candidate {
    pub strategy: Strategy,
    pub plan: Plan,
    /// `None` if the network does not support the plan.
    pub forecast: Option<Forecast>,
    pub work: Option<Work>,
    pub problem: Option<String>,
}

impl Candidate {
    /// The candidate of each strategy, in the order of [`Strategy::ALL`]; `plan` makes its plan.
    pub fn all(
        backbone: &Backbone,
        (head, classes): (Head, usize),
        load: &Workload,
        limits: &Limits,
        plan: impl Fn(Strategy) -> Plan,
    ) -> Result<Vec<Self>> {
        let blueprint = backbone.blueprint();
        let cut = blueprint.limits().learning.map(|why| Error::unsupported(blueprint.name(), "be trained", why));
        let of = |strategy: Strategy| {
            let plan = plan(strategy);
            // A network of one block cannot be frozen in part: without this, small-different would freeze it entirely.
            // A head of several layers, say, is not fitted in closed form.
            let fits = plan.head(head).map_err(|error| error.to_string());
            let forecast = match (&cut, fits) {
                (_, Err(why)) => Err(why),
                (Some(error), _) if !matches!(strategy, Strategy::SmallSimilar | Strategy::Intermediate) => {
                    Err(error.to_string())
                }
                _ => match plan.forecast(backbone, head, classes) {
                    Err(error @ Error::Unsupported { .. }) => Err(error.to_string()),
                    other => Ok(other?),
                },
            };
            Ok(match forecast {
                Ok(forecast) => {
                    let work = plan.work(backbone, head, classes, load)?;
                    let problem = limits.memory_problem(strategy, forecast.total());
                    Self { strategy, plan, forecast: Some(forecast), work, problem }
                }
                Err(why) => {
                    let problem = Some(format!("{strategy} is not possible: {why}"));
                    Self { strategy, plan, forecast: None, work: None, problem }
                }
            })
        };
        Strategy::ALL.into_iter().map(of).collect()
    }
}

/// The plan and phase, among those that can be run, whose step has the longest backward pass, and the work of one
/// image in it.
pub(super) fn hardest(
    candidates: &[Candidate],
    backbone: &Backbone,
    (head, classes): (Head, usize),
) -> Result<Option<(Plan, Phase, ImageWork)>> {
    let mut hardest: Option<(Plan, Phase, ImageWork)> = None;
    for candidate in candidates.iter().filter(|candidate| candidate.problem.is_none()) {
        for phase in &candidate.plan.phases {
            let Some(image) = ImageWork::of(phase, backbone, head, classes)? else { continue };
            if hardest.as_ref().is_none_or(|(.., other)| image.backward > other.backward) {
                hardest = Some((candidate.plan.clone(), phase.clone(), image));
            }
        }
    }
    Ok(hardest)
}
