"""The check before a job of several processes begins: unfit nodes are found, named, recorded and avoided.

`preflight.py` runs it, `node_checks.py` says what a node must fulfil, `rendezvous.py` finds missing processes, and
`bad_nodes.py` keeps the record of nodes that failed.
"""
