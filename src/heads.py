"""Zero-shot classification heads, made of class names and prompt templates by CLIP's text tower, and cached."""

from collections.abc import Sequence

import torch

from src import checkpoints, store
from src.datasets import registry
from src.model_names import pretrained_name
from src.modeling import ClassificationHead, build_clip
from src.run import FP32, Run
from src.runtime.precision import matmul_precision


def build_classification_head(
    model, tokenizer, dataset: registry.Dataset, device: str, classnames: Sequence[str] | None = None
) -> ClassificationHead:
    """The head of one data set: per class, the prompts' normalised text features averaged and normalised again.

    classnames: in the place of the row's.

    Weights (classes, D) are multiplied by exp(logit_scale), so that logits need only the image feature normalised.
    """
    from open_clip import build_zero_shot_classifier  # here: it takes seconds, and most heads are read

    # (D, classes)
    names = classnames or dataset.classnames
    columns = build_zero_shot_classifier(model, tokenizer, names, dataset.templates, device=device)
    return ClassificationHead(columns.T * model.logit_scale.exp())


@torch.no_grad()
def get_classification_head(run: Run, dataset: str) -> ClassificationHead:
    """The head of `dataset`, from the cache under `--save`, or built anew where what it is made of has changed.

    That is class names, templates and the text side of CLIP, by its fingerprint, as far as the header says. The names
    are those that the checkpoints under `--save` were fine-tuned against: their publisher's, where it has others.

    A model with a random image tower (`__init__`) takes the pre-trained text tower's head, as in the paper's Table 3.
    """
    if dataset not in registry.ROWS:  # the published name of a set whose validation images are held out: CarsVal
        dataset = dataset.removesuffix("Val")
    row = registry.get(dataset)
    path = run.paths.head(dataset)
    names = row.names(store.publisher(run, dataset))
    made_of = store.head_made_of(run, row, names)
    if not path.is_file() or store.head_outdated(checkpoints.header(path), made_of):
        model, tokenizer = build_clip(run)
        made_of["text_side"] = store.fingerprints({f"model.{k}": v for k, v in model.state_dict().items()})["text"]
        with matmul_precision(FP32):  # it is kept, for runs of every precision
            head = build_classification_head(model.to(run.device), tokenizer, row, run.device, names)
        header = dict(model=pretrained_name(run.model), task=dataset, **made_of)
        checkpoints.save(path, {"weight": head.weight.detach().cpu()}, header, kind="head")
    weight = checkpoints.load(path, kind="head", task=dataset)["weight"]
    if len(weight) != len(names):
        raise checkpoints.CheckpointError(
            f"{path}: expected a head of the {len(names)} classes of {dataset}, found one of {len(weight)}; "
            "remove it, and it is made anew"
        )
    head = ClassificationHead(weight)
    return head.requires_grad_(False)
