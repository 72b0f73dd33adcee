"""The network: what SmolLM2 computes (`transformer`), its loss (`linear_cross_entropy`), and how both are built (`build`).

Every module here imports torch, so none is imported with the package.
"""
