"""Text to tokens: tokenizers with the harmfulness tag, and shards of tokens in Megatron's format.

`tokenizer` makes and loads tokenizers, `chat` renders conversations, and `tokenize` writes the shards of a source.
"""

from curricula.curriculum.tokens.shards import Shard, TokenStream, read_manifest, source_shards, write_shard

__all__ = ["Shard", "TokenStream", "read_manifest", "source_shards", "write_shard"]
