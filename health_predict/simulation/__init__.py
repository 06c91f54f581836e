"""Time made fast: future batches sent to the running endpoint one after another, and all that follows from them."""
