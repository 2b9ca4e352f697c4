"""Which weights a mode trains: the image tower, all but its embeddings, its attention's, or factors of these."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from src import checkpoints, store
from src.finetuning.settings import Training
from src.inputs import is_embedding
from src.linearize import LinearizedImageEncoder
from src.modeling import PREPROCESSING, ImageEncoder
from src.modes import ATTENTION, LOW_RANK, MODES, NO_EMBEDDINGS
from src.run import Run
from src.runtime.messages import UsageError
from src.runtime.seeds import event_seed


def build(run: Run, task: str, training: Training) -> nn.Module:
    """The encoder to train, at θ0 or at `training.load`; what requires grad is trained.

    Raises UsageError for a network without the attention that the mode trains.
    """
    mode = MODES[training.mode]
    encoder: nn.Module = ImageEncoder(run)
    store.check_pretrained(run.paths.pretrained(), encoder.state_dict())
    pretrained = checkpoints.load(run.paths.pretrained(), model=run.model, like=encoder.state_dict())
    encoder.load_state_dict(pretrained)
    of_attention = mode.trains in (ATTENTION, LOW_RANK)
    matrices = attention_weights(encoder) if of_attention else ()
    if of_attention and not matrices:
        raise UsageError(
            f"--finetuning-mode: {mode.name} trains the weights of attention, and {run.model} has none that are "
            "PyTorch's; expected a vision transformer, as --model=ViT-B-32"
        )
    if of_attention:
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(mode.trains == ATTENTION and name in matrices)
    if mode.trains == NO_EMBEDDINGS:
        for name, parameter in encoder.named_parameters():
            if is_embedding(name):
                parameter.requires_grad_(False)
    if mode.tangent:
        encoder = LinearizedImageEncoder(run, image_encoder=encoder)
    if training.load:
        encoder.load_state_dict(checkpoints.load(training.load, model=run.model, like=pretrained))
    if mode.trains != LOW_RANK:
        return encoder
    assert training.rank is not None and training.lora_alpha is not None  # Training.of fills them in
    seed = event_seed(run.seed, task, "low-rank")
    return LowRank(encoder, matrices, training.rank, training.lora_alpha, seed, fixed_a=mode.tangent)


def attention_weights(encoder: nn.Module) -> tuple[str, ...]:
    """Names of the matrices of attention in the image tower: of queries, keys and values, and of the output; no biases.

    Source: https://arxiv.org/abs/2407.07089, which finds training without biases better.
    """
    return tuple(
        f"{path}.{name}"
        for path, module in encoder.named_modules()
        if isinstance(module, nn.MultiheadAttention) and path.startswith(checkpoints.VISUAL)
        for name, weight in module.named_parameters()
        if weight.dim() == 2
    )


class LowRank(nn.Module):
    """An encoder in which matrices are W + alpha / rank · B A; B and A are trained, the encoder is frozen.

    names: of the matrices, (out, in). A fused one of queries, keys and values has factors for each: A is (parts, rank,
    in), B is (parts, out / parts, rank). A begins as in PEFT (uniform within 1 / sqrt(in)), drawn from `seed`, and B at
    zero, so that the encoder begins as it is.

    fixed_a: A stays as it is drawn, for a linearized encoder. At B = 0 the derivative with respect to A is zero, so the
    tangent model in (A, B) moves W along B A alone: it is the tangent model in W, restricted to these directions.
    Sources: https://arxiv.org/abs/2106.09685, https://arxiv.org/abs/2310.04742.
    """

    def __init__(
        self, encoder: nn.Module, names: tuple[str, ...], rank: int, alpha: float, seed: int, fixed_a: bool = False
    ):
        super().__init__()
        self.encoder, self.names, self.scale = encoder.requires_grad_(False), names, alpha / rank
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        generator = torch.Generator().manual_seed(seed)
        matrices = dict(encoder.named_parameters())
        for name in names:
            weight = matrices[name]
            parts, columns = (3 if name.endswith("in_proj_weight") else 1), weight.shape[1]
            uniform = torch.rand(parts, rank, columns, generator=generator, dtype=weight.dtype)
            a = ((2 * uniform - 1) / columns**0.5).to(weight.device)
            self.a.append(nn.Parameter(a, requires_grad=not fixed_a))
            self.b.append(nn.Parameter(weight.new_zeros(parts, weight.shape[0] // parts, rank)))
        for attribute in PREPROCESSING:
            if hasattr(encoder, attribute):
                setattr(self, attribute, getattr(encoder, attribute))

    def forward(self, images: Tensor) -> Tensor:
        return functional_call(self.encoder, self.merged(), (images,))

    def merged(self) -> dict[str, Tensor]:
        """The matrices by name, with a graph to the factors."""
        start = dict(self.encoder.named_parameters())
        with torch.autocast(self.a[0].device.type, enabled=False):  # bf16 would round what B A adds to W
            return {
                name: start[name] + self.scale * (b @ a).reshape(start[name].shape)
                for name, a, b in zip(self.names, self.a, self.b)
            }

    def dense(self) -> dict[str, Tensor]:
        """The state dict of the encoder with the factors in it."""
        with torch.no_grad():
            return self.encoder.state_dict() | self.merged()

    def factors(self) -> dict[str, Tensor]:
        """A and B as `<matrix>.lora_A`, `<matrix>.lora_B`, without the scale."""
        pairs = zip(self.names, self.a, self.b)
        return {f"{name}.lora_{letter}": factor.detach() for name, *ab in pairs for letter, factor in zip("AB", ab)}


def write_encoder(path: Path, encoder: nn.Module, header: Mapping) -> None:
    """Write the weights θ of a fine-tuned encoder; those of low rank as dense ones, their factors in a file beside."""
    if not isinstance(encoder, LowRank):
        checkpoints.save(path, encoder.state_dict(), header)
        return
    checkpoints.save(factors_beside(path), encoder.factors(), dict(header) | {"scale": encoder.scale}, kind="factors")
    checkpoints.save(path, encoder.dense(), header)


def factors_beside(path: Path) -> Path:
    """Where the factors of a checkpoint lie."""
    return path.with_suffix(".factors")
