"""Explanation methods, their faithfulness, and figures of their maps."""
