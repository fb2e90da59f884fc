"""Causal language models of Hugging Face: trained, shrunk, resumed; generating with a cache; saved with their sizes."""

import copy
import logging
import re

import pytest
import torch

import npn

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from npn.integrations.transformers import PlasticityCallback, PlasticTrainerMixin, update_config  # noqa: E402

logging.getLogger("transformers").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("traces_are_shared")]

IDS = torch.randint(3, 30, (32, 6), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": row} for row in IDS]


class MyTrainer(PlasticTrainerMixin, transformers.Trainer):
    pass


def language_model(name="Llama", layers=2):
    torch.manual_seed(3)
    if name == "GPT2":
        config = transformers.GPT2Config(
            vocab_size=30, n_embd=16, n_layer=layers, n_head=4, bos_token_id=0, eos_token_id=1, pad_token_id=2
        )
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = getattr(transformers, f"{name}Config")(
            vocab_size=30, hidden_size=16, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=24, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )  # fmt: skip
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # so that every head has a say in the next token
    return model.eval()


def attached(model):
    return npn.attach(model, {"input_ids": IDS[:2], "use_cache": False})


def shrink(plastic, hidden=6, heads=0):
    for group in plastic.groups:
        plastic.close(group, range(hidden if ".mlp." in group.name else heads))


def generated(model, **how):
    ids = IDS[:3, :4]
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, **how)


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_a_cache_gives_the_same_tokens_masked_compacted_and_exported(name):
    model = language_model(name)
    full = generated(model)
    plastic = attached(model)
    shrink(plastic, heads=1)
    masked = generated(model, use_cache=False)
    assert masked.shape == (3, 12) and not torch.equal(masked, full)
    small = plastic.export()
    assert plastic.compact() and npn.count_params(small) == npn.count_params(model)
    for each in (model, small):
        assert torch.equal(generated(each, use_cache=True), masked)
        assert torch.equal(generated(each, use_cache=False), masked)


@pytest.mark.parametrize(
    ("name", "heads", "expected"),
    [
        ("Llama", 1, {"intermediate_size": 18, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}),
        ("Qwen2", 1, {"intermediate_size": 18, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}),
        ("Qwen2", 0, {"intermediate_size": 18, "num_attention_heads": 4, "num_key_value_heads": 2}),
        ("GPT2", 0, {"n_inner": 58, "n_head": 4}),
    ],
)
def test_a_config_that_can_says_the_sizes_and_the_folder_loads(tmp_path, name, heads, expected):
    model = language_model(name)
    before = copy.deepcopy(model.config.to_dict())
    plastic = attached(model)
    shrink(plastic, heads=heads)
    small = plastic.export()
    config = update_config(small)
    assert config is small.config and model.config.to_dict() == before
    changed = {key: value for key, value in config.to_dict().items() if value != before.get(key)}
    assert {key: getattr(config, key) for key in expected} == expected and changed.items() <= expected.items()
    small.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert torch.equal(generated(loaded), generated(model))
    assert update_config(loaded) is loaded.config and loaded.config.to_dict() == update_config(loaded).to_dict()


def test_a_config_follows_growth_too():
    model = language_model()
    plastic = attached(model)
    plastic.grow({group.name: 5 for group in plastic.groups if ".mlp." in group.name})
    assert update_config(plastic.export()).intermediate_size == 29


def unequal(plastic):
    for group in plastic.groups:
        plastic.close(group, range(int(group.name.split(".")[2]) + 2) if ".mlp." in group.name else [])


@pytest.mark.parametrize(
    ("name", "close", "message"),
    [
        (
            "Llama",
            unequal,
            "the config of LlamaForCausalLM has one intermediate_size for all layers, but they have 21, 22 here; save "
            "it with npn.save(path, model), and load it with npn.load(path, LlamaForCausalLM(config)), config that of "
            "before",
        ),
        (
            "GPT2",
            lambda plastic: shrink(plastic, heads=1),
            "the config of GPT2LMHeadModel has no fields for the sizes of this model: "
            "transformer.h.0.attn.c_attn.weight has the shape (16, 36), but with n_inner=58 it has the shape (16, "
            "48); save it with npn.save(path, model), and load it with npn.load(path, GPT2LMHeadModel(config)), config "
            "that of before",
        ),
    ],
)
def test_where_no_config_can_say_the_sizes_npns_own_files_do(tmp_path, name, close, message):
    model = language_model(name)
    plastic = attached(model)
    close(plastic)
    small = plastic.export()
    before = copy.deepcopy(small.config.to_dict())
    with pytest.raises(npn.PlasticityError, match=f"^{re.escape(message)}$"):
        update_config(small)
    assert small.config.to_dict() == before
    npn.save(tmp_path / "small.pt", small)
    loaded = npn.load(tmp_path / "small.pt", language_model(name)).eval()
    assert torch.equal(generated(loaded), generated(model))


def test_sizes_that_a_config_refuses_by_its_own_checks():
    plastic = attached(language_model())
    plastic.grow({group.name: 1 for group in plastic.groups if ".mlp." not in group.name})
    message = "the config of LlamaForCausalLM refuses the sizes of this model, num_attention_heads=6: "
    with pytest.raises(npn.PlasticityError, match=rf"^{message}.*not a multiple of .* heads \(6\).*; save it with npn"):
        update_config(plastic.export())


def test_what_has_no_sizes_to_say():
    model = language_model()
    attached(model)
    message = (
        "the LlamaForCausalLM is attached, and its closed units are still there; give what plastic.export() returns"
    )
    with pytest.raises(npn.PlasticityError, match=f"^{re.escape(message)}$"):
        update_config(model)
    with pytest.raises(npn.PlasticityError, match=r"^expected a model of transformers with a config, got Linear$"):
        update_config(torch.nn.Linear(2, 2))


# -- in the Trainer


def fit(folder, epochs, resume=None, **options):
    model = language_model(layers=1)
    schedule = npn.Schedule(npn.Stage("plastic", 2, k=7.0), npn.Stage("finetune", 1))
    callback = PlasticityCallback(schedule, penalty=npn.Penalty(cost="params", weight=3e-3), gate_lr=0.3)
    options = {
        "num_train_epochs": epochs, "per_device_train_batch_size": 8, "save_strategy": "epoch", "report_to": [],
        "disable_tqdm": True, "use_cpu": True, "seed": 1, "learning_rate": 1e-3, "lr_scheduler_type": "constant",
    } | options  # fmt: skip
    args = transformers.TrainingArguments(output_dir=str(folder), **options)
    trainer = MyTrainer(model=model, args=args, train_dataset=DATA, callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    return model, callback, trainer


def test_a_language_model_trains_shrinks_and_resumes_in_the_trainer(tmp_path):
    model, callback, trainer = fit(tmp_path / "whole", 3)
    assert trainer.state.global_step == 12 and npn.count_params(model) < npn.count_params(language_model(layers=1))
    fit(tmp_path / "stopped", 1)
    resumed, again, _ = fit(tmp_path / "stopped", 3, resume=str(tmp_path / "stopped" / "checkpoint-4"))
    assert again.plastic.sizes() == callback.plastic.sizes()
    torch.testing.assert_close(resumed.state_dict(), model.state_dict())
    small = callback.export().eval()
    assert torch.equal(generated(small), generated(model.eval(), use_cache=False))
    config = update_config(small)  # a single layer: every size is uniform
    assert config.intermediate_size == callback.plastic.sizes()["model.layers.0.mlp.gate_proj"] < 24
    small.save_pretrained(tmp_path / "small")
    loaded = type(small).from_pretrained(tmp_path / "small")
    assert torch.equal(generated(loaded), generated(small))


def test_accumulated_gradients_of_a_language_model_are_those_of_npns_own_loop(tmp_path):
    plain = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "train_sampling_strategy": "sequential"}
    two, callback, _ = fit(tmp_path, 1, gradient_accumulation_steps=2, save_strategy="no", **plain)
    one = language_model(layers=1)
    torch.manual_seed(1)  # as the Trainer's: the gates draw from a generator of their own
    penalty = npn.Penalty(cost="params", weight=3e-3)
    plastic = npn.attach(one, {"input_ids": IDS[:8], "labels": IDS[:8]}, penalty=penalty)
    weights, gates = torch.optim.SGD(one.parameters(), lr=0.1), torch.optim.Adam(plastic.logits(), lr=0.3)
    plastic.track(weights, gates)
    one.train()
    callback.schedule.enter(0, plastic)
    for index in range(4):
        ids = IDS[8 * index : 8 * index + 8]
        plastic.backward(lambda ids=ids: one(input_ids=ids, labels=ids).loss, scale=0.5)
        if index % 2:
            weights.step(), gates.step(), weights.zero_grad(), gates.zero_grad()
    plastic.compact()
    assert callback.plastic.sizes() == plastic.sizes()
    torch.testing.assert_close(two.state_dict(), one.state_dict())
