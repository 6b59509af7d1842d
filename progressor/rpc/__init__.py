"""What a node offers on the network."""
