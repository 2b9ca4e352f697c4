"""Zero-shot classification heads, made of class names and prompt templates by CLIP's text tower, and cached."""

import torch
from open_clip import build_zero_shot_classifier

from src import checkpoints, store
from src.datasets import registry
from src.modeling import ClassificationHead, build_clip
from src.runtime.paths import Paths


def build_classification_head(model, tokenizer, dataset: registry.Dataset, device: str) -> ClassificationHead:
    """The head of one data set: per class, the prompts' normalised text features averaged and normalised again.

    Weights (classes, D) are multiplied by exp(logit_scale), so that logits need only the image feature normalised.
    """
    # (D, classes)
    columns = build_zero_shot_classifier(model, tokenizer, dataset.classnames, dataset.templates, device=device)
    return ClassificationHead(columns.T * model.logit_scale.exp())


@torch.no_grad()
def get_classification_head(args, dataset: str) -> ClassificationHead:
    """The head of `dataset`, from the cache under `--save`, or built anew where what it is made of has changed.

    That is class names, templates and the text side of CLIP, by its fingerprint, as far as the header says.

    A model with a random image tower (`__init__`) takes the pre-trained text tower's head, as in the paper's Table 3.
    """
    row = registry.get(dataset)
    path = Paths.of(args).head(dataset)
    made_of = dict(classnames=list(row.classnames), templates=list(row.templates))
    made_of["text_side"] = store.written_fingerprints(args).get("text")
    if not path.is_file() or _differs(checkpoints.header(path), made_of):
        model, tokenizer = build_clip(args)
        made_of["text_side"] = store.fingerprints({f"model.{k}": v for k, v in model.state_dict().items()})["text"]
        head = build_classification_head(model.to(args.device), tokenizer, row, args.device)
        header = dict(model=args.model.removesuffix("__init__"), task=dataset, **made_of)
        checkpoints.save(path, {"weight": head.weight.detach().cpu()}, header, kind="head")
    head = ClassificationHead(checkpoints.load(path, kind="head", task=dataset)["weight"])
    return head.requires_grad_(False)


def _differs(header: dict, made_of: dict) -> bool:
    return any(None not in (value, header.get(key)) and header[key] != value for key, value in made_of.items())
