"""`unfuse` and `fuse`: replace every `nn.MultiheadAttention` of a model by plain linear layers, and back."""

import warnings
from collections.abc import Callable

from torch import nn

from npn.errors import ConfigurationError
from npn.modules.attention import UnfusedAttention


def unfuse(model: nn.Module) -> nn.Module:
    r"""Replace every `nn.MultiheadAttention` by an equal module in plain linear layers, whose heads come and go.

    $$\mathrm{out}(x) = \sum_h W^o_h \,\mathrm{softmax}\!\left(\tfrac{1}{\sqrt d}\, q_h k_h^\top\right) v_h,
    \qquad q_h = W^q_h x_q,\; k_h = W^k_h x_k,\; v_h = W^v_h x_v$$

    `nn.MultiheadAttention` fixes the number of heads in its own code. The replacement takes every argument of it and
    returns the same, up to rounding, with the same dropout after the same seed; d is fixed, and heads are counted from
    the shapes. Call it before `npn.attach`, and make optimizers afterwards: the projections are new parameters (one
    `in_proj_weight` becomes `q_proj.weight`, `k_proj.weight`, `v_proj.weight`); all others are the same objects, so an
    optimizer made before keeps what it has for them.

    A `state_dict` with the keys of `nn.MultiheadAttention` still loads. torch's fused inference kernel, which reads
    fused weights, is not used; at padded positions an `nn.TransformerEncoder` then returns in eval mode what it
    returns in train mode, not zeros. Subclasses that have a `forward` of their own are left alone.

    Args:
        model: any module, changed in place.

    Returns:
        The model; the replacement if the model itself is a `nn.MultiheadAttention`.

    Raises:
        ConfigurationError: an attention computes its weights from others (weight norm, pruning); nothing has changed.

    Example:
        >>> import npn, torch
        >>> from torch import nn
        >>> model = npn.unfuse(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True))
        >>> plastic = npn.attach(model, torch.zeros(2, 5, 16))
        >>> {group.name: group.size for group in plastic.groups}
        {'self_attn.q_proj': 4, 'linear1': 32}
        >>> plastic.close("self_attn.q_proj", [1, 3])
        >>> plastic.compact().changes
        {'self_attn.q_proj': (4, 2)}
        >>> model.self_attn
        UnfusedAttention(
          heads=2, head_dim=4, batch_first=True
          (q_proj): Linear(in_features=16, out_features=8, bias=True)
          (k_proj): Linear(in_features=16, out_features=8, bias=True)
          (v_proj): Linear(in_features=16, out_features=8, bias=True)
          (out_proj): Linear(in_features=8, out_features=16, bias=True)
        )

    References:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.2.2.
    """
    fused = {path: module for path, module in model.named_modules() if _is_fused(module)}
    for path, module in fused.items():
        own = dict(module.named_parameters())
        if "out_proj.weight" not in own or not {"in_proj_weight", "q_proj_weight"} & set(own):
            raise ConfigurationError(
                f"{path or 'the model'} has weights that are computed, expected plain parameters; remove weight_norm, "
                "pruning and other parametrizations from it first. Nothing has changed"
            )
    model = _replaced(model, _is_fused, UnfusedAttention)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and _first_attention(module) is not None:
            module.use_nested_tensor = False  # else it hands nested tensors to the kernel that reads fused weights
    return model


def fuse(model: nn.Module) -> nn.Module:
    """Undo `npn.unfuse`: plain `nn.MultiheadAttention` again, which needs no npn.

    Args:
        model: any module, changed in place; `copy.deepcopy(model)` keeps it.

    Returns:
        The model; its `state_dict` has the keys of before `npn.unfuse`.

    Raises:
        ConfigurationError: an attention has lost or gained heads, for which `nn.MultiheadAttention` has no form;
            nothing has changed.

    Example:
        >>> import npn, torch
        >>> model = npn.unfuse(torch.nn.MultiheadAttention(8, 2))
        >>> list(npn.fuse(model).state_dict())
        ['in_proj_weight', 'in_proj_bias', 'out_proj.weight', 'out_proj.bias']
    """
    made: dict[nn.Module, nn.Module] = {}
    for path, module in model.named_modules():
        if isinstance(module, UnfusedAttention):
            try:
                made[module] = module.fused()
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"{path or 'the model'} cannot be a nn.MultiheadAttention: {error}. Keep the model as it is, or "
                    "export it: plastic.export(path) writes ONNX and pt2. Nothing has changed"
                ) from None
    model = _replaced(model, lambda module: module in made, made.__getitem__)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and isinstance(module.layers[0], nn.TransformerEncoderLayer):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says why it does not use nested tensors
                asked = nn.TransformerEncoder(module.layers[0], 0, enable_nested_tensor=module.enable_nested_tensor)
            module.use_nested_tensor = asked.use_nested_tensor
    return model


def _is_fused(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward


def _first_attention(encoder: nn.TransformerEncoder) -> UnfusedAttention | None:
    found = (m for layer in encoder.layers for m in layer.modules() if isinstance(m, UnfusedAttention))
    return next(found, None)


def _replaced(model: nn.Module, chosen: Callable[[nn.Module], bool], make: Callable[..., nn.Module]) -> nn.Module:
    """Replace modules wherever they are, one that is in several places by one and the same."""
    new: dict[nn.Module, nn.Module] = {}
    if chosen(model):
        return make(model)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and chosen(child):
                if child not in new:
                    new[child] = make(child)
                parent._modules[name] = new[child]
    return model
