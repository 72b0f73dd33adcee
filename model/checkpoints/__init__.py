"""Checkpoints: their folder (`folder`), what they hold and how it is read, as data (`checkpoint`), and saving them in the
background (`writer`).

Only `folder` needs no torch.
"""
