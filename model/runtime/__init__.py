"""What surrounds the training loop: its processes, its batches, its reports, its spikes, and what ends it early."""
