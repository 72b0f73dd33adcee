"""The check before a job of several processes begins: unfit nodes are found, named, recorded and avoided."""
