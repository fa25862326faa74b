"""What networks do on images, kept so that a page can show it without them: pictures, and maps softened over positions.

Nothing here knows of runs; `densekd.runs.looks` and `densekd.study.looks` say which networks and images.
"""
