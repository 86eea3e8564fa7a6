//! Predictors on the hub and in folders, with their model cards.

use super::*;

#[test]
fn a_predictor_is_opened_once() {
    let place = Place::new();
    let plain = place.repository("acme/plain");
    put(&plain, &state(Arch::CIFAR_RESNET20, Naming::Timm, 2), &json!({"architecture": "cifar_resnet20"}));
    let saved = place.repository("acme/saved");
    Predictor::load(Source::embedded(), &CPU).unwrap().save_folder(&saved).unwrap();
    for id in ["acme/plain", "acme/saved"] {
        place.hub.asked();
        Predictor::load(place.source(id), &CPU).unwrap();
        let asked = place.hub.asked();
        let count = |method: &str, name: &str| {
            asked.iter().filter(|line| line.starts_with(method) && line.contains(name)).count()
        };
        // The revision is looked up once, and each file comes once.
        assert_eq!(count("HEAD", "main/config.json"), 1, "{asked:?}");
        for name in ["config.json", "model.safetensors"] {
            assert_eq!(count("GET", name), 1, "{name}: {asked:?}");
        }
    }
}

fn tuned(head: Head) -> Fitted {
    let (train, valid) = (pictures(14, 40, 2, 1), pictures(6, 40, 2, 100));
    let plan = plan(vec![phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 1)], 6);
    let backbone = Backbone::embedded(&CPU).unwrap();
    let mut fitted = FineTuner::new(backbone).plan(plan).head(head).seed(5).fit(&train, &valid).unwrap();
    fitted.test(&valid).unwrap();
    fitted
}

#[test]
fn there_and_back() {
    let place = Place::new();
    let data = pictures(6, 40, 2, 100);
    for (head, id) in [(Head::linear(), "me/linear"), (Head::mlp(8), "me/mlp")] {
        let fitted = tuned(head);
        let to = HubUpload::to(id).endpoint(place.hub.url()).token("hf_test");
        let error = fitted.predictor.push_to_hub(&to).unwrap_err();
        assert!(matches!(error, Error::Hub { kind: HubErrorKind::NotFound, .. }), "{error:?}");
        let url = fitted.predictor.push_to_hub(&to.clone().create().private().message("first")).unwrap();
        assert!(url.contains("/commit/"), "{url}");
        // Push again over the existing files.
        fitted.predictor.push_to_hub(&to.create()).unwrap();
        let back = Predictor::load(place.source(id), &CPU).unwrap();
        assert_eq!(back.labels(), fitted.predictor.labels());
        assert_eq!(back.backbone().input_spec(), fitted.predictor.backbone().input_spec());
        let all =
            |p: &Predictor| format!("{:?}", (0..6).map(|i| p.evaluate(&part(&data, i)).unwrap()).collect::<Vec<_>>());
        assert_eq!(all(&back), all(&fitted.predictor));
        assert_eq!(back.report().unwrap().unwrap().top1, fitted.report.top1);
        // Loaded as a backbone, it has the fine-tuned one's tensors.
        let backbone = Backbone::load(place.source(id), &CPU).unwrap();
        let x = images(2, 3, 32, 1);
        assert_eq!(numbers(&backbone.forward(&x).unwrap()), numbers(&back.backbone().forward(&x).unwrap()));
        let again = file_of(&back);
        assert_eq!(again, saved(&fitted));
        let card = std::fs::read_to_string(place.repository(id).join("README.md")).unwrap();
        let top1 = format!("{:.2} %", 100.0 * fitted.report.top1.unwrap());
        for words in ["pipeline_tag: image-classification", id, "Base model", &top1, "custom plan"] {
            assert!(card.contains(words), "{words} is not in {card}");
        }
        let config: Value =
            serde_json::from_slice(&std::fs::read(place.repository(id).join("config.json")).unwrap()).unwrap();
        assert_eq!(config["architecture"], "cifar_resnet20");
        assert_eq!(config["label_names"].as_array().unwrap().len(), 2);
        assert_eq!(config["pretrained_cfg"]["input_size"], json!([3, 32, 32]));
    }
    let stranger = HubUpload::to("me/linear").endpoint(place.hub.url()).create().token("nobody");
    let error = tuned(Head::linear()).predictor.push_to_hub(&stranger).unwrap_err();
    assert!(matches!(error, Error::Hub { kind: HubErrorKind::Denied, .. }), "{error:?}");
    assert!(!error.to_string().contains("nobody"));
    // A model card that a person wrote stays, in any encoding, even if the hub answers only the second request for it.
    let card = place.repository("me/linear").join("README.md");
    for mine in [&b"mine"[..], b"\xe0 moi"] {
        std::fs::write(&card, mine).unwrap();
        place.hub.fault(Fault::HeadStatus(503, None), "README", 2);
        tuned(Head::linear()).predictor.push_to_hub(&stranger.clone().token("hf_me")).unwrap();
        assert_eq!(std::fs::read(&card).unwrap(), mine);
    }
}

fn part(data: &(impl Dataset + Clone + 'static), i: usize) -> candle_finetune::Subset {
    candle_finetune::Subset::new(data, vec![i]).unwrap()
}

/// The content of its file.
fn file_of(predictor: &Predictor) -> crate::training::Bits {
    let file = tempfile::NamedTempFile::new().unwrap();
    predictor.save(file.path()).unwrap();
    crate::support::all_bits(&crate::support::read(file.path()))
}

#[test]
fn the_config_of_other_channels_names_no_kernel_to_adapt() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("w.safetensors");
    for (arch, first) in [(Arch::RESNET18, "conv1"), (Arch::TF_EFFICIENTNET_LITE0, "conv_stem")] {
        write(&file, &state(arch, Naming::Timm, 2));
        for channels in [1, 2, 3, 4, 5, 13] {
            let source = Source::file(&file).arch(arch).channels(channels);
            let folder = dir.path().join(format!("{arch}-{channels}"));
            Predictor::load(source, &CPU).unwrap().save_folder(&folder).unwrap();
            let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
            let cfg = &config["pretrained_cfg"];
            // timm 0.9.2, 0.9.16, 1.0.3, 1.0.11 and 1.0.15 drop the trained kernel of 2, 4 or more channels if it is
            // named here, and load it otherwise; 1.0.31 loads it either way.
            assert_eq!(cfg.get("first_conv"), (channels == 3).then(|| json!(first)).as_ref(), "{channels}");
            assert_eq!(config["model_args"]["in_chans"], json!(channels));
            assert_eq!(cfg["input_size"], json!([channels, 224, 224]));
            assert_eq!(cfg["mean"].as_array().unwrap().len(), channels);
            let back = Backbone::load(Source::dir(&folder), &CPU).unwrap();
            assert_eq!(back.input_spec().channels, channels);
        }
    }
}

#[test]
fn the_card_says_what_each_figure_was_measured_on() {
    let dir = tempfile::tempdir().unwrap();
    let fitted = tuned(Head::linear());
    fitted.predictor.save_folder(dir.path()).unwrap();
    let card = std::fs::read_to_string(dir.path().join("README.md")).unwrap();
    let report = &fitted.report;
    let line = |part: &str, images: Option<usize>, top1: Option<f64>| {
        format!("| Top-1 on {part} data ({} images) | {:.2} % |", images.unwrap(), 100.0 * top1.unwrap())
    };
    assert!(card.contains(&line("validation", report.samples.valid, report.valid_top1)), "{card}");
    assert!(card.contains(&line("test", report.samples.test, report.top1)), "{card}");
    // A report without test accuracy gives none.
    let file = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let text = &header.metadata().as_ref().unwrap()["candle_finetune"];
    let mut description: Value = serde_json::from_str(text).unwrap();
    description["story"]["top1"] = Value::Null;
    let texts = std::collections::HashMap::from([("candle_finetune".to_string(), description.to_string())]);
    let tensors = crate::support::read(&file);
    std::fs::write(&file, safetensors::serialize(&tensors, Some(texts)).unwrap()).unwrap();
    Predictor::from_file(&file, &CPU).unwrap().save_folder(dir.path()).unwrap();
    let card = std::fs::read_to_string(dir.path().join("README.md")).unwrap();
    assert!(card.contains("Top-1 on validation data") && !card.contains("test data"), "{card}");
}

#[test]
fn a_folder_without_hub() {
    let fitted = tuned(Head::linear());
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("new/folder");
    fitted.predictor.save_folder(&folder).unwrap();
    let back = Predictor::load(Source::dir(&folder), &CPU).unwrap();
    assert_eq!(file_of(&back), saved(&fitted));
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card.contains("Source::dir(") && card.contains("timm cannot load"), "{card}");
    // A model card that a person wrote stays, in any encoding.
    std::fs::write(folder.join("README.md"), b"\xe0 moi").unwrap();
    fitted.predictor.save_folder(&folder).unwrap();
    assert_eq!(std::fs::read(folder.join("README.md")).unwrap(), b"\xe0 moi");
    // The options of a source apply to a saved predictor too.
    let spec = InputSpec::new(48);
    let other = Predictor::load(Source::dir(&folder).input_spec(spec.clone()), &CPU).unwrap();
    assert_eq!(other.backbone().input_spec(), &spec);
    let taken = dir.path().join("taken");
    std::fs::write(&taken, "").unwrap();
    assert!(fitted.predictor.save_folder(&taken).unwrap_err().to_string().contains("taken"));
}
