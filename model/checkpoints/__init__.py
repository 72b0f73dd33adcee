"""Checkpoints: their folder (`folder`), their contents (`checkpoint`), reading these as data (`read_as_data`), and saving them
in the background (`writer`).

Only `folder` needs no torch.
"""
