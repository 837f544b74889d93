"""Weight files: artifacts, public checkpoints, and the layouts of other libraries."""
