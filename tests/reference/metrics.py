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
json.dump(
    {
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
