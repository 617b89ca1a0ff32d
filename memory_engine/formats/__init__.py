"""Messages in and out of the formats of model providers: one module for each."""
