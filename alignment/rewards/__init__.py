"""Reward models: frozen CLAP embeddings, small heads trained on pairs, calibrated scores."""
