"""Trainers on two processes: what is resized stays the same on both, as does what comes after a resume."""

import hashlib
from unittest import mock

import pytest
import torch

import npn
from npn.errors import ConfigurationError
from npn.integrations.session import check_processes

from ..processes import Died, launch

pytestmark = pytest.mark.filterwarnings("ignore")


def digest(model, plastic):
    tensors = [*model.parameters(), *plastic.logits()]
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


# -- Lightning


def lightning(folder, epochs=6, resume=None, renew=True):
    """Sizes after each epoch, what is there at the end, where it is kept; and where dropout begins."""
    from npn.integrations import lightning as ours

    from . import test_lightning as single

    class Begins(single.pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.random = torch.get_rng_state().numpy().tobytes()

    module, sizes, begins = single.build(dropout=0.0), single.Sizes(), Begins()
    method = single.callback(weight=2e-2, gate_lr=0.1, growth=npn.Growth(units=2, grace=2, limit=20))
    saver = single.pl.callbacks.ModelCheckpoint(dirpath=folder, filename=f"{epochs}", save_top_k=-1)
    train = single.pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", callbacks=[method, saver, sizes, begins], max_epochs=epochs,
        logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1,
    )  # fmt: skip
    with mock.patch.object(ours._Rewrapping, "renew", ours._Rewrapping.renew if renew else lambda self: None):
        train.fit(module, single.loader(batch=8), single.loader(), ckpt_path=resume)
    grown = [event.added for event in method.growth.history]
    return sizes.units, grown, digest(module, method.plastic), saver.best_model_path, begins.random


def test_lightning_resizes_alike_on_two_processes_and_resumes(tmp_path):
    pytest.importorskip("lightning.pytorch")
    whole, other = launch(2, lightning, tmp_path)
    assert whole == other
    units, grown, end, *_ = whole
    assert len(set(units)) > 1 and any(grown)
    (*_, path, _), _ = launch(2, lightning, tmp_path, 4)
    resumed, second = launch(2, lightning, tmp_path, 6, path)
    assert resumed[0] == units[4:] and resumed[2] == second[2] == end
    assert resumed[4] != second[4]  # each drops out other units


def test_a_wrapper_of_the_old_sizes_does_not_go_unseen(tmp_path):
    pytest.importorskip("lightning.pytorch")
    with pytest.raises(Died, match=r"this DistributedDataParallel was made before a resize"):
        launch(2, lightning, tmp_path, 6, None, False)


# -- Hugging Face


def hugging_face(folder, epochs, resume=None):
    """Parameters left, what is there at the end, and whether the wrapper is another than at first."""
    from accelerate.state import AcceleratorState, PartialState

    from . import test_transformers as single

    AcceleratorState._reset_state(reset_partial_state=True)  # of trainings in the parent
    PartialState._reset_state()
    model, method = single.bert(dropout=0.0), single.method(compact_below=0.5)  # resized soon
    train = single.trainer(
        folder, model, method, num_train_epochs=epochs, save_strategy="epoch", lr_scheduler_type="constant"
    )
    assert train.args.world_size == 2
    train.train(resume_from_checkpoint=resume)
    return npn.count_params(model), digest(model, method.plastic), method.wrapped.model is not method.wrapped.given


def test_hugging_face_resizes_alike_on_two_processes_and_resumes(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    whole, other = launch(2, hugging_face, tmp_path / "whole", 5)
    assert whole == other and whole[2]
    launch(2, hugging_face, tmp_path / "part", 3)
    resumed, same = launch(2, hugging_face, tmp_path / "part", 5, str(tmp_path / "part" / "checkpoint-9"))
    assert resumed[:2] == same[:2] == whole[:2]


# -- what is refused


def test_a_model_in_parts_is_refused():
    check_processes(1, "FSDPStrategy", replicated=False)
    check_processes(2, "DDPStrategy", replicated=True)
    message = (
        r"^the training runs on 2 devices through FSDPStrategy, but gates need the whole model in a process for each "
        r"device: use DistributedDataParallel, or a single device$"
    )
    with pytest.raises(ConfigurationError, match=message):
        check_processes(2, "FSDPStrategy", replicated=False)
