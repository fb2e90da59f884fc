"""Options of a Lightning Trainer with which the method would do less than was asked for, in silence."""

import logging

import pytest

import npn

pl = pytest.importorskip("lightning.pytorch")

from .test_lightning import Bare, build, callback, loader, trainer  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("traces_are_shared")]


@pytest.mark.parametrize("length, had", [({"max_epochs": 1}, "1"), ({"max_steps": 2, "max_epochs": -1}, "0.5")])
def test_a_short_training_without_validation_is_told_at_both_ends(length, had):
    method = callback(npn.Schedule(npn.Stage("plastic", 2, k=7.0)), growth=npn.Growth())
    with pytest.warns(UserWarning) as told:
        trainer(method, **length).fit(build(Bare), loader())
    ours = [text for warning in told if (text := str(warning.message)).startswith("the training ")]
    assert len(ours) == 2 and f"has {had} epochs and the schedule 2, so 'plastic' is cut short: set max_" in ours[0]
    assert ours[1].startswith("the training never validated") and "'val_loss'" in ours[1]


def test_a_full_training_is_not_told(recwarn):
    method = callback(npn.Schedule(npn.Stage("plastic", 2, k=7.0)), growth=npn.Growth())
    trainer(method, max_epochs=2).fit(build(), loader(), loader())
    assert not [text for warning in recwarn if (text := str(warning.message)).startswith(("the training ", "nothing"))]


def test_a_module_without_forward_needs_a_target():
    class Parts(Bare):
        forward = pl.LightningModule.forward

        def training_step(self, batch, index):
            return self.net(batch[0]).square().mean()

    message = (
        r"^Parts has no forward, with which it would be traced: name the part that gets gates, "
        r"PlasticityCallback\(..., target=...\), one of net; or write a forward that training_step calls$"
    )
    method = callback()
    with pytest.raises(npn.PlasticityError, match=message):
        trainer(method).fit(build(Parts), loader())
    assert method.handle is None
    trainer(callback(npn.Schedule(npn.Stage("only", 1)), target="net")).fit(build(Parts), loader())
