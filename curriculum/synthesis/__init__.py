"""Data synthesis: score web text for safety, or rewrite it into rephrasings, refusals and moral education.

A language model behind an OpenAI-compatible server does the work. `kinds` says what is asked about a document and how a reply
is read, `shard` how the work is divided, and `run` completes one shard:

    shard = SynthesisShard(settings, Path("scored"), "score", 0, documents)
    summary = run_shard(shard, endpoint, classifier=None)

`run` is not imported here: it brings the openai package, which takes a while to load.
"""

from curricula.curriculum.synthesis.kinds import KINDS as KINDS
from curricula.curriculum.synthesis.shard import SynthesisSettings as SynthesisSettings
from curricula.curriculum.synthesis.shard import SynthesisShard as SynthesisShard
from curricula.curriculum.synthesis.shard import open_dataset_input as open_dataset_input
from curricula.curriculum.synthesis.shard import open_table_input as open_table_input
