"""What surrounds the training loop: processes, batches, reports, spikes, and what ends it early."""
