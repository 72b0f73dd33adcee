"""The command line: `main.py` describes the verbs, and each other module carries out one verb or a few that belong together.

This file imports nothing, and a verb's module is imported only when the verb is called, so that help and errors come at once.
"""
