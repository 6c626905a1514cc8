"""What validate_cost_model.py consists of: rows of published measurements, predictions, scores, a refit."""
