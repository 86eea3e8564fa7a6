//! Plans inside reports and saved predictors: what 0.1 wrote is read, what is newer is refused by name.

use crate::predictor::edited;
use crate::support::CPU;
use crate::training::{data, plans, tuner};
use candle_finetune::{Predictor, Report, Strategy};
use serde_json::Value;

/// A report that 0.1 wrote: large-similar with two edits.
const OF_0_1: &str = include_str!("fixtures/report-0.1.json");

#[test]
fn reports_of_0_1_are_read() {
    let report: Report = serde_json::from_str(OF_0_1).unwrap();
    assert_eq!((report.version.as_str(), report.strategy), ("0.1.0", Some(Strategy::LargeSimilar)));
    assert_eq!(report.plan.phases.iter().map(|phase| phase.augmented).collect::<Vec<_>>(), [false, true]);
    assert_eq!((report.plan.batch_size, report.plan.strategy), (16, None));
    assert_eq!(report.overrides.len(), 2);
    assert!(report.to_string().contains("large-similar"), "{report}");
    // Its settings are kept when it is written in the current form.
    let again: Report = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert_eq!(again, report);
}

#[test]
fn a_predictor_tells_what_is_wrong_with_its_plan_and_still_predicts() {
    let dir = tempfile::tempdir().unwrap();
    let (now, other) = (dir.path().join("now.safetensors"), dir.path().join("other.safetensors"));
    let (train, valid) = data();
    tuner(plans().remove(0)).fit(&train, &valid).unwrap().predictor.save(&now).unwrap();
    let with = |edit: &dyn Fn(&mut Value)| {
        edited(&now, &other, |_, description| {
            let mut value: Value = serde_json::from_str(description).unwrap();
            edit(&mut value["story"]);
            *description = value.to_string();
        });
        Predictor::from_file(&other, &CPU).unwrap()
    };
    let old: Value = serde_json::from_str(OF_0_1).unwrap();
    let predictor = with(&|story| story["plan"] = old["plan"].clone());
    assert_eq!(predictor.report().unwrap().unwrap().plan.batch_size, 16);

    let predictor = with(&|story| story["plan"]["version"] = 99.into());
    let text = predictor.report().unwrap_err().to_string();
    assert!(text.contains("newer version") && text.contains("format 99"), "{text}");
    assert_eq!(
        predictor.evaluate(&valid).unwrap(),
        Predictor::from_file(&now, &CPU).unwrap().evaluate(&valid).unwrap()
    );

    let predictor = with(&|story| story["plan"]["phases"][0]["momentum_schedule"] = 1.into());
    let text = predictor.report().unwrap_err().to_string();
    assert!(text.contains("plan: unknown field `momentum_schedule`"), "{text}");
}
