"""How far a run is: what elements write while they work, and what people read of it.

`progress.py` is the file in which an element keeps its progress, `notifications.py` publishes it and calls the user's command,
`logs.py` finds logs and the first error in them, and `state.py` derives the state of every element.
"""
