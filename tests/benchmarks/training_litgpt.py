"""The peer's side of the training benchmark: LitGPT, trained as by its `pretrain` command, on the same weights and batches.

    bf16-true    parameters, gradients and moments in bfloat16
    bf16-mixed   all of them in float32, with computation under autocast: as the published model cards of the paper state

Needs torch, litgpt and safetensors; not this suite.
"""

from __future__ import annotations

from typing import Any

import torch
from training_measure import Step, measure


def litgpt_step(
    model: dict[str, Any], precision: str, micro_batch: int, tokens: str, weights: str, compiled: bool, **asked: Any
) -> dict[str, Any]:
    return measure(make_step(model, precision, micro_batch, weights, compiled), tokens, **asked)


def make_step(model: dict[str, Any], precision: str, micro_batch: int, weights: str, compiled: bool) -> Step:
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import chunked_cross_entropy
    from safetensors.torch import load_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = Config.from_name(
        "SmolLM2-1.7B",
        block_size=model["sequence_length"],
        n_layer=model["layers"],
        n_embd=model["hidden"],
        intermediate_size=model["ffn"],
        n_head=model["heads"],
        n_query_groups=model["kv_heads"],
        head_size=model["hidden"] // model["heads"],
        vocab_size=model["vocabulary"],
        padded_vocab_size=model["vocabulary"],
        rope_base=int(model["rope_base"]),
        norm_eps=model["rms_norm_eps"],
    )
    state: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, state, load_file(weights))
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    network = GPT(config)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    if model["tied"]:
        network.lm_head.weight = network.transformer.wte.weight
    network = network.to(device)
    if precision == "bf16-true":
        network = network.bfloat16()
    elif precision not in ("bf16-mixed", "32-true"):
        raise ValueError(f"precision {precision}: choose bf16-true, bf16-mixed or 32-true")
    parameters = list(network.parameters())
    run = torch.compile(network) if compiled else network
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.01, fused=True)

    def step(rows: torch.Tensor, lr: float) -> torch.Tensor:
        for group in optimizer.param_groups:
            group["lr"] = lr
        pieces = rows.split(micro_batch)
        total = torch.zeros((), device=device)
        for piece in pieces:
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = chunked_cross_entropy(run(piece[:, :-1]), piece[:, 1:]) / len(pieces)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step
