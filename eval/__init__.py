"""What the model does: decoders, attacks, judges, probes, statistics, figures and the report."""
