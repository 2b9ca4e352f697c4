"""How many images fit: what autograd keeps is counted on small towers, without a GPU."""

import weakref

import pytest
import torch
from open_clip.model import CLIP
from torch import nn

from src.analysis.ntk import kernel
from src.linearize import LinearizedModel
from src.modeling import ImageEncoder
from src.runtime import memory


class Tower(nn.Module):
    """An image tower of open_clip's, where ImageEncoder has it."""

    def __init__(self, side: int, patch: int, width: int, layers: int, quick: bool):
        super().__init__()
        vision = dict(image_size=side, patch_size=patch, width=width, layers=layers, head_width=32, mlp_ratio=4.0)
        text = dict(context_length=4, vocab_size=8, width=32, heads=1, layers=1)
        self.model = CLIP(32, vision, text, quick_gelu=quick).eval()
        self.eval()

    def forward(self, images):
        return self.model.encode_image(images)


class Held:
    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


def kept(model: nn.Module, images: torch.Tensor) -> int:
    """Bytes of the storages that the graph of a forward pass holds at its end, weights among them."""
    alive: weakref.WeakSet = weakref.WeakSet()

    def pack(tensor):
        held = Held(tensor)
        alive.add(held)
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        output = model(images)
    storages = {held.tensor.untyped_storage().data_ptr(): held.tensor.untyped_storage().nbytes() for held in alive}
    assert output.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("shape", [(64, 16, 96, 3), (56, 8, 64, 2), (64, 16, 64, 8)])
def test_a_pass_keeps_what_is_foreseen(shape, quick, tangent):
    encoder = Tower(*shape, quick)
    model = LinearizedModel(encoder) if tangent else encoder
    few, many = (kept(model, torch.randn(n, 3, shape[0], shape[0])) for n in (1, 5))
    each = (many - few) / 4
    if tangent:  # at the end of the pass the tangents, which the forecast counts, are gone
        assert each < memory.bytes_of_pass(model, tangent) < 2 * each
    else:
        assert memory.bytes_of_pass(model) == pytest.approx(each, rel=0.05)


def test_other_networks_have_no_forecast():
    assert memory.bytes_of_pass(nn.Linear(2, 2)) is None and memory.bytes_of_sample(nn.Linear(2, 2), ()) is None


def test_images_that_fit_leave_room_and_are_never_none():
    assert memory.images_that_fit(1000, 10) == 85 and memory.images_that_fit(1000, 10, besides=350) == 50
    assert memory.images_that_fit(1000, 10, besides=2000) == 1 and memory.images_that_fit(10, 1000) == 1


def test_a_cpu_is_not_asked():
    assert memory.free_memory("cpu") is None


def test_chunks_follow_the_free_memory(make_run, monkeypatch):
    """ViT-L-14's gradients, 1.2 GB a sample and more, fit into what there is; on a CPU 4 GiB decide."""
    encoder = ImageEncoder(make_run())
    parameters = [p for n, p in encoder.named_parameters() if n.startswith("model.visual.")]
    on_cpu = kernel.usual_chunk(encoder, parameters, torch.device("cpu"))
    assert on_cpu == kernel.GRADIENT_BYTES // (2 * memory.bytes_of(parameters))
    each = memory.bytes_of_sample(encoder, parameters)
    monkeypatch.setattr(kernel, "free_memory", lambda device: int(10 * each / memory.SHARE) + 1)
    assert kernel.usual_chunk(encoder, parameters, torch.device("cuda")) == 10
    monkeypatch.setattr(kernel, "free_memory", lambda device: 1)
    assert kernel.usual_chunk(encoder, parameters, torch.device("cuda")) == 1
