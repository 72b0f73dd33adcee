"""From answers to verdicts: `verdicts.py` joins and judges a model's answers, `rejudge.py` judges stored ones again."""
