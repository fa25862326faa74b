"""What a network is trained for: the task's loss and how its output becomes a prediction."""
