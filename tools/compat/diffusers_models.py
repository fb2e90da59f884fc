"""Models of diffusers at small configurations: U-Nets, autoencoders and diffusion transformers."""

from collections.abc import Callable
from typing import Any

from compat.inputs import all_true, full, normal, numbers, uniform

PACKAGE = "diffusers"
PRELOAD = ("compat.with_torchvision", "diffusers.models")

Row = tuple[dict[str, Any], Callable[[], dict[str, Any]]]  # settings of the model, and its inputs
CROSS = {
    "block_out_channels": (16, 32), "norm_num_groups": 4, "layers_per_block": 1, "cross_attention_dim": 16,
    "attention_head_dim": 4,
}  # fmt: skip
DOWN, UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
VAE = {
    "block_out_channels": (16, 32), "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
DIT = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}


def picture(channels: int, side: int = 16, **more: Any) -> dict[str, Any]:
    """A batch of two pictures, as `sample`."""
    return {"sample": normal(2, channels, side, side), **more}


def times() -> Any:
    """The timesteps of two examples."""
    return numbers(10, 500)


def text(width: int = 16, length: int = 6) -> Any:
    """Encoded captions of two examples."""
    return normal(2, length, width)


ROWS: dict[str, Row] = {
    "UNet2DModel": (
        {
            "sample_size": 16, "block_out_channels": (16, 32), "norm_num_groups": 4, "layers_per_block": 1,
            "attention_head_dim": 8, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        lambda: picture(3, timestep=times()),
    ),
    "UNet2DConditionModel": (
        {**CROSS, "sample_size": 16, "down_block_types": DOWN, "up_block_types": UP},
        lambda: picture(4, timestep=times(), encoder_hidden_states=text()),
    ),
    "UNet2DConditionModel:sdxl": (
        {
            **CROSS, "sample_size": 16, "down_block_types": DOWN, "up_block_types": UP, "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2), "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64,
        },
        lambda: picture(
            4, timestep=times(), encoder_hidden_states=text(),
            added_cond_kwargs={"text_embeds": normal(2, 16), "time_ids": uniform(2, 6)},
        ),
    ),
    "UNet3DConditionModel": (
        {
            **CROSS, "sample_size": 16, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
        lambda: {"sample": normal(2, 4, 3, 16, 16), "timestep": times(), "encoder_hidden_states": text()},
    ),
    "UNet1DModel": (
        {"sample_size": 64, "block_out_channels": (32, 32, 64), "in_channels": 2, "extra_in_channels": 64},
        lambda: {"sample": normal(2, 2, 64), "timestep": times()},
    ),
    "UNetSpatioTemporalConditionModel": (
        {
            "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16, "sample_size": 16,
            "num_attention_heads": (2, 4), "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24,
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), "num_frames": 2,
        },
        lambda: {
            "sample": normal(2, 2, 8, 16, 16), "timestep": times(), "encoder_hidden_states": text(length=1),
            "added_time_ids": uniform(2, 3),
        },
    ),
    "ControlNetModel": (
        {**CROSS, "down_block_types": DOWN, "conditioning_embedding_out_channels": (8, 16)},
        lambda: picture(4, timestep=times(), encoder_hidden_states=text(), controlnet_cond=normal(2, 3, 32, 32)),
    ),
    "StableCascadeUNet": (
        {
            "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32), "num_attention_heads": (2, 4),
            "conditioning_dim": 16, "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1),
            "clip_text_pooled_in_channels": 16, "timestep_ratio_embedding_dim": 8,
        },
        lambda: picture(4, timestep_ratio=uniform(2), clip_text_pooled=normal(2, 1, 16)),
    ),
    "AutoencoderKL": (VAE, lambda: picture(3)),
    "AsymmetricAutoencoderKL": (
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2, "down_block_out_channels": (16, 32),
            "up_block_types": ("UpDecoderBlock2D",) * 2, "up_block_out_channels": (16, 32), "norm_num_groups": 4,
        },
        lambda: picture(3),
    ),
    "AutoencoderTiny": (
        {
            "encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16),
            "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1),
        },
        lambda: picture(3),
    ),
    "VQModel": ({**VAE, "num_vq_embeddings": 16}, lambda: picture(3)),
    "AutoencoderDC": (
        {
            "latent_channels": 4, "attention_head_dim": 4, "encoder_block_out_channels": (16, 16),
            "decoder_block_out_channels": (16, 16), "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1), "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"), "encoder_qkv_multiscales": ((), (5,)),
            "decoder_qkv_multiscales": ((), (5,)),
        },
        lambda: picture(3),
    ),
    "AutoencoderOobleck": (
        {
            "encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "channel_multiples": [1, 2], "decoder_channels": 8,
            "decoder_input_channels": 4,
        },
        lambda: {"sample": normal(2, 2, 128)},
    ),
    "AutoencoderKLTemporalDecoder": (
        {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2},
        lambda: picture(3, num_frames=2),
    ),
    "AutoencoderKLCogVideoX": (
        {
            "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 2, "layers_per_block": 1, "latent_channels": 4,
            "sample_height": 16, "sample_width": 16,
        },
        lambda: {"sample": normal(1, 3, 5, 16, 16)},
    ),
    "AutoencoderKLWan": ({"base_dim": 4, "num_res_blocks": 1}, lambda: {"sample": normal(1, 3, 5, 16, 16)}),
    "AutoencoderKLLTXVideo": (
        {
            "latent_channels": 4, "block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5,
        },
        lambda: {"sample": normal(1, 3, 9, 32, 32)},
    ),
    "DiTTransformer2DModel": (
        {**DIT, "sample_size": 8, "num_embeds_ada_norm": 10},
        lambda: {"hidden_states": normal(2, 4, 8, 8), "timestep": times() % 10, "class_labels": numbers(1, 2)},
    ),
    "PixArtTransformer2DModel": (
        {**DIT, "sample_size": 8, "cross_attention_dim": 32, "caption_channels": 16},
        lambda: {
            "hidden_states": normal(2, 4, 8, 8), "timestep": times(), "encoder_hidden_states": text(),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    "PriorTransformer": (
        {**DIT, "embedding_dim": 16, "num_embeddings": 6},
        lambda: {
            "hidden_states": normal(2, 16), "timestep": times(), "proj_embedding": normal(2, 16),
            "encoder_hidden_states": text(),
        },
    ),
    "SD3Transformer2DModel": (
        {
            **DIT, "sample_size": 8, "in_channels": 4, "out_channels": 4, "joint_attention_dim": 16,
            "caption_projection_dim": 32, "pooled_projection_dim": 16, "pos_embed_max_size": 8, "qk_norm": "rms_norm",
            "dual_attention_layers": (0,),
        },
        lambda: {
            "hidden_states": normal(2, 4, 8, 8), "encoder_hidden_states": text(), "pooled_projections": normal(2, 16),
            "timestep": times(),
        },
    ),
    "FluxTransformer2DModel": (
        {
            **DIT, "num_single_layers": 2, "in_channels": 16, "joint_attention_dim": 16, "pooled_projection_dim": 16,
            "axes_dims_rope": (4, 2, 2),
        },
        lambda: {
            "hidden_states": normal(2, 9, 16), "encoder_hidden_states": text(), "pooled_projections": normal(2, 16),
            "timestep": uniform(2), "img_ids": uniform(9, 3), "txt_ids": full(0, 6, 3),
        },
    ),
    "Flux2Transformer2DModel": (
        {
            **DIT, "num_single_layers": 2, "in_channels": 16, "joint_attention_dim": 16, "axes_dims_rope": (2, 2, 2, 2),
            "timestep_guidance_channels": 8,
        },
        lambda: {
            "hidden_states": normal(2, 9, 16), "encoder_hidden_states": text(), "timestep": uniform(2),
            "guidance": full(1, 2), "img_ids": uniform(9, 4), "txt_ids": full(0, 6, 4),
        },
    ),
    "ChromaTransformer2DModel": (
        {
            **DIT, "num_single_layers": 2, "in_channels": 16, "joint_attention_dim": 16, "axes_dims_rope": (4, 2, 2),
            "approximator_num_channels": 16, "approximator_hidden_dim": 32, "approximator_layers": 1,
        },
        lambda: {
            "hidden_states": normal(2, 9, 16), "encoder_hidden_states": text(), "timestep": uniform(2),
            "img_ids": uniform(9, 3), "txt_ids": full(0, 6, 3),
        },
    ),
    "AuraFlowTransformer2DModel": (
        {
            "sample_size": 8, "num_mmdit_layers": 1, "num_single_dit_layers": 1, "attention_head_dim": 8,
            "num_attention_heads": 4, "joint_attention_dim": 16, "caption_projection_dim": 32, "pos_embed_max_size": 64,
        },
        lambda: {"hidden_states": normal(2, 4, 8, 8), "encoder_hidden_states": text(), "timestep": uniform(2)},
    ),
    "Lumina2Transformer2DModel": (
        {
            "sample_size": 8, "in_channels": 4, "hidden_size": 32, "num_layers": 2, "num_refiner_layers": 1,
            "num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 8, "axes_dim_rope": (4, 2, 2),
            "axes_lens": (32, 32, 32), "cap_feat_dim": 16,
        },
        lambda: {
            "hidden_states": normal(2, 4, 8, 8), "timestep": uniform(2), "encoder_hidden_states": text(),
            "encoder_attention_mask": all_true(2, 6),
        },
    ),
    "CogVideoXTransformer3DModel": (
        {
            **DIT, "in_channels": 4, "out_channels": 4, "text_embed_dim": 16, "time_embed_dim": 8, "sample_width": 8,
            "sample_height": 8, "sample_frames": 9, "max_text_seq_length": 6,
        },
        lambda: {"hidden_states": normal(1, 3, 4, 8, 8), "encoder_hidden_states": normal(1, 6, 16),
                 "timestep": numbers(10)},
    ),
    "CogView4Transformer2DModel": (
        {
            **DIT, "in_channels": 4, "out_channels": 4, "text_embed_dim": 16, "time_embed_dim": 8, "condition_dim": 4,
            "pos_embed_max_size": 8, "sample_size": 8, "rope_axes_dim": (8, 8),
        },
        lambda: {
            "hidden_states": normal(2, 4, 8, 8), "encoder_hidden_states": text(), "timestep": times(),
            "original_size": numbers([64, 64], [64, 64]), "target_size": numbers([64, 64], [64, 64]),
            "crop_coords": numbers([0, 0], [0, 0]),
        },
    ),
    "LTXVideoTransformer3DModel": (
        {**DIT, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 16},
        lambda: {
            "hidden_states": normal(2, 8, 8), "encoder_hidden_states": text(), "timestep": uniform(2, 8),
            "encoder_attention_mask": all_true(2, 6), "num_frames": 2, "height": 2, "width": 2,
        },
    ),
    "SanaTransformer2DModel": (
        {
            **DIT, "in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 4, "cross_attention_head_dim": 8,
            "cross_attention_dim": 32, "caption_channels": 16, "sample_size": 8,
        },
        lambda: {"hidden_states": normal(2, 4, 8, 8), "encoder_hidden_states": text(), "timestep": times()},
    ),
    "MochiTransformer3DModel": (
        {**DIT, "pooled_projection_dim": 16, "in_channels": 4, "text_embed_dim": 16, "time_embed_dim": 8},
        lambda: {
            "hidden_states": normal(2, 4, 2, 8, 8), "encoder_hidden_states": text(), "timestep": times(),
            "encoder_attention_mask": all_true(2, 6),
        },
    ),
    "WanTransformer3DModel": (
        {
            "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "in_channels": 4, "out_channels": 4,
            "text_dim": 16, "freq_dim": 8, "ffn_dim": 32,
        },
        lambda: {"hidden_states": normal(2, 4, 2, 8, 8), "timestep": times(), "encoder_hidden_states": text()},
    ),
    "QwenImageTransformer2DModel": (
        {**DIT, "in_channels": 16, "out_channels": 4, "joint_attention_dim": 16, "axes_dims_rope": (4, 2, 2)},
        lambda: {
            "hidden_states": normal(2, 16, 16), "encoder_hidden_states": text(), "timestep": uniform(2),
            "img_shapes": [[(1, 4, 4)]] * 2, "encoder_hidden_states_mask": all_true(2, 6),
        },
    ),
    "AllegroTransformer3DModel": (
        {
            **DIT, "attention_head_dim": 12, "cross_attention_dim": 48, "caption_channels": 16, "sample_height": 8,
            "sample_width": 8, "sample_frames": 2,
        },
        lambda: {"hidden_states": normal(1, 4, 2, 8, 8), "timestep": numbers(10),
                 "encoder_hidden_states": normal(1, 6, 16), "image_rotary_emb": None},
    ),
    "LatteTransformer3DModel": (
        {
            **DIT, "in_channels": 4, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 16,
            "sample_size": 8, "patch_size": 2, "norm_type": "ada_norm_single", "num_embeds_ada_norm": 10,
            "norm_elementwise_affine": False, "video_length": 2, "attention_bias": True,
        },
        lambda: {"hidden_states": normal(2, 4, 2, 8, 8), "timestep": times(), "encoder_hidden_states": text()},
    ),
    "ZImageTransformer2DModel": (
        {
            "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 4, "n_kv_heads": 4,
            "cap_feat_dim": 16, "axes_dims": [4, 2, 2], "axes_lens": [64, 32, 32],
        },
        lambda: {
            "x": [normal(4, 1, 8, 8) for _ in range(2)], "t": uniform(2), "cap_feats": list(text()),
        },
    ),
    "HunyuanDiT2DModel": (
        {
            **DIT, "in_channels": 4, "patch_size": 2, "sample_size": 8, "hidden_size": 32, "cross_attention_dim": 16,
            "cross_attention_dim_t5": 16, "pooled_projection_dim": 16, "text_len": 6, "text_len_t5": 6,
            "use_style_cond_and_image_meta_size": False,
        },
        lambda: {
            "hidden_states": normal(2, 4, 8, 8), "timestep": times().float(), "encoder_hidden_states": text(),
            "text_embedding_mask": full(1, 2, 6), "encoder_hidden_states_t5": text(),
            "text_embedding_mask_t5": full(1, 2, 6), "image_meta_size": None, "style": None,
            "image_rotary_emb": (uniform(16, 8), uniform(16, 8)),
        },
    ),
    "StableAudioDiTModel": (
        {
            **DIT, "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_key_value_attention_heads": 2,
            "cross_attention_dim": 32, "time_proj_dim": 16, "global_states_input_dim": 16,
            "cross_attention_input_dim": 16,
        },
        lambda: {
            "hidden_states": normal(2, 4, 8), "timestep": uniform(2), "encoder_hidden_states": text(),
            "global_hidden_states": normal(2, 1, 16), "rotary_embedding": (uniform(9, 4), uniform(9, 4)),
        },
    ),
    "HunyuanVideoTransformer3DModel": (
        {
            **DIT, "in_channels": 4, "out_channels": 4, "num_single_layers": 1, "num_refiner_layers": 1,
            "text_embed_dim": 16, "pooled_projection_dim": 16, "rope_axes_dim": (4, 2, 2), "patch_size": 2,
        },
        lambda: {
            "hidden_states": normal(2, 4, 2, 8, 8), "timestep": times(), "encoder_hidden_states": text(),
            "encoder_attention_mask": full(1, 2, 6), "pooled_projections": normal(2, 16),
            "guidance": full(1, 2),
        },
    ),
    "T2IAdapter": (
        {"channels": [16, 32], "num_res_blocks": 1, "downscale_factor": 4},
        lambda: {"x": normal(2, 3, 16, 16)},
    ),
}  # fmt: skip


def names() -> list[tuple[str, str]]:
    """Family and name of every model; variants follow a colon."""
    return [(name.partition(":")[0], name) for name in ROWS]


def build(name: str) -> tuple[Any, Any]:
    """The model at its small size with random weights, and its inputs by name."""
    from compat.stubs import load_torchvision

    load_torchvision()
    import diffusers.models
    import torch

    torch.manual_seed(0)
    settings, inputs = ROWS[name]
    model = getattr(diffusers.models, name.partition(":")[0])(**settings)
    return model.eval(), inputs()
