"""Small models, their weights in the published formats, and a pickle that would run."""

import os

import open_clip
import torch


def small_clip(seed=0):
    """A real open_clip model with QuickGELU, as OpenAI's weights need it, but tiny."""
    torch.manual_seed(seed)
    vision = open_clip.CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=32)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=16, width=32, heads=2, layers=1)
    model = open_clip.CLIP(24, vision, text, quick_gelu=True).eval()
    for tensor in model.state_dict().values():  # all of them distinct and non-zero, so that no mix-up goes unseen
        tensor.copy_(torch.randn_like(tensor) * 0.2)
    return model


def encoder_weights(model):
    """What `ImageEncoder(keep_lang=False).state_dict()` holds for this CLIP."""
    return {f"model.{key}": value for key, value in model.state_dict().items() if not key.startswith("transformer.")}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype, key


def random_masks(shapes, tasks=("MNIST", "SVHN"), seed=0):
    torch.manual_seed(seed)
    return {task: {name: torch.rand(shape) < 0.4 for name, shape in shapes.items()} for task in tasks}


def published_vector(named):
    """The published flattening: every tensor in the sorted order of the names."""
    return torch.cat([named[name].reshape(-1) for name in sorted(named)])


class Armed:
    """Unpickled in the usual way, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)
