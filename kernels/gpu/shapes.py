"""Sizes of published models, for which every variant is compiled and checked ahead of time.

Source: the config.json of each model on the Hugging Face hub.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the kernels of one model depend on."""

    name: str
    width: int
    ffn_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    has_qk_norm: bool = False

    @property
    def groups(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(in_features, out_features of its sites) of qkv, o, gate_up, down and the unembedding."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return (
            (self.width, (q, kv, kv)),
            (q, (self.width,)),
            (self.width, (self.ffn_width, self.ffn_width)),
            (self.ffn_width, (self.width,)),
            (self.width, (self.vocab_size,)),
        )


PUBLISHED = (
    ModelShape("Qwen3-0.6B", 1024, 3072, 16, 8, 128, 151936, True),
    ModelShape("Llama-3.2-1B", 2048, 8192, 32, 8, 64, 128256),
    ModelShape("Qwen3-1.7B", 2048, 6144, 16, 8, 128, 151936, True),
    ModelShape("Llama-3.2-3B", 3072, 8192, 24, 8, 128, 128256),
    ModelShape("Qwen3-4B", 2560, 9728, 32, 8, 128, 151936, True),
    ModelShape("Qwen2.5-7B", 3584, 18944, 28, 4, 128, 152064),
    ModelShape("Mistral-7B", 4096, 14336, 32, 8, 128, 32768),
    ModelShape("Llama-3.1-8B", 4096, 14336, 32, 8, 128, 128256),
    ModelShape("Qwen3-8B", 4096, 12288, 32, 8, 128, 151936, True),
    ModelShape("Qwen3-14B", 5120, 17408, 40, 8, 128, 151936, True),
    ModelShape("Qwen3-32B", 5120, 25600, 64, 8, 128, 151936, True),
    ModelShape("Llama-3.1-70B", 8192, 28672, 64, 8, 128, 128256),
)
