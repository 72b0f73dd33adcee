"""What safety costs: a model's capability, by tasks of EleutherAI's lm_eval, both published and from a local folder."""
