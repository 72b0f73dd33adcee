"""The network: what SmolLM2 computes (`transformer`), its loss (`linear_cross_entropy`), and how it is built (`build`).

Every module here imports torch, so the package imports none of them.
"""
