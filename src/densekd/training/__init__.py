"""Training on Accelerate: batcher, stepper, recorder, checkpointer, and the loop that joins them."""
