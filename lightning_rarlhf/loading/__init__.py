"""From a hub id or a folder to a network that can be trained, or a line that says why not."""
