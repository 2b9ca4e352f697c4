"""Calibration: whether a classifier is right as often as it says, and the one temperature that mends it.

    expected calibration error      Σ_b n_b/n · |accuracy of b − mean confidence of b|, over BINS equal bins (lo, hi] of
                                    the largest probability          (Guo et al., 2017, arXiv:1706.04599)
    negative log-likelihood         −mean log p(label)
    temperature                     the T > 0 with the least negative log-likelihood of softmax(logits / T); above 1
                                    where the classifier is over-confident

The likelihood is concave in 1/T, so there is one optimum; it lies at an end of TEMPERATURES where every label has the
largest logit (T → 0), or where the logits tell nothing (T → ∞).
"""

import math

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

BINS = 15
TEMPERATURES = (0.01, 100.0)


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """logits: (images, classes). labels: (images,)."""
    confidence, predicted = logits.double().softmax(1).max(1)
    right = (predicted == labels).double()
    bin_of = (confidence * bins).ceil().clamp(1, bins).long() - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, right - confidence)
    return float(gaps.abs().sum() / len(labels))


def log_loss(logits: Tensor, labels: Tensor) -> float:
    return float(F.cross_entropy(logits.double(), labels))


def temperature(logits: Tensor, labels: Tensor) -> float:
    wide = logits.double()
    low, high = map(math.log, TEMPERATURES)
    optimum = minimize_scalar(
        lambda log_t: log_loss(wide / math.exp(log_t), labels),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(optimum.x)
