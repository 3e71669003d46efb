"""Inference: evaluation and prediction with every block's logits."""
