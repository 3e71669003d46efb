"""Training: settings, schedules, the executor, checkpoints and the loop over them."""
