"""The dialects of the engines that this project speaks to."""
