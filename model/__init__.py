"""SmolLM2 on Megatron-core: configuration, training, distributed checkpoints, conversion to and from Hugging Face."""
