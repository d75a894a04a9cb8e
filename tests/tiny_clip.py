"""The config of a tiny text encoder of CLIP."""

from transformers import CLIPTextConfig, CLIPTokenizer


def clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """Two layers of 16 channels, for the words of a tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
