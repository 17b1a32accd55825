"""Combinations of values for other libraries: PEFT LoRAs and merged models."""
