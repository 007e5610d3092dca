"""Few-shot learning: episodes, baselines, meta-training; runs our compiled libraries on the host."""
