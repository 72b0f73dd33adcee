"""The command line: `main.py` describes the verbs, and each other module carries out one verb or a few that belong together.

Nothing is imported here, and a verb's module only when the verb is called: help and mistakes must come at once.
"""
