"""Other people's images -> answers: predictor, batcher, worker processes, HTTP."""
