"""The method inside a Lightning Trainer: the same numbers as npn's own loop, and checkpoints that go on."""

import copy
import logging
import math
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import npn

pl = pytest.importorskip("lightning.pytorch")

from npn.integrations.lightning import PlasticityCallback  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("traces_are_shared")]

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()


class Plain(pl.LightningModule):
    """Knows nothing of npn."""

    def __init__(self, width=16, dropout=0.0):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 2)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, index):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        decayed, rest = [p for p in self.parameters() if p.dim() > 1], [p for p in self.parameters() if p.dim() == 1]
        optimizer = torch.optim.AdamW([{"params": decayed}, {"params": rest, "weight_decay": 0.0}], lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


class Bare(Plain):
    """Validates nothing."""

    validation_step = pl.LightningModule.validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loader(batch=16, shuffle=False):
    return DataLoader(TensorDataset(X, Y), batch_size=batch, shuffle=shuffle)


def three_stages(plastic=4):
    return npn.Schedule(npn.Stage("pretrain", 1), npn.Stage("plastic", plastic, k=7.0), npn.Stage("finetune", 1))


def callback(schedule=None, weight=1e-2, gate_lr=5e-2, **options):
    return PlasticityCallback(
        schedule or three_stages(), penalty=npn.Penalty(cost="params", weight=weight), gate_lr=gate_lr, **options
    )


def trainer(*callbacks, **options):
    options = {"logger": False, "enable_checkpointing": False, "max_epochs": 20} | options
    return pl.Trainer(
        accelerator="cpu", devices=1, callbacks=list(callbacks), enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=1, **options,
    )  # fmt: skip


def build(kind=Plain, **options):
    torch.manual_seed(3)
    return kind(**options)


class Sizes(pl.Callback):
    def __init__(self):
        self.units, self.logged = [], []

    def on_train_epoch_end(self, trainer, pl_module):
        self.units.append(pl_module.net[0].out_features)
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})


@pytest.mark.parametrize("target", [None, "net"])
def test_the_net_shrinks_inside_the_trainer_and_comes_out_plain(target):
    module, method, sizes = build(), callback(target=target), Sizes()
    train = trainer(method, sizes)
    train.fit(module, loader(), loader())
    assert sizes.units[0] == 16 and sizes.units[-1] < 16
    assert len(sizes.units) == 6 and train.current_epoch == 6  # the schedule's end, not max_epochs
    name = f"npn/units/{method.plastic.groups[0].name}"
    assert train.callback_metrics[name] == sizes.units[-1]
    assert train.callback_metrics["npn/k"] == math.inf and sizes.logged[3]["npn/k"] == 7.0
    assert train.callback_metrics["npn/params"] == npn.count_params(method.plastic.model)
    (optimizer,) = train.optimizers
    assert len(optimizer.state) == 6
    for p, state in optimizer.state.items():
        assert state["exp_avg"].shape == p.shape
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)  # the module's own scheduler, three times
    small = method.export()
    assert type(small) is (Plain if target is None else nn.Sequential)
    net = small.net if target is None else small
    assert net[0].out_features == sizes.units[-1] and net[1].num_features == sizes.units[-1]
    for part in small.modules():
        hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
        assert not hooks and not any("npn" in str(type(v).__module__) for v in vars(part).values())
    torch.testing.assert_close(small.eval()(X), module.eval()(X) if target is None else module.net.eval()(X))


class Direct(Plain):
    """Validates and predicts through a part of itself, past its own call."""

    def validation_step(self, batch, index):
        self.seen = self.net(batch[0])
        self.log("val_loss", F.cross_entropy(self.seen, batch[1]))

    def predict_step(self, batch, index):
        return self.net(batch[0])


class Compared(pl.Callback):
    """After each validation: the last logits that it saw, those of the masked network, how many units are closed."""

    def __init__(self, plasticity):
        self.plasticity, self.found = plasticity, []

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            masked = module(X[-16:])
            plastic = self.plasticity.plastic
            self.found.append((module.seen, masked, plastic.groups[0].size - plastic.sizes()["net.0"]))


def test_validation_and_prediction_run_without_closed_units_whatever_they_call():
    module, plasticity = build(Direct), callback(three_stages(6), weight=1e-3)
    compared = Compared(plasticity)
    run = trainer(plasticity, compared)
    run.fit(module, loader(), loader())
    assert max(closed for *_, closed in compared.found) > 0, "nothing was closed: the test shows nothing"
    for seen, masked, _ in compared.found:
        torch.testing.assert_close(seen, masked)
    plasticity.plastic.close("net.0", [0])
    expected = plasticity.export().eval()(X)
    torch.testing.assert_close(torch.cat(run.predict(module, loader())), expected)
    assert not torch.allclose(module.eval().net(X), expected)  # the weights are back


class Normed(Plain):
    """A stream under a norm, and a branch."""

    def __init__(self):
        super().__init__()
        inner = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16))
        self.net = Residual(nn.Linear(6, 16), nn.LayerNorm(16), inner, nn.Linear(16, 2))


class Residual(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.stem, self.norm, self.inner, self.head = parts

    def forward(self, x):
        h = self.stem(x)
        return self.head(h + self.inner(self.norm(h)))


def test_gates_of_every_kind_are_asked_for_as_at_attach():
    kinds = {"columns": "inner.2", "branches": "inner", "unstructured": "head", "streams": True}
    method = PlasticityCallback(three_stages(1), target="net", **kinds)
    trainer(method).fit(Normed(), loader(), loader())
    expected = npn.attach(Normed().net, X[:2], **kinds)
    assert [g.name for g in method.plastic.groups] == [g.name for g in expected.groups]
    assert {"stem", "branches"} <= {g.name for g in expected.groups}
    assert list(method.plastic.unstructured) == list(expected.unstructured) == ["head.weight"]


def own_loop(module, schedule, estimator, accumulate=1, clip=None):
    """What the callback is expected to do, by hand."""
    plastic = npn.attach(module.net, X[:16], estimator=estimator, penalty=npn.Penalty(cost="params", weight=1e-2))
    weights = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    gates = torch.optim.Adam(plastic.logits(), lr=5e-2)
    plastic.track(weights, gates)
    for epoch in range(schedule.epochs):
        schedule.enter(epoch, plastic)
        module.train()
        for index, (x, y) in enumerate(loader()):
            plastic.backward(lambda x=x, y=y: F.cross_entropy(module(x), y), scale=1 / accumulate)
            if (index + 1) % accumulate == 0:
                if clip:
                    nn.utils.clip_grad_norm_(module.parameters(), clip)
                weights.step(), gates.step(), weights.zero_grad(), gates.zero_grad()
        plastic.compact()
    return plastic


@pytest.mark.parametrize(
    ("estimator", "accumulate", "clip"),
    [("reinmax", 1, None), ("reinmax", 2, 0.5), ("disarm", 2, None), ("double_cv", 2, None), ("rloo", 1, 0.5)],
)
def test_a_trainer_does_what_npns_own_loop_does(estimator, accumulate, clip):
    one = build(Bare)
    two = copy.deepcopy(one)
    torch.manual_seed(5)
    reference = own_loop(one, three_stages(), estimator, accumulate, clip)
    torch.manual_seed(5)
    method = callback(target="net", estimator=estimator)
    trainer(method, accumulate_grad_batches=accumulate, gradient_clip_val=clip).fit(two, loader())
    assert method.plastic.sizes() == reference.sizes()
    for a, b in zip(reference.logits(), method.plastic.logits(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(one.state_dict(), two.state_dict())


@pytest.mark.parametrize(("validate", "precision"), [(True, "32-true"), (False, "32-true"), (False, "bf16-true")])
def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path, validate, precision):
    kind = Plain if validate else Bare
    data = [loader(batch=8, shuffle=True), *([loader()] if validate else [])]

    def fit(epochs, resume=None):
        module, method = (
            build(kind, dropout=0.2),
            callback(weight=2e-2, gate_lr=0.1, growth=npn.Growth(grace=4) if validate else None),
        )
        saver = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, filename=f"{epochs}", save_top_k=-1)
        train = trainer(method, saver, max_epochs=epochs, enable_checkpointing=True, precision=precision)
        train.fit(module, *data, ckpt_path=resume)
        return module, method, saver.best_model_path, train

    whole, method, _, train = fit(6)
    stopped, _, path, _ = fit(4)
    width = stopped.net[0].out_features
    assert width != 16
    resumed, again, _, train_again = fit(6, resume=path)
    assert again.plastic.sizes() == method.plastic.sizes()
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict())
    torch.testing.assert_close(again.state_dict()["plastic"]["gates"], method.state_dict()["plastic"]["gates"])
    torch.testing.assert_close(
        train_again.optimizers[0].state_dict()["state"], train.optimizers[0].state_dict()["state"]
    )
    assert again.schedule.state_dict() == method.schedule.state_dict()
    if validate:
        assert again.growth.state_dict() == method.growth.state_dict()


def test_a_checkpoint_is_evaluated_at_its_own_size(tmp_path):
    module, method = build(), callback(example_inputs=X[:2])
    saver = pl.callbacks.ModelCheckpoint(dirpath=tmp_path)
    train = trainer(method, saver, enable_checkpointing=True)
    train.fit(module, loader(), loader())
    expected = train.validate(module, loader(), verbose=False)
    fresh = build()
    other = trainer(callback(example_inputs=X[:2]))
    assert other.validate(fresh, loader(), ckpt_path=saver.best_model_path, verbose=False) == expected
    assert fresh.net[0].out_features == module.net[0].out_features < 16


def test_nets_grow_on_validation_loss():
    module = build(width=2)
    grown = npn.Growth(units=2, grace=4, limit=9)
    sizes = Sizes()
    trainer(callback(npn.Schedule(npn.Stage("plastic", 6, k=7.0)), weight=0.0, growth=grown), sizes).fit(
        module, loader(), loader()
    )
    assert sizes.units[-1] > 2
    assert [event.loss for event in grown.history] == sorted((e.loss for e in grown.history), reverse=True)
    assert len(grown.history) == sum(b > a for a, b in zip([2, *sizes.units], sizes.units, strict=False))


def test_mixed_precision_trains_and_shrinks():
    module, method = build(), callback(target="net")
    seen = []
    module.net[0].register_forward_hook(lambda m, i, o: seen.append((m.training, o.dtype)))
    trainer(method, precision="bf16-mixed").fit(module, loader(), loader())
    assert set(seen) == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert module.net[0].out_features < 16
    assert all(p.dtype == torch.float32 for p in [*method.plastic.weights(), *method.plastic.logits()])


def test_a_loss_scaler_scales_gates_and_penalty_alike():
    def fit(factor):
        module, method = build(), callback(target="net")
        scaler = torch.amp.GradScaler("cpu", init_scale=factor, growth_interval=10_000)
        precision = pl.plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler)
        torch.manual_seed(5)
        trainer(method, plugins=[precision], accumulate_grad_batches=2).fit(module, loader(8), loader())
        return module, method

    (one, unscaled), (two, scaled) = fit(1.0), fit(1024.0)
    assert one.net[0].out_features == two.net[0].out_features < 16
    gates = [[p.detach() for p in method.plastic.logits()] for method in (unscaled, scaled)]
    torch.testing.assert_close(*gates, rtol=1e-2, atol=1e-2)  # float16 inside


@pytest.mark.parametrize("where", ["module", "datamodule"])
def test_example_inputs_come_from_wherever_the_data_are(where):
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return loader()

    module, method = build(Bare), callback(npn.Schedule(npn.Stage("plastic", 1, k=7.0)))
    if where == "module":
        module.train_dataloader = loader
        trainer(method).fit(module)
    else:
        trainer(method).fit(module, datamodule=Data())
    assert torch.equal(method.plastic.example_inputs, X[:16])


def test_a_second_forward_pass_logs_nothing_and_skipped_steps_move_nothing():
    class Logging(Bare):
        def training_step(self, batch, index):
            x, y = batch
            loss = F.cross_entropy(self(x), y)
            self.log("mean", float(len(calls)), on_epoch=True)
            calls.append(loss.requires_grad)
            return loss if self.current_epoch == 0 else None

    calls = []
    module = build(Logging)
    method = callback(npn.Schedule(npn.Stage("plastic", 2, k=7.0)), estimator="disarm", example_inputs=X[:2])
    train = trainer(method, max_epochs=1, limit_train_batches=2)
    train.fit(module, loader())
    assert calls == [True, False, True, False]
    assert train.callback_metrics["mean"] == 1.0  # of 0 and 2
    assert "log" not in vars(module)
    before = copy.deepcopy(module.state_dict()), [p.clone() for p in method.plastic.logits()]
    method.schedule = npn.Schedule(npn.Stage("plastic", 2, k=7.0))
    module.training_step = lambda batch, batch_idx: None
    trainer(method, max_epochs=1, limit_train_batches=2).fit(module, loader())
    torch.testing.assert_close((module.state_dict(), list(method.plastic.logits())), before)


def test_what_cannot_work_is_refused():
    manual = build()
    manual.automatic_optimization = False
    with pytest.raises(npn.PlasticityError, match=r"^the module optimizes by hand \(automatic_optimization=False\)"):
        trainer(callback()).fit(manual, loader())
    with pytest.raises(npn.PlasticityError, match=r"^target 'model' is no submodule; the module has: net$"):
        trainer(callback(target="model")).fit(build(), loader())
    with pytest.raises(npn.PlasticityError, match=r"^monitor='test_loss' looks like a test metric"):
        callback(monitor="test_loss")
    with pytest.raises(npn.PlasticityError, match=r"^expected the validation metric 'val_acc', got "):
        trainer(callback(growth=npn.Growth(), monitor="val_acc")).fit(build(), loader(), loader())
    with pytest.raises(npn.PlasticityError, match=r"^there are no gates before the training has begun"):
        callback().export()
    with pytest.raises(npn.PlasticityError, match=r"^expected example inputs in the first element .* got str"):
        trainer(callback()).fit(build(), [["text"]])


@pytest.mark.parametrize("average", ["StochasticWeightAveraging", "EMAWeightAveraging"])
def test_callbacks_that_average_weights_are_refused_at_setup(average):
    kind = getattr(pl.callbacks, average, None)
    if kind is None:
        pytest.skip(f"this version of lightning has no {average}")
    other = kind(1e-3) if average == "StochasticWeightAveraging" else kind()
    message = (
        f"{average} keeps averages of the weights at the sizes of its start, which a resize does not reach: leave it "
        "out. To average, give plastic.follow a copy of the module in on_fit_start of a callback of your own, after "
        "PlasticityCallback"
    )
    plasticity = callback()
    with pytest.raises(npn.PlasticityError, match=f"^{re.escape(message)}$"):
        trainer(plasticity, other).fit(build(), loader())
    assert plasticity.handle is None


def test_a_loss_that_is_not_finite_stops_before_any_gradient():
    module = build()
    module.training_step = lambda batch, batch_idx: module(batch[0]).sum() * math.nan
    with pytest.raises(npn.PlasticityError, match=r"^the loss is nan; no gradient of it was added"):
        trainer(callback()).fit(module, loader())
    assert all(p.grad is None for p in module.parameters())
    assert all(bool(p.isfinite().all()) for p in module.parameters())  # the masks are off again
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(X)
