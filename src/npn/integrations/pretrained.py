"""A shrunk model whose Hugging Face config says its sizes, so that `save_pretrained` and `from_pretrained` work."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from npn.errors import ConfigurationError
from npn.masking.calls import attached_parts

# fields of configs for the width of feed-forward layers and for heads; each stands for all layers
HEADS = {"num_attention_heads", "num_key_value_heads"}
FIELDS = (
    "intermediate_size", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "hidden_dim",
    *sorted(HEADS),
)  # fmt: skip
PROBE = 16  # value of a field that is None

Shapes = Mapping[str, torch.Size]


def update_config(model: nn.Module) -> Any:
    """Set the sizes in the config of a shrunk or grown `transformers` model to those that it has.

    A config has one number for all layers. Which axes a field decides is found by building the model from the config
    with other values, without memory: an axis of size `a n + b` at the value n. The field is set where all of its axes
    agree on n. Then the model is built from the new config, and every shape is compared.

    Args:
        model: a plain `PreTrainedModel`, such as `plastic.export()` gives.

    Returns:
        The config of the model, changed in place.

    Raises:
        ConfigurationError: the model is attached or has no config, or its config cannot say its sizes: layers have
            different ones, or there is no field for them. The config has not changed.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> import npn
        >>> sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=30, **sizes))
        >>> plastic = npn.attach(model, {"input_ids": torch.tensor([[1, 2]]), "use_cache": False}, only="*.mlp.*")
        >>> for group in plastic.groups:
        ...     plastic.close(group, [0, 1, 2])
        >>> update_config(plastic.export()).intermediate_size
        21
    """
    config, name = getattr(model, "config", None), type(model).__name__
    if config is None or not hasattr(config, "to_dict"):
        raise ConfigurationError(f"expected a model of transformers with a config, got {name}")
    if attached_parts(model):
        raise ConfigurationError(
            f"the {name} is attached, and its closed units are still there; give what plastic.export() returns"
        )
    way = f"save it with npn.save(path, model), and load it with npn.load(path, {name}(config)), config that of before"
    shapes = _shapes(model)
    if _built(model, config, {}) == shapes:
        return config
    found = _width_of_heads(config)
    for field in FIELDS:
        values = _values(model, config, field, shapes, found)
        if len(values) > 1:
            listed = ", ".join(f"{value:g}" for value in sorted(values))
            raise ConfigurationError(
                f"the config of {name} has one {field} for all layers, but they have {listed} here; {way}"
            )
        for value in values:
            if value == int(value):
                found[field] = int(value)
    found = {field: value for field, value in found.items() if getattr(config, field, None) != value}
    if not HEADS & found.keys():
        found.pop("head_dim", None)
    said = ", ".join(f"{field}={value}" for field, value in found.items()) or "its own values"
    try:
        built = _build(model, config, found)
    except Exception as error:  # each config checks itself in its own way, some by classes of errors of their own
        why = " ".join(str(error).split())
        raise ConfigurationError(
            f"the config of {name} refuses the sizes of this model, {said}: {why}; {way}"
        ) from error
    if built != shapes:
        first = next(key for key in shapes if built.get(key) != shapes[key])
        raise ConfigurationError(
            f"the config of {name} has no fields for the sizes of this model: {first} has {_of(shapes, first)}, but "
            f"with {said} it has {_of(built, first)}; {way}"
        )
    for field, value in found.items():
        setattr(config, field, value)
    return config


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _build(model: nn.Module, config: Any, changes: Mapping[str, int]) -> dict[str, torch.Size]:
    """Shapes of the model that a config with some changes builds, as `from_pretrained` would."""
    values = copy.deepcopy(config.to_dict()) | changes
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # no memory, and no random numbers used up
        return _shapes(type(model)(type(config).from_dict(values)))


def _built(model: nn.Module, config: Any, changes: Mapping[str, int]) -> dict[str, torch.Size]:
    """The same; nothing if the config refuses."""
    try:
        return _build(model, config, changes)
    except Exception:
        return {}


def _width_of_heads(config: Any) -> dict[str, int]:
    """The width of a head as a field of its own, where the config derives it from the number of heads."""
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if getattr(config, "head_dim", None) is None and isinstance(width, int) and isinstance(heads, int):
        return {"head_dim": width // heads}
    return {}


def _values(model: nn.Module, config: Any, field: str, shapes: Shapes, base: Mapping[str, int]) -> set[float]:
    """The values of a field that the sizes of the model ask for, given others; none if the field decides no size."""
    if not hasattr(config, field):
        return set()
    low = getattr(config, field) or PROBE
    one, two = (_built(model, config, {**base, field: value}) for value in (low, 2 * low))
    if not one.keys() == two.keys() == shapes.keys():
        return set()
    values = set()
    for name, shape in shapes.items():
        for size, first, second in zip(shape, one[name], two[name], strict=True):
            if first != second:
                values.add(low + (size - first) * low / (second - first))
    return values


def _of(shapes: Shapes, name: str) -> str:
    return f"the shape {tuple(shapes[name])}" if name in shapes else "nothing of this name"
