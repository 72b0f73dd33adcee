"""Checks before a job with several processes begins: unfit nodes are found, named and recorded, and the job avoids them."""
