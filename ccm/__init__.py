"""The cluster connection manager: opens, maintains and closes the communication of a node's clients with its partners."""
