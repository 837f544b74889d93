"""The families of public ViTs: for each library, how it names tensors and, for transformers, its `config.json`."""
