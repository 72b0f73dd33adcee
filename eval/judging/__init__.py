"""From answers to verdicts: `merge` judges a model's answers, `rejudge` judges stored ones with another judge."""
