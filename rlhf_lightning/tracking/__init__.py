"""What a run leaves behind: the history file of every run, W&B, TensorBoard, and the names that runs go by."""
