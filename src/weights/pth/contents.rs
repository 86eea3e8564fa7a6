//! The content of a zip, recognised by the names of its entries.

use std::collections::BTreeSet;

use crate::error::shown;
use crate::weights::format::CONVERT;

/// The folder of an entry `FOLDER/data.pkl`, with its slash.
pub(super) fn root(name: &str) -> Option<&str> {
    name.strip_suffix("data.pkl").filter(|root| root.find('/').is_some_and(|slash| slash + 1 == root.len()))
}

/// The kind of zip, with the remedy, if `torch.save` did not write it.
pub(super) fn other_than_weights(names: &BTreeSet<String>) -> Option<(String, &'static str)> {
    let ends = |end: &str| names.iter().any(|name| name.ends_with(end));
    let below =
        |folder: &str| names.iter().any(|name| name.split_once('/').is_some_and(|(_, n)| n.starts_with(folder)));
    let is = |what: &str, remedy| Some((what.to_owned(), remedy));
    let pickled = names.iter().any(|name| root(name).is_some());
    if pickled && (ends("/constants.pkl") || below("code/")) {
        let remedy = "in Python, `model = torch.jit.load(\"scripted.pt\", map_location=\"cpu\")`, then \
                      `torch.save(model.state_dict(), \"weights.pth\")`";
        return is("a TorchScript program, which holds code besides its weights", remedy);
    }
    if pickled {
        return None;
    }
    if ends("serialized_exported_program.json") || ends("/archive_format") || ends("/models/model.json") {
        let remedy = "in Python, `program = torch.export.load(\"model.pt2\")`, then \
                      `torch.save(program.state_dict, \"weights.pth\")`";
        return is("an exported program of PyTorch (torch.export, .pt2)", remedy);
    }
    if ends(".npy") {
        return is("an archive of NumPy arrays (.npz)", CONVERT);
    }
    if ends("model.weights.h5") {
        return is("a Keras model (.keras)", CONVERT);
    }
    let inner =
        names.iter().find(|name| [".safetensors", ".pth", ".pt", ".bin", ".ckpt"].iter().any(|e| name.ends_with(e)));
    inner.map(|name| (format!("a zip that holds {}", shown(name)), "unpack it and name the file inside"))
}
