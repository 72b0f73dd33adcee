"""Text to tokens: tokenizers with the harmfulness tag, and shards of tokens in Megatron's format.

`tokenizer` makes and loads tokenizers, `chat` renders conversations, and `tokenize` writes the shards of a source.
"""
