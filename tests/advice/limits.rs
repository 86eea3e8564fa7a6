//! The costs of the strategies, and what limits on them do. Nothing here depends on how fast the machine is.

use super::backbone;
use crate::support::{CPU, tensors};
use candle_finetune::candle_core::{self, Tensor};
use candle_finetune::{
    Advice, Advisor, Backbone, Block, Blueprint, Conv2d, Error, Head, ImageFolder, InputSpec, Layer, Result, Strategy,
};

/// Few and different images: small-different.
fn train() -> ImageFolder {
    ImageFolder::open(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion/train")).unwrap()
}

fn advise(limit: impl FnOnce(Advisor) -> Advisor) -> Result<Advice> {
    limit(Advisor::new(&backbone())).advise(&train())
}

#[test]
fn an_advice_has_the_cost_of_each_strategy() {
    let advice = advise(|advisor| advisor).unwrap();
    let strategies: Vec<Strategy> = advice.costs.iter().map(|cost| cost.strategy).collect();
    assert_eq!(strategies, Strategy::ALL);
    for cost in &advice.costs {
        assert!(cost.minutes.is_some_and(|minutes| minutes > 0.0 && minutes.is_finite()), "{cost:?}");
        assert!(cost.fits() && cost.multiply_adds.is_some_and(|count| count > 0), "{cost:?}");
    }
    for strategy in [Strategy::SmallSimilar, Strategy::LargeSimilar, Strategy::LargeDifferent] {
        let forecast = strategy.plan(&backbone(), 100).forecast(&backbone(), Head::linear(), 10).unwrap();
        let cost = advice.costs.iter().find(|cost| cost.strategy == strategy).unwrap();
        assert_eq!(cost.memory, forecast.total(), "{strategy}");
    }
    let counts: Vec<u64> = advice.costs.iter().map(|cost| cost.multiply_adds.unwrap()).collect();
    // Heads cost least, and training everything more than a part.
    let [head, part, everything, _, all_stages, _] = counts[..] else { panic!("{counts:?}") };
    assert!(head < all_stages && all_stages < part && part < everything, "{counts:?}");
    assert_eq!(advice.costs[1].memory, advice.forecast.total());
    assert_eq!(advice.runner_up, Some(Strategy::LargeSimilar));
    let (text, json) = (advice.to_string(), advice.to_json().unwrap());
    assert!(text.contains("minutes") && text.contains("\n  large-different "), "{text}");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let costs = json["costs"].as_array().unwrap();
    assert_eq!(costs.iter().map(|cost| &cost["strategy"]).collect::<Vec<_>>(), Strategy::ALL.map(Strategy::name));
    for (cost, of) in costs.iter().zip(&advice.costs) {
        assert_eq!(cost["minutes"].as_f64(), of.minutes);
        assert_eq!(cost["memory"].as_u64(), of.memory.map(|bytes| bytes as u64));
        assert_eq!(cost["multiply_adds"].as_u64(), of.multiply_adds);
        assert_eq!(cost["problems"], serde_json::json!([]));
    }
}

#[test]
fn more_validation_samples_take_more_work() {
    let work = |valid| advise(|advisor| advisor.valid(valid)).unwrap().costs[2].multiply_adds.unwrap();
    let (none, one, ten) = (work(0), work(1), work(10));
    assert_eq!(ten - none, 10 * (one - none));
    assert_eq!(advise(|advisor| advisor).unwrap().costs[2].multiply_adds, Some(work(15)), "15 % of 100");
}

#[test]
fn a_limit_on_memory_restricts_the_choice() {
    let free = advise(|advisor| advisor).unwrap();
    let memory: Vec<usize> = free.costs.iter().map(|cost| cost.memory.unwrap()).collect();
    assert!(memory[0] < memory[4] && memory[4] < memory[1], "{memory:?}");
    let fits = advise(|advisor| advisor.memory(memory[1])).unwrap();
    assert_eq!((fits.strategy, &fits.plan), (Strategy::SmallDifferent, &free.plan));
    let all_stages = advise(|advisor| advisor.memory(memory[1] - 1)).unwrap();
    assert_eq!(all_stages.strategy, Strategy::Intermediate);
    assert!(!all_stages.costs[1].fits() && all_stages.costs[0].fits() && all_stages.runner_up.is_none());

    let less = advise(|advisor| advisor.memory(memory[4] - 1)).unwrap();
    assert_eq!((less.strategy, less.plan.strategy), (Strategy::SmallSimilar, Some(Strategy::SmallSimilar)));
    assert_eq!(less.forecast.total(), Some(memory[0]));
    assert_eq!((less.size, less.similarity), (free.size, free.similarity), "the measurement is the same");
    let problem = &less.costs[1].problems[0];
    assert!(problem.contains("small-different would take") && problem.contains("MB; the limit is"), "{problem}");
    assert!(less.reasons.contains(problem) && less.plan.reasons.contains(problem), "{:?}", less.plan.reasons);
    let text = less.to_string();
    assert!(text.contains("small-similar\n") && !text.contains("next to try"), "{text}");
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");

    let error = advise(|advisor| advisor.memory(1)).map(drop).unwrap_err();
    match &error {
        Error::NoStrategyFits { memory: Some(least), .. } => assert_eq!(*least, memory[0]),
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("small-similar would take"), "{error}");
}

#[test]
fn a_budget_restricts_the_choice() {
    let free = advise(|advisor| advisor).unwrap();
    let endless = advise(|advisor| advisor.budget(f64::INFINITY)).unwrap();
    assert_eq!((endless.strategy, &endless.plan), (free.strategy, &free.plan));
    let error = advise(|advisor| advisor.budget(0.0)).map(drop).unwrap_err();
    assert!(matches!(&error, Error::NoStrategyFits { minutes: Some(minutes), .. } if *minutes > 0.0), "{error}");
    assert!(error.to_string().contains("the budget is 0"), "{error}");
    for minutes in [-1.0, f64::NAN] {
        let error = advise(|advisor| advisor.budget(minutes)).map(drop).unwrap_err();
        assert!(matches!(&error, Error::Invalid { what, .. } if what == "budget"), "{error}");
    }
}

/// A network of three blocks with a custom layer in the middle.
fn with_custom(layer: fn(&Tensor) -> candle_core::Result<Tensor>) -> Backbone {
    let custom = Layer::custom(move |_| Ok(layer));
    let conv = Conv2d::new(3, 8, 3).batch_norm().relu();
    let blocks = vec![Block::new("stem", conv), Block::new("custom", custom), Block::new("last", Conv2d::new(8, 8, 3))];
    let blueprint = Blueprint::from_blocks("with_custom", InputSpec::new(32), 8, blocks).unwrap();
    Backbone::random(&blueprint, 1, &CPU).unwrap()
}

/// A custom layer hides what it computes: its memory is unknown, and its minutes where only a part is frozen.
#[test]
fn the_costs_of_custom_layers_are_unknown_as_far_as_they_cannot_be_timed() {
    let backbone = with_custom(|x| x * 2.0);
    let train = tensors(24, 32, 3, 1);
    let advice = Advisor::new(&backbone).advise(&train).unwrap();
    assert!(advice.warnings.iter().all(|warning| !warning.contains("unknown")), "{:?}", advice.warnings);
    let known: Vec<bool> = advice.costs.iter().map(|cost| cost.minutes.is_some()).collect();
    assert_eq!(known, [true, false, true, true, true, true]);
    assert!(advice.costs.iter().all(|cost| cost.memory.is_none() && cost.multiply_adds.is_none() && cost.fits()));
    assert!(advice.to_string().contains("unknown"), "{advice}");
    let error = Advisor::new(&backbone).memory(1 << 30).advise(&train).map(drop).unwrap_err();
    assert!(matches!(&error, Error::NoStrategyFits { memory: None, .. }), "{error}");
    assert!(error.to_string().contains("is unknown; the limit is 1074 MB"), "{error}");
}

#[test]
fn a_layer_that_fails_in_the_timed_step_leaves_an_advice_with_a_warning() {
    // The pass has 24 images and, for their size, one.
    let backbone = with_custom(|x| if x.dim(0)? == 4 { candle_core::bail!("four images") } else { Ok(x.clone()) });
    let train = tensors(24, 32, 3, 1);
    let advice = Advisor::new(&backbone).advise(&train).unwrap();
    assert!(advice.warnings.iter().any(|warning| warning.contains("four images")), "{:?}", advice.warnings);
    assert!(advice.costs.iter().all(|cost| cost.minutes.is_none()));
    let error = Advisor::new(&backbone).budget(1e6).advise(&train).map(drop).unwrap_err();
    assert!(matches!(&error, Error::NoStrategyFits { minutes: None, .. }), "{error}");
}
