"""Models whose parameters fully_shard has split over two processes: the same as on one process, and what is refused."""

import math
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import npn
from npn import distributed
from npn._utils.shards import full, is_shard, local
from npn.errors import CheckpointError, ConfigurationError, DistributedError
from npn.masking.weights import CLOSURE

from .processes import together

TOKENS = torch.randint(11, (8, 5), generator=torch.Generator().manual_seed(0))
EXAMPLE = TOKENS[:2]


class Block(nn.Module):
    """Attention with 3 heads of 2 channels, and an MLP of 9 units: odd sizes, so that shards differ in length."""

    def __init__(self, width=6, heads=3, hidden=9):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).unflatten(-1, (-1, 2)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(x)))


class GPT(nn.Module):
    """Two blocks, and a scale of one row, of which the second process has none."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(6, 11, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x * self.scale)


class Both:
    """Two optimizers of the weights: AdamW of the first block, SGD with momentum of all others."""

    def __init__(self, plastic):
        first = {id(p) for p in plastic.model.blocks[0].parameters()}
        of_first = [p for p in plastic.weights() if id(p) in first]
        others = [p for p in plastic.weights() if id(p) not in first]
        self.parts = torch.optim.AdamW(of_first, lr=1e-2), torch.optim.SGD(others, lr=0.1, momentum=0.9)

    def step(self):
        for part in self.parts:
            part.step()

    def zero_grad(self):
        for part in self.parts:
            part.zero_grad()


def build(seed=0, **options):
    """The model with gates and its optimizers, sharded if there are several processes."""
    torch.manual_seed(seed)
    plastic = npn.attach(GPT(), EXAMPLE, **options)
    if dist.is_initialized():
        distributed.shard(plastic, plastic.model.blocks)
    weights, gates = Both(plastic), torch.optim.Adam(plastic.logits(), lr=0.1)
    plastic.track(*weights.parts, gates)
    return plastic, weights, gates


def loss_of(model, tokens=None):
    tokens = TOKENS.tensor_split(distributed.size())[distributed.rank()] if tokens is None else tokens
    return F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def train(plastic, weights, gates, steps, parts=1):
    """Losses of so many steps, with as many backward passes in each."""
    losses = []
    for _ in range(steps):
        weights.zero_grad()
        gates.zero_grad()
        for _ in range(parts):
            loss = plastic.backward(lambda: loss_of(plastic.model), scale=1 / parts)
        weights.step()
        gates.step()
        losses.append(float(distributed.mean(loss)))
    return losses


def state(plastic):
    """Weights, their gradients and optimizer state, and gates, all of them whole."""
    found = {}
    for name, p in plastic.model.named_parameters():
        found[name] = full(p.detach())
        if p.grad is not None:
            found[f"{name}.grad"] = full(p.grad)
        for optimizer in plastic.optimizers:
            for key, value in optimizer.state.get(p, {}).items():
                found[f"{name}.{key}"] = full(value)
    for group in plastic.groups:
        found |= {f"{group.name}.{key}": value.clone() for key, value in group.gate.state_dict().items()}
    return {name: value.detach().clone() for name, value in found.items()}


def assert_same(one, both):
    """One process and each of two have found the same, up to the order of sums."""
    for each in both:
        assert len(each) == len(one)
        for ours, theirs in zip(one, each, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


# -- masks


def masked():
    plastic, weights, gates = build(penalty=npn.Penalty(weight=1e-3))
    losses = train(plastic, weights, gates, 2)
    plastic.k = 7.0
    for plastic.estimator in ("reinmax", "disarm", "double_cv"):
        losses += train(plastic, weights, gates, 2)
        losses += train(plastic, weights, gates, 1, parts=2)  # the second pass adds to the gradients of the first
    plastic.k = math.inf
    plastic.close("blocks.0.wide", [0, 4])
    losses += train(plastic, weights, gates, 2)
    losses.append(float(loss_of_all(plastic)))
    losses += train(plastic, weights, gates, 1)  # what the evaluation has gathered is not used any more
    distributed.check(plastic)
    return losses, state(plastic)


def loss_of_all(plastic):
    with torch.no_grad():
        return loss_of(plastic.model, TOKENS)


def test_training_under_masks_is_that_of_one_process():
    one = masked()
    assert_same(one, together(2, masked))
    assert one[0][-1] < one[0][0] - 0.3


# -- sizes


def resized():
    plastic, weights, gates = build(penalty=npn.Penalty(weight=1e-3))
    held = list(plastic.weights())
    losses = train(plastic, weights, gates, 2)
    plastic.close("blocks.0.wide", [0, 4, 5])
    plastic.close("blocks.1.q", [1])  # a head
    closed = float(loss_of_all(plastic))
    report = plastic.compact().changes
    assert float(loss_of_all(plastic)) == pytest.approx(closed, abs=1e-6)
    gradients = {name: full(p.grad) for name, p in plastic.model.named_parameters() if p.grad is not None}
    losses += train(plastic, weights, gates, 2)
    torch.manual_seed(distributed.rank())  # new rows would differ
    before = float(loss_of_all(plastic))
    report |= plastic.grow({"blocks.0.wide": 2, "blocks.1.wide": 3}, grace=2).changes
    assert float(loss_of_all(plastic)) == pytest.approx(before, abs=1e-6)
    plastic.k = 7.0
    losses += train(plastic, weights, gates, 3)
    distributed.check(plastic)
    assert all(ours is theirs for ours, theirs in zip(held, plastic.weights(), strict=True))
    assert all(is_shard(p) for p in held) == dist.is_initialized()
    lengths = [len(local(p)) for p in held]
    return losses, report, gradients | state(plastic), lengths, [p.shape for p in held]


def test_resizes_are_those_of_one_process():
    *one, lengths, shapes = resized()
    first, other = together(2, resized)
    assert_same(one, [first[:3], other[:3]])
    assert one[1] == {"blocks.0.wide": (6, 8), "blocks.1.wide": (9, 12), "blocks.1.q": (3, 2)}
    assert {name.rpartition(".")[2] for name in one[2]} >= {"momentum_buffer", "exp_avg", "exp_avg_sq", "grad"}
    assert first[4] == other[4] == shapes
    assert first[3] == [-(-length // 2) for length in lengths]  # each process has its rows only
    assert other[3] == [length // 2 for length in lengths]


def failing():
    """A resize that fails at its end, and one that is refused; returns the state around each, and what was said."""
    plastic, weights, gates = build()
    train(plastic, weights, gates, 2)
    plastic.close("blocks.0.wide", [3])
    seen, said = [state(plastic)], []
    with mock.patch("npn.surgery.apply.check_shapes", side_effect=RuntimeError("at the end")):
        try:
            plastic.compact()
        except RuntimeError as error:
            said.append(str(error))
    seen.append(state(plastic))
    losses = train(plastic, weights, gates, 1)
    with mock.patch.object(torch.distributed.fsdp._fully_shard._fsdp_param, "FSDPParam", None):
        try:
            plastic.compact()
        except DistributedError as error:
            said.append(str(error))
    plastic.compact()
    return seen, said, losses + train(plastic, weights, gates, 1)


def whole():
    """The same without a failure."""
    plastic, weights, gates = build()
    train(plastic, weights, gates, 2)
    plastic.close("blocks.0.wide", [3])
    losses = train(plastic, weights, gates, 1)
    plastic.compact()
    return losses + train(plastic, weights, gates, 1)


def test_a_failed_resize_changes_nothing():
    losses = whole()
    for (before, after), said, others in together(2, failing):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert others == pytest.approx(losses, rel=1e-4)
        assert said == [
            "at the end",
            f"fully_shard of torch {torch.__version__} is built otherwise than that of torch 2.13, which npn knows: "
            "'NoneType' object is not callable. Use torch 2.13, or npn.distributed.wrap",
        ]


# -- copies and files


def written(path):
    plastic, weights, gates = build()
    train(plastic, weights, gates, 2)
    plastic.close("blocks.0.wide", [0, 4, 5])
    plastic.compact()
    plastic.close("blocks.1.wide", [2])  # stays, closed
    train(plastic, weights, gates, 1)
    weights.zero_grad()
    plain = plastic.export()
    npn.save(path / "file.npn", plastic)
    npn.save_folder(path / "folder", plastic)
    small = type(plain), [type(p) for p in plain.parameters()], plain(TOKENS), dict(plain.state_dict())
    with torch.no_grad():
        logits = plastic.model(TOKENS)
    return state(plastic), small, logits, more(plastic, weights, gates)


def more(plastic, weights, gates):
    plastic.k = 7.0
    return train(plastic, weights, gates, 2)


def read(path, *names):
    plastic, weights, gates = build(seed=5)
    found = []
    for name in names:
        npn.load(path / name, plastic)  # the second time into sizes that are right already
        distributed.check(plastic)
        found.append((state(plastic), more(plastic, weights, gates)))
        plastic.k = math.inf
        weights.zero_grad()
    return found


def test_files_and_folders_go_on_with_any_number_of_processes(tmp_path):
    both, one = tmp_path / "both", tmp_path / "one"
    results = {both: together(2, written, both)[0], one: written(one)}
    for path, (saved, (kind, kinds, logits, plain), masked, losses) in results.items():
        assert kind is GPT and set(kinds) == {nn.Parameter}
        torch.testing.assert_close(logits, masked, rtol=1e-4, atol=1e-5)
        assert plain["blocks.0.wide.weight"].shape == (6, 6) and plain["blocks.1.narrow.weight"].shape == (6, 8)
        names = ("file.npn", "folder") if path is both else ("folder", "file.npn")
        for loaded, others in (
            found for each in (read(path, *names), *together(2, read, path, *names)) for found in each
        ):
            assert loaded.keys() == saved.keys()
            assert all(torch.equal(saved[name], value) for name, value in loaded.items())
            assert others == pytest.approx(losses, rel=1e-4)
        model = npn.load(path / "folder", GPT())
        torch.testing.assert_close(model(TOKENS), masked, rtol=1e-4, atol=1e-5)
        for part in (path / "folder").glob("*.distcp"):
            part.unlink()
        with pytest.raises(
            CheckpointError, match=r"cannot be read as a checkpoint: [^;]+; it is damaged or incomplete"
        ):
            npn.load(path / "folder", GPT())
        (path / "folder" / "npn.pt").unlink()
        with pytest.raises(CheckpointError, match=r"^there is no checkpoint at .*folder"):
            npn.load(path / "folder", GPT())


# -- other models, and what is refused


class Tied(GPT):
    def __init__(self):
        super().__init__()
        self.head.weight = self.tokens.weight
        self.blocks[1].narrow.weight.requires_grad_(False)  # read under masks, and not trained


def tied():
    """Gates on the stream under its norms, tied and frozen weights, blocks sharded by the user and kept whole."""
    torch.manual_seed(0)
    plastic = npn.attach(Tied(), EXAMPLE, streams=True, penalty=npn.Penalty(weight=1e-3))
    if dist.is_initialized():
        fully_shard(list(plastic.model.blocks), reshard_after_forward=False)
        assert distributed.shard(plastic) is plastic.model
    trained = [p for p in plastic.weights() if p.requires_grad]
    weights, gates = torch.optim.AdamW(trained, lr=1e-2), torch.optim.Adam(plastic.logits(), lr=0.1)
    plastic.track(weights, gates)
    plastic.k = 7.0
    losses = train(plastic, weights, gates, 3)
    plastic.close("blocks.0.out", [3])  # a channel of the stream
    plastic.close("blocks.1.wide", [0, 1])
    plastic.k = math.inf
    losses += train(plastic, weights, gates, 1)
    table = plastic.masked_weights.table
    losses.append(float(loss_of_all(plastic)))  # what the root gathers is masked, too,
    assert plastic.masked_weights.table is table  # and so are the shards, from which it gathers
    sizes = plastic.compact().changes
    losses += train(plastic, weights, gates, 2)
    assert plastic.model.head.weight is plastic.model.tokens.weight
    assert plastic.export().head.weight.shape == (11, 5)
    return losses, sizes, state(plastic)


def test_streams_tied_and_frozen_weights():
    one = tied()
    assert one[1] == {"blocks.0.out": (6, 5), "blocks.1.wide": (9, 7)}
    assert_same(one, together(2, tied))


def backwards(loss):
    loss.backward()
    return loss


def refusals():
    """What is said, in order; every process is told."""
    said = []

    def refused(action, *args, **options):
        with pytest.raises(ConfigurationError) as error:
            action(*args, **options)
        said.append(str(error.value))

    def attached(**options):
        return npn.attach(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)), torch.zeros(2, 4), **options)

    late = nn.Linear(2, 2)
    fully_shard(late)
    refused(npn.attach, late, torch.zeros(1, 2))
    forgotten = attached()
    fully_shard(forgotten.model)
    refused(forgotten.backward, lambda: forgotten.model(torch.ones(1, 4)).sum())
    for options in ({"masks": "example"}, {"columns": "2"}, {"unstructured": "2"}):
        refused(distributed.shard, attached(**options))
    refused(distributed.shard, npn.attach(GPT(), EXAMPLE, branches="blocks.0.narrow"))
    averaged = attached()
    average = averaged.follow(torch.optim.swa_utils.AveragedModel(averaged.model))
    refused(distributed.shard, averaged)
    early = attached()
    early.track(torch.optim.SGD(early.weights(), lr=0.1))
    refused(distributed.shard, early)
    refused(distributed.shard, attached(), mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("a", "b")))
    refused(distributed.shard, attached(), shard_placement_fn=lambda p: Shard(1) if p.shape == (4, 6) else None)
    refused(distributed.shard, attached(), offload_policy=CPUOffloadPolicy(pin_memory=False))
    parted = attached()
    refused(distributed.shard, parted, ignored_params={parted.model[2].weight})
    parallel = attached()
    parallelize_module(parallel.model, init_device_mesh("cpu", (2,)), {"2": ColwiseParallel()})
    refused(distributed.shard, parallel)

    plastic, weights, gates = build()
    train(plastic, weights, gates, 1)
    plastic.backward(lambda: loss_of(plastic.model))  # gradients for the optimizer to step with
    refused(distributed.wrap, plastic)
    refused(plastic.follow, average.module)
    refused(plastic.grow, {"blocks.0.wide": 1}, grace=1, init="split")
    refused(plastic.grow, {"blocks.0.wide": 1}, warmup=3)
    refused(npn.importance, plastic, "magnitude")
    refused(npn.methods.HardConcrete, plastic)
    plastic.close("blocks.0.wide", [0])
    refused(plastic.model, TOKENS)
    weights.zero_grad()
    refused(plastic.backward, lambda: backwards(loss_of(plastic.model)))
    plastic.k, held = 7.0, plastic.model.blocks[0].narrow.weight.detach()
    refused(plastic.backward, lambda: (loss_of(plastic.model), held.mul_(0.5))[0])
    plastic.model.set_requires_gradient_sync(False)
    refused(plastic.backward, lambda: loss_of(plastic.model))
    return said


GO_WITHOUT = "; use npn.distributed.wrap, or go without"
WHOLE = (
    " needs whole weights, but fully_shard has split those of this model over the processes; do it before fully_shard, "
    "or with a copy made by plastic.export()"
)
PLACED = (
    ". Tensor parallelism, replicas of shards (HSDP) and other placements are not supported: call fully_shard on whole "
    "parameters, with a mesh of one dimension"
)


def placed(name, came):
    return f"expected {name} split by rows over all 2 processes by fully_shard, got {came}{PLACED}"


def test_what_is_refused():
    said, other = together(2, refusals)
    assert said == other
    assert said == [
        "weight is split over processes already, which cannot be traced; call npn.attach on the whole model, then "
        "fully_shard, then npn.distributed.shard(plastic). Tensor parallelism is not supported",
        "the model was sharded by fully_shard after attach; call npn.distributed.shard(plastic) after it, and make the "
        "optimizers then",
        f'shard does not support masks="example"{GO_WITHOUT}',
        f"shard does not support columns{GO_WITHOUT}",
        f"shard does not support unstructured{GO_WITHOUT}",
        f"shard does not support branches{GO_WITHOUT}",
        f"shard does not support a wrapper or a copy that follows the model{GO_WITHOUT}",
        "fully_shard replaces the parameters, which tracked optimizers hold already; make and track them after it",
        placed("0.weight", "(Replicate(), Shard(dim=0)) on a mesh of shape (2, 1)"),
        placed("2.weight", "(Shard(dim=1),) on a mesh of shape (2,)"),
        "CPUOffloadPolicy is not supported: call fully_shard without offload_policy",
        "2.weight is not sharded, and its gradient would differ between processes; call fully_shard on the whole "
        "model, without ignored_params",
        placed("2.weight", "(Shard(dim=0),) on a mesh of shape (2,)"),
        f"DistributedDataParallel{WHOLE}",
        f"a copy that follows the model{WHOLE}",
        f"init='split'{WHOLE}",
        f"warmup{WHOLE}",
        f"npn.importance{WHOLE}",
        f"HardConcrete{WHOLE}",
        "units are closed, and the backward pass of a sharded model would gather weights without masks; call it under "
        "torch.no_grad(), inside plastic.backward, or after plastic.compact()",
        CLOSURE,
        "blocks.0.narrow.weight was changed inside plastic.backward, where it is a masked copy; the change is lost. "
        "Step optimizers, and normalise or clip weights in place, after plastic.backward",
        "no gradient has arrived at the shards, from which dL/dz follows; leave set_requires_gradient_sync(True) on in "
        "plastic.backward",
    ]


def test_without_processes():
    plastic = npn.attach(GPT(), EXAMPLE)
    with pytest.raises(ConfigurationError, match=r"^there are no processes to shard over: call "):
        distributed.shard(plastic)
