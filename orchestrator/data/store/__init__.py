"""The store on a node's scratch: objects by hash, versions made of them, and the views that runs read."""
