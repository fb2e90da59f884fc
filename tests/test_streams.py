"""Streams under a norm: a model with closed channels is the model without them, forward and backward, and trains."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from npn.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("traces_are_shared")


class MeanSquare(nn.Module):
    """RMS norm as Llama's code has it."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.float32)
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class ByHand(nn.Module):
    """Layer norm over channels of images as ConvNeXt's code has it."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * ((x - mean) / torch.sqrt(variance + 1e-2)) + self.bias[:, None, None]


class Block(nn.Module):
    """Pre-norm attention and MLP; without `norm`, a functional RMS norm inside of its own forward pass."""

    def __init__(self, d: int, norm: Callable[[int], nn.Module] | None) -> None:
        super().__init__()
        self.n1, self.n2 = (norm(d), norm(d)) if norm is not None else (None, None)
        self.qkv = nn.ModuleList(nn.Linear(d, 8) for _ in range(3))
        self.o, self.up, self.down = nn.Linear(8, d), nn.Linear(d, 12), nn.Linear(12, d)
        self.scale = nn.Parameter(torch.rand(d) + 0.5)  # between writer and norm, as layer scale

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x, (x.shape[-1],)) if self.n1 is None else self.n1(x)
        q, k, v = (f(y).unflatten(-1, (-1, 4)).transpose(1, 2) for f in self.qkv)
        x = x + self.scale * self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = F.rms_norm(x, (x.shape[-1],), eps=1e-2) if self.n2 is None else self.n2(x)
        return x + self.down(F.silu(self.up(y)))


class GPT(nn.Module):
    """Decoder with tied embeddings."""

    def __init__(self, norm: Callable[[int], nn.Module] | None = nn.LayerNorm, d: int = 10) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(7, d), nn.Embedding(5, d)
        self.blocks = nn.ModuleList(Block(d, norm) for _ in range(2))
        self.norm, self.head = (norm or nn.RMSNorm)(d), nn.Linear(d, 7, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class ViT(nn.Module):
    """Patches, a class token, torch's own encoder."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.patches, self.cls = nn.Conv2d(2, 12, 2, 2), nn.Parameter(torch.randn(1, 1, 12))
        layer = nn.TransformerEncoderLayer(12, 2, 14, 0.0, batch_first=True, norm_first=norm_first)
        self.encoder = npn.unfuse(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
        self.norm, self.head = nn.LayerNorm(12, elementwise_affine=False), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = self.encoder(torch.cat([self.cls.expand(len(h), -1, -1), h], 1))
        return self.head(self.norm(h)[:, 0])


class ConvNeXt(nn.Module):
    """Norms over channels in both layouts, layer scale, a depthwise kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.depthwise = nn.Conv2d(2, 8, 2, 2), ByHand(8), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8, eps=1e-2), nn.Linear(8, 12), nn.Linear(12, 8)
        self.gamma, self.last, self.head = nn.Parameter(torch.rand(8) + 0.5), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.stem(x))
        y = self.down(F.gelu(self.up(self.norm(self.depthwise(h).permute(0, 2, 3, 1)))))
        h = h + (self.gamma * y).permute(0, 3, 1, 2)
        return self.head(self.last(h.mean((2, 3))))


class PoolFormer(nn.Module):
    """Group norms of one group, over channels and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.last = nn.Conv2d(2, 8, 2, 2), nn.GroupNorm(1, 8, eps=1e-2), nn.GroupNorm(1, 8)
        self.up, self.down, self.head = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.down(F.gelu(self.up(self.norm(F.avg_pool2d(h, 3, 1, 1) - h))))
        return self.head(self.last(h).mean((2, 3)))


def tokens() -> Tensor:
    return torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(1))


def images() -> Tensor:
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {
    "gpt": (GPT, tokens, 10),
    "rms": (lambda: GPT(lambda d: nn.RMSNorm(d, eps=1e-2)), tokens, 10),
    "llama": (lambda: GPT(MeanSquare), tokens, 10),
    "inline": (lambda: GPT(None), tokens, 10),
    "vit": (lambda: ViT(True), images, 12),
    "bert": (lambda: ViT(False), images, 12),
    "convnext": (ConvNeXt, images, 8),
    "poolformer": (PoolFormer, images, 8),
}


def attached(kind: str, **options: Any) -> tuple[nn.Module, Tensor, "npn.Plasticity", "npn.UnitGroup"]:
    make, inputs, size = MODELS[kind]
    torch.manual_seed(0)
    model, x = make(), inputs()
    with torch.no_grad():
        for parameter in model.parameters():  # a mean, and a small scale, so that eps and centring count
            parameter.mul_(0.5).add_(0.05 * torch.randn_like(parameter))
    plastic = npn.attach(model, x, streams=True, **options)
    (stream,) = [group for group in plastic.groups if group.traced.normed]
    assert stream.size == size
    return model, x, plastic, stream


def target(y: Tensor) -> Tensor:
    return (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + y.square().mean()


@pytest.mark.parametrize("kind", MODELS)
def test_masked_is_compacted_forward_and_backward(kind: str) -> None:
    model, x, plastic, stream = attached(kind)
    whole = model(x)
    plastic.close(stream, [0, 3, 4, stream.size - 1])
    for group in plastic.groups:
        plastic.close(group, [1])
    small = plastic.export()
    masked = model(x)
    assert not torch.allclose(masked, whole, atol=1e-3)
    torch.testing.assert_close(small(x), masked, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), masked, rtol=1e-5, atol=1e-5)
    model.train()
    plastic.backward(lambda: target(model(x)))
    target(small(x)).backward()
    report = plastic.compact()
    assert report.changes[stream.name] == (stream.size + 5, stream.size)
    torch.testing.assert_close(model(x), masked, rtol=1e-5, atol=1e-5)
    theirs = dict(small.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_gates_has_that_of_the_statistics() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.head = nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.embed(x)))

    torch.manual_seed(0)
    model, x, y = Model(), torch.randn(4, 3), torch.randn(4, 2)
    plastic = npn.attach(model, x, streams=True)
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])

    def by_hand(z: Tensor) -> Tensor:
        h = model.embed(x)
        mean = (z * h).sum(-1, keepdim=True) / z.sum()
        variance = (z * (h - mean) ** 2).sum(-1, keepdim=True) / z.sum()
        h = (h - mean) / torch.sqrt(variance + 1e-5) * model.norm.weight + model.norm.bias
        return ((F.linear(h, model.head.weight * z, model.head.bias) - y) ** 2).mean()

    z = mask.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(by_hand(z), z)
    with plastic.masked_weights.step(), plastic.masked_weights.applied(mask, collect=True) as under:
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
    torch.testing.assert_close(loss, by_hand(mask))
    torch.testing.assert_close(under.mask_gradient(), wanted, rtol=1e-5, atol=1e-6)


def test_a_stream_shrinks_under_a_price_and_with_its_optimizer() -> None:
    model, x, plastic, stream = attached("gpt", only="blocks.0.o", penalty=npn.Penalty(weight=1e-3))
    weights, gates = torch.optim.Adam(plastic.weights(), 1e-2), torch.optim.Adam(plastic.logits(), 0.1)
    plastic.track(weights, gates)
    plastic.k = 2.0
    before, size = float(plastic.expected_cost("params")), stream.size
    for _ in range(30):
        weights.zero_grad(), gates.zero_grad()
        loss = plastic.backward(lambda: F.cross_entropy(model(x).flatten(0, 1), x.flatten()))
        weights.step(), gates.step()
    assert math.isfinite(loss) and float(plastic.expected_cost("params")) < before
    plastic.k = math.inf
    plastic.close(stream, [2])
    masked = model(x)
    plastic.compact()
    assert stream.size < size and plastic.expected_cost("params") == npn.count_params(model)
    torch.testing.assert_close(model(x), masked, rtol=1e-5, atol=1e-5)
    assert model.norm.normalized_shape == (stream.size,) and model.norm.weight.shape == (stream.size,)
    assert weights.state[model.norm.weight]["exp_avg"].shape == (stream.size,)
    plastic.backward(lambda: F.cross_entropy(model(x).flatten(0, 1), x.flatten()))
    weights.step()


def test_other_groups_grow_and_a_stream_says_why_it_does_not() -> None:
    model, x, plastic, stream = attached("gpt")
    plastic.close(stream, [1, 2])
    before = model(x)
    plastic.grow({"blocks.0.up": 3, "blocks.1.qkv.0": 1})
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigurationError, match=r"lies under a norm, whose result a new unit would change for all"):
        plastic.grow({stream.name: 1})
    assert not stream.grows


def test_copies_checkpoints_and_detached_models(tmp_path: Any) -> None:
    model, x, plastic, stream = attached("llama")
    plastic.close(stream, [1, 2])
    masked, twin = model(x), copy.deepcopy(model)
    torch.testing.assert_close(twin(x), masked)
    npn.save(tmp_path / "a.npn", plastic)
    other = npn.load(tmp_path / "a.npn", attached("llama")[2])
    torch.testing.assert_close(other.model(x), masked)
    plastic.compact()
    npn.save(tmp_path / "b.npn", plastic.export())
    torch.testing.assert_close(npn.load(tmp_path / "b.npn", GPT(MeanSquare))(x), masked, rtol=1e-5, atol=1e-5)
    plain = plastic.detach()
    assert torch.nn.modules.module._global_forward_hooks == {}
    torch.testing.assert_close(plain(x), masked, rtol=1e-5, atol=1e-5)


def test_activation_checkpoints_have_the_same_gradients() -> None:
    class Recomputing(GPT):
        def forward(self, tokens: Tensor) -> Tensor:
            x = self.wte(tokens)
            for block in self.blocks:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False) if self.on else block(x)
            return self.head(self.norm(x))

    torch.manual_seed(0)
    model, x = Recomputing(), tokens()
    model.on = False
    plastic = npn.attach(model, x, streams=True)
    (stream,) = [group for group in plastic.groups if group.traced.normed]
    plastic.close(stream, [0, 1, 4])
    found = []
    for on in (False, True):
        model.on = on
        model.zero_grad()
        plastic.backward(lambda: target(model(x)))
        found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    torch.testing.assert_close(found[0], found[1])


def test_masks_for_each_example_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r'^norms have masks="batch" only; leave out streams= or masks='):
        npn.attach(GPT(), tokens(), streams=True, masks="example")


class Branches(nn.Module):
    """Blocks that are submodules with a norm inside, and a norm without parameters outside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(F.rms_norm(h, (h.shape[-1],)))


def test_a_removed_branch_takes_its_norm_along() -> None:
    torch.manual_seed(0)
    model, x = Branches(), torch.randn(4, 3)
    plastic = npn.attach(model, x, streams=True, branches="blocks.?")
    plastic.close("branches", [0])
    plastic.close("embed", [1, 6])
    masked = model(x)
    plastic.compact()
    assert [norm.path for norm in plastic.structure.norms] == ["blocks.1.0", ""] and plastic.group("embed").size == 6
    torch.testing.assert_close(model(x), masked, rtol=1e-5, atol=1e-5)
    plastic.close("embed", [0])
    masked = model(x)
    torch.testing.assert_close(plastic.export()(x), masked, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"columns": "2"}, {"unstructured": "2.weight"}], ids=["columns", "weights"])
def test_a_channel_that_only_its_norm_reads_stays(options: dict[str, str]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2)), torch.randn(4, 3)
    plastic = npn.attach(model, x, streams=True, **options)
    plastic.close(*(("2.columns", [4]) if "columns" in options else ("2.weight", [4, 10])))  # all that read channel 4
    plastic.close("0", [1])
    masked = model(x)
    plastic.compact()
    assert model[0].out_features == 5
    torch.testing.assert_close(model(x), masked, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_a_stream_is_pruned_in_one_shot(criterion: str) -> None:
    torch.manual_seed(0)
    model, x = GPT(), tokens()
    data = {"batches": [x], "loss": lambda m, b: F.cross_entropy(m(b).flatten(0, 1), b.flatten())}
    options = data if criterion == "taylor" else {}
    small = npn.prune(model, x, target=0.5, cost="params", criterion=criterion, streams=True, **options)
    assert small.norm.normalized_shape[0] < 10 and npn.count_params(small) <= 0.5 * npn.count_params(model)
    assert small(x).shape == model(x).shape


def test_methods_are_refused() -> None:
    plastic = attached("gpt")[2]
    with pytest.raises(
        ConfigurationError,
        match=r"^units under norms have gates, and norms do not follow the masks of HardConcrete; att",
    ):
        npn.methods.HardConcrete(plastic)


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_a_compiled_model_runs_eagerly_while_masked() -> None:
    model, x, plastic, stream = attached("gpt")
    plastic.close(stream, [0, 3])
    masked, compiled = model(x), torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x), masked)
    torch.testing.assert_close(plastic.backward(lambda: target(compiled(x))), target(masked).detach())
    plastic.compact()
    torch.testing.assert_close(compiled(x), masked, rtol=1e-5, atol=1e-5)


def test_without_the_option_nothing_changes() -> None:
    plastic = npn.attach(GPT(), tokens())
    assert plastic.structure.norms == () and not any(group.traced.normed for group in plastic.groups)
    assert any("layer_norm mixes" in frozen.reason for frozen in plastic.frozen)
