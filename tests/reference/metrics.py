"""Writes the figures of scikit-learn for random logits of four classes: metrics.py > metrics.json"""

import json
import sys

import numpy as np
import sklearn
from sklearn import metrics as m

SAMPLES, CLASSES, BINS = 60, 4, 15


def calibration_error(p, y):
    """Guo et al. 2017 (arXiv 1706.04599); scikit-learn has none."""
    confidence, right, error = p.max(1), p.argmax(1) == y, 0.0
    for b in range(BINS):
        within = (confidence > b / BINS) & (confidence <= (b + 1) / BINS)
        if within.any():
            error += within.mean() * abs(right[within].mean() - confidence[within].mean())
    return float(error)


rng = np.random.default_rng(7)
y = rng.choice(CLASSES, size=SAMPLES, p=[0.5, 0.25, 0.2, 0.05])
noise = rng.normal(size=(SAMPLES, CLASSES)) * 1.5
logits = np.round(noise + 2.0 * np.eye(CLASSES)[y] * rng.uniform(size=(SAMPLES, 1)), 3)
p = np.exp(logits - logits.max(1, keepdims=True))
p /= p.sum(1, keepdims=True)
predicted = p.argmax(1)
precision, recall, f1, _ = m.precision_recall_fscore_support(y, predicted, labels=range(CLASSES), zero_division=0)
# Lists of labels.
truths = (rng.uniform(size=(SAMPLES, CLASSES)) < [0.6, 0.3, 0.2, 0.1]).astype(float)
scores = np.round(rng.normal(size=(SAMPLES, CLASSES)) * 1.5 + 2.0 * truths - 1.0, 2)
q = 1 / (1 + np.exp(-scores))
chosen = q >= 0.5


def best_f1(own, score):
    precision, recall, _ = m.precision_recall_curve(own, score)
    return float(np.nan_to_num(2 * precision * recall / (precision + recall)).max())


averages = {f"{kind}_{name}": getattr(m, f"{name}_score")(truths, chosen, average=kind, zero_division=0)
            for kind, name in [("macro", "f1"), ("weighted", "f1"), ("macro", "precision"), ("macro", "recall")]}
of_labels = {
    "truths": truths.tolist(),
    "logits": scores.tolist(),
    "exact_match": m.accuracy_score(truths, chosen),
    "loss": float(np.mean([m.log_loss(truths[:, c], q[:, c]) for c in range(CLASSES)])),
    "roc_auc": m.roc_auc_score(truths, q, average="macro"),
    "average_precision": m.average_precision_score(truths, q, average="macro"),
    "best_f1": [best_f1(truths[:, c], q[:, c]) for c in range(CLASSES)],
    **averages,
}
json.dump(
    {
        "labels": of_labels,
        "sklearn": sklearn.__version__,
        "classes": y.tolist(),
        "logits": logits.tolist(),
        "top1": m.accuracy_score(y, predicted),
        "top2": m.top_k_accuracy_score(y, p, k=2),
        "top3": m.top_k_accuracy_score(y, p, k=3),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
        "macro_f1": m.f1_score(y, predicted, average="macro", zero_division=0),
        "weighted_f1": m.f1_score(y, predicted, average="weighted", zero_division=0),
        "macro_precision": m.precision_score(y, predicted, average="macro", zero_division=0),
        "balanced_accuracy": m.balanced_accuracy_score(y, predicted),
        "roc_auc": m.roc_auc_score(y, p, multi_class="ovr", average="macro"),
        "average_precision": float(np.mean([m.average_precision_score(y == c, p[:, c]) for c in range(CLASSES)])),
        "loss": m.log_loss(y, p),
        "ece": calibration_error(p, y),
    },
    sys.stdout,
)
