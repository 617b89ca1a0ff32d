"""A running summary of what left the FIFO, with older versions and the messages they stand for."""
