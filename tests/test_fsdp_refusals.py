"""What is refused under fully_shard, by its message on every process."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import npn
from npn import distributed
from npn.errors import ConfigurationError, TraceError
from npn.masking.messages import CLOSURE

from .processes import together
from .sharding import EXAMPLE, GPT, TOKENS, build, loss_of, train


def backwards(loss):
    loss.backward()
    return loss


def refusals():
    """What is said, in order; every process is told."""
    said = []

    def refused(action, *args, **options):
        with pytest.raises((ConfigurationError, TraceError)) as error:
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
    ". Tensor parallelism and other placements are not supported: call fully_shard on whole parameters, with a mesh of "
    "one dimension, or of two for replicas of shards (HSDP)"
)


def placed(name, came):
    return f"expected {name} split by rows over all 2 processes by fully_shard, got {came}{PLACED}"


def test_what_is_refused():
    said, other = together(2, refusals)
    assert said == other
    assert said == [
        "weight is split over processes already, which cannot be traced; attach the whole model, then fully_shard it: "
        "npn.distributed.shard(plastic, model.blocks). Tensor parallelism is not supported",
        "the model was sharded by fully_shard after attach; call npn.distributed.shard(plastic) after it, and make the "
        "optimizers then",
        f'shard does not support masks="example"{GO_WITHOUT}',
        f"shard does not support columns{GO_WITHOUT}",
        f"shard does not support unstructured{GO_WITHOUT}",
        f"shard does not support branches{GO_WITHOUT}",
        f"shard does not support a wrapper or a copy that follows the model{GO_WITHOUT}",
        "fully_shard replaces the parameters, which tracked optimizers hold already; make and track them after it",
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
