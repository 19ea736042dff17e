"""The cluster connection manager: opens, maintains and closes what a node's clients have with its partners."""
