"""A run: data and a recipe in, a folder with a classifier and its pictures out.

Training, evaluation and explanation meet here; each of them knows nothing of the others.
"""
