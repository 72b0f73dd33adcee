"""What the model reads and when: corpora, tokenised shards, the token plan and the blender that follows it."""
