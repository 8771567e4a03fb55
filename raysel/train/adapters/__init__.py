"""A session under a framework with its own epoch loop: the Hugging Face Trainer, Accelerate and Lightning."""
