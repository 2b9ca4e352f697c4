"""Makes the shipped ViT-Mini: draws the mixture and trains CLIP on it. Resumable; every seed is fixed.

    python -m src.vit_mini.pretrain                      # draws, trains, writes vit_mini.safetensors
    python -m src.vit_mini.pretrain --measure            # zero-shot and linear probe of the shipped weights
    python -m src.vit_mini.pretrain --steps 50 --images 4000 --output /tmp/try.safetensors

The state is saved every `--checkpoint-every` steps beside the mixture in `--work`; started again, it goes on there.
At every save it prints what decides the suite, on design seed 0 only: zero-shot accuracy and a linear probe.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from src.args import command_parser
from src.datasets.loading import normalise
from src.datasets.mini import draw
from src.run import default_device
from src.runtime.distributed import cores
from src.runtime.files import replacing
from src.runtime.parallel import map_tasks
from src.runtime.program import exit_on_user_error
from src.vit_mini import mixture
from src.vit_mini.clip import MEAN, SHIPPED, STD, Tokenizer, build, load


@dataclass(frozen=True)
class PreTraining:
    """How ViT-Mini is made. These decide the weights: a state belongs to them alone.

    images: pictures in the mixture. horizon: steps at which the cosine would reach 0. cooldown: last steps, over which
    a line takes the rate to 0.
    """

    images: int = 240_000
    steps: int = 3200
    horizon: int = 5000
    cooldown: int = 1200
    batch_size: int = 256
    lr: float = 1e-3
    wd: float = 0.1
    warmup_length: int = 200
    seed: int = 0


def draw_mixture(folder: Path, images: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """The mixture's pictures, uint8 (images, 32, 32, 3), and captions: drawn on all cores, kept in `folder`."""
    if images % mixture.CHUNK:
        raise SystemExit(f"--images: expected a multiple of {mixture.CHUNK}, found {images}")
    pixels_file, captions_file = folder / f"mixture_{images}_{seed}.npy", folder / f"mixture_{images}_{seed}.json"
    if not captions_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.empty((images, 32, 32, 3), np.uint8)
        captions = []
        jobs = [(seed, 1_000_000, i) for i in range(images // mixture.CHUNK)]
        for i, (chunk, texts) in enumerate(map_tasks(mixture.draw_chunk, jobs, cores(), "mixture")):
            pixels[i * mixture.CHUNK : (i + 1) * mixture.CHUNK] = chunk
            captions += texts
        np.save(pixels_file, pixels)
        captions_file.write_text(json.dumps(captions))  # last: its presence says that the pictures are whole
    return np.load(pixels_file), json.loads(captions_file.read_text())


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image turned by up to 8 degrees, scaled by up to 10 %, shifted by up to 3 pixels; colours cast a little."""
    n, _, side, _ = images.shape

    def draw_uniform(*shape, low, high):
        return (torch.rand(*shape, generator=generator) * (high - low) + low).to(images.device)

    turn, scale = draw_uniform(n, low=-0.14, high=0.14), draw_uniform(n, low=0.9, high=1.1)
    shift = draw_uniform(n, 2, low=-6 / side, high=6 / side)  # in units of half the width
    cos, sin = scale * turn.cos(), scale * turn.sin()
    affine = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return moved * draw_uniform(n, 3, 1, 1, low=0.8, high=1.2) + draw_uniform(n, 3, 1, 1, low=-0.25, high=0.25)


def contrastive_loss(model, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """CLIP's loss, where equal captions are each other's positives (with so few captions they meet in every batch)."""
    unique, caption = torch.unique(tokens, dim=0, return_inverse=True)
    image_features = F.normalize(model.encode_image(images), dim=-1)
    text_features = F.normalize(model.encode_text(unique), dim=-1)[caption]
    logits = model.logit_scale.exp().clamp(max=100) * image_features @ text_features.T
    positive = (caption[:, None] == caption[None]).float()
    target = positive / positive.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def measure(
    model, tokenizer: Tokenizer, names: Sequence[str], folder: Path, device: str
) -> dict[str, dict[str, float]]:
    """Test accuracy (%) of the named sets, zero-shot and of a logistic regression on frozen features, on design seed 0.

    folder: of the drawn pictures.
    """
    model.eval()

    def features(name, split):
        pictures = draw.load(name, split, folder, seed=0)
        images = torch.from_numpy(pictures.pixels)
        parts = [model.encode_image(normalise(part.to(device), MEAN, STD)) for part in images.split(500)]
        return torch.cat(parts).cpu(), pictures.labels

    scores: dict[str, dict[str, float]] = {"zero-shot": {}, "linear probe": {}}
    for name in names:
        family = draw.FAMILIES[name]
        prompts = [tokenizer([t.format(c) for t in family.templates]).to(device) for c in family.names]
        per_prompt = [F.normalize(model.encode_text(p), dim=-1).mean(0) for p in prompts]
        head = F.normalize(torch.stack(per_prompt), dim=-1).cpu()
        x, y = features(name, "test")
        scores["zero-shot"][name] = 100 * float(((F.normalize(x, dim=-1) @ head.T).argmax(1).numpy() == y).mean())
        if "train" in family.sizes:
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
            probe.fit(*(a if isinstance(a, np.ndarray) else a.numpy() for a in features(name, "train")))
            scores["linear probe"][name] = 100 * float(probe.score(x.numpy(), y))
    model.train()
    return scores


def report(what: str, scores: dict[str, dict[str, float]]) -> None:
    for kind, per_task in scores.items():
        mean = np.mean([accuracy for name, accuracy in per_task.items() if name in draw.TASKS])
        details = " ".join(f"{t} {v:.1f}" for t, v in per_task.items())
        tqdm.write(f"{what}: {kind} {mean:.1f} | {details}")


def learning_rate(step: int, settings: PreTraining) -> float:
    """Warm-up, a cosine towards `horizon`, and a linear cool-down over the last steps of the run.

    With the cool-down apart from the cosine, one run can be ended early or prolonged from any of its states.
    """
    lr, warmup = settings.lr, settings.warmup_length
    if step < warmup:
        return lr * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, settings.horizon - warmup))
    return 0.5 * lr * (1 + math.cos(math.pi * done)) * min(1.0, (settings.steps - step) / settings.cooldown)


def train(settings: PreTraining, work: Path, output: Path, device: str, checkpoint_every: int) -> None:
    """Write the weights to `output`. work: folder of the mixture and of the state that a killed run goes on from."""
    drawn, captions = draw_mixture(work, settings.images, settings.seed)
    tokenizer = Tokenizer.of(mixture.vocabulary_texts())
    tokens, pixels = tokenizer(captions), torch.from_numpy(drawn)

    torch.manual_seed(settings.seed)
    model = build(tokenizer.vocabulary_size).to(device).train()
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim >= 2 and "embedding" not in n)]
    groups = [dict(params=decayed, weight_decay=settings.wd), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98))

    # The state belongs to these settings alone: another run in the same folder starts its own.
    options = {name: str(value) for name, value in asdict(settings).items()}
    run = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
    state_file = work / f"state_{run}.pt"
    first, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
        print(f"goes on from step {first} of {state_file}")

    steps_per_epoch = len(pixels) // settings.batch_size
    began = time.time()
    bar = tqdm(range(first, settings.steps), initial=first, total=settings.steps, desc="pre-training", unit="step")
    for step in bar:
        # Order and augmentation are functions of (seed, step), so a resumed run sees what an unbroken one sees.
        epoch, index = divmod(step, steps_per_epoch)
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(settings.seed * 1009 + epoch))
        batch = order[index * settings.batch_size : (index + 1) * settings.batch_size]
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        images = augment(normalise(pixels[batch].to(device), MEAN, STD), generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        loss = contrastive_loss(model, images, tokens[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", scale=f"{model.logit_scale.exp().item():.1f}")
        if (step + 1) % checkpoint_every == 0 or step + 1 == settings.steps:
            total = seconds + time.time() - began
            state = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), step=step + 1, seconds=total)
            with replacing(state_file) as temporary:
                torch.save(state, temporary)
            report(f"step {step + 1}", measure(model, tokenizer, draw.TOGETHER, work, device))
    header = dict(options, words=tokenizer.words, seconds=round(seconds + time.time() - began))
    half = {name: tensor.detach().half().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(output) as temporary:
        save_file(half, temporary, metadata={"header": json.dumps(header)})
    print(f"wrote {output}")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("src.vit_mini.pretrain", __doc__)
    for option in fields(PreTraining):
        flag = "--warmup_length" if option.name == "warmup_length" else f"--{option.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(option.default), default=option.default)
    parser.add_argument("--checkpoint-every", type=int, default=1000)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--work", type=Path, default=Path("cache") / "pretrain", help="mixture and training state")
    parser.add_argument("--output", type=Path, default=SHIPPED)
    parser.add_argument("--measure", action="store_true", help="only measure the shipped weights")
    parser.add_argument("--sets", nargs="+", default=draw.TOGETHER, choices=draw.FAMILIES, help="with --measure")
    flags = vars(parser.parse_args(argv))
    sets = flags.pop("sets")
    settings = PreTraining(**{option.name: flags.pop(option.name) for option in fields(PreTraining)})
    if flags.pop("measure"):
        model, tokenizer = load()
        device = flags["device"]
        report("shipped", measure(model.to(device), tokenizer, sets, flags["work"], device))
    else:
        train(settings, **flags)


if __name__ == "__main__":
    main()
