"""Sessions, loaders and streams for training loops, and adapters for training frameworks."""
