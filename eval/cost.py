"""What an evaluation costs on one GPU, for plans: estimates from counts of tokens, not measurements.

Reading and scoring text takes its FLOPs at `READING` of the GPU's peak. Generating takes steps: each reads the weights once and
costs at least `STEP_S`, what launching a model's kernels from Python takes. The model, its forward pass and its prompts are
those of transformers; vLLM is several times faster at top-k.
"""

from __future__ import annotations

from curricula.eval.benchmarks import BENCHMARKS
from curricula.eval.capability.settings import PUBLISHED
from curricula.eval.config import EvalConfig
from curricula.eval.tasks import EvalTask

READING = 0.3
"""Share of the peak that a forward pass over whole texts reaches."""
STEP_S = 0.03
"""Seconds of one step of generation, at least."""
BYTES_PER_S = 1.7e12
"""At which weights are read: half of an H100's memory bandwidth."""
PROMPT_TOKENS = 60
GCG_TOKENS = 16
"""Of a GCG candidate, after what it shares with the present suffix."""
PROBE_TOKENS = 4 * 1_000 * 400
"""Training and test texts of the probes."""
UNKNOWN_PROMPTS = 500
"""Where the size of a set is not known before it is read."""


def task_gpu_hours(task: EvalTask, config: EvalConfig, parameters: int, peak_tflops: float) -> float:
    """GPU-hours of one element, for a model of `parameters`."""

    def reading(tokens: float) -> float:
        return 2 * parameters * tokens / (peak_tflops * 1e12 * READING)

    def generating(answers: float, rows: float, steps: float) -> float:
        return -(-answers // rows) * steps * max(STEP_S, 2 * parameters / BYTES_PER_S)

    kind = task.task.kind
    if kind == "probes":
        return reading(PROBE_TOKENS) / 3600
    if kind == "capability" and config.capability:
        known = PUBLISHED.get(task.benchmark)
        if known is None:
            return reading(UNKNOWN_PROMPTS * 4 * PROMPT_TOKENS) / 3600
        questions = min(known.questions, config.capability.limit or known.questions)
        seconds = reading(questions * known.requests * known.prompt_tokens)
        if known.answer_tokens:
            seconds += generating(questions, config.capability.batch, known.answer_tokens)
        return seconds / 3600
    entry = BENCHMARKS.get(task.benchmark)
    prompts = (entry.rows if entry else UNKNOWN_PROMPTS) if task.limit is None else task.limit
    prompts = min(prompts, entry.rows if entry else prompts) / task.shards
    seconds = 0.0
    for settings in config.decoder_settings(task.task):
        beams = getattr(settings, "candidates", 1)
        answers = prompts * getattr(settings, "samples", 1) * beams
        seconds += reading(prompts * PROMPT_TOKENS)
        seconds += generating(answers, getattr(settings, "rows", 64), getattr(settings, "max_new_tokens", 256))
    if kind == "gcg" and config.gcg:
        seconds += prompts * config.gcg.steps * (reading(config.gcg.search_width * GCG_TOKENS) + 2 * STEP_S)
    return seconds / 3600
