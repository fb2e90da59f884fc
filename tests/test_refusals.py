"""Models that are refused at attach, with the way out: wrapped, sharded, quantized, of a tensor class of their own."""

import re
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

import npn
from npn.errors import ConfigurationError, TraceError

X = torch.zeros(2, 4)
FIRST = "Attach, train and export the plain model first, then quantize or convert what plastic.export() returns"
WHOLE = "attach the whole model, then fully_shard it: npn.distributed.shard(plastic, model.blocks)"


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def refused(model, message):
    with pytest.raises(TraceError, match="^" + re.escape(message) + "$"):
        npn.attach(model, X)
    with pytest.raises(TraceError, match="^" + re.escape(message) + "$"):
        npn.inspect(model, X)


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_compiled_models():
    model = torch.compile(net())
    refused(
        model,
        "the model is wrapped by torch.compile; attach the model inside, npn.attach(model._orig_mod, ...), and compile "
        "it afterwards",
    )
    assert npn.attach(model._orig_mod, X).groups
    part = net()
    part[0] = torch.compile(part[0])
    refused(
        part,
        "the part '0' of the model is wrapped by torch.compile; replace that part by the one inside, "
        "model.0._orig_mod, and compile it afterwards",
    )
    in_place, compiled = net(), []
    in_place.compile(backend=lambda graph, _: compiled.append(1) or graph.forward)
    assert npn.attach(in_place, X).groups and not compiled, "what is traced is the code as it is written"
    in_place(X)
    assert compiled, "and afterwards it is compiled as before"


def test_compiled_functions():
    compiled = []

    @torch.compile(backend=lambda graph, _: compiled.append(1) or graph.forward)
    def activated(x):
        return 2 * torch.relu(x)

    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(activated(self.a(x)))

    model = Calls()
    plastic = npn.attach(model, torch.randn(2, 4))
    assert plastic.sizes() == {"a": 6} and not compiled
    model(torch.randn(2, 4))
    assert compiled


def test_models_wrapped_for_several_devices(one_process):
    refused(
        nn.parallel.DistributedDataParallel(net()),
        "the model is wrapped by DistributedDataParallel; attach the model inside, npn.attach(model.module, ...), and "
        "wrap it afterwards: npn.distributed.wrap",
    )
    refused(
        nn.DataParallel(net()),
        "the model is wrapped by DataParallel; attach the model inside, npn.attach(model.module, ...), and train in "
        "one process for each device: npn.distributed.wrap",
    )


@pytest.mark.parametrize("resize", [lambda p: p.grow({"0": 2}), lambda p: (p.close("0", [1]), p.compact())])
def test_wrappers_that_a_resize_has_outdated(one_process, resize):
    model, x = net(), torch.randn(6, 4)
    plastic = npn.attach(model, x)
    for _ in range(2):  # a new wrapper after each resize is right
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            plastic.backward(lambda: wrapped(x).square().mean())  # noqa: B023
        resize(plastic)
        with pytest.raises(ConfigurationError, match=r"^this DistributedDataParallel was made before a resize: .*wrap"):
            plastic.backward(lambda: wrapped(x).square().mean())  # noqa: B023
        with torch.no_grad():
            assert torch.equal(wrapped(x), model(x)), "it may evaluate"


def test_sharded_models(one_process):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    model = net()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    refused(
        model,
        f"0.weight is split over processes already, which cannot be traced; {WHOLE}. Tensor parallelism is not "
        "supported",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = FullyShardedDataParallel(net(), device_id=torch.device("cpu"))
    refused(wrapped, f"the model is wrapped by FullyShardedDataParallel; {WHOLE}")


def test_scripted_models():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(net())
    refused(
        model, "the model is wrapped by torch.jit; attach the Python model, and script what plastic.export() returns"
    )


@pytest.mark.filterwarnings("ignore")
def test_models_with_gates_are_exported_as_plain_copies():
    model = net()
    plastic = npn.attach(model, X)
    message = (
        "a model with gates cannot be traced for export: its masks come and go with each call; export the plain copy "
        "that plastic.export() returns"
    )
    for export in (torch.export.export, torch.jit.trace):
        with pytest.raises(ConfigurationError, match="^" + re.escape(message) + "$"):
            export(model, (X,))
        torch.testing.assert_close(model(X), plastic.export()(X))  # nothing is left behind
        export(plastic.export(), (X,))


def test_lazy_modules():
    model = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3))
    message = "0.weight has no size before the first call of its module; call model(...) once before"
    refused(model, message)
    with pytest.raises(TraceError, match="^" + re.escape(message) + "$"):
        npn.count_macs(model, X)
    model(X)
    assert npn.attach(model, X).sizes() == {"0": 6}


@pytest.mark.filterwarnings("ignore")
def test_quantized_models():
    import torch.ao.quantization as quantization

    aware = net()
    aware.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    quantization.prepare_qat(aware, inplace=True)
    refused(
        aware,
        "the model is prepared for quantization: 0.weight_fake_quant is a FusedMovingAvgObsFakeQuantize, which cannot "
        f"be resized. {FIRST}",
    )
    dynamic = quantization.quantize_dynamic(net(), {nn.Linear})
    refused(dynamic, f"the model is quantized: 0 is a quantized Linear, which cannot be resized. {FIRST}")
    weights = net()
    packed = torch.quantize_per_tensor(torch.zeros(6, 4), 0.1, 0, torch.qint8)
    weights[0].weight = nn.Parameter(packed, requires_grad=False)
    refused(
        weights,
        "0.weight is a quantized Parameter, expected a plain torch.Tensor: weights that are sharded, quantized or of a "
        f"class with operations of its own cannot be resized. {FIRST}",
    )


def test_weights_of_a_class_of_their_own():
    class Own(torch.Tensor):
        """Operations of its own."""

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return super().__torch_function__(func, types, args, kwargs)

    class Marked(nn.Parameter):
        """A parameter that some code knows by its class."""

    model = net()
    model[2].weight = nn.Parameter(torch.zeros(3, 6).as_subclass(Own))
    refused(
        model,
        "2.weight is a Own, expected a plain torch.Tensor: weights that are sharded, quantized or of a class with "
        f"operations of its own cannot be resized. {FIRST}",
    )
    model[2].weight = Marked(torch.zeros(3, 6))
    assert npn.attach(model, X).groups
