"""Published data sets in their official layouts: files, label values, class names and colours, each in one file."""
