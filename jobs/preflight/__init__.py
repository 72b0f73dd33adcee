"""The check before a job of several processes begins: unfit nodes are found, named, recorded and avoided.

`preflight.py` runs it, and `node_checks.py` says what a node must fulfil.
"""
