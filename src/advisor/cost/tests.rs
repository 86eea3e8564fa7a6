use super::*;
use crate::strategy::Strategy::{LargeDifferent, LargeSimilar, SmallDifferent, SmallSimilar};

/// Costs of 1, 2, 3 ... minutes in the order of the strategies, and as many times 100 MB.
fn costs(limits: &Limits) -> Vec<StrategyCost> {
    let of = |(i, strategy)| {
        let (minutes, memory) = (Some((i + 1) as f64), Some((i + 1) * 100_000_000));
        let problems = limits.time_problem(strategy, minutes).into_iter();
        let problems = problems.chain(limits.memory_problem(strategy, memory)).collect();
        StrategyCost { strategy, minutes, memory, multiply_adds: None, plan: None, problems }
    };
    Strategy::ALL.into_iter().enumerate().map(of).collect()
}

fn chosen(advised: Strategy, limits: Limits) -> Result<(Strategy, Vec<String>)> {
    choose(advised, &costs(&limits), &limits)
}

#[test]
fn without_limits_the_advised_strategy_stays() {
    for strategy in Strategy::ALL {
        assert_eq!(chosen(strategy, Limits::default()).unwrap(), (strategy, vec![]));
        let none = Limits { minutes: Some(f64::INFINITY), memory: Some(usize::MAX) };
        assert_eq!(chosen(strategy, none).unwrap(), (strategy, vec![]));
    }
}

#[test]
fn a_strategy_beyond_a_limit_gives_way_to_the_next_smaller_one_with_the_reason() {
    let minutes = |minutes| Limits { minutes: Some(minutes), memory: None };
    let mb = |mb: usize| Limits { minutes: None, memory: Some(mb * 1_000_000) };
    for (advised, limits, strategy, reasons) in [
        (LargeSimilar, minutes(3.0), LargeSimilar, vec![]),
        (LargeSimilar, minutes(2.5), SmallDifferent, vec!["large-similar would take 3.0 minutes; the budget is 2.5"]),
        (
            LargeDifferent,
            minutes(1.0),
            SmallSimilar,
            vec![
                "large-different would take 4.0 minutes; the budget is 1",
                "small-different would take 2.0 minutes; the budget is 1",
                "intermediate would take 5.0 minutes; the budget is 1",
            ],
        ),
        // Never up, although large-similar would fit.
        (LargeDifferent, minutes(3.0), SmallDifferent, vec!["large-different would take 4.0 minutes; the budget is 3"]),
        (
            SmallDifferent,
            mb(150),
            SmallSimilar,
            vec![
                "small-different would take 200 MB; the limit is 150",
                "intermediate would take 500 MB; the limit is 150",
            ],
        ),
        (SmallSimilar, mb(100), SmallSimilar, vec![]),
    ] {
        let reasons: Vec<String> = reasons.into_iter().map(String::from).collect();
        assert_eq!(chosen(advised, limits).unwrap(), (strategy, reasons), "{advised} {limits:?}");
    }
}

#[test]
fn if_nothing_fits_the_error_names_the_smallest_needs() {
    let limits = Limits { minutes: Some(0.5), memory: Some(20_000_000) };
    for advised in Strategy::ALL {
        let error = chosen(advised, limits).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("small-similar would take 1.0 minutes; the budget is 0.5"), "{text}");
        assert!(text.contains("small-similar would take 100 MB; the limit is 20"), "{text}");
        assert!(
            matches!(error, Error::NoStrategyFits { minutes: Some(1.0), memory: Some(100_000_000), .. }),
            "{error}"
        );
    }
    // What is unknown does not count as fitting.
    let mut unknown = costs(&Limits::default());
    for cost in &mut unknown {
        (cost.minutes, cost.memory) = (None, None);
        cost.problems = limits.memory_problem(cost.strategy, None).into_iter().collect();
    }
    let error = choose(SmallSimilar, &unknown, &limits).unwrap_err();
    assert!(error.to_string().contains("the memory of small-similar is unknown"), "{error}");
}

#[test]
fn the_table_has_a_row_for_each_strategy_and_its_problems() {
    let mut costs = costs(&Limits { minutes: Some(3.5), memory: None });
    (costs[0].minutes, costs[1].memory) = (Some(0.004), None);
    (costs[2].minutes, costs[2].memory) = (Some(12.3), Some(0));
    let mut text = String::new();
    table(&costs, &mut text).unwrap();
    let expected = "  strategy          minutes       MB
  small-similar        0.00      100
  small-different       2.0  unknown
  large-similar          12        0
  large-different       4.0      400
    large-different would take 4.0 minutes; the budget is 3.5
  intermediate          5.0      500
    intermediate would take 5.0 minutes; the budget is 3.5
  probe-then-tune       6.0      600
    probe-then-tune would take 6.0 minutes; the budget is 3.5
";
    assert_eq!(text, expected);
}
