"""The method inside the Hugging Face Trainer, on small random models."""

import logging
import re

import pytest
import torch

import npn

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from npn.integrations.transformers import PlasticityCallback, PlasticTrainerMixin  # noqa: E402

logging.getLogger("transformers").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("traces_are_shared")]

IDS = torch.randint(2, 30, (48, 8), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": (row[0] > 15).long()} for row in IDS]


class MyTrainer(PlasticTrainerMixin, transformers.Trainer):
    pass


def bert(dropout=0.1, seed=3):
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24,
            max_position_embeddings=8, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
            attn_implementation="eager",
        )
    )  # fmt: skip


def vit():
    torch.manual_seed(3)
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=24, num_labels=2,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def three_stages():
    return npn.Schedule(npn.Stage("pretrain", 1), npn.Stage("plastic", 3, k=7.0), npn.Stage("finetune", 1))


def method(schedule=None, weight=1e-2, gate_lr=0.2, **options):
    return PlasticityCallback(
        schedule or three_stages(), penalty=npn.Penalty(cost="params", weight=weight), gate_lr=gate_lr, **options
    )


def trainer(folder, model, callback, kind=MyTrainer, data=DATA, **options):
    options = {
        "num_train_epochs": 9, "per_device_train_batch_size": 8, "save_strategy": "no", "report_to": [],
        "disable_tqdm": True, "use_cpu": True, "seed": 1, "learning_rate": 1e-3, "logging_strategy": "epoch",
    } | options  # fmt: skip
    return kind(
        model=model, args=transformers.TrainingArguments(output_dir=str(folder), **options), train_dataset=data,
        eval_dataset=data[:16], callbacks=[callback] if callback else [],
    )  # fmt: skip


@pytest.mark.parametrize("build", [bert, vit])
def test_a_model_shrinks_in_the_trainer_and_comes_out_plain(tmp_path, build):
    model, callback = build(), method()
    images = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = DATA if build is bert else [{"pixel_values": x, "labels": (x.mean() > 0).long()} for x in images]
    before = npn.count_params(model)
    train = trainer(tmp_path, model, callback, data=data)
    train.train()
    assert train.state.epoch == 5  # the schedule's end, not num_train_epochs
    assert npn.count_params(model) < before
    rows = [row for row in train.state.log_history if "loss" in row]
    assert rows[-1]["npn/params"] <= rows[0]["npn/params"] == before
    assert [row["npn/k"] for row in rows] == [float("inf"), 7.0, 7.0, 7.0, float("inf")]
    optimizer = getattr(train.optimizer, "optimizer", train.optimizer)
    assert optimizer.state
    assert all(s["exp_avg"].shape == p.shape for p, s in optimizer.state.items())
    small = callback.export()
    assert type(small) is type(model)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in small.modules())
    assert not any("npn" in str(type(v).__module__) for m in small.modules() for v in vars(m).values())
    inputs = {k: v[None] for k, v in data[0].items()}
    torch.testing.assert_close(small.eval()(**inputs).logits, model.eval()(**inputs).logits)


@pytest.mark.parametrize(("estimator", "accumulate"), [("reinmax", 2), ("disarm", 2), ("double_cv", 2)])
def test_a_trainer_does_what_npns_own_loop_does(tmp_path, estimator, accumulate):
    options = {"gradient_accumulation_steps": accumulate, "train_sampling_strategy": "sequential"}
    plain = {"optim": "sgd", "lr_scheduler_type": "constant", "learning_rate": 0.1, "max_grad_norm": 0.5}
    two, callback = bert(dropout=0.0), method(estimator=estimator)
    torch.manual_seed(1)  # as the Trainer's: the gates draw from a generator of their own
    one = bert(dropout=0.0)
    train = trainer(tmp_path, two, callback, **options, **plain)
    train.model_accepts_loss_kwargs = False  # BERT takes them without heeding them: its loss would count double
    train.train()
    torch.manual_seed(1)
    batch = {k: torch.stack([row[k] for row in DATA[:8]]) for k in DATA[0]}
    plastic = npn.attach(one.eval(), batch, estimator=estimator, penalty=npn.Penalty(cost="params", weight=1e-2))
    weights, gates = torch.optim.SGD(one.parameters(), lr=0.1), torch.optim.Adam(plastic.logits(), lr=0.2)
    plastic.track(weights, gates)
    one.train()
    for epoch in range(5):
        callback.schedule.enter(epoch, plastic)
        for index in range(6):
            chosen = DATA[8 * index : 8 * index + 8]
            batch = {k: torch.stack([row[k] for row in chosen]) for k in DATA[0]}
            plastic.backward(lambda batch=batch: one(**batch).loss, scale=1 / accumulate)
            if (index + 1) % accumulate == 0:
                torch.nn.utils.clip_grad_norm_(one.parameters(), 0.5)
                weights.step(), gates.step(), weights.zero_grad(), gates.zero_grad()
        plastic.compact()
    assert callback.plastic.sizes() == plastic.sizes()
    torch.testing.assert_close([p.detach() for p in callback.plastic.logits()], [p.detach() for p in plastic.logits()])
    torch.testing.assert_close(two.state_dict(), one.state_dict())


def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path):
    def fit(epochs, resume=None):
        model, callback = bert(), method(growth=npn.Growth(grace=3, only="*intermediate*"))
        callback.schedule = three_stages()
        train = trainer(
            tmp_path / str(epochs), model, callback, num_train_epochs=epochs, save_strategy="epoch",
            eval_strategy="epoch", lr_scheduler_type="constant",
        )  # fmt: skip
        train.train(resume_from_checkpoint=resume)
        return model, callback, train

    whole, callback, train = fit(5)
    stopped, *_ = fit(3)
    assert npn.count_params(stopped) != npn.count_params(bert())
    resumed, again, train_again = fit(5, resume=str(tmp_path / "3" / "checkpoint-18"))
    assert again.plastic.sizes() == callback.plastic.sizes()
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict())
    torch.testing.assert_close(again.plastic.state_dict()["gates"], callback.plastic.state_dict()["gates"])
    states = [t.optimizer.optimizer.state_dict()["state"] for t in (train_again, train)]
    torch.testing.assert_close(*states)
    assert again.schedule.state_dict() == callback.schedule.state_dict()
    assert again.growth.state_dict() == callback.growth.state_dict()


def test_the_best_model_comes_back_at_its_own_size(tmp_path):
    model, callback = bert(), method(npn.Schedule(npn.Stage("plastic", 4, k=7.0)))
    train = trainer(
        tmp_path, model, callback, save_strategy="epoch", eval_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )  # fmt: skip
    train.train()
    losses = {row["step"]: row["eval_loss"] for row in train.state.log_history if "eval_loss" in row}
    assert train.state.best_metric == min(losses.values())
    assert train.evaluate()["eval_loss"] == pytest.approx(min(losses.values()), rel=1e-5)


def test_mixed_precision_grows_shrinks_and_exports_without_its_wrapper(tmp_path):
    model = bert()
    callback = method(
        npn.Schedule(npn.Stage("plastic", 4, k=7.0)), growth=npn.Growth(grace=3, only="*intermediate*", revive=1)
    )
    seen = []
    model.bert.encoder.layer[0].intermediate.dense.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    train = trainer(tmp_path, model, callback, bf16=True, eval_strategy="epoch")
    train.train()
    assert torch.bfloat16 in seen
    assert any(event.added or event.reopened for event in callback.growth.history)
    assert all(p.dtype == torch.float32 for p in [*callback.plastic.weights(), *callback.plastic.logits()])
    assert "forward" in vars(model)  # accelerate's
    small = callback.export()
    assert "forward" not in vars(small) and "_original_forward" not in vars(small)
    assert small.eval()(IDS[:2]).logits.dtype == torch.float32


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(npn.PlasticityError, match=r"^expected one PlasticityCallback among the .* callbacks, got 0$"):
        trainer(tmp_path, bert(), None).train()
    plain = trainer(tmp_path, bert(), None, kind=transformers.Trainer, num_train_epochs=1, save_strategy="epoch")
    plain.train()
    with pytest.raises(npn.PlasticityError, match=r"checkpoint-6 holds no npn.pt: it was written without Plasticity"):
        trainer(tmp_path, bert(), method()).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    growing = method(growth=npn.Growth(), monitor="eval_accuracy")
    with pytest.raises(npn.PlasticityError, match=r"^expected the validation metric 'eval_accuracy', got .*eval_loss"):
        trainer(tmp_path, bert(), growing, eval_strategy="epoch").train()


@pytest.mark.parametrize("bases", [(), (PlasticTrainerMixin,)], ids=["without the mixin", "the mixin last"])
def test_a_trainer_without_the_mixin_stops_before_its_first_step(tmp_path, bases):
    model = bert()
    before = [p.detach().clone() for p in model.parameters()]
    kind = type("Own", (transformers.Trainer, *bases), {})
    message = (
        "the Trainer's steps do not run under masks, so that no gate would learn: its class lacks PlasticTrainerMixin. "
        "Write class MyTrainer(PlasticTrainerMixin, Trainer): pass, the mixin first, and train with that class"
    )
    with pytest.raises(npn.PlasticityError, match=f"^{re.escape(message)}$"):
        trainer(tmp_path, model, method(), kind=kind).train()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def decoder(name):
    torch.manual_seed(3)
    if name == "GPT2":
        config = transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=4, n_inner=24)
        return transformers.GPT2LMHeadModel(config), {}
    if name == "Bart":
        config = transformers.BartConfig(
            vocab_size=30, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=16,
        )  # fmt: skip
        return transformers.BartForConditionalGeneration(config), {"decoder_input_ids": IDS[:2, :5]}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return getattr(transformers, f"{name}ForCausalLM")(config), {}


@pytest.mark.parametrize("name", ["GPT2", "Llama", "Mistral", "Qwen2", "Gemma", "Bart"])
def test_heads_of_decoders_are_units_whether_or_not_they_return_their_cache(name):
    model, more = decoder(name)
    inputs = {"input_ids": IDS[:2], **more}
    plain = npn.attach(model.eval(), {**inputs, "use_cache": False})
    groups = {g.name: g.size for g in plain.groups}
    assert any(s.tensor.rpartition(".")[0].endswith(("v_proj", "c_attn")) for g in plain.groups for s in g.slots)
    plain.detach()
    answer = model(**inputs)
    assert any(type(v).__name__.endswith("Cache") for v in answer.values())
    plastic = npn.attach(model, inputs)
    assert {g.name: g.size for g in plastic.groups} == groups
    for i, group in enumerate(plastic.groups):
        plastic.close(group, range(i % 2, group.size, 2))
    masked, small = model(**inputs).logits, plastic.export()
    assert (masked - answer.logits).abs().max() > 1e-4
    torch.testing.assert_close(small(**inputs).logits, masked, rtol=1e-5, atol=1e-5)


def test_activation_checkpoints_before_and_after_attach():
    def gradients():
        model.zero_grad()
        plastic.backward(lambda: model(**inputs).logits.pow(2).mean())
        return [p.grad.clone() for p in plastic.weights()]

    (model, _), inputs = decoder("Llama"), {"input_ids": IDS[:2], "use_cache": False}
    plastic = npn.attach(model.train(), inputs)
    groups, wanted = {g.name: g.size for g in plastic.groups}, gradients()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    torch.testing.assert_close(gradients(), wanted)
    before = model(**inputs).logits
    plastic.grow(dict.fromkeys(groups, 2))
    assert {g.name: g.size for g in plastic.groups} == {name: size + 2 for name, size in groups.items()}
    torch.testing.assert_close(model(**inputs).logits, before, rtol=1e-5, atol=1e-5)
    plastic.detach()
    assert {g.name: g.size for g in npn.attach(model, inputs).groups} == {n: s + 2 for n, s in groups.items()}


@pytest.mark.parametrize("length, option", [({"num_train_epochs": 1}, "num_"), ({"max_steps": 3}, "max_steps, in ep")])
def test_a_short_training_without_evaluation_is_told_at_both_ends(tmp_path, length, option):
    callback = method(npn.Schedule(npn.Stage("plastic", 2, k=7.0)), growth=npn.Growth())
    with pytest.warns(UserWarning) as told:
        trainer(tmp_path, bert(), callback, **length).train()
    ours = [text for warning in told if (text := str(warning.message)).startswith("the training ")]
    assert len(ours) == 2 and f"has 1 epochs and the schedule 2, so 'plastic' is cut short: set {option}" in ours[0]
    assert ours[1].startswith("the training never validated") and "'eval_loss'" in ours[1]
