"""Data sets for segmentation, the transforms on them, and the views that training and evaluation read."""
