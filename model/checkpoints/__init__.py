"""Checkpoints: their folder (`folder`), their contents and how these are read as data (`checkpoint`), and saving them in the
background (`writer`).

Only `folder` needs no torch.
"""
