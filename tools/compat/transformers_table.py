"""Which architectures of transformers are built, and the sizes that make each of them tiny."""

from typing import Any

# One line per kind of task, one model type per architecture; `type:kind` is a second head on a type that is listed.
FAMILIES = {
    "causal": (
        "gpt2 llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 falcon mixtral gpt_neox gptj opt "
        "bloom mpt olmo olmo2 stablelm mamba mamba2 qwen2_moe qwen3_moe olmoe gpt_neo gpt_bigcode starcoder2 "
        "cohere cohere2 granite granitemoe glm glm4 nemotron codegen biogpt xglm persimmon smollm3 ministral "
        "exaone4 helium hunyuan_v1_dense arcee seed_oss apertus bitnet diffllama doge phimoe jetmoe rwkv "
        "openai-gpt ctrl gpt_oss deepseek_v2 deepseek_v3 falcon_mamba falcon_h1 lfm2 modernbert-decoder "
        "nemotron_h recurrent_gemma bamba jamba qwen3_next qwen3_5_text gemma3n_text gemma4_text olmo3 "
        "olmo_hybrid ernie4_5 ernie4_5_moe glm4_moe dots1 flex_olmo minimax minimax_m2 minicpm3 llama4_text "
        "longcat_flash granitemoeshared granitemoehybrid gpt_neox_japanese internlm3 hyperclovax exaone jais2 "
        "nanochat vaultgemma solar_open hunyuan_v1_moe kimi_linear bailing_hybrid youtu trocr cpmant afmoe "
        "laguna mimo_v2_flash lfm2_moe axk1 exaone_moe cohere2_moe hy_v3 mellum iquestcoder"
    ),
    "masked": (
        "bert roberta distilbert albert electra deberta deberta-v2 modernbert mpnet xlm-roberta camembert "
        "ernie squeezebert mobilebert fnet longformer big_bird roformer convbert nystromformer esm rembert "
        "xlm flaubert ibert megatron-bert data2vec-text roberta-prelayernorm xmod yoso mra nomic_bert "
        "eurobert gte jina_embeddings_v3 layoutlm tapas funnel xlm-roberta-xl roc_bert reformer esmc "
        "ultrabert perceiver"
    ),
    "seq2seq": (
        "t5 bart mbart pegasus marian mt5 led longt5 m2m_100 blenderbot blenderbot-small bigbird_pegasus "
        "prophetnet plbart mvp switch_transformers umt5 fsmt nllb-moe t5gemma pegasus_x seamless_m4t "
        "encoder-decoder"
    ),
    "image": (
        "vit deit beit swin convnext convnextv2 dinov2 resnet segformer mobilevit mobilevitv2 swinv2 "
        "dinov2_with_registers data2vec-vision poolformer regnet efficientnet mobilenet_v1 mobilenet_v2 levit "
        "cvt pvt pvt_v2 focalnet hiera swiftformer vit_msn bit hgnet_v2 ijepa siglip clip textnet pp_lcnet "
        "donut-swin timm_wrapper"
    ),
    "segmentation": "segformer:segmentation beit:segmentation mobilevit:segmentation upernet",
    "universal": "maskformer mask2former",
    "detection": "detr yolos conditional_detr rt_detr table-transformer deformable_detr",
    "depth": "dpt glpn depth_anything",
    "video": "videomae timesformer vivit vjepa2",
    "speech": (
        "wav2vec2 hubert wavlm data2vec-audio sew sew-d unispeech unispeech-sat wav2vec2-conformer "
        "wav2vec2-bert parakeet_ctc"
    ),
    "spectrogram": "audio-spectrogram-transformer",
    "speech2text": "whisper speech_to_text moonshine",
    "contrastive": "clip:contrastive siglip:contrastive chinese_clip metaclip_2 altclip groupvit clipseg",
    "series": "patchtst patchtsmixer",
    "dense": "vit:dense clip_vision_model siglip_vision_model dinov3_vit dinov3_convnext vitdet swin2sr vit_mae",
    "sequence": "bert:sequence gpt2:sequence llama:sequence deberta-v2:sequence xlnet canine qwen2:sequence",
    "tokens": "bert:tokens",
}

# `MODEL_FOR_..._MAPPING_NAMES` of the auto classes names the class for a type.
TASKS = {
    "causal": "FOR_CAUSAL_LM", "masked": "FOR_MASKED_LM", "seq2seq": "FOR_SEQ_TO_SEQ_CAUSAL_LM",
    "image": "FOR_IMAGE_CLASSIFICATION", "segmentation": "FOR_SEMANTIC_SEGMENTATION",
    "universal": "FOR_UNIVERSAL_SEGMENTATION",
    "detection": "FOR_OBJECT_DETECTION", "depth": "FOR_DEPTH_ESTIMATION", "video": "FOR_VIDEO_CLASSIFICATION",
    "speech": "FOR_CTC",
    "spectrogram": "FOR_AUDIO_CLASSIFICATION", "speech2text": "FOR_SPEECH_SEQ_2_SEQ",
    "series": "FOR_TIME_SERIES_CLASSIFICATION",
    "sequence": "FOR_SEQUENCE_CLASSIFICATION", "tokens": "FOR_TOKEN_CLASSIFICATION",
}  # fmt: skip

TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 96, "type_vocab_size": 2,
    "embedding_size": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "ffn_dim": 48, "ffn_hidden_size": 48, "d_ff": 48, "d_kv": 8,
    "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48,
    "n_positions": 96, "n_ctx": 96, "rotary_dim": 4, "num_experts": 6, "num_local_experts": 6, "n_routed_experts": 6,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "image_size": 32, "patch_size": 8, "projection_dim": 24,
}  # fmt: skip

_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "qk_head_dim": 12,
    "head_dim": 4, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_BACKBONE = {
    "model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1],
    "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
_SWIN = {
    "embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [2, 2, 4, 4], "window_size": 4, "patch_size": 4,
        "image_size": 128,
    "hidden_size": 128,
}  # fmt: skip
_STAGES = {
    "num_hidden_layers": ...,
    "hidden_size": ...,
    "hidden_sizes": [16, 24, 32, 40],
    "depths": [1, 1, 2, 1],
    "image_size": 64,
    "patch_size": 4,
}
_DETR = {"backbone_config": _BACKBONE | {"out_features": ["stage4"]}, "num_queries": 10}
_DINO = {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "image_size": 56,
         "patch_size": 14, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False,
         "apply_layernorm": True}  # fmt: skip
_MIXED = ["linear_attention", "full_attention"]

OVERRIDES: dict[str, dict[str, Any]] = {
    "falcon": {"head_dim": ...},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 12, "n_groups": 2, "chunk_size": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "deepseek_v2": _LATENT | {"first_k_dense_replace": 1},
    "deepseek_v3": _LATENT | {"first_k_dense_replace": 1},
    "minicpm3": _LATENT,
    "longcat_flash": _LATENT | {"num_layers": 2},
    "youtu": _LATENT,
    "axk1": _LATENT | {"first_k_dense_replace": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 32, "attention_window_size": 8},
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 12,
        "mamba_chunk_size": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "qwen3_next": {"layer_types": _MIXED, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
                   "linear_value_head_dim": 8, "shared_expert_intermediate_size": 24},
    "qwen3_5_text": {"layer_types": _MIXED, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
                     "linear_value_head_dim": 8},
    "gemma3n_text": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 12, "vocab_size_per_layer_input": 64,
                     "laurel_rank": 8, "altup_num_inputs": 2, "layer_types": ["sliding_attention", "full_attention"],
                     "activation_sparsity_pattern": [0.0, 0.0]},
    "gemma4_text": {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 12},
    "dots1": {"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8,
        "mamba_d_state": 12},
    "kimi_linear": _LATENT | {"layer_types": _MIXED},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "xmod": {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"},
    "funnel": {"block_sizes": [1, 1], "num_hidden_layers": ..., "d_head": 8, "d_inner": 48},
    "esmc": {"num_key_value_heads": 4},
    "prophetnet": {"num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
                   "num_decoder_attention_heads": 4, "num_hidden_layers": ...},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "hidden_size": 32},
    "swin": _SWIN, "swinv2": _SWIN, "donut-swin": _SWIN,
    "swin2sr": {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 1,
        "image_size": 16,
                "hidden_size": ...},
    "convnext": _STAGES, "convnextv2": _STAGES, "dinov3_convnext": _STAGES,
    "hiera": {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "image_size": [64, 64],
        "hidden_size": 128},
    "efficientnet": {"width_coefficient": 0.35, "depth_coefficient": 0.35, "hidden_dim": 448, "image_size": 64},
    "mobilevitv2": {"image_size": 64, "patch_size": 2},
    "mobilevit": {"image_size": 64, "patch_size": 2},
    "levit": {"image_size": 64, "patch_size": 16, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4],
              "depths": [1, 1, 1], "key_dim": [8, 8, 8]},
    "resnet": {"embedding_size": 16, "hidden_sizes": [32, 48, 64, 80], "depths": [1, 1, 2, 1], "image_size": 64},
    "regnet": {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "groups_width": 8},
    "bit": {"num_groups": 4, "embedding_size": 32, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1]},
    "focalnet": {"embed_dim": 16, "depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 64, 128], "image_size": 64,
        "patch_size": 4},
    "poolformer": _STAGES | {"image_size": 64},
    "clip": {"projection_dim": 24},
    "siglip": {}, "timm_wrapper": {"architecture": "resnet18"},
    "beit:segmentation": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
    "upernet": {"backbone_config": _BACKBONE | {"out_features": ["stage1", "stage2", "stage3", "stage4"]},
        "hidden_size": 32,
                "auxiliary_in_channels": 32, "auxiliary_channels": 16},
    "maskformer": {"num_hidden_layers": ..., "num_attention_heads": ..., "fpn_feature_size": 32,
        "mask_feature_size": 32, "backbone_config": _SWIN | {"model_type": "swin",
                   "out_features": ["stage1", "stage2", "stage3", "stage4"]}},
    "mask2former": {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_layers": 1,
        "decoder_layers": 2,
                    "dim_feedforward": 48, "num_queries": 10, "backbone_config": _SWIN | {"model_type": "swin",
                    "out_features": ["stage1", "stage2", "stage3", "stage4"]}},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_blocks": 1, "num_self_attends_per_block": 2,
                  "num_self_attention_heads": 4, "num_cross_attention_heads": 4, "qk_channels": 32, "v_channels": 32},
    "detr": _DETR, "conditional_detr": _DETR, "table-transformer": _DETR,
    "deformable_detr": _DETR | {"backbone_config": _BACKBONE, "num_feature_levels": 4},
    "rt_detr": {"backbone_config": _BACKBONE | {"model_type": "rt_detr_resnet"}, "encoder_hidden_dim": 32,
                "encoder_in_channels": [24, 32, 40], "decoder_in_channels": [32, 32, 32], "num_queries": 10,
                "num_denoising": 0,
                "image_size": 64},
    "yolos": {"image_size": [32, 32], "num_detection_tokens": 10},
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 24, 32, 40],
            "fusion_hidden_size": 32, "is_hybrid": False},
    "depth_anything": {"backbone_config": _DINO, "neck_hidden_sizes": [16, 24, 32, 40], "fusion_hidden_size": 32,
                       "reassemble_hidden_size": 32, "patch_size": 14},
    "wav2vec2-bert": {"feature_projection_input_dim": 24},
    "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 32, "patch_size": 16},
    "whisper": {"num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 40},
    "speech_to_text": {"input_feat_per_channel": 16, "conv_channels": 24, "max_source_positions": 64,
        "max_target_positions": 40},
    "moonshine": {"encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4,
                  "decoder_num_attention_heads": 4},
    "vitdet": {"image_size": 32, "pretrain_image_size": 32},
    "reformer": {"axial_pos_embds_dim": [12, 20], "axial_pos_shape": [4, 4], "attention_head_size": 8,
        "lsh_attn_chunk_length": 8,
                 "local_attn_chunk_length": 8, "num_buckets": 2, "num_hidden_layers": ..., "attn_layers": ["local",
                 "lsh"]},
    "bailing_hybrid": _LATENT | {"layer_types": _MIXED},
    "xlnet": {"max_position_embeddings": ..., "d_inner": 48},
    **{name: {"conv_dim": [16] * 7} for name in ("hubert", "wavlm", "unispeech", "unispeech-sat",
    "wav2vec2-conformer")},
    "wav2vec2": {"conv_dim": [16] * 7},
    "data2vec-audio": {"conv_dim": [16] * 7},
}  # fmt: skip

# Inputs that are neither token ids nor pictures of the configured size: keyword -> shape.
INPUTS: dict[str, dict[str, tuple[int, ...]]] = {
    "wav2vec2-bert": {"input_features": (2, 40, 24)},
    "parakeet_ctc": {"input_features": (2, 64, 80)},
    "audio-spectrogram-transformer": {"input_values": (2, 64, 32)},
    "whisper": {"input_features": (2, 16, 64)},
    "speech_to_text": {"input_features": (2, 40, 16)},
    "moonshine": {"input_values": (2, 4000)},
    "vjepa2": {"pixel_values_videos": (2, 16, 3, 32, 32)},
}
