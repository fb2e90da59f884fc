"""A loop on Accelerate gives what a plain loop gives, on one process and on two."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import npn
from npn.errors import CheckpointError, ConfigurationError

from ..processes import launch

pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")


class Net(torch.nn.Sequential):
    """Notes the precision of what its first layer gives."""

    def __init__(self):
        super().__init__(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        self[0].register_forward_hook(self._note)

    def _note(self, module, inputs, output):
        self.dtype = output.dtype


def accelerator(**options):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()
    return Accelerator(cpu=True, **options)


def parts(k=7.0):
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    model = Net()
    plastic = npn.attach(model, x[:2], penalty=npn.Penalty("params", 2e-3))
    plastic.k = k
    gates = {"params": plastic.logits(), "lr": 5e-2, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([{"params": plastic.weights()}, gates], lr=1e-2)
    return model, plastic, optimizer, DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8)


def train(epochs=8, k=7.0, **options):
    """On Accelerate: sizes after each epoch, the handle, its weights and the model's precision."""
    from npn.integrations import accelerate as ours

    model, plastic, optimizer, loader = parts(k)
    accelerate = accelerator(**options)
    optimizer, loader = accelerate.prepare(optimizer, loader)
    plastic.track(optimizer)
    net, sizes = ours.prepare(accelerate, plastic), []
    for epoch in range(epochs):
        for x, y in loader:
            with accelerate.accumulate(net):
                ours.backward(accelerate, plastic, lambda: F.cross_entropy(net(x), y))  # noqa: B023
                optimizer.step()
                optimizer.zero_grad()
        plastic.compact(below=0.3)
        if epoch == epochs // 2:
            plastic.grow({"0": 2})
        sizes.append(plastic.sizes()["0"])
    return sizes, plastic, values(plastic), model.dtype


def plain(epochs=8, k=7.0, batch=8):
    """The same without Accelerate."""
    model, plastic, optimizer, loader = parts(k)
    plastic.track(optimizer)
    sizes = []
    for epoch in range(epochs):
        for x, y in DataLoader(loader.dataset, batch_size=batch):
            optimizer.zero_grad()
            plastic.backward(lambda: F.cross_entropy(model(x), y))  # noqa: B023
            optimizer.step()
        plastic.compact(below=0.3)
        if epoch == epochs // 2:
            plastic.grow({"0": 2})
        sizes.append(plastic.sizes()["0"])
    return sizes, plastic, values(plastic)


def values(plastic):
    return [tensor.detach().clone() for tensor in (*plastic.model.parameters(), *plastic.logits())]


def test_the_same_as_a_plain_loop_through_resizes():
    sizes, plastic, found, dtype = train()
    expected, _, wanted = plain()
    assert sizes == expected and len(set(sizes)) > 2 and dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert type(plastic.optimizers[0]) is torch.optim.AdamW, "the optimizer, not the accelerator's view of it"
    assert "forward" not in vars(plastic.export()), "nothing of the accelerator is in it"


def test_accumulated_steps_are_those_of_larger_batches():
    _, _, found, _ = train(k=math.inf, gradient_accumulation_steps=2)
    _, _, wanted = plain(k=math.inf, batch=16)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))


def test_half_precision_is_the_accelerators():
    sizes, plastic, _, dtype = train(mixed_precision="bf16")
    assert dtype == torch.bfloat16 and sizes[-1] < 16
    assert all(parameter.dtype == torch.float32 for parameter in plastic.weights())


def test_a_loss_scale_leaves_gradients_as_they_are():
    from npn.integrations import accelerate as ours

    gradients = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        _, plastic, optimizer, loader = parts()
        accelerate = accelerator(gradient_accumulation_steps=4)
        accelerate.scaler = scaler
        net, (x, y) = ours.prepare(accelerate, plastic), next(iter(loader))
        ours.backward(accelerate, plastic, lambda: F.cross_entropy(net(x), y))  # noqa: B023
        if scaler is not None:
            scaler.unscale_(optimizer)
        gradients.append([p.grad.clone() for p in (*plastic.weights(), *plastic.logits())])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(*gradients, strict=True))


def on_two(steps):
    sizes, plastic, found, _ = train(gradient_accumulation_steps=steps)
    npn.distributed.check(plastic)
    return sizes, [tensor.tolist() for tensor in found]


@pytest.mark.parametrize("steps", [1, 2])
def test_two_processes_stay_the_same_through_resizes(steps):
    first, second = launch(2, on_two, steps)
    assert first == second and len(set(first[0])) > 2


def prepared(**options):
    from npn.integrations import accelerate as ours

    _, plastic, optimizer, loader = parts()
    accelerate = accelerator(**options)
    optimizer, loader = accelerate.prepare(optimizer, loader)
    plastic.track(optimizer)
    net = ours.prepare(accelerate, plastic)

    def steps():
        for x, y in loader:
            ours.backward(accelerate, plastic, lambda: F.cross_entropy(net(x), y))  # noqa: B023
            optimizer.step()
            optimizer.zero_grad()

    return accelerate, plastic, steps


def test_a_saved_state_goes_on_where_it_was(tmp_path):
    accelerate, plastic, steps = prepared()
    steps()
    plastic.close("0", [1, 3])
    plastic.compact()
    plastic.grow({"0": 5})
    steps()
    accelerate.save_state(str(tmp_path))
    steps()
    resumed, again, more = prepared()  # a model of full size
    resumed.load_state(str(tmp_path))
    more()
    assert again.model[0].out_features == plastic.model[0].out_features == 19
    assert all(torch.equal(a, b) for a, b in zip(values(plastic), values(again), strict=True))


def test_a_method_trains_and_is_saved(tmp_path):
    from npn.integrations import accelerate as ours

    def build():
        _, plastic, _, loader = parts(k=math.inf)
        method, accelerate = npn.methods.HardConcrete(plastic), accelerator(gradient_accumulation_steps=2)
        gates = {"params": method.parameters(), "lr": 0.3, "weight_decay": 0.0}
        optimizer = torch.optim.AdamW([{"params": plastic.weights()}, gates], lr=1e-2)
        optimizer, loader = accelerate.prepare(optimizer, loader)
        plastic.track(optimizer)
        return accelerate, method, ours.prepare(accelerate, plastic), optimizer, loader

    def epoch(accelerate, method, net, optimizer, loader):
        for x, y in loader:
            with accelerate.accumulate(net):
                ours.backward(accelerate, method, lambda: F.cross_entropy(net(x), y))  # noqa: B023
                optimizer.step()
                optimizer.zero_grad()
            method.after_step()
        method.compact()

    first = build()
    epoch(*first)
    first[0].save_state(str(tmp_path))
    epoch(*first)
    again = build()
    again[0].load_state(str(tmp_path))
    epoch(*again)
    assert again[1].plastic.sizes() == first[1].plastic.sizes()
    pairs = zip(again[1].parameters(), first[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(tensor.std() > 0.1 for tensor in first[1].parameters()), "the gates learn"


def test_several_models_have_files_of_their_own(tmp_path):
    from npn.integrations import accelerate as ours

    accelerate, plastic, _ = prepared()
    other = parts()[1]
    ours.prepare(accelerate, other)
    ours.prepare(accelerate, plastic)  # once more, as a notebook does
    other.grow({"0": 1})
    accelerate.save_state(str(tmp_path))
    assert sorted(file.name for file in tmp_path.glob("npn*")) == ["npn.pt", "npn_1.pt"]
    other.grow({"0": 1})
    accelerate.load_state(str(tmp_path))
    assert (plastic.sizes(), other.sizes()) == ({"0": 16}, {"0": 17})


def test_a_state_without_the_model_is_refused(tmp_path):
    accelerate, _, steps = prepared()
    steps()
    accelerate.save_state(str(tmp_path))
    (tmp_path / "npn.pt").unlink()
    with pytest.raises(CheckpointError, match=r"holds no npn.pt: it was saved before npn.integrations.accelerate.prep"):
        accelerate.load_state(str(tmp_path))


def saved_on_two(folder):
    accelerate, plastic, steps = prepared()
    plastic.grow({"0": 3})
    steps()
    accelerate.save_state(folder)
    accelerate.wait_for_everyone()
    resumed, again, _ = prepared()
    resumed.load_state(folder)
    npn.distributed.check(again)
    return again.sizes()["0"], all(torch.equal(a, b) for a, b in zip(values(plastic), values(again), strict=True))


def test_two_processes_save_and_load(tmp_path):
    assert launch(2, saved_on_two, str(tmp_path)) == [(19, True), (19, True)]


def test_a_model_in_shards_is_refused():
    from npn.integrations import accelerate as ours

    sharded = SimpleNamespace(distributed_type=SimpleNamespace(value="FSDP"))
    with pytest.raises(ConfigurationError) as error:
        ours.prepare(sharded, parts()[1])
    assert str(error.value) == (
        "the accelerator trains with FSDP, but gates need the whole model in a process for each device: "
        "use DistributedDataParallel, or a single device"
    )
