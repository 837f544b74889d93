"""The HTTP server: request handling, the scheduler of batches, and the worker processes that run the models."""
