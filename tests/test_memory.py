"""How many images fit: what autograd keeps is counted on small towers, without a GPU."""

import weakref

import pytest
import torch
from open_clip.model import CLIP
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.analysis.ntk import kernel
from src.datasets import loading
from src.linearize import LinearizedModel, forward_and_jvp
from src.modeling import ImageEncoder
from src.runtime import memory
from src.runtime.program import exit_on_user_error


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


class Alive(TorchDispatchMode):
    """The most bytes of the storages that operations made and that are alive at once."""

    def __init__(self):
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.storages = {key: held for key, held in self.storages.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.storages.values()))
        return output


def most_alive(model: nn.Module, images: torch.Tensor) -> int:
    model(images[:1])
    with Alive() as alive:
        model(images).square().sum().backward()
    return alive.most


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("shape", [(64, 16, 64, 4), (56, 8, 64, 2)])
def test_an_evaluation_holds_what_is_foreseen_and_takes_as_many_images_as_fit(make_run, monkeypatch, shape, quick):
    encoder = Tower(*shape, quick)
    start = dict(encoder.named_parameters())
    direction = {name: weight.detach() for name, weight in start.items() if "visual" in name}
    forward_and_jvp(encoder, start, direction, torch.randn(1, 3, shape[0], shape[0]))
    most = []
    for count in (40, 56):
        with Alive() as alive:
            forward_and_jvp(encoder, start, direction, torch.randn(count, 3, shape[0], shape[0]))
        most.append(alive.most)
    each = memory.bytes_of_evaluation(encoder)
    assert 0.75 * each < (most[1] - most[0]) / 16 < 1.05 * each
    run = make_run()
    assert loading.images_at_once(run, encoder) == run.batch_size == 100
    monkeypatch.setattr(loading, "free_memory", lambda device: int(20 * each / memory.SHARE) + 1)
    assert loading.images_at_once(run, encoder) == 20
    assert loading.images_at_once(run, nn.Linear(2, 2)) == 100


@pytest.mark.parametrize("quick", [True, False])
def test_a_tangent_is_freed_once_it_has_been_used(quick):
    """Else all tangents of a pass would be held beside the activations until its end."""
    encoder = Tower(64, 16, 64, 4, quick)
    per_image = {}
    for name, model in (("standard", encoder), ("linear", LinearizedModel(encoder))):
        few, many = (most_alive(model, torch.randn(n, 3, 64, 64)) for n in (40, 56))
        per_image[name] = (many - few) / 16
    assert per_image["linear"] < 1.4 * per_image["standard"]
    assert memory.bytes_of_pass(encoder) == pytest.approx(per_image["standard"], rel=0.15)
    assert memory.bytes_of_pass(encoder, True) == pytest.approx(per_image["linear"], rel=0.1)


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("shape", [(64, 16, 96, 3), (56, 8, 64, 2), (64, 16, 64, 8)])
def test_a_pass_keeps_what_is_foreseen(shape, quick, tangent):
    encoder = Tower(*shape, quick)
    model = LinearizedModel(encoder) if tangent else encoder
    few, many = (kept(model, torch.randn(n, 3, shape[0], shape[0])) for n in (1, 5))
    on_their_way = memory._bytes_of_tangents(encoder.model.visual, quick) if tangent else 0
    assert memory.bytes_of_pass(model, tangent) - on_their_way == pytest.approx((many - few) / 4, rel=0.05)


def test_a_full_gpu_is_told_in_a_line_with_what_mends_it(capsys):
    @exit_on_user_error
    def main(argv=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 8 GiB. See")

    with pytest.raises(SystemExit, match=r"^error: .*Tried to allocate 2.00 GiB\. .*--num-grad-accumulation=M") as told:
        main([])
    assert "\n" not in told.value.code and "See" not in told.value.code


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
