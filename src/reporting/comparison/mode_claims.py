"""Claims on ways of fine-tuning beyond non-linear and linear."""

from src.experiments.registry import ADDITION, DISENTANGLEMENT, NEGATION, SINGLE_TASK
from src.modes import MODES
from src.reporting.claim import Claim, Measured
from src.reporting.comparison.geometry import Spectral
from src.reporting.tangent.claims import OverPairs


def _added(mode: str, metric: str = "accuracy") -> Measured:
    """Of θ0 + α Σ τ, α tuned or 1."""
    at = ", α = 1" if metric == "one_accuracy" else ""
    return Measured(f"added, {MODES[mode].short}{at}", ADDITION, mode, metric)


def _alone(mode: str) -> Measured:
    return Measured(f"single tasks, {MODES[mode].short}", SINGLE_TASK, mode, main_tasks=True)


def _negated(mode: str) -> Measured:
    return Measured(f"target, {MODES[mode].short}", NEGATION, mode, "target_accuracy")


def _error(mode: str) -> OverPairs:
    return OverPairs(f"ξ {MODES[mode].short}", DISENTANGLEMENT, mode, "error_in_box")


CLAIMS = (
    Claim(
        "Jin",
        "Attention-only fine-tuning adds up better than non-linear fine-tuning of the whole tower.",
        (_added("attention"), _added("standard")),
    ),
    Claim(
        "Jin",
        "Attention-only fine-tuning is as disentangled as linear fine-tuning (within a point of ξ).",
        (_error("linear"), _error("attention")),
        margin=1.0,
    ),
    Claim(
        "Jin",
        "Attention-only fine-tuning is as good on single tasks as non-linear fine-tuning (within a point).",
        (_alone("attention"), _alone("standard")),
        margin=1.0,
    ),
    Claim("τJp", "With τJp tasks add up better than with linear fine-tuning.", (_added("tau_jp"), _added("linear"))),
    Claim(
        "τJp",
        "With τJp no coefficient is needed: at α = 1 addition is as good as tuned (within a point).",
        (_added("tau_jp", "one_accuracy"), _added("tau_jp")),
        margin=1.0,
    ),
    Claim("τJp", "τJp makes ξ smaller than linear fine-tuning does.", (_error("linear"), _error("tau_jp"))),
    Claim(
        "τJp",
        "Negation forgets no less with τJp than with linear fine-tuning (within a point).",
        (_negated("linear"), _negated("tau_jp")),
        margin=1.0,
    ),
    Claim("TAK", "With TAK tasks add up better than with linear fine-tuning.", (_added("tak"), _added("linear"))),
    Claim(
        "TAK",
        "With TAK no coefficient is needed: at α = 1 addition is as good as tuned (within a point).",
        (_added("tak", "one_accuracy"), _added("tak")),
        margin=1.0,
    ),
    Claim(
        "TAK",
        "Factors of other tasks do as well as their images: TAK adds up as well as τJp (within a point).",
        (_added("tak"), _added("tau_jp")),
        margin=1.0,
    ),
    Claim(
        "OrthoReg",
        "With OrthoReg tasks add up better than with non-linear fine-tuning.",
        (_added("ortho"), _added("standard")),
    ),
    Claim(
        "OrthoReg",
        "OrthoReg flattens the spectra of task vectors: their effective rank is higher.",
        (Spectral("effective_rank", "ortho"), Spectral("effective_rank", "standard")),
    ),
    Claim(
        "OrthoReg",
        "With OrthoReg task vectors interfere less (STI over Σ σ).",
        (Spectral("interference", "standard"), Spectral("interference", "ortho")),
    ),
    Claim("L-LoRA", "Linearized LoRA adds up better than LoRA.", (_added("l_lora"), _added("lora"))),
    Claim("L-LoRA", "Linearized LoRA is more disentangled than LoRA.", (_error("lora"), _error("l_lora"))),
    Claim(
        "the suite",
        "Sharpness-aware fine-tuning adds up better than plain non-linear fine-tuning.",
        (_added("sam"), _added("standard")),
    ),
)
