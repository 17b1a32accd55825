"""What `enable_flix` makes of the class of a model."""
