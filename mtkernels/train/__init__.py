"""The reference trainer: Mean Teacher and its baselines, built on mtkernels' kernels. Start at loop.py."""
