"""The last block for the class token alone: the same features and derivatives, less arithmetic, whole for who looks."""

import copy
import pickle

import pytest
import torch
from merging_problems import VISUAL
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import nn
from torch.func import functional_call, jvp

from src.analysis.representations import Blocks
from src.class_token import LastBlock, shorten_last_block
from src.curvature import _inputs_and_gradients
from src.linearize import LinearizedModel, forward_and_jvp, forward_mode_attention
from src.merging.inputs import Models
from src.modeling import ImageEncoder, all_tokens

SMALL = dict(image_size=8, patch_size=4, width=16, layers=2, heads=2, mlp_ratio=2.0, output_dim=4)
TOKENS = 5
OTHERS = {
    "an average over tokens": lambda: VisionTransformer(**SMALL, pool_type="avg"),
    "an attention pool": lambda: VisionTransformer(**SMALL, attentional_pool=True, attn_pooler_heads=2),
    "its tokens too": lambda: VisionTransformer(**SMALL, output_tokens=True),
    "blocks of another form": lambda: VisionTransformer(**SMALL, scale_fc=True),
    "a ResNet": lambda: ModifiedResNet(layers=[1, 1, 1, 1], output_dim=4, heads=2, image_size=32, width=4),
}


class Encoder(nn.Module):
    """An image tower with the names of open_clip's, in float64."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Module()
        self.model.visual = VisionTransformer(**SMALL, **options)
        for weight in self.double().eval().parameters():
            weight.data += 0.1 * torch.randn_like(weight)

    def forward(self, images):
        return self.model.visual(images)


def pair(**options) -> tuple[Encoder, Encoder]:
    """The same tower twice: whole, and with a last block for the class token alone."""
    whole, short = Encoder(**options), Encoder(**options)
    shorten_last_block(short.model.visual)
    return whole, short


def pictures(number: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(number, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def direction(encoder: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in encoder.named_parameters()}


@pytest.mark.parametrize("options", [{}, {"ls_init_value": 0.5}, {"final_ln_after_pool": True}], ids=str)
def test_features_tangents_and_gradients_are_those_of_the_whole_block(options):
    whole, short = pair(**options)
    images, tau = pictures(), direction(whole)
    assert type(short.model.visual.transformer.resblocks[-1]) is LastBlock
    torch.testing.assert_close(short(images), whole(images))
    theta = {name: weight.detach() for name, weight in whole.named_parameters()}
    with forward_mode_attention():  # of the whole block, by PyTorch's own formulas
        expected = jvp(lambda p: functional_call(whole, p, (images,)), (theta,), (tau,))
    torch.testing.assert_close(forward_and_jvp(short, theta, tau, images), expected)
    gradients = [torch.autograd.grad(net(images).square().sum(), [*net.parameters()]) for net in (short, whole)]
    torch.testing.assert_close(*gradients)
    linear = [LinearizedModel(copy.deepcopy(net)) for net in (short, whole)]
    for model in linear:
        for name, weight in model.named_parameters():
            weight.data += 0.1 * tau[name]
    gradients = [torch.autograd.grad(net(images).square().sum(), [*net.parameters()]) for net in linear]
    torch.testing.assert_close(*gradients)


def test_vit_mini_has_such_a_block_and_the_features_of_the_whole(make_run):
    encoder = ImageEncoder(make_run())
    assert [type(block) for block in encoder.model.visual.transformer.resblocks].count(LastBlock) == 1
    images = torch.randn(100, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), all_tokens(encoder):
        with all_tokens(encoder):
            pass
        assert encoder.model.visual.transformer.resblocks[-1].whole  # still, after another looked
        whole = encoder(images)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), whole)


def test_the_last_mlp_computes_one_token_unless_all_are_asked_for():
    _, encoder = pair()
    tokens = []

    def count(module, inputs, output):
        tokens.append(output.shape[1])

    for block in encoder.model.visual.transformer.resblocks:
        block.mlp.register_forward_hook(count)
    encoder(pictures())
    with all_tokens(encoder):
        encoder(pictures())
    with pytest.raises(KeyError), all_tokens(encoder):
        raise KeyError
    encoder(pictures())
    assert tokens == [TOKENS, 1, TOKENS, TOKENS, TOKENS, 1]


def test_who_looks_at_a_block_sees_every_token():
    whole, short = pair()
    images = pictures()
    for one, other in zip(Blocks(short)(images), Blocks(whole)(images), strict=True):
        torch.testing.assert_close(one, other)
    last = f"{VISUAL}transformer.resblocks.1.mlp.c_proj.weight"
    theta = {name: weight.detach() for name, weight in whole.named_parameters()}
    v = torch.randn(len(images), 4, dtype=torch.float64)
    parts = [next(_inputs_and_gradients(net, theta, [last], images, v)) for net in (short, whole)]
    for one, other in zip(*(of_net[1:] for of_net in parts), strict=True):
        torch.testing.assert_close(one, other)
    seen = {}
    models = Models.__new__(Models)
    models.tangent, models.function, models.start = False, short, theta
    models.problem = type("Keys", (), {"keys": [*theta]})()
    models.observe({}, images, [last], seen.__setitem__)
    models.observe_tangents(direction(short), images, [last], lambda name, x: seen.__setitem__("tangent", x))
    assert [tuple(x.shape[:2]) for x in seen.values()] == [(len(images), TOKENS)] * 2
    torch.testing.assert_close(seen[last], parts[1][1])


@pytest.mark.parametrize("kind", OTHERS)
def test_towers_that_read_more_than_the_class_token_stay_as_they_are(kind):
    torch.manual_seed(0)
    visual = OTHERS[kind]()
    shorten_last_block(visual)
    assert not any(isinstance(module, LastBlock) for module in visual.modules())


def test_a_copy_and_a_pickle_have_blocks_of_their_own():
    whole, short = pair()
    for other in (copy.deepcopy(short), pickle.loads(pickle.dumps(short))):
        last = other.model.visual.transformer.resblocks[-1]
        assert type(last) is LastBlock and isinstance(last, ResidualAttentionBlock)
        with torch.no_grad():
            last.mlp.c_proj.bias.add_(1.0)
        assert not torch.equal(other(pictures()), short(pictures()))
    torch.testing.assert_close(short(pictures()), whole(pictures()))
    assert [*short.state_dict()] == [*whole.state_dict()]
