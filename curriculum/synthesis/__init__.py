"""Data synthesis: score web text for safety, or rewrite it into rephrasings, refusals and moral education.

A language model behind an OpenAI-compatible server does the work. `kinds` says what is asked about a document and how a reply
is read, `shard` how the work is divided, and `run` completes one shard:

    shard = SynthesisShard(settings, Path("scored"), "score", 0, documents)
    summary = run_shard(shard, endpoint, classifier=None)
"""
